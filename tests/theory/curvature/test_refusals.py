"""What curvature refuses, and in which words."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import sdsd
from sdsd.theory import CurvatureObserver, curvature_gamma

from .bowls import cross_entropy, network, samples


def test_errors_say_what_is_wrong():
    model, batch = network(), samples(8)
    good = {"learning_rate": 0.1, "batch_size": 2}

    def call(changed=None, model=model, batch=batch, loss_fn=cross_entropy):
        return curvature_gamma(model, loss_fn, batch, **{**good, **(changed or {})})

    for name, values in {
        "learning_rate": (0, -1.0, math.inf, math.nan),
        "batch_size": (0, -2, 1.5, True),
        "samples_per_gradient": (0, 2.0),
        "population": (0, -5),
        "chunk_size": (0,),
        "max_bytes": (0, 1.5),
        "probes": (1, -1, 2.5),
    }.items():
        for value in values:
            with pytest.raises(ValueError, match=rf"^{name}: expected"):
                call({name: value})
    with pytest.raises(ValueError, match="population: expected at least the 8 samples drawn from it, got 5"):
        call({"population": 5})
    with pytest.raises(ValueError, match="expected at least 4 gradients of 5 samples, got 8.*Two halves need two"):
        call({"samples_per_gradient": 5})
    with pytest.raises(ValueError, match=r"expected at least 2 gradients of 5 samples, got 8 samples\.$"):
        call({"samples_per_gradient": 5, "curvature_batch": batch})
    with pytest.raises(ValueError, match="max_bytes: expected at least 992, 32 bytes for each of 31 parameters"):
        call({"max_bytes": 991})
    with pytest.raises(ValueError, match="its 13 samples do not divide into gradients of 3"):
        call({"samples_per_gradient": 3}, batch=samples(13))
    with pytest.raises(ValueError, match=r"one common first dimension, got lengths \[7, 8\]"):
        call(batch=(batch[0], batch[1][:7]))
    with pytest.raises(ValueError, match=r"one common first dimension, got lengths \[\]"):
        call(batch="nothing")
    with pytest.raises(ValueError, match=r"curvature_batch: .*got lengths \[7, 8\]"):
        call({"curvature_batch": (batch[0], batch[1][:7])})
    with pytest.raises(ValueError, match=r"loss_fn: expected one number, the batch's mean loss, got \(8, 3\)|\(1, 3\)"):
        call(loss_fn=lambda model, batch: model(batch[0]))
    with pytest.raises(ValueError, match="gradients hold NaN or infinity"):
        call(batch=(batch[0] * math.nan, batch[1]))
    with pytest.raises(ValueError, match="1 is a BatchNorm in train mode"):
        call(model=nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double())
    with pytest.raises(ValueError, match="at least one parameter that requires a gradient"):
        call(model=nn.Flatten())


def test_preconditioners_have_to_fit():
    model, batch = network(), samples(8)

    def call(precondition):
        return curvature_gamma(model, cross_entropy, batch, learning_rate=0.1, batch_size=2, precondition=precondition)

    ones = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    with pytest.raises(ValueError, match=r"expected shape \(4,\) for 0.bias, got \(3,\)"):
        call({**ones, "0.bias": torch.ones(3)})
    with pytest.raises(ValueError, match="nothing for 0.bias"):
        call({name: value for name, value in ones.items() if name != "0.bias"})
    with pytest.raises(ValueError, match="nothing for 0.weight. An optimizer knows its scale after its first step"):
        call(torch.optim.Adam(model.parameters()))
    with pytest.raises(ValueError, match="expected an Adam, AdamW or RMSprop optimizer, got SGD"):
        call(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="the optimizer does not hold 2.weight, 2.bias"):
        call(torch.optim.Adam(model[0].parameters()))
    with pytest.raises(TypeError, match="expected an optimizer or a mapping"):
        call([torch.ones(3)])


def test_observers_have_to_be_set_up_right():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="either an optimizer"):
        CurvatureObserver(cross_entropy, [])
    with pytest.raises(ValueError, match="either an optimizer"):
        CurvatureObserver(cross_entropy, [], optimizer=optimizer, learning_rate=0.1)
    with pytest.raises(ValueError, match="every: expected a whole number of steps"):
        CurvatureObserver(cross_entropy, [], learning_rate=0.1, every=0)
    with pytest.raises(ValueError, match="got SGD"):
        CurvatureObserver(cross_entropy, [], optimizer=optimizer, precondition=True)
    with pytest.raises(ValueError, match="needs the optimizer"):
        CurvatureObserver(cross_entropy, [], learning_rate=0.1, precondition=True)

    def step(observer):
        with sdsd.GammaMonitor(model) as monitor:
            monitor.add_observer(observer)
            cross_entropy(model, samples(8)).backward()
            monitor.step()

    with pytest.raises(ValueError, match="batches: expected at least one batch"):
        step(CurvatureObserver(cross_entropy, [], learning_rate=0.1))
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters(), "lr": 0.2}]
    model.zero_grad()
    with pytest.raises(ValueError, match=r"expected one learning rate for all parameters, got \[0.1, 0.2\]"):
        step(CurvatureObserver(cross_entropy, [samples(8)], optimizer=torch.optim.SGD(groups)))
