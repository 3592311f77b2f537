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

    _state: Tensor
    """Rows: the five sums, then for every column the sum of weights and of squared weights."""

    def __init__(self, rows: int, decay: float, device: torch.device) -> None:
        self.decay = decay
        self._rows, self._device = rows, device
        keep, share = [decay] * 6 + [decay**2], [1 - decay] * 6 + [(1 - decay) ** 2]
        self._keep = torch.tensor(keep, dtype=torch.float64, device=device).unsqueeze(1)
        self._share = torch.tensor(share, dtype=torch.float64, device=device).unsqueeze(1)
        self.reset()

    def update(self, signal: Tensor, noise: Tensor) -> None:
        """Add one step; shape of both: (rows + 1,), total last, the signal unbiased."""
        one = torch.ones_like(signal)
        new = torch.stack([signal, noise, signal * signal, signal * noise, noise * noise, one, one])
        good = new.sum().isfinite()
        # Multiplied first: where `good` is false, what came of NaN is thrown away.
        self._state = torch.where(good, torch.addcmul(self._state * self._keep, new, self._share), self._state)

    def reset(self) -> None:
        """Forget every step."""
        # New tensors, never zeroed ones: results already given out still read the old.
        self._state = torch.zeros(7, self._rows + 1, dtype=torch.float64, device=self._device)

    @property
    def sums(self) -> Tensor:
        """Weighted sums of s, v, s², sv and v²; shape: (5, rows + 1)."""
        return self._state[:5]

    @property
    def weight(self) -> Tensor:
        """Sum of the weights."""
        return self._state[5, 0]

    @property
    def square_weight(self) -> Tensor:
        """Sum of the squared weights."""
        return self._state[6, 0]

    def source(self, names: tuple[str, ...], n: int) -> AveragesSource:
        """The averages of now, as what a `GammaStats` of n gradients a step reads."""
        return AveragesSource(names, n, self._state)

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums.cpu(), "weight": self.weight.cpu(), "square_weight": self.square_weight.cpu()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["sums"].shape != self.sums.shape:
            raise ValueError(
                f"state: expected averages of {self.sums.shape[1] - 1} parameters, got {state['sums'].shape[1] - 1}. "
                "Load it into a monitor of the same model and parameters."
            )
        weights = torch.stack([state["weight"].cpu(), state["square_weight"].cpu()]).double()
        rows = [state["sums"].cpu().double(), weights.unsqueeze(1).expand(2, self._rows + 1)]
        self._state = torch.cat(rows).to(self._device)


class AveragesSource(Source):
    """Host values of the running averages at one step."""

    def __init__(self, names: tuple[str, ...], n: int, state: Tensor) -> None:
        super().__init__(names)
        self._n = n
        self._state = state

    def _fetch(self) -> Table:
        state = self._state.cpu().numpy()
        total_weight, squares = float(state[5, 0]), float(state[6, 0])
        if total_weight == 0:
            nothing = Row(math.nan, math.nan, None, None)
            return Table(nothing, (nothing,) * len(self.names), degrees=math.nan)
        means = state[:5] / total_weight
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
