"""`CurvatureObserver`: the corrected ratios along an ordinary training run, at the steps a GammaMonitor measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from sdsd_kernels import checks

from ...gamma import GammaMonitor, GammaStats
from ...gamma import precondition as preconditioning
from ..derivatives import LossFunction
from .gamma import CurvatureStats, curvature_gamma


class CurvatureObserver:
    """Measures `curvature_gamma` every few steps of a monitored training loop, for the step about to be made.

    Example::

        monitor = sdsd.GammaMonitor(model)
        observer = CurvatureObserver(loss_fn, loader, optimizer=optimizer, every=50)
        monitor.add_observer(observer)
        ...
        step, stats = observer.history[-1]
        stats.lowers_loss, stats.learning_rate_max, stats.batch_size_min

    Args:
        loss_fn: (model, batch) → mean loss.
        batches: batches to measure on, one a measurement: an iterable, begun anew when it ends, or a function that
            returns one. They need not be the ones trained on.
        optimizer: read for its learning rate each time, and with precondition=True for its scale. Momentum is not part
            of the step considered.
        learning_rate: where no optimizer is given.
        every: measure at each `every`-th step that the monitor measures, beginning with the first.
        batch_size: of the step in question; the monitor's own batch where None.
        precondition: take the optimizer's diagonal scale (Adam, AdamW, RMSprop) into account. Nothing is measured
            before its first step.
        options: further arguments of `curvature_gamma`.

    Attributes:
        history: (measured step, counted from 0, `CurvatureStats`) of every measurement.

    Raises:
        ValueError: neither or both of optimizer and learning_rate; precondition without an optimizer.
    """

    def __init__(
        self,
        loss_fn: LossFunction,
        batches: Iterable[Any] | Callable[[], Any],
        *,
        optimizer: torch.optim.Optimizer | None = None,
        learning_rate: float | None = None,
        every: int = 10,
        batch_size: int | None = None,
        precondition: bool = False,
        **options: Any,
    ) -> None:
        if (optimizer is None) == (learning_rate is None):
            raise ValueError("expected either an optimizer, to read its learning rate, or learning_rate, and not both.")
        every = checks.check_count(every, "every", of="steps")
        if precondition and optimizer is None:
            raise ValueError("precondition: needs the optimizer whose scale to take.")
        if precondition and optimizer is not None:
            preconditioning.check_optimizer(optimizer)
        self.loss_fn, self.every, self.batch_size, self.options = loss_fn, every, batch_size, options
        self.history: list[tuple[int, CurvatureStats]] = []
        self._optimizer, self._rate, self._precondition = optimizer, learning_rate, precondition
        self._next = batches if callable(batches) else _endless(batches).__next__
        self._steps = 0

    def __call__(self, monitor: GammaMonitor, stats: GammaStats) -> None:
        """Called by the monitor after each step that it measures."""
        step, self._steps = self._steps, self._steps + 1
        waiting = self._precondition and self._optimizer is not None and not self._optimizer.state
        if step % self.every or waiting:
            return
        self.history.append((step, self._measure(monitor, stats)))

    def _measure(self, monitor: GammaMonitor, stats: GammaStats) -> CurvatureStats:
        rate = self._rate
        if self._optimizer is not None:
            rates = {float(group["lr"]) for group in self._optimizer.param_groups}
            if len(rates) > 1:
                raise ValueError(f"optimizer: expected one learning rate for all parameters, got {sorted(rates)}.")
            rate = rates.pop()
        assert rate is not None
        return curvature_gamma(
            monitor.model,
            self.loss_fn,
            self._next(),
            learning_rate=rate,
            batch_size=self.batch_size or stats.batch_size,
            precondition=self._optimizer if self._precondition else None,
            **self.options,
        )


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches over and over.

    Raises:
        ValueError: there are none.
    """
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError("batches: expected at least one batch, and an iterable that can be begun anew.")
