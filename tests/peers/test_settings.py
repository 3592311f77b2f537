"""The grids of layer settings that BackPACK and Opacus test themselves with: the monitor is right, and so are they.

Loop, monitor and peer have to agree on every parameter; `make test-peers` installs the peers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.gamma.models import mean_of_squares
from tests.peers.test_peers import N, measured, monitored, truth

Case = tuple[Callable[[], nn.Module], Tensor]


def grid(**axes: tuple[Any, ...]) -> Iterator[dict[str, Any]]:
    for chosen in itertools.product(*axes.values()):
        yield dict(zip(axes, chosen, strict=True))


def images(*shape: int) -> Tensor:
    return torch.randn(N, *shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 7, (N, *shape), generator=torch.Generator().manual_seed(sum(shape)))


def named(kind: str, settings: dict[str, Any]) -> str:
    return f"{kind} " + ", ".join(f"{key}={value}" for key, value in settings.items())


def chain(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The layer between two others, so that it has inputs with a gradient."""
    return lambda: nn.Sequential(make(), nn.Tanh())


def linear() -> Iterator[tuple[str, Case]]:
    for s in grid(width=(4, 9), bias=(True, False), inner=((), (3,), (2, 3))):
        yield (
            named("Linear", s),
            (chain(lambda s=s: nn.Linear(s["width"], 5, bias=s["bias"])), images(*s["inner"], s["width"])),
        )


def convolutions() -> Iterator[tuple[str, Case]]:
    sides = {1: 9, 2: 6, 3: 4}
    for dimensions, kind in ((1, nn.Conv1d), (2, nn.Conv2d), (3, nn.Conv3d)):
        axes = grid(
            kernel_size=(2, 3), stride=(1, 2), padding=(0, 1, "same"), dilation=(1, 2), groups=(1, 2), bias=(True,)
        )
        for s in axes:
            if s["padding"] == "same" and s["stride"] > 1:
                continue
            if s["dilation"] * (s["kernel_size"] - 1) >= sides[dimensions] + (2 if s["padding"] == 1 else 0):
                continue
            make = chain(lambda kind=kind, s=s: kind(4, 6, **s))
            yield named(f"Conv{dimensions}d", s), (make, images(4, *(sides[dimensions],) * dimensions))


def transposed() -> Iterator[tuple[str, Case]]:
    for dimensions, kind in ((1, nn.ConvTranspose1d), (2, nn.ConvTranspose2d), (3, nn.ConvTranspose3d)):
        for s in grid(kernel_size=(2, 3), stride=(1, 2), padding=(0, 1), dilation=(1, 2), groups=(1, 2)):
            make = chain(lambda kind=kind, s=s: kind(4, 6, **s))
            yield named(f"ConvTranspose{dimensions}d", s), (make, images(4, *(4,) * dimensions))


def norms() -> Iterator[tuple[str, Case]]:
    for shape in ((5,), (4, 5), (3, 4, 5)):
        yield f"LayerNorm {shape}", (chain(lambda shape=shape: nn.LayerNorm(shape)), images(2, *shape))
        yield f"RMSNorm {shape}", (chain(lambda shape=shape: nn.RMSNorm(shape)), images(2, *shape))
    for s in grid(num_groups=(1, 2, 4), inner=((3,), (5,), (3, 4))):
        yield named("GroupNorm", s), (chain(lambda s=s: nn.GroupNorm(s["num_groups"], 4)), images(4, *s["inner"]))
    for dimensions, kind in ((1, nn.InstanceNorm1d), (2, nn.InstanceNorm2d), (3, nn.InstanceNorm3d)):
        make = chain(lambda kind=kind: kind(4, affine=True))
        yield f"InstanceNorm{dimensions}d", (make, images(4, *(5,) * dimensions))


def embeddings() -> Iterator[tuple[str, Case]]:
    for inner in ((), (3,), (2, 3), (2, 2, 2)):
        yield f"Embedding {inner}", (chain(lambda: nn.Embedding(7, 5)), tokens(*inner))


def frozen_norms() -> Iterator[tuple[str, Case]]:
    for dimensions, kind in ((1, nn.BatchNorm1d), (2, nn.BatchNorm2d), (3, nn.BatchNorm3d)):
        make = chain(lambda kind=kind: kind(4).eval())
        yield f"BatchNorm{dimensions}d in eval mode", (make, images(4, *(3,) * dimensions))


OPACUS = dict(itertools.chain(linear(), convolutions(), norms(), embeddings()))
BACKPACK = dict(itertools.chain(linear(), convolutions(), transposed(), frozen_norms()))
EVERYTHING = OPACUS | BACKPACK


def made(case: Case) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    make, x = case
    return make().double(), x, torch.zeros(N)


@pytest.mark.parametrize("name", EVERYTHING)
def test_the_monitor_is_right(name):
    model, x, y = made(EVERYTHING[name])
    assert monitored(model, x, y) == pytest.approx(truth(model, x, y), rel=1e-9)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OPACUS)
def test_opacus_agrees(name):
    model, x, y = made(OPACUS[name])
    assert measured("Opacus", model, x, y) == pytest.approx(monitored(model, x, y), rel=1e-9)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in BACKPACK if "groups=2" not in name and "padding=same" not in name])
def test_backpack_agrees(name):
    """It is wrong where there are groups (test_peers.py) and knows padding by numbers alone."""
    model, x, y = made(BACKPACK[name])
    assert measured("BackPACK", model, x, y) == pytest.approx(monitored(model, x, y), rel=1e-9)


def test_the_loss_is_no_constant():
    """`mean_of_squares` has a gradient for every case here."""
    for case in EVERYTHING.values():
        model, x, y = made(case)
        mean_of_squares(model(x), y).backward()
        assert all(p.grad.abs().sum() > 0 for p in model.parameters())
