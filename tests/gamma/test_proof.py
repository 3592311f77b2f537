"""How small a part of a gradient that no sample brought is told from rounding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sdsd


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 2e-3), (torch.float64, 2e-4)])
def test_a_small_part_of_another_gradient_is_found(dtype, share):
    """`share` of every gradient, in a direction of its own: fifty times and more what rounding would do."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 5)).to(dtype)
    x, y = torch.randn(32, 20, dtype=dtype) + 1, torch.randint(0, 5, (32,))
    parameters = list(model.parameters())
    plain = torch.autograd.grad(nn.functional.cross_entropy(model(x), y), parameters)
    directions = [torch.randn_like(each) for each in plain]
    for part in (0.0, share):
        with sdsd.GammaMonitor(model) as monitor:
            penalty = sum(
                (parameter * way).sum() * (part * gradient.norm() / way.norm())
                for parameter, gradient, way in zip(parameters, plain, directions, strict=True)
            )
            (nn.functional.cross_entropy(model(x), y) + penalty).backward()
            if part:
                with pytest.raises(ValueError, match=r"0\.bias \((?!0%|0\.0%)\d"):
                    monitor.step()
            else:
                assert monitor.step().finite
            model.zero_grad()
