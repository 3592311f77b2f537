"""LayerComparison beside definitions that make the S × S matrices, in float64."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import torch

from sdsd.geometry import LayerComparison, cosine_between
from sdsd.geometry.comparing import comparison as module
from sdsd.geometry.comparing import match_by_cosine

MEASURES = ("cka", "debiased", "rsa", "procrustes")


def two_layers(samples=200, n=14, m=9, *, offset=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(samples + n)
    x = torch.randn(samples, n, generator=generator, dtype=torch.float64) * torch.linspace(0.1, 3, n) + offset
    y = (x @ torch.randn(n, m, generator=generator, dtype=torch.float64)).relu()
    return x.to(dtype), (y + torch.randn(samples, m, generator=generator, dtype=torch.float64)).to(dtype)


def measured(comparison):
    return {
        "cka": comparison.cka(),
        "debiased": comparison.cka(debiased=True),
        "rsa": comparison.rsa(),
        "procrustes": comparison.procrustes(),
    }


def wanted(x, y):
    """From the definitions: matrices of products and of distances between samples."""
    x, y = (each.double() - each.double().mean(0) for each in (x, y))
    k, m, count = x @ x.T, y @ y.T, len(x)

    def unbiased(one, other):
        one, other = one.clone().fill_diagonal_(0), other.clone().fill_diagonal_(0)
        trace, sums = (one @ other).trace(), one.sum() * other.sum() / ((count - 1) * (count - 2))
        return trace + sums - 2 / (count - 2) * (one @ other).sum()

    distances = [torch.pdist(each).square().numpy() for each in (x, y)]
    return {
        "cka": ((k * m).sum() / (k.norm() * m.norm())).item(),
        "debiased": (unbiased(k, m) / (unbiased(k, k) * unbiased(m, m)).sqrt()).item(),
        "rsa": np.corrcoef(*distances)[0, 1],
        "procrustes": (torch.linalg.matrix_norm(x.T @ y, "nuc") / (x.norm() * y.norm())).item(),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("samples", [5, 200, 1500])
def test_every_measure_is_its_definition_within_the_rounding_it_states(samples, dtype):
    x, y = two_layers(samples, dtype=dtype)
    found, definition = measured(LayerComparison.of(x, y)), wanted(x, y)
    for name in MEASURES:
        assert abs(found[name].value - definition[name]) <= found[name].rounding, name
        assert found[name].rounding < (1e-3 if dtype == torch.float32 else 1e-10), name
        assert float(found[name]) == found[name].value
        assert found[name].samples == samples


def test_batches_in_any_order_and_of_any_size():
    x, y = two_layers(900)
    once, order = measured(LayerComparison.of(x, y)), torch.randperm(900)
    comparison = LayerComparison(14, 9, dtype=torch.float64)
    # The first batch is a single sample, far from the mean about which lengths are needed in the end.
    for part in (order[:1], order[1:1], order[1:300], order[300:]):
        comparison.update(x[part], y[part])
    assert comparison.samples == 900
    for name, value in measured(comparison).items():
        assert abs(value.value - once[name].value) <= value.rounding + once[name].rounding, name


def test_float32_far_from_zero():
    """Means a thousand times the spread: what is rounded of the inputs is no error of ours."""
    x, y = two_layers(600, offset=0)
    x, y = (x + 1000).float(), (y + 1000).float()
    definition = wanted(x, y)
    for name, value in measured(LayerComparison.of(x, y)).items():
        assert abs(value.value - definition[name]) <= value.rounding, name


@pytest.mark.parametrize("name", MEASURES)
def test_what_measures_do_not_see(name):
    x, y = two_layers()
    rotation = torch.linalg.qr(torch.randn(9, 9, dtype=torch.float64)).Q
    plain = measured(LayerComparison.of(x, y))[name].value
    for other in (y @ rotation, 7 * y, y + 5, y[:, torch.randperm(9)], -y):
        assert abs(measured(LayerComparison.of(x, other))[name].value - plain) < 1e-9
    assert abs(measured(LayerComparison.of(y, x))[name].value - plain) < 1e-9
    assert abs(measured(LayerComparison.of(y, 3 * y @ rotation))[name].value - 1) < 1e-9
    # A map that is no rotation is seen.
    assert abs(measured(LayerComparison.of(x, y * torch.linspace(0.1, 3, 9)))[name].value - plain) > 1e-3


def test_unrelated_layers_and_few_samples():
    """The biased estimate comes to √(n m / ((S + n)(S + m))), the debiased one to 0."""
    generator = torch.Generator().manual_seed(0)
    biased, debiased = [], []
    for _ in range(40):
        comparison = LayerComparison.of(*torch.randn(2, 60, 40, generator=generator, dtype=torch.float64))
        biased.append(float(comparison.cka()))
        debiased.append(float(comparison.cka(debiased=True)))
    assert abs(np.mean(biased) - 40 / 100) < 0.02
    assert abs(np.mean(debiased)) < 3 * np.std(debiased) / math.sqrt(40)
    assert np.std(debiased) > 1e-3


def test_the_rotation_is_the_best_one():
    x, y = two_layers()
    comparison = LayerComparison.of(x, y)
    rotation = comparison.rotation()
    assert rotation.shape == (14, 9)
    assert torch.allclose(rotation.T @ rotation, torch.eye(9, dtype=torch.float64), atol=1e-12)
    x, y = ((each - each.mean(0)) / (each - each.mean(0)).norm() for each in (x, y))
    # trace(Qᵀ Xᵀ Y) is the nuclear norm at the best Q, and below it at any other.
    best = (rotation * (x.T @ y)).sum().item()
    assert abs(best - comparison.procrustes().value) < 1e-12
    for _ in range(20):
        other = torch.linalg.qr(rotation + 0.1 * torch.randn(14, 9, dtype=torch.float64)).Q
        assert (other * (x.T @ y)).sum().item() < best


def test_cosines_and_matching_come_from_the_same_sums():
    x, y = two_layers()
    comparison = LayerComparison.of(x, y)
    for center in (False, True):
        assert torch.allclose(comparison.cosine(center=center), cosine_between(x, y, center=center), atol=1e-12)
    for center in (False, True):
        matching, wanted = comparison.match(center=center), match_by_cosine(cosine_between(x, y, center=center))
        assert matching.one.tolist() == wanted.one.tolist()
        assert matching.other.tolist() == wanted.other.tolist()
        assert len(matching) == 9


def test_layouts():
    x, y = two_layers(6 * 4 * 5)
    images = x.view(6, 4, 5, 14).permute(0, 3, 1, 2)
    tokens = y.view(6, 20, 9)
    assert float(LayerComparison.of(images, tokens).cka()) == pytest.approx(float(LayerComparison.of(x, y).cka()))
    assert float(LayerComparison.of(x.T.numpy(), y.T.numpy(), neuron_dim=0).cka()) == pytest.approx(
        float(LayerComparison.of(x, y).cka())
    )


def test_refusals():
    x, y = two_layers(20)
    comparison = LayerComparison(14, 9, dtype=torch.float64)
    with pytest.raises(ValueError, match="expected at least 2 samples, got 0"):
        comparison.cka()
    with pytest.raises(ValueError, match="y: expected 20 samples in torch.float64 on cpu like x, got 19"):
        comparison.update(x, y[1:])
    with pytest.raises(ValueError, match="x: expected 14 neurons, as the comparison was made for, got 9"):
        comparison.update(y, x)
    broken = y.clone()
    broken[3, 2] = math.nan
    with pytest.raises(ValueError, match="NaN or an infinity in 0 neurons of x and 1 of y"):
        comparison.update(x, broken)
    assert comparison.samples == 0
    comparison.update(x, torch.ones_like(y))
    for measure in (comparison.cka, comparison.rsa, comparison.procrustes):
        with pytest.raises(ValueError, match="second layer does not vary"):
            measure()
    few = LayerComparison.of(x[:3], y[:3])
    with pytest.raises(ValueError, match="expected at least 4 samples, got 3"):
        few.cka(debiased=True)
    with pytest.raises(ValueError, match="n: "):
        LayerComparison(0, 3)
    assert str(LayerComparison(2, 3)) == "LayerComparison(2 and 3 neurons, 0 samples)"
    with pytest.raises(ValueError, match="backend: expected one of 'triton', 'torch', got 'numpy'"):
        LayerComparison(2, 3, backend="numpy")
    with pytest.raises(ValueError, match="activations: expected device meta like the accumulator, got cpu"):
        LayerComparison(2, 3, device="meta").update(torch.ones(4, 2), torch.ones(4, 3))


def test_examples():
    assert doctest.testmod(module).failed == 0
