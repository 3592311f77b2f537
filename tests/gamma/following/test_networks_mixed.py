"""Networks in which samples meet."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from sdsd.gamma.following import Mixed

from .networks import SIZES, SelfAttention, given, modules
from .oracle import check

pytestmark = pytest.mark.usefixtures("double")


def contrastive(x: Tensor) -> Tensor:
    z = F.normalize(x.flatten(1), dim=-1)
    return F.cross_entropy(z @ z.t(), torch.arange(x.shape[0]), reduction="none")


def batch_norm_by_hand(x: Tensor) -> Tensor:
    mean = x.mean(dim=0, keepdim=True)
    return (x - mean) / torch.sqrt(x.var(dim=0, keepdim=True, unbiased=False) + 1e-5)


def momentum(x: Tensor) -> Tensor:
    running = torch.zeros(x.shape[1:])
    running.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
    return x - running


def through_a_view(x: Tensor) -> Tensor:
    """A view taken before its memory is written to; the sum of all samples must not pass for a constant."""
    buffer = torch.zeros(2, *x.shape[1:])
    seen = buffer[1]
    buffer[1] = x.sum(0)
    return x + seen


def through_a_view_again(x: Tensor) -> Tensor:
    buffer = torch.zeros(2, *x.shape[1:])
    buffer[0].add_(x.sum(0))
    return x + buffer.sum(0)


def through_detach(x: Tensor) -> Tensor:
    buffer = torch.zeros(x.shape[1:])
    buffer.detach().copy_(x.mean(0))
    return x + buffer


def mapped(x: Tensor) -> Tensor:
    return torch.vmap(lambda row: row - row.sum(), in_dims=1, out_dims=1)(x)


MEETING: dict[str, tuple[Callable[[], Callable[..., Any]], str]] = {
    "batch norm": (lambda: modules(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 2, 1)), "N 3 4"),
    "batch norm by hand": (lambda: batch_norm_by_hand, "N T D"),
    "contrastive": (lambda: contrastive, "N T D"),
    "momentum": (lambda: momentum, "N T D"),
    "centred": (lambda: lambda x: x - x.mean(0), "N T D"),
    "attention, sequence and batch confused": (lambda: SelfAttention(True), "T N D"),
    "through a view": (lambda: through_a_view, "N T D"),
    "through a view again": (lambda: through_a_view_again, "N T D"),
    "through detach": (lambda: through_detach, "N T D"),
    "vmap": (lambda: mapped, "N T"),
}


@pytest.mark.parametrize(("n", "t"), SIZES)
@pytest.mark.parametrize("name", MEETING)
def test_samples_that_meet_are_mixed(name: str, n: int, t: int) -> None:
    make, spec = MEETING[name]
    x, track = given(spec, n, t)
    program = make()
    verdicts = check(lambda y: copy.deepcopy(program)(y), [x], [track], n, ("small",))
    assert verdicts
    assert all(isinstance(v, Mixed) for v in verdicts)
