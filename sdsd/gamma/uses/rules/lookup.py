"""F.embedding: a table of parameters read at positions that the samples give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...following import Mixed, Track, arrange, track_of
from ..operand import Operand, leaves_of
from ..pieces import Lookup, Piece, lookup_squares
from ..plans import Watched, keep
from ..use import watch
from .generic import any_operation

if TYPE_CHECKING:
    from ..measuring import Measuring


def embedding(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
    """F.embedding(ids, table, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)."""
    ids = args[0] if args else kwargs["input"]
    table = args[1] if len(args) > 1 else kwargs["weight"]
    padding = args[2] if len(args) > 2 else kwargs.get("padding_idx")
    frequency = args[5] if len(args) > 5 else kwargs.get("scale_grad_by_freq", False)
    track = track_of(ids)
    if not isinstance(track, Track) or track_of(table) is not None:
        return any_operation(mode, func, args, kwargs, parameters)
    out = mode.run(func, args, kwargs)
    if frequency:
        mode.lost(
            [Operand(table, leaves_of(table, mode.session)[0])],
            Mixed("scale_grad_by_freq divides by counts over the batch, which mixes the samples"),
        )
        return out
    padding = padding + table.shape[0] if padding is not None and padding < 0 else padding
    n, rows = mode.ledger.n, table.shape[0]

    def measure(b: Tensor, ids: Tensor) -> Iterator[tuple[int, Piece]]:
        yield 0, Lookup(arrange(ids, track, n, 0), arrange(b, track, n, 1), rows, padding)

    def squares(b: Tensor, ids: Tensor) -> tuple[Tensor]:
        """The same of ids (N, T), samples first, without pieces."""
        if padding is not None:
            b = b.masked_fill((ids == padding).unsqueeze(-1), 0.0)
        return (lookup_squares(b, ids, None),)

    operands = watch(mode, "embedding", out, [table], (ids,), measure)
    if operands and args:
        simple = ids.ndim == 2 and track == Track(0) and not mode.ledger.serves(out)
        keep(mode, Watched("embedding", operands, track_of(out), measure, squares=squares if simple else None))
    return out
