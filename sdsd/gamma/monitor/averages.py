"""Running averages of signal and noise on the device: ratio of averages, with an error bar from their own spread.

Kept for every parameter and the total, with the same exponential weights: S = ⟨s⟩, V = ⟨v⟩, A = ⟨s²⟩, C = ⟨sv⟩,
Q = ⟨v²⟩ of the unbiased signal s and the noise v of a step. Averages of ratios would be biased; R = S / V is not
much, and its standard error needs nothing more than these five:

    se² = w / (1 − w) · (A − 2RC + R²Q) / V²      w = (1−β)/(1+β) · (1+βᵗ)/(1−βᵗ)      t with 1/w − 1 d.o.f.

w is the sum of squared weights after t steps: 1/w is how many steps the average is worth. Where batches are drawn
without replacement the spread of s is smaller by itself, so no factor is applied; that the batches of an epoch vary
against each other makes se too large rather than too small.

A step only leaves its numbers behind. They are worked into the averages many steps at once, or when somebody reads
them: a training step then pays for no arithmetic on small tensors, which costs more than it computes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..sources import Row, Source, Table, independent_count
from ..stats import GammaStats

HELD = 64
"""Steps that may wait to be worked in."""


class Step(NamedTuple):
    """What one measured step found."""

    raw: tuple[Any, Any] | Tensor
    """‖ḡ‖² and Σ‖g‖² of every parameter, (2, parameters) in float64, or two lists of numbers of the host."""
    n: int
    """Gradients."""
    unit: float
    """Samples a gradient."""
    independent: float
    """`stats.independent_count` of them: n, and more where they are a good part of a finite population."""

    def tensor(self) -> Tensor:
        """`raw`, in any case a tensor."""
        return torch.as_tensor(self.raw, dtype=torch.float64)


def _signal_and_noise(raw: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """‖ḡ‖² and Tr Var from `Step.raw` (K, 2, parameters) and n (K,), their total last; shape: (K, parameters + 1)."""
    signal, squares = raw.unbind(1)
    count = n.unsqueeze(1)
    noise = (squares - count * signal) / (count - 1)
    return torch.cat([signal, signal.sum(1, True)], 1), torch.cat([noise, noise.sum(1, True)], 1)


def _worked_in(state: Tensor, steps: list[Step], decay: float) -> Tensor:
    """The running sums after `steps`, on the device of `state`."""
    if not steps:
        return state
    raw = torch.stack([step.tensor() for step in steps]).to(state.device)
    n, unit, independent = state.new_tensor([[step.n, step.unit, step.independent] for step in steps]).unbind(1)
    signal, noise = _signal_and_noise(raw, n)
    # Averaged by sample, so that modes, and micro-batches of any size, go into one average.
    s, v = signal - noise / independent.unsqueeze(1), noise * unit.unsqueeze(1)
    one = torch.ones_like(s)
    new = torch.stack([s, v, s * s, s * v, v * v, one, one], 1)  # shape: (K, 7, parameters + 1)
    good = new.sum((1, 2)).isfinite()
    after = good.flip(0).cumsum(0).flip(0) - good.long()  # finite steps after each
    keep = state.new_tensor([decay] * 6 + [decay**2])
    share = state.new_tensor([1 - decay] * 6 + [(1 - decay) ** 2])
    weights = share * keep ** after.unsqueeze(1)
    added = torch.where(good.view(-1, 1, 1), weights.unsqueeze(2) * new, 0.0).sum(0)
    return (keep ** good.sum()).unsqueeze(1) * state + added


class RunningAverages:
    """Bias-corrected exponential averages over steps; a step that is not finite leaves them as they were.

    Args:
        rows: number of parameters; one more row holds the total.
        decay: β in [0, 1); 0 keeps the last step alone.
        device: where the numbers stay.
    """

    _state: Tensor
    """Rows: the weighted sums of s, v, s², sv and v², then in every column the sum of weights and of their squares."""
    _waiting: list[Step]
    samples: int | None
    """Of the last step's batch."""

    def __init__(self, rows: int, decay: float, device: torch.device) -> None:
        self.decay = decay
        self.device = device
        self._rows = rows
        self.reset()

    def update(self, step: Step) -> None:
        """Add one step."""
        self._waiting = [*self._waiting, step]
        self.samples = round(step.n * step.unit)
        if len(self._waiting) == HELD:
            self._settle()

    def reset(self) -> None:
        """Forget every step."""
        # New tensors and lists, never changed ones: results already given out still read the old.
        self._state = torch.zeros(7, self._rows + 1, dtype=torch.float64, device=self.device)
        self._waiting = []
        self.samples = None

    def _settle(self) -> None:
        self._state, self._waiting = _worked_in(self._state, self._waiting, self.decay), []

    def source(self, names: tuple[str, ...], independent: float) -> AveragesSource:
        """The averages of now, as what a `GammaStats` of so many independent gradients a step reads."""
        return AveragesSource(names, independent, *self.now())

    def now(self) -> tuple[Tensor, list[Step], float]:
        """The averages of now: the running sums, steps that are not in them yet, and the decay."""
        return self._state, self._waiting, self.decay

    def state_dict(self) -> dict[str, Any]:
        self._settle()
        state = self._state.cpu()
        return {
            "sums": state[:5].clone(),
            "weight": state[5, 0].clone(),
            "square_weight": state[6, 0].clone(),
            "samples": self.samples,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["sums"].shape != (5, self._rows + 1):
            raise ValueError(
                f"state: expected averages of {self._rows} parameters, got {state['sums'].shape[1] - 1}. "
                "Load it into a monitor of the same model and parameters."
            )
        weights = torch.stack([state["weight"], state["square_weight"]]).unsqueeze(1).expand(2, self._rows + 1)
        self._state = torch.cat([state["sums"], weights]).to(self.device, torch.float64)
        self._waiting = []
        self.samples = state.get("samples")  # None also where an older version saved it


def check_state(state: Mapping[str, Any], covered: tuple[str, ...], population: int | None) -> None:
    """Raise where a saved state is not of a monitor of these parameters and this population."""
    missing = [key for key in ("averages", "steps", "mode", "parameters", "population") if key not in state]
    if missing:
        raise ValueError(f"state: expected what state_dict() gave, but {', '.join(missing)} is missing.")
    if list(state["parameters"]) != list(covered):
        differ = sorted(set(state["parameters"]) ^ set(covered))[:5]
        raise ValueError(f"state: it is of other parameters than this monitor's (for example {', '.join(differ)}).")
    if state["population"] != population:
        raise ValueError(
            f"state: its averages are of batches with population={state['population']}, this monitor's would be of "
            f"population={population}. Give the monitor that one, or let it begin anew without this state."
        )


class AveragesSource(Source):
    """Host values of the running averages at one step."""

    def __init__(
        self, names: tuple[str, ...], independent: float, state: Tensor, waiting: list[Step], decay: float
    ) -> None:
        super().__init__(names)
        self._independent = independent
        self._unsettled = (state, waiting, decay)

    def _fetch(self) -> Table:
        state, waiting, decay = self._unsettled
        values = _worked_in(state.cpu(), waiting, decay).numpy()
        total_weight, squares = float(values[5, 0]), float(values[6, 0])
        if total_weight == 0:
            nothing = Row(math.nan, math.nan, None, None)
            return Table(nothing, (nothing,) * len(self.names), degrees=math.nan)
        means = values[:5] / total_weight
        w = squares / total_weight**2
        rows = [self._row(column, w) for column in means.T]
        return Table(rows[-1], tuple(rows[:-1]), degrees=1 / w - 1 if w < 1 else math.nan)

    def _row(self, column: np.ndarray, w: float) -> Row:
        s, v, a, c, q = map(float, column)
        # GammaStats subtracts the same again to get back to the unbiased signal.
        signal = s + v / self._independent
        if v == 0 or w >= 1 - 1e-12:
            return Row(signal, v, None, None)
        ratio = s / v
        variance = w / (1 - w) * max(a - 2 * ratio * c + ratio * ratio * q, 0.0) / v**2
        return Row(signal, v, math.sqrt(variance), None)


class StepSource(Source):
    """Host values of one step: signal and noise of every parameter, total last."""

    def __init__(self, names: tuple[str, ...], step: Step) -> None:
        self.names, self._table, self._step = names, None, step

    def _fetch(self) -> Table:
        raw, n = self._step.tensor().cpu(), self._step.n
        signal, noise = (values[0].tolist() for values in _signal_and_noise(raw.unsqueeze(0), raw.new_tensor([n])))
        rows = [Row(m, v, None, None) for m, v in zip(signal, noise, strict=True)]
        return Table(rows[-1], tuple(rows[:-1]), degrees=math.nan)


def averaged(
    state: tuple[Tensor, list[Step], float],
    names: tuple[str, ...],
    samples: int,
    population: int | None,
    confidence: float,
) -> GammaStats:
    """The running averages, as `RunningAverages.now` gave them after a step of so many samples."""
    return GammaStats(
        AveragesSource(names, independent_count(samples, 1, population), *state),
        n=samples,
        samples_per_gradient=1,
        batch_size=samples,
        population=population,
        confidence=confidence,
    )


def statistics(
    step: Step, averages: RunningAverages, names: tuple[str, ...], population: int | None, confidence: float
) -> GammaStats:
    """A step's statistics, with those of the steps so far as `smoothed`."""
    unit, samples, state = step.unit, round(step.n * step.unit), averages.now()
    return GammaStats(
        StepSource(names, step),
        n=step.n,
        samples_per_gradient=int(unit) if unit == int(unit) else unit,
        batch_size=samples,
        population=population,
        confidence=None,
        smoothed=lambda: averaged(state, names, samples, population, confidence),
    )
