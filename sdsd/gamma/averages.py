"""Running averages of signal and noise on the device: ratio of averages, with an error bar from their own spread.

Kept for every parameter and the total, with the same exponential weights: S = ⟨s⟩, V = ⟨v⟩, A = ⟨s²⟩, C = ⟨sv⟩,
Q = ⟨v²⟩ of the unbiased signal s and the noise v of a step. Averages of ratios would be biased; R = S / V is not
much, and its standard error needs nothing more than these five:

    se² = w / (1 − w) · (A − 2RC + R²Q) / V²      w = (1−β)/(1+β) · (1+βᵗ)/(1−βᵗ)      t with 1/w − 1 d.o.f.

w is the sum of squared weights after t steps: 1/w is how many steps the average is worth.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .stats import Row, Source, Table

SIGNAL, NOISE, SIGNAL_SQUARED, PRODUCT, NOISE_SQUARED = range(5)


class RunningAverages:
    """Bias-corrected exponential averages over steps; a step that is not finite leaves them as they were.

    Args:
        rows: number of parameters; one more row holds the total.
        decay: β in [0, 1); 0 keeps the last step alone.
        device: where the numbers stay.
    """

    sums: Tensor
    weight: Tensor
    square_weight: Tensor

    def __init__(self, rows: int, decay: float, device: torch.device) -> None:
        self.decay = decay
        self._rows, self._device = rows, device
        self.reset()

    def update(self, signal: Tensor, noise: Tensor) -> None:
        """Add one step; shape of both: (rows + 1,), total last, the signal unbiased."""
        new = torch.stack([signal, noise, signal * signal, signal * noise, noise * noise])
        good = new.isfinite().all()
        share = 1 - self.decay
        self.sums = torch.where(good, self.decay * self.sums + share * torch.where(good, new, 0.0), self.sums)
        self.weight = torch.where(good, self.decay * self.weight + share, self.weight)
        self.square_weight = torch.where(
            good, self.decay**2 * self.square_weight + share**2, self.square_weight
        )  # fmt: skip

    def reset(self) -> None:
        """Forget every step."""
        # New tensors, never zeroed ones: results already given out still read the old.
        self.sums = torch.zeros(5, self._rows + 1, dtype=torch.float64, device=self._device)
        self.weight = torch.zeros((), dtype=torch.float64, device=self._device)
        self.square_weight = torch.zeros((), dtype=torch.float64, device=self._device)

    def source(self, names: tuple[str, ...], n: int) -> AveragesSource:
        """The averages of now, as what a `GammaStats` of n gradients a step reads."""
        return AveragesSource(names, n, self.sums, self.weight, self.square_weight)

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums.cpu(), "weight": self.weight.cpu(), "square_weight": self.square_weight.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["sums"].shape != self.sums.shape:
            raise ValueError(
                f"state: expected averages of {self.sums.shape[1] - 1} parameters, got {state['sums'].shape[1] - 1}. "
                "Load it into a monitor of the same model and parameters."
            )
        for name in ("sums", "weight", "square_weight"):
            setattr(self, name, state[name].to(self._device, torch.float64, copy=True))


class AveragesSource(Source):
    """Host values of the running averages at one step."""

    def __init__(self, names: tuple[str, ...], n: int, sums: Tensor, weight: Tensor, square_weight: Tensor) -> None:
        super().__init__(names)
        self._n = n
        self._tensors = (sums, weight, square_weight)

    def _fetch(self) -> Table:
        sums, weight, square_weight = self._tensors
        flat = torch.cat([sums.flatten(), weight.view(1), square_weight.view(1)]).cpu().numpy()
        total_weight, squares = float(flat[-2]), float(flat[-1])
        if total_weight == 0:
            nothing = Row(math.nan, math.nan, None, None)
            return Table(nothing, (nothing,) * len(self.names), degrees=math.nan)
        means = flat[:-2].reshape(5, -1) / total_weight
        w = squares / total_weight**2
        rows = [self._row(column, w) for column in means.T]
        return Table(rows[-1], tuple(rows[:-1]), degrees=1 / w - 1 if w < 1 else math.nan)

    def _row(self, column: np.ndarray, w: float) -> Row:
        s, v, a, c, q = map(float, column)
        # GammaStats subtracts noise / n again to get back to the unbiased signal.
        signal = s + v / self._n
        if v == 0 or w >= 1 - 1e-12:
            return Row(signal, v, None, None)
        ratio = s / v
        variance = w / (1 - w) * max(a - 2 * ratio * c + ratio * ratio * q, 0.0) / v**2
        return Row(signal, v, math.sqrt(variance), None)


class StepSource(Source):
    """Host values of one step: signal and noise of every parameter, total last."""

    def __init__(self, names: tuple[str, ...], signal: Tensor, noise: Tensor) -> None:
        super().__init__(names)
        self._tensors = (signal, noise)

    def _fetch(self) -> Table:
        signal, noise = torch.stack(self._tensors).cpu().tolist()
        rows = [Row(m, v, None, None) for m, v in zip(signal, noise, strict=True)]
        return Table(rows[-1], tuple(rows[:-1]), degrees=math.nan)
