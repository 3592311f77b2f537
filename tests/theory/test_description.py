"""Bits of a rounded network: a code that can be decoded, the coarsest rounding that keeps the loss, and the bound."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from sdsd.theory import description_length, random_representative
from sdsd.theory.landscape.description import code_length


def test_the_code_is_that_of_sequential_prediction():
    """Krichevsky and Trofimov: symbol s has probability (count of s + ½) / (seen + A/2), one after the other."""
    integers = [0, 0, 1, -2, 0, 1, 0, 0]
    seen: dict[int, int] = {}
    bits = 0.0
    for place, symbol in enumerate(integers):
        bits -= math.log2((seen.get(symbol, 0) + 0.5) / (place + 2.5))
        seen[symbol] = seen.get(symbol, 0) + 1
    assert code_length(torch.tensor(integers)) == pytest.approx(bits + 3)  # m = 2: γ(3) has 3 bits


def test_no_more_words_than_a_code_has():
    """Kraft: Σ 2^−length over all sequences of three integers up to any size is at most 1."""
    total = sum(2 ** -code_length(torch.tensor(sequence)) for sequence in itertools.product(range(-6, 7), repeat=3))
    assert 0.5 < total <= 1


def network() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    x = torch.randn(200, 6)
    return model, x, model(x).argmax(1)


def errors(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]).argmax(1) != batch[1]).double().mean()


def test_it_is_the_coarsest_rounding_that_keeps_the_loss():
    model, x, y = network()
    found = description_length(model, (x, y), errors, tolerance=0.02, canonicalize=False)
    assert found.loss == 0
    assert found.rounded_loss <= 0.02
    assert errors(found.model, (x, y)).item() == found.rounded_loss
    bits = 8.0  # the exponent
    for parameter, rounded in zip(model.parameters(), found.model.parameters(), strict=True):
        step = 2.0**found.exponent * parameter.detach().square().mean().sqrt()
        assert torch.allclose(rounded / step, (rounded / step).round(), atol=1e-4)
        assert (rounded - parameter).abs().max() <= step * 0.5001
        wholes = (rounded.detach() / step).round().long().flatten()
        bits += 32 + code_length(wholes)  # the step, and its multiples
    assert found.bits == pytest.approx(bits)
    with torch.no_grad():
        for parameter in model.parameters():
            step = 2.0 ** (found.exponent + 0.25) * parameter.square().mean().sqrt()
            parameter.copy_((parameter / step).round() * step)
    assert errors(model, (x, y)) > 0.02
    finer = description_length(network()[0], (x, y), errors, tolerance=0.0, canonicalize=False)
    assert finer.exponent < found.exponent
    assert finer.bits > found.bits
    assert f"{found.bits:,.0f} bits" in str(found)


def test_one_number_for_the_orbit():
    model, x, y = network()
    moved = random_representative(model, spread=1.0, seed=2)
    bits = [description_length(each, (x, y), errors).bits for each in (model, moved)]
    assert bits[0] == pytest.approx(bits[1], rel=0.01)
    raw = [description_length(each, (x, y), errors, canonicalize=False).bits for each in (model, moved)]
    assert abs(raw[0] - raw[1]) > 0.05 * raw[0]


def test_the_bound():
    model, x, y = network()
    found = description_length(model, (x, y), errors)
    assert found.bound(1000) == pytest.approx(math.sqrt((found.bits * math.log(2) + math.log(20)) / 2000))
    with pytest.raises(ValueError, match="samples: expected a whole number"):
        found.bound(0)
    with pytest.raises(ValueError, match="confidence: expected a number between 0 and 1"):
        found.bound(10, 1.0)
    with pytest.raises(ValueError, match="tolerance: expected a number, 0 or more"):
        description_length(model, (x, y), errors, tolerance=-1.0)
    exactly = model[0].weight.detach().clone()
    with pytest.raises(ValueError, match="no step down to 2\\^-20"):
        description_length(
            model, (x, y), lambda m, b: 1e12 * (m[0].weight - exactly).abs().sum(), canonicalize=False, tolerance=0.0
        )
