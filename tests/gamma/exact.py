"""A monitor's numbers against a loop over samples in float64."""

from __future__ import annotations

import copy

import torch

import sdsd
from tests.gamma.models import (
    per_sample_gradients,
)

N = 6


def images(*shape):
    """N float64 samples; the same whenever and in whatever order they are asked for."""
    generator = torch.Generator().manual_seed(len(shape) + sum(shape))
    return torch.randn(N, *shape, dtype=torch.float64, generator=generator)


def signal_and_noise(rows):
    mean = rows.mean(0)
    return mean.square().sum().item(), (rows - mean).square().sum().item() / (len(rows) - 1)


def assert_exact(model, x, y, loss_fn, tolerance=1e-12, gradient_tolerance=1e-11, **options):
    """Signal and noise of every parameter against one backward pass a sample; gradients against the plain step."""
    x64, y64 = (t.double() if t.is_floating_point() else t for t in (x, y))
    wanted = per_sample_gradients(copy.deepcopy(model).double(), x64, y64, loss_fn)
    trainable = [p for p in model.parameters() if p.requires_grad]
    plain = torch.autograd.grad(loss_fn(model(x), y), trainable, allow_unused=True)
    with sdsd.GammaMonitor(model, mode="exact", **options) as monitor:
        loss_fn(model(x), y).backward()
        stats = monitor.step()
        assert set(stats.parameters) == set(wanted)
        assert all(monitor.coverage.values())
    everything = {"total": torch.cat([rows.reshape(len(x), -1) for rows in wanted.values()], 1), **wanted}
    largest = everything["total"].square().sum(1).mean().item()
    for name, rows in everything.items():
        # A parameter whose gradient is rounding error alone has no digits to compare.
        scale = max(rows.reshape(len(x), -1).square().sum(1).mean().item(), 1e-14 * largest)
        signal, noise = signal_and_noise(rows)
        found = stats if name == "total" else stats.parameters[name]
        allowed = tolerance * scale
        assert abs(found.noise - noise) <= allowed, f"noise of {name}: {found.noise}, expected {noise}"
        assert abs(found.signal - signal) <= allowed, f"signal of {name}: {found.signal}, expected {signal}"
    assert (stats.n, stats.samples_per_gradient) == (len(x), 1)
    for parameter, gradient in zip(trainable, plain, strict=True):
        if gradient is None:
            assert parameter.grad is None or not parameter.grad.any()
        else:
            torch.testing.assert_close(parameter.grad, gradient, rtol=gradient_tolerance, atol=gradient_tolerance)
    model.zero_grad()
