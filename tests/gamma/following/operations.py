"""Operations as cases, in several settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from sdsd.gamma.following import Track

from .oracle import check


class Case(NamedTuple):
    """f(*inputs); each input is a string of dimensions: N carries samples, T is a length that may equal N,
    a lower-case letter or a digit a size. A leading "i:" makes it indices below 3, "b:" a mask, "c:" complex;
    an input without N is a constant."""

    name: str
    f: Callable[..., Any]
    inputs: tuple[str, ...]
    ways: tuple[str, ...] = ("small", "large", "poison")


SIZES = {"d": 6, "e": 4, "h": 2, "w": 8, "c": 4, "k": 3}

NUMBERS = ("small", "large")


class Setting(NamedTuple):
    n: int
    t: int
    outer: int = 1
    inner: int = 1


SETTINGS = [Setting(3, 5), Setting(4, 4), Setting(1, 4)]

FOLDED = [Setting(2, 4, 2, 1), Setting(2, 8, 2, 2)]


def made(spec: str, s: Setting) -> tuple[Tensor, Track | None]:
    kind, _, dims = spec.rpartition(":")
    letters = dims.split()
    sizes = {**SIZES, "T": s.t, "N": s.outer * s.n * s.inner}
    shape = [sizes[x] if x in sizes else int(x) for x in letters]
    axis = letters.index("N") if "N" in letters else None
    track = None if axis is None else Track(axis, s.outer, s.inner)
    if kind == "i":
        return torch.randint(0, 3, shape), track
    if kind == "b":
        return torch.rand(shape) > 0.4, track
    x = torch.randn(shape, dtype=torch.complex128 if kind == "c" else torch.float64)
    return (x.abs() + 0.1 if kind == "p" else x), track


def verdicts(case: Case, s: Setting) -> list[Any]:
    inputs, tracks = zip(*(made(spec, s) for spec in case.inputs), strict=True)
    return check(case.f, inputs, tracks, s.n, case.ways)


def put(x: Tensor, index: Any, value: Any) -> Tensor:
    x = x.clone()
    x[index] = value
    return x


def named(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[c.name for c in cases])


def settings(some: list[Setting]) -> Any:
    return pytest.mark.parametrize("s", some, ids=["n{}-t{}-o{}-i{}".format(*s) for s in some])
