"""torch._grouped_mm: rows sorted by the expert they go to, and a matrix for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...following import Track, rows_in_view, sorted_offsets, track_of
from ..grouping import ByGroup
from ..pieces import Piece
from ..use import watch
from .generic import any_operation

if TYPE_CHECKING:
    from ..measuring import Measuring


def grouped_mm(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
    """torch._grouped_mm(rows (R, d), matrices (G, d, p), offs (G,))."""
    track = track_of(args[0])
    offsets = sorted_offsets(args, kwargs)
    plain = offsets is not None and track == Track(0) and rows_in_view() is not None and len(parameters) == 1
    if not plain or parameters[0] is not args[1]:
        return any_operation(mode, func, args, kwargs, parameters)
    out = mode.run(func, args, kwargs)
    matrices = args[1]
    upright = _transpose_of(matrices)

    def measure(b: Tensor, x: Tensor, ends: Tensor) -> Iterator[tuple[int, Piece]]:
        yield 0, ByGroup(x.to(b.dtype), b, ends) if upright is not None else ByGroup(b, x.to(b.dtype), ends)

    watch(mode, "grouped", out, [matrices if upright is None else upright], (args[0], offsets), measure)
    return out


def _transpose_of(matrices: Tensor) -> Tensor | None:
    """The parameter whose last two dimensions were exchanged to give `matrices`, or None."""
    node = matrices.grad_fn
    if node is None or node.name() != "TransposeBackward0":
        return None
    variable = getattr(node.next_functions[0][0], "variable", None)
    if variable is None or variable.shape != matrices.transpose(-2, -1).shape:
        return None
    return variable if variable.stride() == matrices.transpose(-2, -1).stride() else None
