"""The top eigenvalue of the Hessian: against the whole matrix, and along an orbit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sdsd.theory import canonicalize, gradient_rows, random_representative, sharpness

from . import models

DRAW = torch.Generator().manual_seed(1)
INPUTS = torch.randn(200, 6, generator=DRAW, dtype=torch.float64)
LABELS = (INPUTS[:, :3] + 0.5 * torch.randn(200, 3, generator=DRAW, dtype=torch.float64)).argmax(1)
DATA = (INPUTS, LABELS)


def loss_of(model: nn.Module, batch) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def exact(model: nn.Module) -> float:
    """By the whole Hessian of torch.func."""
    names, values = zip(*((name, value.detach()) for name, value in model.named_parameters()), strict=True)
    sizes = [value.numel() for value in values]

    def loss(flat: Tensor) -> Tensor:
        parts = {n: p.view_as(v) for n, p, v in zip(names, flat.split(sizes), values, strict=True)}
        return cross_entropy(torch.func.functional_call(model, parts, (INPUTS,)), LABELS)

    hessian = torch.func.hessian(loss)(torch.cat([value.flatten() for value in values]))
    return torch.linalg.eigvalsh(hessian)[-1].item()


def test_it_is_the_largest_eigenvalue(model):
    found = sharpness(model, DATA, loss_of, canonicalize=False)
    assert found.value == pytest.approx(exact(model), rel=2e-4)
    assert found.error <= 1e-4 * found.value
    assert sharpness(model, DATA, loss_of).value == pytest.approx(exact(canonicalize(model)), rel=2e-4)
    loader = [(INPUTS[:150], LABELS[:150]), (INPUTS[150:], LABELS[150:])]
    assert sharpness(model, loader, loss_of).value == pytest.approx(exact(canonicalize(model)), rel=2e-4)


def test_the_largest_may_be_negative_or_not_the_largest_in_size():
    class Saddle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    for curvature in ([-9.0, 1.0, 2.0], [-9.0, -2.0, -1.0], [4.0, 4.0, 4.0]):
        h = torch.tensor(curvature, dtype=torch.float64)
        found = sharpness(Saddle(), torch.zeros(1), lambda m, x, h=h: (h * m.w.square()).sum() / 2, canonicalize=False)
        assert found.value == pytest.approx(max(curvature))
    flat = sharpness(Saddle(), torch.zeros(1), lambda m, x: m.w.sum(), canonicalize=False)
    assert (flat.value, flat.error) == (0.0, 0.0)


def test_it_is_one_number_along_an_orbit_and_without_canonicalize_any(model):
    points = [random_representative(model, spread=2.0, seed=seed) for seed in range(4)]
    reference = sharpness(model, DATA, loss_of, tolerance=1e-8).value
    for point in points:
        assert sharpness(point, DATA, loss_of, tolerance=1e-8).value == pytest.approx(reference, rel=1e-6)
    as_they_are = [sharpness(point, DATA, loss_of, canonicalize=False).value for point in points]
    assert max(as_they_are) > 3 * min(as_they_are)
    assert max(as_they_are) > 3 * reference


@pytest.mark.parametrize("name", ["convolutional", "residual", "layer_norm"])
def test_orbits_of_other_networks(name):
    """With norms, residual adds and convolutions between, in eval mode."""
    torch.manual_seed(0)
    network = models.make(name).eval()
    x = models.inputs(name, 20)

    def square(model: nn.Module, batch: Tensor) -> Tensor:
        return (model(batch) - 1).square().mean()

    here, *others = (
        sharpness(point, x, square, tolerance=1e-7, example_input=x, seed=1).value
        for point in (network, *(random_representative(network, seed=seed, example_input=x) for seed in (0, 1)))
    )
    assert others == pytest.approx([here, here], rel=1e-5)


def test_too_few_products(model):
    with pytest.raises(RuntimeError, match="after 2 products the value .* Take a larger tolerance or most_products"):
        sharpness(model, DATA, loss_of, most_products=2)
    with pytest.raises(ValueError, match="tolerance: expected a number above 0"):
        sharpness(model, DATA, loss_of, tolerance=0.0)
    assert "at the canonical representative" in str(sharpness(model, DATA, loss_of))


def test_parameters_that_are_frozen_or_not_finite_and_gradients_of_no_samples_are_refused(model):
    frozen, broken = copy.deepcopy(model).requires_grad_(False), copy.deepcopy(model)
    next(broken.parameters()).data.fill_(torch.nan)
    with pytest.raises(ValueError, match="at least one parameter that requires a gradient, got none"):
        sharpness(frozen, DATA, loss_of, canonicalize=False)
    with pytest.raises(ValueError, match="expected finite parameters, got NaN or infinity"):
        sharpness(broken, DATA, loss_of, canonicalize=False)
    with pytest.raises(ValueError, match="at least one parameter that requires a gradient, got none"):
        gradient_rows(frozen, loss_of, DATA, 1)
    for wrong in (0, -2, True, 1.5):
        with pytest.raises(ValueError, match="samples_per_gradient: expected a whole number, at least 1, got"):
            gradient_rows(model, loss_of, DATA, wrong)
    with pytest.raises(ValueError, match="its 200 samples do not divide into gradients of 3"):
        gradient_rows(model, loss_of, DATA, 3)


def test_a_number_beside_the_samples_is_the_same_for_all(model):
    """A tensor without dimensions in a batch has no samples, and reaches the loss as it is."""

    def scaled(model: nn.Module, batch) -> Tensor:
        assert batch["scale"].ndim == 0
        return cross_entropy(model(batch["x"]) * batch["scale"], batch["y"])

    batch = {"x": INPUTS[:8], "y": LABELS[:8], "scale": torch.tensor(2.0).double()}
    rows = gradient_rows(model, scaled, batch, 1)
    for k in range(8):
        part = {"x": INPUTS[k : k + 1], "y": LABELS[k : k + 1], "scale": batch["scale"]}
        wanted = torch.autograd.grad(scaled(model, part), list(model.parameters()))
        assert torch.allclose(rows[k], torch.cat([each.flatten() for each in wanted]), rtol=1e-10, atol=1e-12)
