"""Positions of a batch that are padding, and so no samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

ATTENTION_MASK = "attention_mask"

Mask = str | Callable[[Any], Tensor] | bool | None
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

    def start(self, batch: Any, number: int) -> None:
        """Find the mask of a batch."""
        self.kept = None
        if self.mask is False:
            return
        found: Any
        if callable(self.mask):
            found = self.mask(batch)
        else:
            name = self.mask or ATTENTION_MASK
            found = batch.get(name) if isinstance(batch, Mapping) else None
            if found is None and self.mask is not None:
                got = ", ".join(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
                raise ValueError(f"mask: expected batches that are dicts with an entry {name!r}, got {got}.")
            if self.mask is None and not (isinstance(found, Tensor) and found.ndim == 2):
                return  # no mask of positions: one of pairs of them, for example
        if not isinstance(found, Tensor) or found.ndim not in (1, 2) or found.numel() == 0:
            got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"mask: batch {number}: expected a tensor (batch, positions), got {got}.")
        self.kept = found.detach() > 0
        if not bool(self.kept.any()):
            raise ValueError(f"mask: batch {number}: every position is padding. Leave such batches out.")

    def without(self, value: Tensor, dim: int, where: str) -> tuple[Tensor, int]:
        """The samples of an output whose dimension `dim` counts neurons, and that dimension."""
        if self.kept is None:
            return value, dim
        rows = value.movedim(dim, -1)
        for kept in (self.kept, self.kept.flatten()):
            if rows.shape[: kept.ndim] == kept.shape and (kept.ndim == 2 or rows.ndim == 2) and rows.ndim > kept.ndim:
                return rows[kept.to(rows.device)], -1
        if self.mask is not None:
            raise ValueError(
                f"mask: {where}: expected an output with the {tuple(self.kept.shape)} positions of the mask in front, "
                f"got shape {tuple(value.shape)}. Collect this layer apart, with mask=False."
            )
        return value, dim
