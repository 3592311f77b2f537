"""A model drawn at random: a list of operations on a tensor whose samples lie somewhere, each decided by its own seed.

An operation is a function of a `Scope` and a `Value`; it gives another value, or None where it cannot be done to this
one. What it draws hangs on its seed and on which dimensions there are, never on their sizes, so that one program can be
made in several sizes, and operations can be taken out one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

LARGEST = 240
"""Entries a sample; an operation that makes more is left out."""


class Value(NamedTuple):
    """A tensor, and what each of its dimensions is made of: sizes, and "N" for the samples."""

    x: Tensor
    dims: tuple[tuple[Any, ...], ...]

    @property
    def at(self) -> int:
        """The dimension that the samples are in."""
        return next(k for k, d in enumerate(self.dims) if "N" in d)

    @property
    def alone(self) -> bool:
        """Whether that dimension holds nothing but samples."""
        return self.dims[self.at] == ("N",)

    @property
    def free(self) -> list[int]:
        """The dimensions without samples."""
        return [k for k, d in enumerate(self.dims) if "N" not in d]

    @property
    def n(self) -> int:
        others = math.prod(size for size in self.dims[self.at] if size != "N")
        return self.x.shape[self.at] // others

    def like(self, x: Tensor) -> Value:
        """Another tensor of the same dimensions, some of other sizes perhaps."""
        kept = [d if "N" in d or math.prod(d) == size else (size,) for d, size in zip(self.dims, x.shape, strict=True)]
        return Value(x, tuple(kept))

    def moved(self, order: list[int]) -> Value:
        return Value(self.x.permute(order), tuple(self.dims[k] for k in order))

    def without(self, x: Tensor, gone: list[int]) -> Value:
        return Value(x, tuple(d for k, d in enumerate(self.dims) if k not in gone))


Operation = Callable[["Scope", Value], "Value | None"]
OPERATIONS: dict[str, Operation] = {}
MIXING: dict[str, Operation] = {}


def operation(f: Operation) -> Operation:
    OPERATIONS[f.__name__] = f
    return f


def mixing(f: Operation) -> Operation:
    MIXING[f.__name__] = f
    return f


class Step(NamedTuple):
    """One operation of a program: its name, its seed, and the number that its parameters are called by."""

    name: str
    seed: int
    number: str


class Scope:
    """What one operation draws from, and where its parameters are."""

    def __init__(self, model: Drawn, step: Step) -> None:
        self.model, self.step, self.random, self.count = model, step, Random(step.seed), 0

    def choose(self, things: Any) -> Any:
        things = list(things)
        return things[int(self.random.random() * len(things))] if things else None

    def sometimes(self, chance: float = 0.5) -> bool:
        return self.random.random() < chance

    def part(self, make: Callable[[], nn.Module]) -> Any:
        """A module of the model's own, made once."""
        name = self._name("m")
        if self.model.building and not hasattr(self.model, name):
            setattr(self.model, name, make())
        return getattr(self.model, name)

    def buffer(self, *shape: int) -> Tensor:
        name = self._name("b")
        if self.model.building and not hasattr(self.model, name):
            self.model.register_buffer(name, torch.randn(shape))
        return getattr(self.model, name)

    def own(self, *shape: int) -> Tensor:
        """A parameter, or what is computed from one, or from one that another operation has."""
        name, how, kind = self._name("p"), self.random.random(), self.choose(sorted(COMPUTED))
        model = self.model
        if model.building and name not in model.sources:
            model.sources[name] = self._source(name, shape, how, kind)
        kept, read = model.sources[name]
        return read(getattr(model, kept))

    def _source(self, name: str, shape: tuple[int, ...], how: float, kind: str) -> tuple[str, Any]:
        held = dict(self.model.named_parameters(recurse=False))
        if how < 0.2:
            for other, p in held.items():
                if p.shape == shape:
                    return other, lambda p: p
                if p.ndim == 2 == len(shape) and p.shape[::-1] == shape:
                    return other, lambda p: p.T
                if p.ndim == len(shape) and all(a <= b for a, b in zip(shape, p.shape, strict=True)):
                    return other, lambda p: p[tuple(slice(size) for size in shape)]
        setattr(self.model, name, nn.Parameter(torch.randn(shape)))
        return name, (COMPUTED[kind] if how > 0.8 and shape else lambda p: p)

    def _name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.step.number}_{self.count}"

    def apply(self, name: str, value: Value, number: str = "i") -> Value | None:
        """Another operation within this one."""
        inner = Step(name, int(self.random.random() * 10**6), f"{self.step.number}{number}")
        return OPERATIONS[name](Scope(self.model, inner), value)


COMPUTED: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "twice": lambda p: 2 * p,
    "normed": lambda p: p / (1 + p.norm()),
    "centred": lambda p: p - p.mean(),
    "flipped": lambda p: p.flip(0),
    "summed up": lambda p: p.cumsum(-1),
    "softmax": lambda p: p.softmax(0),
    "of itself": lambda p: p * p.detach(),
    "there and back": lambda p: p.float().double(),
    "rolled": lambda p: p.roll(1, -1),
}


class Drawn(nn.Module):
    """The operations one after another; what does not fit is left out, in every size alike where it can be."""

    def __init__(self, steps: list[Step], start: tuple[Any, ...], finish: Callable[..., Any], batch: Any) -> None:
        super().__init__()
        self.steps, self.start, self.finish = steps, start, finish
        self.sources: dict[str, Any] = {}
        self.building = True
        self(*batch)
        self.building = False

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Any:
        torch.manual_seed(1)
        self.side = [Value(z, (("N",), *((s,) for s in z.shape[1:]))) for z in others if z.dim() == 2]
        self.places = next((z for z in others if z.dim() == 1), None)
        value = Value(x, tuple(("N",) if d == "N" else (size,) for d, size in zip(self.start, x.shape, strict=True)))
        self.saved = [value]
        try:
            for step in self.steps:
                after = (OPERATIONS.get(step.name) or MIXING[step.name])(Scope(self, step), value)
                if after is not None and after.x.numel() <= LARGEST * after.n:
                    value = after
                    self.saved.append(value)
            return self.finish(self, value, **named)
        finally:
            self.saved, self.side, self.places = [], [], None
