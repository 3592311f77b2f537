"""`GammaMonitor.check`: the monitor's numbers beside a loop over the samples of a batch."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...graphs import seeded
from ...models import check_loss_function, untouched
from ..following import Track
from ..stats import GammaStats
from .arrivals import Arrivals
from .averages import StepSource
from .marks import Marks
from .parameters import Parameters

if TYPE_CHECKING:
    from .meter import Meter
    from .session import Session

LOGGER = logging.getLogger("sdsd.gamma")


@dataclass(frozen=True)
class CheckedParameter:
    """Signal and noise of one parameter, as measured and by the loop."""

    name: str
    signal: float
    signal_by_loop: float
    noise: float
    noise_by_loop: float

    @property
    def difference(self) -> float:
        """The larger of the two differences, relative to signal + noise of the loop."""
        size = self.signal_by_loop + self.noise_by_loop
        gap = max(abs(self.signal - self.signal_by_loop), abs(self.noise - self.noise_by_loop))
        return gap / size if size else gap


@dataclass(frozen=True)
class CheckReport:
    """What `GammaMonitor.check` found; `str` is a table."""

    parameters: tuple[CheckedParameter, ...]
    loss: float
    loss_by_loop: float

    @property
    def difference(self) -> float:
        """The largest relative difference over all parameters."""
        return max((row.difference for row in self.parameters), default=0.0)

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.parameters)
        lines = [f"{'':{width}}  {'signal':>11} {'by loop':>11} {'noise':>11} {'by loop':>11} {'difference':>11}"]
        lines += [
            f"{row.name:{width}}  {row.signal:11.4g} {row.signal_by_loop:11.4g} {row.noise:11.4g} "
            f"{row.noise_by_loop:11.4g} {row.difference:11.1e}"
            for row in self.parameters
        ]
        if abs(self.loss - self.loss_by_loop) > 1e-3 * abs(self.loss):
            lines.append(
                f"The loss of the batch, {self.loss:.6g}, is not the mean of the samples' losses, "
                f"{self.loss_by_loop:.6g}: samples are weighted (by tokens, say), or the model is random or mixes them."
            )
        return "\n".join(lines)


def beside_loop(
    model: nn.Module,
    meter: Meter,
    session: Session,
    parameters: Parameters,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    batch: Any,
) -> CheckReport:
    """Measure one batch, then loop over its samples; everything is left as it was."""
    check_loss_function(loss_fn)
    scaler, meter.scaler = meter.scaler, None
    proved, arrivals, meter.arrivals = meter.prover.steps, meter.arrivals, Arrivals()
    try:
        with kept(parameters.root), apart(session):
            for parameter in parameters.root.parameters():
                parameter.grad = None
            session.directions = None if session.sharded else meter.prover.direction
            with torch.enable_grad():
                loss = loss_fn(model, batch)
                loss.backward()
            with torch.no_grad():
                step, _ = meter.measure()
            n = session.batch or 0
            if step is None:
                raise ValueError(f"batch: expected at least 2 samples, got {n}.")
            with session.paused(), torch.enable_grad():
                rows, loss_by_loop = by_loop(
                    parameters.root,
                    parameters.measured(),
                    loss_fn,
                    batch,
                    n,
                    session.batch_dim,
                    rows=_rows_each(session),
                )
    finally:
        meter.scaler, meter.prover.steps, meter.arrivals = scaler, proved, arrivals
    stats = GammaStats(
        StepSource(parameters.covered, step), n=n, samples_per_gradient=1, batch_size=n, confidence=None
    ).parameters
    report = CheckReport(
        tuple(
            CheckedParameter(name, stats[name].signal, signal, stats[name].noise, noise)
            for name, (signal, noise) in rows.items()
        ),
        loss.item() / (n if meter.reduction == "sum" else 1),
        loss_by_loop,
    )
    LOGGER.info(
        "check: %d parameters, largest difference from the loop %.1e", len(report.parameters), report.difference
    )
    return report


def _rows_each(session: Session) -> int:
    """How many rows of its first input the model took for one sample, as `batch_size` says."""
    inputs = [] if session.last is None else session.last.inputs
    return inputs[0][1].inner if inputs and isinstance(inputs[0][1], Track) else 1


def slices(batch: Any, n: int, axis: int | None, rows: int = 1) -> Iterator[Any]:
    """The batch's samples, each a batch of one: every tensor with n entries, or `rows` a sample, is cut along `axis`.

    One that has them along dimension 0 alone (labels of sequences that lie time first) is cut there. With None lists
    and tuples of n entries, none of which is one itself, and tensors of n rows. ValueError: there is nothing to cut.
    """
    if axis is None:
        yield from (_listed(batch, n, k) for k in range(n))
        return
    for k in range(n):
        cut: list[Tensor] = []
        sample = _part(batch, n, axis, k, cut, rows)
        if not cut:
            raise ValueError(
                f"batch: expected tensors with its {n} samples along dimension {axis}, in tuples, lists, mappings or "
                f"dataclasses, got {type(batch).__name__}. Pass them so, and let loss_fn take them."
            )
        yield sample


def _part(value: Any, n: int, axis: int, k: int, cut: list[Tensor], rows: int) -> Any:
    """Sample k of what a batch holds; `cut` gets what has been cut."""
    if isinstance(value, Tensor):
        along = next((d for d in (axis, 0) if value.ndim > d and value.shape[d] in (n, n * rows)), None)
        if along is None:
            return value
        cut.append(value)
        own = value.shape[along] // n
        return value.narrow(along, k * own, own)
    if isinstance(value, MutableMapping):  # as a tokenizer gives them, too
        part = copy.copy(value)
        for name in value:
            part[name] = _part(value[name], n, axis, k, cut, rows)
        return part
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        parts = {name: _part(inner, n, axis, k, cut, rows) for name, inner in fields.items()}
        return dataclasses.replace(value, **parts)
    leaves, structure = pytree.tree_flatten(value, is_leaf=lambda inner: inner is not value)
    if len(leaves) == 1 and leaves[0] is value:
        return value
    return pytree.tree_unflatten([_part(leaf, n, axis, k, cut, rows) for leaf in leaves], structure)


def _listed(batch: Any, n: int, k: int) -> Any:
    if type(batch) in (list, tuple):
        if len(batch) == n and not any(type(each) in (list, tuple) for each in batch):
            return type(batch)([batch[k]])
        return type(batch)(_listed(each, n, k) for each in batch)
    if isinstance(batch, dict):
        return {name: _listed(each, n, k) for name, each in batch.items()}
    return batch[k : k + 1] if isinstance(batch, Tensor) and batch.ndim and batch.shape[0] == n else batch


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Inside, the model may run and fill .grad; afterwards both are as they were, and so are random streams."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    devices = sorted({p.device for p, _ in gradients if p.device.type == "cuda"}, key=str)
    with untouched(model), seeded(None, devices):
        try:
            yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient


def by_loop(
    model: nn.Module,
    parameters: dict[str, nn.Parameter],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    batch: Any,
    n: int,
    axis: int | None,
    *,
    rows: int,
) -> tuple[dict[str, tuple[float, float]], float]:
    """Signal and noise of every parameter by one backward pass a sample, and the mean of the samples' losses."""
    total = {name: torch.zeros_like(p, dtype=_wide(p)) for name, p in parameters.items()}
    squares = dict.fromkeys(parameters, 0.0)
    losses = 0.0
    for sample in slices(batch, n, axis, rows):
        loss = loss_fn(model, sample)
        losses += loss.item() / n
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for name, row in zip(parameters, gradients, strict=True):
            if row is not None:
                total[name] += row
                squares[name] += torch.linalg.vector_norm(row.to(_wide(row))).item() ** 2
    measured = {}
    for name in parameters:
        signal = torch.linalg.vector_norm(total[name] / n).item() ** 2
        measured[name] = signal, (squares[name] - n * signal) / (n - 1)
    return measured, losses


def _wide(x: Tensor) -> torch.dtype:
    return torch.complex128 if x.is_complex() else torch.float64


@contextmanager
def apart(session: Session) -> Iterator[None]:
    """Inside, the session is as at the beginning of a measured step; afterwards it is what it was."""
    kept = {
        name: value.copy() if isinstance(value, (set, dict)) else list(value) if isinstance(value, list) else value
        for name, value in vars(session).items()
        if name in _OF_A_STEP
    }
    probes = [(watcher, watcher.probe.grad) for watcher in session.watchers]
    session.passes, session.marks = [], Marks()  # those of now go on afterwards
    session.reset(True)
    try:
        yield
    finally:
        vars(session).update(kept)
        for watcher, grad in probes:
            watcher.probe.grad = grad


_OF_A_STEP = frozenset(
    ("planned", "measuring", "sizes", "passes", "strangers", "stale", "given_up", "batch", "unread", "unknown")
)
_OF_A_STEP |= {"directions", "_outer", "_begun", "_open", "marks", "_stepped", "compiled", "last", "rewritten"}
_OF_A_STEP |= {"_waiting", "repeated"}
