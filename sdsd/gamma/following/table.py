"""The table of rules: which function of torch is followed how, and how a rule is called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .tracks import Mixed, Summed, Track, Verdict, track_of

Rule = Callable[..., Any]
"""rule(call, *args, **kwargs) → the verdict of the output, or a list with one for each tensor in it."""

NAMESPACES: tuple[tuple[str, Any], ...] = (
    ("torch", torch),
    ("torch", torch._C._VariableFunctions),
    ("torch.Tensor", torch.Tensor),
    ("torch.nn.functional", functional),
    ("torch.nn.functional", torch._C._nn),
    ("torch.special", torch.special),
    ("torch.linalg", torch.linalg),
    ("torch.fft", torch.fft),
)
TORCH = NAMESPACES[:3]
FUNCTIONAL = NAMESPACES[3:5]

RULES: dict[Any, Rule] = {}
SECOND_ALLOWED: dict[Rule, tuple[int | None, str | None]] = {}
"""Rules whose functions take a further input of the model that is no samples, as a mask; its place and name, or any."""

_names: dict[Any, str] = {}
ALIASES = {"axis": "dim", "keepdims": "keepdim", "self": "input", "axes": "dims"}


def register(names: str, rule: Rule, spaces: Iterable[tuple[str, Any]] = NAMESPACES) -> None:
    """Enter `rule` for every function of these names, their forms in place, and their operators."""
    for space, holder in spaces:
        for name in names.split():
            for form in (name, f"{name}_", f"__{name}__", f"__r{name}__", f"__i{name}__"):
                function = getattr(holder, form, None)
                if callable(function) and not isinstance(function, type):
                    RULES.setdefault(function, rule)
                    _names.setdefault(function, f"{space}.{form}")


def register_property(names: str, rule: Rule) -> None:
    for name in names.split():
        attribute = getattr(torch.Tensor, name, None)
        if attribute is None:
            continue
        getter = attribute.__get__
        RULES[getter] = rule
        _names[getter] = f"torch.Tensor.{name}"


def name_of(func: Any) -> str:
    """A function's name as a user writes it."""
    if func in _names:
        return _names[func]
    name = getattr(func, "__name__", None) or str(func)
    owner = getattr(func, "__self__", None)
    if name == "__get__":
        return f"torch.Tensor.{getattr(owner, '__name__', 'attribute')}"
    if isinstance(func, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
        return f"torch.ops.{func}"
    module = getattr(func, "__module__", None)
    return f"{module}.{name}" if module else f"torch.Tensor.{name}"


def in_place(func: Any) -> bool:
    """Whether a function writes into its first argument, by its name."""
    name = str(getattr(func, "__name__", func))
    return (name.endswith("_") and not name.endswith("__")) or (name.startswith("__i") and name != "__invert__")


def called(func: Any) -> str:
    """The bare name of a function, the same for its form in place."""
    name = str(getattr(func, "__name__", func)).partition(".")[0]
    if name == "__get__":
        return str(func.__self__.__name__)
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


class Call:
    """One call of a torch function, as a rule sees it."""

    __slots__ = ("func", "n", "out")

    def __init__(self, func: Any, out: Any, n: int) -> None:
        self.func, self.out, self.n = func, out, n

    def over(self, x: Tensor, axis: int | None = None) -> Mixed:
        """The verdict of an operation that joins the entries of `x` along the samples."""
        track = track_of(x)
        if isinstance(track, Mixed):
            return track
        where = track.axis if axis is None and isinstance(track, Track) else axis
        return Mixed(f"{name_of(self.func)} over the samples (dimension {where} of shape {tuple(x.shape)})")

    def summed(self, x: Tensor) -> Summed:
        """The verdict of a sum over the samples of `x`."""
        return Summed(self.over(x).reason)

    def mixed(self, what: str) -> Mixed:
        return Mixed(f"{name_of(self.func)} {what}")

    def agreed(self, verdicts: Iterable[Verdict]) -> Verdict:
        """The one place where all operands put the samples of the output."""
        result: Verdict = None
        for verdict in verdicts:
            if isinstance(verdict, (Mixed, Summed)):
                return verdict
            if verdict is None:
                continue
            if result is None:
                result = verdict
            elif result != verdict:
                return self.mixed("of tensors that carry the samples along different dimensions")
        return result

    def labelled(self, operands: Iterable[tuple[Any, Sequence[Any]]], out: Sequence[Any]) -> Verdict:
        """A product in Einstein's notation: one label a dimension; what is missing in `out` is summed over."""
        verdicts: list[Verdict] = []
        for x, labels in operands:
            if not isinstance(x, Tensor):
                continue
            track = track_of(x)
            if isinstance(track, Track):
                label = labels[track.axis]
                if label not in out:
                    return self.over(x)
                track = Track(list(out).index(label), track.outer, track.inner)
            verdicts.append(track)
        return self.agreed(verdicts)


def aligned(x: Tensor, out: Tensor) -> Verdict:
    """Where an operand's samples are in an output that it is broadcast to."""
    track = track_of(x)
    if not isinstance(track, Track):
        return track
    return Track(track.axis + out.dim() - x.dim(), track.outer, track.inner)


def batched(x: Any, core: Iterable[Any]) -> list[Any]:
    """Labels of a tensor: the last dimensions are `core`, those before them are counted from the right."""
    core = list(core)
    return [*range(len(core) - x.dim(), 0), *core] if isinstance(x, Tensor) else []


def axes(dim: Any, ndim: int) -> list[int]:
    """Dimensions as given to a reduction, counted from the left; all of them for None and ()."""
    if dim is None:
        return list(range(ndim))
    dims = [dim] if isinstance(dim, int) else list(dim)
    return [int(d) % ndim for d in dims] if dims else list(range(ndim))
