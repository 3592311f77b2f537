"""Positions of a batch that are padding, and so no samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .positions import Positions, told_apart

ATTENTION_MASK = "attention_mask"
DROPS = -5000.0
"""Numbers below are added to scores to drop a position; those above, such as distances, are not."""

Mask = str | Callable[[Any], Any] | bool | None
"""What `collect_activations` takes as `mask`."""


class Padding:
    """Takes samples out of outputs by the mask of the batch they belong to."""

    def __init__(self, mask: Mask) -> None:
        if mask is True or not (mask is None or isinstance(mask, (str, bool)) or callable(mask)):
            raise TypeError(
                "mask: expected the name of an entry of the batches, a function batch → mask, False or None, got "
                f"{mask if mask is True else type(mask).__name__}."
            )
        self.mask = mask
        self.kept: Tensor | None = None
        self.left_in = ""  # why padding may be among the samples that `without` gave last
        self.positions: Positions | None = None
        self.turned: dict[str, bool] = {}  # layer → whether its outputs have positions first, then the batch

    def start(self, batch: Any, number: int) -> None:
        """Find the mask of a batch."""
        self.kept = self.positions = None
        if self.mask is False:
            return
        mask: Any
        if callable(self.mask):
            mask = self.mask(batch)
        else:
            name = self.mask or ATTENTION_MASK
            mask = batch.get(name) if isinstance(batch, Mapping) else None
            if mask is None and self.mask is not None:
                got = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
                raise ValueError(f"mask: expected batches that are dicts with an entry {name!r}, got {got}.")
        if mask is None and self.mask is None:
            return
        try:
            mask = torch.as_tensor(mask).detach()
        except (TypeError, ValueError, RuntimeError):
            got = type(mask).__name__
            raise ValueError(f"mask: batch {number}: expected a tensor (batch, positions), got {got}.") from None
        if self.mask is None and mask.ndim < 2:
            return  # a number a sample, no mask of positions
        self.kept = kept_positions(mask, number)
        if not bool(self.kept.any()):
            raise ValueError(f"mask: batch {number}: every position is padding. Leave such batches out.")

    def watching(self) -> AbstractContextManager[Any]:
        """While the model runs on the batch inside, what is flattened is told by whether samples come first."""
        if self.kept is not None and told_apart(self.kept) and self.kept.shape[0] != self.kept.shape[1]:
            self.positions = Positions(*self.kept.shape)
        return self.positions or nullcontext()

    def without(self, value: Tensor, dim: int, layer: str, where: str) -> tuple[Tensor, int]:
        """The samples of a layer's output whose dimension `dim` counts neurons, and that dimension."""
        self.left_in = ""
        if self.kept is None:
            return value, dim
        rows = value.movedim(dim, -1)
        flat = rows.ndim == 2 and len(rows) == self.kept.numel()
        in_front = rows.ndim > 2 == self.kept.ndim and rows.shape[:2] in (self.kept.shape, self.kept.T.shape)
        kept = self._as_laid_out(value, rows, layer, where) if flat or in_front else None
        if kept is not None:
            return rows[(kept.flatten() if flat else kept).to(rows.device)], -1
        expected = f"an output with the {tuple(self.kept.shape)} positions of the mask in front"
        if flat:
            expected += ", or flattened from that in a way that can be followed"
        if self.mask is not None:
            raise ValueError(
                f"mask: {where}: expected {expected}, got shape {tuple(value.shape)}. Collect this layer apart, with "
                "mask=False."
            )
        samples = self.kept.shape[0]
        others = len(rows) != samples if rows.ndim == 2 == self.kept.ndim else rows.ndim > 2 and len(rows) == samples
        if others and not bool(self.kept.all()):
            advice = "pass mask=, a function of the batch" if rows.ndim > 2 else "pass batches without padding"
            self.left_in = (
                f"has outputs of shape {tuple(value.shape)} where {ATTENTION_MASK} has the positions "
                f"{tuple(self.kept.shape)}, so padding is among its samples; {advice}"
            )
        return value, dim

    def _as_laid_out(self, value: Tensor, rows: Tensor, layer: str, where: str) -> Tensor | None:
        """The mask with positions first where these are first in an output; None where that cannot be followed."""
        kept = self.kept
        assert kept is not None
        if kept.ndim == 1:
            return kept
        if kept.shape[0] != kept.shape[1]:
            if rows.ndim > 2:
                self.turned[layer] = rows.shape[:2] != kept.shape
            elif not told_apart(kept):
                return kept
            elif self.positions is None or value not in self.positions.turned:
                return None
            else:
                self.turned[layer] = self.positions.turned[value]
        elif not told_apart(kept):
            return kept
        elif layer not in self.turned:
            raise ValueError(
                f"mask: {where}: expected another number of positions than of samples, at least in an earlier batch, "
                f"got {len(kept)} of each, so that it cannot be told which come first in an output of shape "
                f"{tuple(value.shape)}. Begin with a batch of another size, or pass mask=False, which takes padding "
                "for samples."
            )
        return kept.T if self.turned[layer] else kept


def kept_positions(mask: Tensor, number: int) -> Tensor:
    """Where a mask has samples, whatever form it has: of positions, or of what each position attends to.

    Args:
        mask: (positions,), (batch, positions), (batch, queries, keys) or (batch, heads, queries, keys); true or
            positive where there is a sample, or numbers added to scores, large and negative where there is none.
        number: of the batch, for errors.

    Returns:
        True where there is a sample.  # shape: (positions,) or (batch, positions)
    """
    if not 1 <= mask.ndim <= 4 or mask.numel() == 0 or mask.is_complex():
        raise ValueError(
            f"mask: batch {number}: expected a tensor (batch, positions), got shape {tuple(mask.shape)} of "
            f"{mask.dtype}."
        )
    if mask.is_floating_point() and bool(mask.isnan().any()):
        raise ValueError(f"mask: batch {number}: expected numbers, got a NaN.")
    added = mask.is_floating_point() and bool((mask <= 0).all()) and bool((mask < DROPS).any())
    kept = mask > DROPS if added or (mask.ndim > 2 and bool((mask < 0).any())) else mask > 0
    if mask.ndim < 3:
        return kept
    if mask.ndim == 4:
        kept = kept.any(1)
    queries, keys = kept.shape[1:]
    if queries == 1:
        return kept[:, 0]
    if queries != keys:
        raise ValueError(
            f"mask: batch {number}: expected as many queries as keys, or one, got {queries} and {keys} in a mask of "
            f"shape {tuple(mask.shape)}. Pass mask=, a function batch → (batch, positions), or mask=False."
        )
    # A position attends to itself. Rows of padding may attend to everything, so that their softmax is finite.
    everything = kept.all(2)
    everything[:, -1] = False
    freed = everything & ~kept.all(2).all(1, keepdim=True)
    return kept.diagonal(dim1=1, dim2=2) & ~freed
