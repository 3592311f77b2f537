"""Gradients of samples, all kept or computed anew block by block where they would take too much memory."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..derivatives import LossFunction, length_of, part_of, rows_of, trainable


def row_dtype(model: nn.Module) -> torch.dtype:
    """Of a gradient over all parameters that train: the widest of theirs."""
    return functools.reduce(torch.promote_types, (parameter.dtype for parameter in trainable(model).values()))


class GradientRows:
    """One gradient for every `samples_per_gradient` samples of a batch; all are kept if `keep`.

    Otherwise each look at them computes them again, `at_once` at a time, with the same random numbers (dropout). Use it
    inside `undisturbed`.

    Raises:
        ValueError: gradients that are not finite.
    """

    def __init__(
        self, model: nn.Module, loss_fn: LossFunction, batch: Any, samples_per_gradient: int, at_once: int, keep: bool
    ) -> None:
        self._model, self._loss_fn, self._batch, self._samples = model, loss_fn, batch, samples_per_gradient
        self.count, self._at_once = length_of(batch) // samples_per_gradient, at_once
        self._seed = int(torch.randint(2**62, ()).item())
        parameters = list(trainable(model).values())
        self.width, self.device = sum(map(Tensor.numel, parameters)), parameters[0].device
        self._kept: Tensor | None = None
        if keep:
            kept = torch.empty(self.count, self.width, dtype=row_dtype(model), device=self.device)
            for place, block in self._computed(0, self.count):
                kept[place] = block
            self._kept = kept

    def blocks(self, start: int, stop: int) -> Iterator[tuple[slice, Tensor]]:
        """Gradients `start` to `stop`, and which they are; shape: (some, width)."""
        if self._kept is not None:
            yield slice(start, stop), self._kept[start:stop]
        else:
            yield from self._computed(start, stop)

    def _computed(self, start: int, stop: int) -> Iterator[tuple[slice, Tensor]]:
        for first in range(start, stop, self._at_once):
            last = min(first + self._at_once, stop)
            torch.manual_seed(self._seed + first)
            part = part_of(self._batch, first * self._samples, last * self._samples)
            block = rows_of(self._model, self._loss_fn, part, self._samples)
            if not bool(block.isfinite().all()):
                raise ValueError(
                    "batch: its gradients hold NaN or infinity, and so would everything computed from them."
                )
            yield slice(first, last), block
