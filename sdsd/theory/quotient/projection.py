"""Updates split in two: the part that moves the function, and the part that leaves it alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn

from .symmetries import Symmetries, symmetries
from .tangents import checked_vectors

Vectors = Mapping[str, Tensor] | Iterable[Tensor]


@overload
def vertical(
    model: nn.Module | Symmetries, vectors: Mapping[str, Tensor], *, softmax_head: bool = False
) -> dict[str, Tensor]: ...


@overload
def vertical(
    model: nn.Module | Symmetries, vectors: Iterable[Tensor], *, softmax_head: bool = False
) -> list[Tensor]: ...


def vertical(model: nn.Module | Symmetries, vectors: Any, *, softmax_head: bool = False) -> Any:
    """The part of an update that leaves the function alone: its projection onto the span of all tangents.

    Args:
        model: the model at the point in question, or its `symmetries` (which saves finding them anew).
        vectors: an update (a gradient, a step of Adam, weight decay, noise): a mapping from parameter names to
            tensors, or tensors in the order of model.parameters(). Parameters that do not train may be missing from a
            mapping.
        softmax_head: as in `symmetries`; goes with a model, not with a `Symmetries`.

    Returns:
        float64 tensors (complex128 of complex parameters), as a dict or a list like `vectors`.

    Raises:
        TypeError: something else than tensors.
        ValueError: no symmetry is known; missing or unknown names; shapes that differ from the parameters';
            softmax_head beside a `Symmetries`.
    """
    return _split(model, vectors, softmax_head)[1]


@overload
def horizontal(
    model: nn.Module | Symmetries, vectors: Mapping[str, Tensor], *, softmax_head: bool = False
) -> dict[str, Tensor]: ...


@overload
def horizontal(
    model: nn.Module | Symmetries, vectors: Iterable[Tensor], *, softmax_head: bool = False
) -> list[Tensor]: ...


def horizontal(model: nn.Module | Symmetries, vectors: Any, *, softmax_head: bool = False) -> Any:
    """The part of an update that moves the function: `vectors` less their `vertical` part, orthogonal to it.

    Arguments, results and errors as in `vertical`.
    """
    return _split(model, vectors, softmax_head)[0]


def vertical_fraction(model: nn.Module | Symmetries, vectors: Vectors, *, softmax_head: bool = False) -> float:
    """‖vertical‖² / ‖vectors‖², the share of an update that leaves the function alone; NaN for an update of zero.

    Args:
        model: or its `symmetries`, found once for many calls.
        vectors: as in `vertical`.
        softmax_head: as in `vertical`.

    Returns:
        A float between 0 and 1.
    """
    across, along = (
        sum(part.abs().square().sum().item() for part in (parts.values() if isinstance(parts, dict) else parts))
        for parts in _split(model, vectors, softmax_head)
    )
    return along / (across + along) if across + along > 0 else math.nan


def _split(model: nn.Module | Symmetries, vectors: Any, softmax_head: bool) -> tuple[Any, Any]:
    if softmax_head and isinstance(model, Symmetries):
        raise ValueError(
            "softmax_head: a Symmetries has it from where it was found. Pass symmetries(model, softmax_head=True)."
        )
    moves = model if isinstance(model, Symmetries) else symmetries(model, softmax_head=softmax_head)
    span = moves._span()
    if not span.moves:
        raise ValueError(f"model: no continuous symmetry is known.\n{moves}")
    given = checked_vectors(moves.model, vectors)
    solution = span.lift(span.solve(given))
    along = {name: solution.get(name, torch.zeros_like(value)) for name, value in given.items()}
    across = {name: value - along[name] for name, value in given.items()}
    if isinstance(vectors, Mapping):
        return {name: across[name] for name in vectors}, {name: along[name] for name in vectors}
    return list(across.values()), list(along.values())
