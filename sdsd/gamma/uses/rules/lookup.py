"""F.embedding and F.embedding_bag: a table of parameters read at positions that the samples give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...following import Bags, Mixed, Track, arrange, samples_along, track_of
from ..grouping import of_samples
from ..operand import Operand, leaves_of
from ..pieces import Lazy, Lookup, Piece, lookup_squares
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


def embedding_bag(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
    """F.embedding_bag, of rows of indices or of bags that offsets cut."""
    bags = Bags(*args, **kwargs)
    out, table = mode.run(func, args, kwargs), bags.weight
    why = None
    if bags.scale_grad_by_freq:
        why = "scale_grad_by_freq divides by counts over the batch, which mixes the samples"
    elif bags.max_norm is not None:
        why = "max_norm rewrites the table"
    elif track_of(table) is not None:
        why = "its table depends on samples"
    if why is not None:
        mode.lost([Operand(t, leaves_of(t, mode.session)[0]) for t in parameters], Mixed(f"F.embedding_bag: {why}"))
        return out
    scales = bags.per_sample_weights
    learned = [t for t in parameters if t is scales]
    n, track, starts, of_each = mode.ledger.n, track_of(out), bags.starts(), bags.of_each()
    padding = bags.padding_idx
    padding = padding + table.shape[0] if padding is not None and padding < 0 else padding
    pad = -1 if padding is None else padding
    rows, held, how = table.shape[0], table.detach(), bags.mode

    def measure(b: Tensor, ids: Tensor, scales: Tensor | None) -> Iterator[tuple[int, Piece]]:
        assert isinstance(track, Track)
        ids, of_bags = ids.reshape(-1), samples_along(track, b.shape[0], n, b.device)
        if how == "max":
            yield 0, _highest(held, ids, starts, padding, b=b, of_bags=of_bags, n=n)
            return
        gradients = b[of_each]
        if learned:
            yield 1, _of_scales((gradients * held[ids]).sum(1), ids == pad, of_bags[of_each], learned[0].shape, n)
        if scales is not None:
            gradients = gradients * scales.reshape(-1, 1)
        if how == "mean":
            counted = (ids != pad).to(b.dtype)
            sizes = b.new_zeros(len(starts)).index_add_(0, of_each, counted).clamp(min=1)
            gradients = gradients / sizes[of_each].unsqueeze(1)
        piece = Lookup(ids.unsqueeze(1), gradients.unsqueeze(1), rows, padding)
        yield 0, of_samples(piece, of_bags[of_each], n, table.shape, mode.ledger.max_bytes)

    watch(mode, "embedding bag", out, [table, *learned], (bags.input, scales), measure)
    return out


def _highest(
    table: Tensor, ids: Tensor, starts: Tensor, padding: int | None, *, b: Tensor, of_bags: Tensor, n: int
) -> Piece:
    """Gradients b (bags, d) of the rows of a table where bags had their highest entries."""
    # Without padding it is None: torch takes -1 for the last row.
    _, _, sizes, chosen = torch.embedding_bag(table, ids, starts.to(ids.dtype), False, 2, False, None, False, padding)
    full = sizes > 0

    def form(start: int, stop: int) -> Tensor:
        tables = b.new_zeros(stop - start, *table.shape)
        here = ((of_bags >= start) & (of_bags < stop) & full).nonzero().flatten()
        columns = torch.arange(table.shape[1], device=b.device).expand(len(here), -1)
        places = (of_bags[here] - start).unsqueeze(1).expand(-1, table.shape[1]), chosen[here], columns
        return tables.index_put_(places, b[here], accumulate=True)

    return Lazy(n, 8 * table.numel(), form)


def _of_scales(values: Tensor, padding: Tensor, samples: Tensor, shape: torch.Size, n: int) -> Piece:
    """Gradients of the weights of indices, each of its own sample alone."""
    values = values.masked_fill(padding, 0.0)

    def form(start: int, stop: int) -> Tensor:
        own = torch.arange(start, stop, device=values.device).unsqueeze(1) == samples
        return (own * values).unflatten(1, shape)

    return Lazy(n, 8 * values.numel(), form)
