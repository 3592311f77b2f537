"""Γ of the quotient is one number for an orbit."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

import sdsd
from sdsd.theory.quotient import (
    canonicalize,
    quotient_gamma,
    random_representative,
)

from ..models import inputs, make
from .gradients import flat, labels, squared_norm


def gradient(model, x, y):
    loss = functional.cross_entropy(model(x).flatten(0, -2), y)
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True))


def mean_loss(model, batch):
    x, y = batch
    return functional.cross_entropy(model(x), y)


@pytest.mark.parametrize(
    ("name", "dtype"), [("mlp", torch.float32), ("layer_norm", torch.float32), ("residual", torch.float64)]
)
def test_gamma_of_the_quotient_is_one_number_for_an_orbit(name, dtype):
    model = make(name, dtype)
    x = inputs(name, 24, dtype)
    y = labels(model, x)
    samples = [(x[i : i + 1], y[i : i + 1]) for i in range(len(x))]

    def measured(point):
        return quotient_gamma(point, samples, mean_loss, n_samples=24), squared_norm(gradient(point, x, y).values())

    stats, raw = measured(model)
    gammas, squares, plain = [stats.gamma], [raw], [sdsd.compute_gamma(model, samples, mean_loss, 24).gamma]
    for seed in range(3):
        point = random_representative(model, seed=seed)
        stats, raw = measured(point)
        gammas.append(stats.gamma)
        squares.append(raw)
        plain.append(sdsd.compute_gamma(point, samples, mean_loss, 24).gamma)
    assert max(gammas) / min(gammas) - 1 <= 1e-5
    assert max(squares) > 2 * min(squares)
    assert max(plain) / min(plain) - 1 > 1e-2


def test_gamma_of_the_quotient_is_gamma_at_the_canonical_point():
    model = make("mlp")
    x, y = inputs("mlp", 32), torch.randint(0, 3, (32,))
    samples = [(x[i : i + 1], y[i : i + 1]) for i in range(32)]
    canonical = canonicalize(model)
    rows = torch.stack([flat(gradient(canonical, *sample)) for sample in samples])
    stats = quotient_gamma(model, samples, mean_loss, 32, confidence=0.95)
    assert stats.gamma == pytest.approx((rows.mean(0).square().sum() / rows.var(0).sum()).item(), rel=1e-9)
    assert stats.interval is not None
