"""Losses and controls that a biopsy takes, and what it refuses."""

from __future__ import annotations

import copy
import doctest
import importlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sdsd.geometry.merging.biopsy import biopsy, mass_consolidation
from sdsd.geometry.merging.controls import sgd_training, shuffled_pixels, trained, untrained, weight_cosine
from sdsd.geometry.merging.merge import merge
from sdsd.geometry.merging.plasticity import plasticity
from sdsd.geometry.merging.sensitivity import cosine_to_untouched, kl_to_untouched, mean_loss
from tests.geometry.networks import cnn, mlp

from .biopsies import Digits, X, Y, digit_loss, small_loss


def test_mean_loss_weighs_batches_by_size():
    batches = list(zip(X.split(16), Y.split(16), strict=True))
    model = mlp()
    loss = mean_loss(batches, digit_loss)
    assert loss(model) == pytest.approx(small_loss(model).item(), rel=1e-6)
    named = [{"x": x, "y": y} for x, y in batches]
    by_name = mean_loss(named, lambda model, batch: cross_entropy(model(batch["x"]), batch["y"]))
    assert by_name(model) == loss(model)


def test_kl_and_cosine_against_torch():
    model = mlp().train()
    batches = [X[:25], X[25:]]
    divergence, turned = kl_to_untouched(model, batches), cosine_to_untouched(model, [(x, 0) for x in batches])
    assert model.training
    assert divergence(model) == 0
    assert abs(turned(model)) < 1e-12
    with torch.no_grad():
        before = model(X)
        with merge(model, "0", [(0, 1)]):
            now = model(X)
            kl = nn.functional.kl_div(now.log_softmax(1), before.log_softmax(1), log_target=True, reduction="batchmean")
            assert divergence(model) == pytest.approx(kl.item(), rel=1e-4)
            assert turned(model) == pytest.approx(
                (1 - nn.functional.cosine_similarity(before, now)).mean().item(), rel=1e-4
            )
    named = kl_to_untouched(model, [{"input": x} for x in batches])
    assert named(model) == 0
    forward = kl_to_untouched(model, batches, lambda model, batch: model(-batch))
    assert forward(model) == 0


def test_untrained_networks_are_fresh_copies():
    model = cnn()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    fresh = untrained(model, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.manual_seed(5)
    torch.testing.assert_close(fresh[0].weight, nn.Conv2d(2, 6, 3).weight)
    assert fresh[1].running_var.eq(1).all()
    assert torch.equal(untrained(model, 5)[6].weight, fresh[6].weight)
    assert not torch.equal(untrained(model, 6)[6].weight, fresh[6].weight)
    model.token = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="'token' belong to modules without reset_parameters"):
        untrained(model)


@pytest.mark.parametrize("shape", [(20, 64), (20, 3, 4, 5), (20, 2, 3, 2, 2)])
def test_shuffled_pixels_keep_what_is_in_an_image(shape):
    images = torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(shape)
    shuffled = shuffled_pixels(images, seed=1)
    assert shuffled.shape == images.shape
    assert torch.equal(shuffled_pixels(images, seed=1), shuffled)
    flat, mixed = (t.reshape(20, 1 if len(shape) == 2 else shape[1], -1) for t in (images, shuffled))
    assert torch.equal(mixed.sort(2).values, flat)
    orders = (mixed - flat[:, :, :1]).long()
    assert (orders == orders[:, :1]).all()  # one order for all channels of an image
    assert len({tuple(order.tolist()) for order in orders[:, 0]}) == 20  # another for each image


def test_weight_cosine_against_numpy():
    for model, layer, dim in ((cnn(), "0", 0), (nn.Sequential(nn.ConvTranspose1d(2, 5, 3)), "0", 1)):
        rows = model[0].weight.detach().movedim(dim, 0).flatten(1).numpy().astype(np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        assert np.allclose(weight_cosine(model, layer).numpy(), rows @ rows.T, atol=1e-6)


def test_the_control_network_learns_nothing_of_shuffled_images():
    pytest.importorskip("sklearn")
    control = Digits(0, shuffled=True)
    assert control.accuracy(control.network) < 0.4
    assert control.accuracy(trained(control.network, sgd_training(control.loader, digit_loss), 0)) == control.accuracy(
        control.network
    )


def test_trained_does_not_touch_what_it_copies():
    model = mlp().train()
    before = copy.deepcopy(model.state_dict())
    data, state = [(X, Y)], torch.get_rng_state()
    once, twice = (trained(model, sgd_training(data, digit_loss), 2, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(once[0].weight, twice[0].weight)
    assert not torch.equal(once[0].weight, model[0].weight)
    assert small_loss(once) < small_loss(model)


CASES = [
    ({"layer": "hidden"}, ValueError, "no layer 'hidden'. Did you mean"),
    ({"how": "median"}, ValueError, "how: expected one of"),
    ({"how": "act", "layer": "4", "activations": torch.rand(9, 3)}, ValueError, "the model's output"),
    ({"pairs": 0}, ValueError, "pairs: expected a whole number"),
    ({"pairs": 1.5}, ValueError, "pairs: expected a whole number"),
    ({"seed": -1}, ValueError, "seed: expected a whole number"),
    ({"confidence": 95}, ValueError, "confidence: expected a number between 0 and 1"),
    ({"activations": None}, ValueError, "expected one of them, got neither"),
    ({"cosine": torch.eye(6)}, ValueError, "expected one of them, got both"),
    ({"activations": None, "cosine": torch.eye(5)}, ValueError, r"expected \(6, 6\).*got \(5, 5\)"),
    ({"activations": None, "cosine": torch.eye(6), "how": "absorb"}, ValueError, "needs activations= or gram="),
    ({"activations": None, "cosine": torch.eye(6), "alive": torch.ones(6)}, ValueError, "6 booleans"),
    ({"activations": torch.rand(9, 7)}, ValueError, "samples of 6 neurons, got 7"),
    ({"activations": torch.rand(0, 6)}, ValueError, "0 samples"),
    ({"activations": torch.zeros(9, 6)}, ValueError, "0 of the 6 neurons of '0' are alive"),
    ({"activations": torch.eye(6)[:1].expand(9, 6)}, ValueError, "1 of the 6 neurons of '0' are alive"),
    ({"loss": 3.0}, TypeError, "expected a function of the model"),
    ({"loss": ([], digit_loss)}, ValueError, "loader: expected at least one batch"),
    ({"loss": (iter([(X, Y)]), digit_loss)}, ValueError, "A generator is empty after its first reading"),
    ({"loss": lambda model: model(X)}, TypeError, r"expected one number.*shape \(40, 3\)"),
    ({"loss": lambda model: None}, TypeError, "expected one number.*NoneType"),
    ({"loss": lambda model: torch.tensor(torch.nan)}, ValueError, "got nan of the untouched network"),
    ({"progress": "bar"}, TypeError, "progress: expected"),
]


@pytest.mark.parametrize("measure", [biopsy, mass_consolidation])
@pytest.mark.parametrize(("changed", "error", "says"), CASES, ids=[case[2] for case in CASES])
def test_bad_input(changed, error, says, measure):
    model = mlp().train()
    before = copy.deepcopy(model.state_dict())
    options = {"layer": "0", "loss": small_loss, "pairs": 2, "activations": torch.rand(9, 6), **changed}
    with pytest.raises(error, match=says):
        measure(model, **options)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_loss_that_is_nan_after_a_merge_names_it():
    model = mlp()
    weight = model[0].weight.clone()

    def loss(network):
        return torch.tensor(torch.nan) if not torch.equal(network[0].weight, weight) else network(X).mean()

    with pytest.raises(ValueError, match=r"got nan with pair \(\d, \d\) merged"):
        biopsy(model, "0", loss, 2, activations=torch.rand(9, 6))
    with pytest.raises(ValueError, match="got nan with 2 pairs merged"):
        mass_consolidation(model, "0", loss, 2, activations=torch.rand(9, 6))
    assert torch.equal(model[0].weight, weight)


def test_bad_input_elsewhere():
    model = mlp()
    activations = torch.rand(9, 6)
    with pytest.raises(ValueError, match="random_pairings"):
        mass_consolidation(model, "0", small_loss, activations=activations, random_pairings=1)
    train = sgd_training([(X, Y)], digit_loss)
    with pytest.raises(ValueError, match="epochs"):
        plasticity(model, "0", train, small_loss, activations=activations, epochs=0)
    with pytest.raises(ValueError, match="yields after each of 5 epochs, got 0"):
        plasticity(model, "0", lambda model: iter(()), small_loss, activations=activations)
    with pytest.raises(ValueError, match="loader: expected at least one batch"):
        plasticity(model, "0", sgd_training([], digit_loss), small_loss, activations=activations)
    with pytest.raises(TypeError, match="accuracy: expected one number"):
        plasticity(model, "0", train, lambda model: model(X), activations=activations)
    for make in (kl_to_untouched, cosine_to_untouched):
        with pytest.raises(ValueError, match="loader: expected at least one batch"):
            make(model, [])
        with pytest.raises(ValueError, match="the same 1 batches each time, got 0"):
            make(model, iter([X]))(model)
    for shape in ((3,), (3, 8, 8)):
        with pytest.raises(ValueError, match=r"unsqueeze\(1\)"):
            shuffled_pixels(torch.rand(shape))
    with pytest.raises(TypeError, match="which is ReLU"):
        weight_cosine(model, "1")


@pytest.mark.parametrize("module", ["biopsy", "plasticity", "sensitivity"])
def test_examples_in_the_docstrings(module):
    assert doctest.testmod(importlib.import_module(f"sdsd.geometry.merging.{module}")).failed == 0
