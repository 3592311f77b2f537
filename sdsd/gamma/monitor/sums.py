"""Σ‖contribution‖² of the samples and ‖.grad‖², one number a parameter, without waiting for a device.

Of parameters on a CPU they stay numbers of the host: operations of torch on so few cost more than they compute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from ..layers import UnsupportedError, Watcher
from ..uses import FEW, SAFE, Pass, square_norm, wide
from .metric import Metric
from .parameters import Parameters

if TYPE_CHECKING:
    from .session import Session

Vector: TypeAlias = "list[float] | Tensor"
"""One number a covered parameter: of the host, or in float64 on a device."""


class Sums:
    """Such vectors."""

    def __init__(self, session: Session, parameters: Parameters, metric: Metric) -> None:
        self._session, self._parameters, self._metric = session, parameters, metric
        self.unscaled = False
        """Whether a gradient of those summed last had no preconditioner: its optimizer has no state for it."""
        self._looked_for_reuse = 0
        self._rows: dict[tuple[int, ...], Tensor] = {}

    def of_samples(self, ledgers: list[Pass], passes: int) -> Vector:
        """Σ‖contribution‖² of this rank's samples to each gradient; shape: (parameters,)."""
        parameters, device = self._parameters, self._parameters.device
        index = parameters.index
        known = [0.0] * len(index)
        rows: list[int] = []
        parts: list[Tensor] = []
        for ledger in ledgers:
            for name, values in ledger.squares.items():
                row = index.get(name)
                if row is None:
                    continue
                for value in values:
                    if type(value) is float:
                        known[row] += value
                    elif value.is_cpu:  # type: ignore[union-attr]
                        known[row] += value.item()  # type: ignore[union-attr]
                    else:
                        rows.append(row)
                        parts.append(value)  # type: ignore[arg-type]
        for watcher in self._session.watchers if self._session.compiled else ():
            probed = watcher.probe.grad
            if probed is None or not watcher.names:
                continue
            self._refuse_reuse(watcher, probed, passes)
            parts += probed[: len(watcher.names)]
            rows += [index[name] for name in watcher.names.values()]
        squares: Vector = known
        for ledger in ledgers:
            if ledger.norms:
                squares = self._with_landed(on(device, squares), ledger)
        if parts:
            squares = on(device, squares).index_add(0, self._on_device(rows), _joined(parts, device))
        return squares

    def _with_landed(self, squares: Tensor, ledger: Pass) -> Tensor:
        """With those that kernels wrote, which nothing has read yet."""
        for norms in ledger.norms.values():
            sums = norms.sum(1)
            if ledger.rows is not self._parameters.index:  # some were left out since
                sums = sums[[ledger.rows[name] for name in self._parameters.covered]]
            squares = squares + sums.to(squares.device)
        return squares

    def in_compiled_code(self) -> set[str]:
        """Parameters of layers that ran there."""
        ran = (watcher for watcher in self._session.watchers if watcher.probe.grad is not None)
        return {name for watcher in ran for name in watcher.names.values()}

    def probed(self) -> dict[str, Tensor]:
        """What the samples of layers in compiled code add up to, on waves; by parameter, with a 0-dim tensor."""
        total: dict[str, Tensor] = {}
        for watcher in self._session.watchers:
            probed = watcher.probe.grad
            if probed is not None:
                for name, value in zip(watcher.names.values(), probed[len(watcher.names) : -1], strict=True):
                    total[name] = total[name] + value if name in total else value
        return total

    def of_gradients(self) -> Vector:
        """‖.grad‖² of each; shape: (parameters,)."""
        parameters, device = self._parameters, self._parameters.device
        scaled = self._session.exact and self._metric.optimizer is not None
        chosen, known, self.unscaled = parameters.chosen, [0.0] * len(parameters.covered), False
        rows: list[int] = []
        grads: list[Tensor] = []
        for row, name in enumerate(parameters.covered):
            grad = chosen[name].grad
            if grad is None:
                continue
            if grad.is_sparse:
                grad = grad.coalesce().values()
            if hasattr(grad, "to_local"):
                grad = grad.to_local()
            scale = self._metric.scale(name) if scaled else None
            self.unscaled = self.unscaled or (scaled and scale is None)
            if scale is not None:
                grad = grad * (scale.to_local() if hasattr(scale, "to_local") else scale)
            if grad.is_cpu:
                # As square_norm, without its price.
                if grad.dtype is torch.float32 and grad.numel() <= FEW and grad.is_contiguous():
                    flat = grad if grad.ndim == 1 else grad.view(-1)
                    known[row] = value = torch.dot(flat, flat).item()
                    if SAFE[0] < value < SAFE[1]:
                        continue
                known[row] = square_norm(grad)
            else:
                rows.append(row)
                grads.append(wide(grad))
        if not grads:
            return known
        norms = _joined(list(torch._foreach_norm(grads)), device).square()
        return norms if len(rows) == len(known) else on(device, known).index_put((self._on_device(rows),), norms)

    def _on_device(self, rows: list[int]) -> Tensor:
        """`rows` as a tensor; the same from step to step, so it is kept rather than copied over each time."""
        key = tuple(rows)
        kept = self._rows.get(key)
        if kept is None:
            if len(self._rows) >= 16:
                self._rows.clear()
            kept = self._rows[key] = torch.tensor(rows, device=self._parameters.device)
        return kept

    def _refuse_reuse(self, watcher: Watcher, probed: Tensor, passes: int) -> None:
        """In compiled code a layer cannot say that it ran twice; its probe can, for the price of a look at it."""
        if self._looked_for_reuse > 3 * len(self._session.watchers):
            return
        self._looked_for_reuse += 1
        uses = probed[-1].item()
        if uses > passes:
            raise UnsupportedError(
                f"{watcher.name}: ran {uses / passes:g} times in one compiled forward pass, and "
                "squares of single uses do not add. Use mode='micro', or leave this part of the model uncompiled."
            )


def on(device: torch.device, vector: Vector) -> Tensor:
    """It on `device`; where all are zero nothing is copied there."""
    if isinstance(vector, Tensor):
        return vector.to(device)
    if not any(vector):
        return torch.zeros(len(vector), dtype=torch.float64, device=device)
    return torch.tensor(vector, dtype=torch.float64, device=device)


def scaled(vector: Vector, factor: float) -> Vector:
    """It times a number."""
    return vector * factor if isinstance(vector, Tensor) else list(map(factor.__mul__, vector))


def _joined(values: list[Tensor], device: torch.device) -> Tensor:
    """0-dim tensors as one vector in float64 on `device`, without waiting for another device."""
    if all(value.device == device and value.dtype == values[0].dtype for value in values):
        return torch.stack(values).double()
    return torch.stack([value.to(device, torch.float64) for value in values])
