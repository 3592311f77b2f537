"""Operations without a rule of their own under autocast, whose backward pass runs after it, as torch advises."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sdsd
from tests.zoo.parts import Net, parameter


def written(m, x):
    out = torch.zeros(len(x), 8, dtype=m.first(x).dtype)
    for i in range(len(x)):
        out[i] = m.first(x[i]).mean(0)
        out[i] *= m.gain
    return out


MODELS = {
    "einsum": lambda: Net(lambda m, x: torch.einsum("ntd,hde->nhte", m.first(x), m.weight), weight=parameter(3, 8, 4)),
    "a product in batches": lambda: Net(lambda m, x: m.first(x)[:, None] @ m.weight, weight=parameter(3, 8, 4)),
    "LSTM": lambda: Net(lambda m, x: m.last(m.first(x))[0], last=nn.LSTM(8, 8, batch_first=True)),
    "layers on each sample": lambda: Net(
        lambda m, x: torch.stack([m.last(m.first(row).tanh()) for row in x]), last=nn.Linear(8, 3)
    ),
    "a GRU on each sample": lambda: Net(
        lambda m, x: torch.stack([m.last(m.first(row))[0] for row in x]), last=nn.GRU(8, 8, batch_first=True)
    ),
    "written and scaled in place": lambda: Net(written, gain=parameter(8)),
}


@pytest.mark.parametrize("inside", [False, True], ids=["after", "inside"])
@pytest.mark.parametrize("name", MODELS)
def test_measured_as_without_it_but_for_rounding(name, inside):
    x, noise = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(2)), {}
    for half in (False, True):
        torch.manual_seed(0)
        model = MODELS[name]()
        model.first = nn.Linear(8, 8)
        monitor = sdsd.GammaMonitor(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model(x).flatten(1).float().square().sum(1).mean()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        noise[half] = {key: each.noise for key, each in monitor.step().parameters.items()}
    assert noise[True] == pytest.approx(noise[False], rel=0.1, abs=0.02 * max(noise[False].values()))


LAYERS = {
    "linear": lambda: nn.Linear(8, 4),
    "convolution": lambda: nn.Conv1d(5, 3, 3),
    "attention": lambda: Net(lambda m, x: m.attend(x, x, x)[0], attend=nn.MultiheadAttention(8, 2, batch_first=True)),
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", LAYERS)
def test_float64_is_left_alone_as_torch_leaves_it(name, compiled):
    x, outputs = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64), []
    for watched in (False, True):
        torch.manual_seed(0)
        model = LAYERS[name]().double()
        monitor = sdsd.GammaMonitor(model) if watched else None
        run = torch.compile(model, backend="eager") if compiled else model
        for _ in range(2):  # the second one by the plan of the first
            with torch.autocast("cpu", torch.bfloat16):
                outputs.append(run(x))
            outputs[-1].square().sum(dim=(1, 2)).mean().backward()
            if monitor is not None:
                assert monitor.step() is not None
            model.zero_grad()
    assert {y.dtype for y in outputs} == {torch.float64}
    for y in outputs:  # bfloat16 has two digits
        torch.testing.assert_close(y, outputs[0], rtol=1e-12, atol=1e-12)
