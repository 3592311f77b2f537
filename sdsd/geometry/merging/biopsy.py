"""What merging costs: pairs of neurons one by one, and many at once, near ones against far and random ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from sdsd_kernels import checks

from ..._progress import Progress, reporter
from ...models import untouched
from ..cosines import NeuronPair
from .consumers import consumers
from .edits import IndexPairs, applied
from .measurements import Key, Measurements, fingerprint, resumed
from .merger import How, Merger, absorption_from
from .pair_source import PairSource
from .sensitivity import LossFunction, Sensitivity, as_sensitivity, single_number

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 10_000
COHORTS = {"near": "nearest", "random": "random", "far": "farthest"}


@dataclass(frozen=True)
class Cohort:
    """Pairs of neurons, each merged alone.

    Attributes:
        name: "near" | "random" | "far".
        pairs: in the order of choice, the most extreme first.
        loss_changes: loss with a pair merged, less that of the untouched network; one a pair.
    """

    name: str
    pairs: tuple[NeuronPair, ...]
    loss_changes: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean of |loss change|."""
        return fmean(map(abs, self.loss_changes))

    @property
    def std(self) -> float | None:
        """Standard deviation of |loss change|; None for a single pair."""
        return stdev(map(abs, self.loss_changes)) if len(self.loss_changes) > 1 else None


@dataclass(frozen=True)
class Biopsy:
    """What `biopsy` measured; prints as a table.

    Attributes:
        layer, how: what was merged, and in which way.
        loss_before: of the untouched network.
        near, random, far: cohorts of equal size.
        ratio: mean |loss change| of the far cohort over that of the near one; None where near merges change nothing.
        interval: bootstrap interval of `ratio`, pairs of both cohorts drawn anew; None where there is no ratio.
        confidence: of the interval.
        single_ratio: the same ratio for the farthest and the nearest pair alone. One pair against one pair is noise:
            read `ratio`. None where the nearest pair changes nothing.
        measurements: all losses; pass them as `resume` to go on with more pairs.
    """

    layer: str
    how: How
    loss_before: float
    near: Cohort
    random: Cohort
    far: Cohort
    ratio: float | None
    interval: tuple[float, float] | None
    confidence: float
    single_ratio: float | None
    measurements: Measurements = field(repr=False)

    def __str__(self) -> str:
        lines = [f"{self.layer!r}, {len(self.near.pairs)} pairs a cohort, each merged alone (how={self.how!r})"]
        lines.append(f"  {'cohort':<8}{'mean cosine':>12}{'mean |ΔL|':>12}{'sd':>12}")
        for cohort in (self.near, self.random, self.far):
            spread = "–" if cohort.std is None else f"{cohort.std:.3g}"
            cosine = fmean(pair.cosine for pair in cohort.pairs)
            lines.append(f"  {cohort.name:<8}{cosine:>12.3f}{cohort.mean:>12.3g}{spread:>12}")
        return "\n".join([*lines, f"  far / near: {_with_interval(self.ratio, self.interval, self.confidence)}"])


@dataclass(frozen=True)
class MassConsolidation:
    """What `mass_consolidation` measured; prints as a table.

    Attributes:
        layer, how: what was merged, and in which way.
        loss_before: of the untouched network.
        pairs: the nearest pairs, merged at once.
        geometry: loss change of that.
        random: loss changes of as many random pairs merged at once, one for each pairing.
        ratio: mean |random| over |geometry|; None where geometry changes nothing.
        interval: bootstrap interval of `ratio`, random pairings drawn anew; None where there is no ratio.
        confidence: of the interval.
        measurements: all losses; pass them as `resume` to go on.
    """

    layer: str
    how: How
    loss_before: float
    pairs: tuple[NeuronPair, ...]
    geometry: float
    random: tuple[float, ...]
    ratio: float | None
    interval: tuple[float, float] | None
    confidence: float
    measurements: Measurements = field(repr=False)

    def __str__(self) -> str:
        sizes = list(map(abs, self.random))
        return (
            f"{self.layer!r}, {len(self.pairs)} pairs merged at once (how={self.how!r})\n"
            f"  geometry ΔL {self.geometry:+.3g}\n"
            f"  random   |ΔL| {fmean(sizes):.3g} ± {stdev(sizes):.3g} over {len(sizes)} pairings\n"
            f"  random / geometry: {_with_interval(self.ratio, self.interval, self.confidence)}"
        )


def biopsy(
    model: nn.Module,
    layer: str,
    loss: Sensitivity | tuple[Iterable[Any], LossFunction],
    pairs: int = 50,
    *,
    how: How = "mean",
    activations: Tensor | np.ndarray | None = None,
    cosine: Tensor | np.ndarray | None = None,
    alive: Tensor | np.ndarray | None = None,
    gram: Tensor | np.ndarray | None = None,
    neuron_dim: int | None = None,
    example_input: Any = None,
    seed: int = 0,
    confidence: float = 0.95,
    resume: str | Path | Measurements | None = None,
    progress: Progress = False,
) -> Biopsy:
    """Merge near, random and far pairs of neurons one at a time, and measure what each merge does to the loss.

    The procedure of "Functional Geometry in Deep Neural Networks", phase II: if cosine similarity of activations means
    a shared job, near pairs cost less than far ones. Pairs of a cohort are disjoint and chosen greedily, by
    `disjoint_pairs`.

    Memory: a copy of the model's parameters and buffers, and what `disjoint_pairs` takes.

    Args:
        model: put into eval mode meanwhile, and left as it was, bit for bit: parameters, buffers, attributes, modes.
            Every measurement starts from the same buffers and attributes.
        layer: name of an nn.Linear or convolution.
        loss: a function of the model that gives a number (a float or a tensor with one element), or (loader, loss_fn)
            as `mean_loss` takes them. It must see the same data each time. `kl_to_untouched` and `cosine_to_untouched`
            make functions that need no labels.
        pairs: in each cohort; fewer where the neurons do not suffice.
        how: "mean" | "act" | "absorb", as in `merge`.
        activations: of the layer, after the nonlinearity, from which cosines are taken, in any layout. Neurons whose
            norm is below 1e-3 of the largest count as dead and are in no pair.
        cosine: a symmetric matrix instead, (n, n): from `GramAccumulator`, or `weight_cosine(model, layer)` for that
            control.
        alive: with `cosine`, neurons that may be paired.  # shape: (n,), bool
        gram: for how="absorb" with `cosine`, as in `merge`.
        neuron_dim: the dimension of `activations` that counts neurons; None: 1 for convolutions, else the last.
        example_input: as in `consumers`.
        seed: of the random cohort and of the bootstrap.
        confidence: of the interval, between 0 and 1.
        resume: a file that every loss is added to, and that a run which was stopped goes on from; or the
            `measurements` of an earlier result.
        progress: True for a line on standard error, or a function called with (done, total).

    Returns:
        `Biopsy`.

    Raises:
        TypeError: as `merge`; a loss that is no function, or gives no single number.
        ValueError: as `merge`; both or neither of activations and cosine; a matrix that is not one of cosines; fewer
            than two neurons alive; a loss that is NaN or infinite; a loader without a batch; resume that belongs to
            another network, layer or loss.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.randn(20, 3)
        >>> data = [(x, torch.randint(2, (20,)))]
        >>> loss = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> result = biopsy(model, "0", (data, loss), pairs=2, activations=model[:2](x))
        >>> len(result.near.pairs), result.near.pairs[0].cosine >= result.far.pairs[0].cosine
        (2, True)
    """
    seed = _checked_seed(confidence, seed)
    readers = consumers(model, layer, example_input)
    source = PairSource(model, readers, activations, cosine, alive, neuron_dim)
    absorption = absorption_from(model, readers, activations, gram, neuron_dim) if how == "absorb" else None
    merger = Merger(model, readers, how, absorption)
    chosen = {name: source.pairs(pairs, which, seed) for name, which in COHORTS.items()}
    report = reporter(progress, f"biopsy of {layer}")
    steps = [(name, pair) for name, cohort in chosen.items() for pair in cohort]
    changes: dict[str, list[float]] = {name: [] for name in chosen}
    with _measuring(merger, loss, resume) as measure:
        for done, (name, pair) in enumerate(steps, start=1):
            changes[name].append(measure([pair]))
            report(done, len(steps))
    near, random, far = (Cohort(name, chosen[name], tuple(changes[name])) for name in COHORTS)
    ratio, interval = _ratio(far.loss_changes, near.loss_changes, confidence, seed)
    single, _ = _ratio(far.loss_changes[:1], near.loss_changes[:1], confidence, seed)
    measurements = measure.measurements
    return Biopsy(
        layer, how, measurements.loss_before, near, random, far, ratio, interval, confidence, single, measurements
    )


def mass_consolidation(
    model: nn.Module,
    layer: str,
    loss: Sensitivity | tuple[Iterable[Any], LossFunction],
    pairs: int = 50,
    *,
    random_pairings: int = 8,
    how: How = "mean",
    activations: Tensor | np.ndarray | None = None,
    cosine: Tensor | np.ndarray | None = None,
    alive: Tensor | np.ndarray | None = None,
    gram: Tensor | np.ndarray | None = None,
    neuron_dim: int | None = None,
    example_input: Any = None,
    seed: int = 0,
    confidence: float = 0.95,
    resume: str | Path | Measurements | None = None,
    progress: Progress = False,
) -> MassConsolidation:
    """Merge many near pairs at once, and as many random pairs, and compare what it does to the loss.

    The procedure of "Functional Geometry in Deep Neural Networks", phase III. Random pairings are drawn anew
    `random_pairings` times from the same neurons, since a single one may be lucky.

    Args:
        random_pairings: how many, at least 2.
        others: as in `biopsy`.

    Returns:
        `MassConsolidation`.

    Raises:
        TypeError, ValueError: as `biopsy`; fewer than two random pairings.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x = torch.randn(20, 3)
        >>> loss = lambda model: nn.functional.cross_entropy(model(x), torch.arange(20) % 2)
        >>> result = mass_consolidation(model, "0", loss, pairs=2, activations=model[:2](x))
        >>> len(result.random)
        8
    """
    seed = _checked_seed(confidence, seed)
    random_pairings = checks.check_count(random_pairings, "random_pairings", least=2)
    readers = consumers(model, layer, example_input)
    source = PairSource(model, readers, activations, cosine, alive, neuron_dim)
    absorption = absorption_from(model, readers, activations, gram, neuron_dim) if how == "absorb" else None
    merger = Merger(model, readers, how, absorption)
    near = source.pairs(pairs, "nearest", seed)
    pairings = [near, *(source.pairs(pairs, "random", seed + number) for number in range(random_pairings))]
    report = reporter(progress, f"consolidation of {layer}")
    changes: list[float] = []
    with _measuring(merger, loss, resume) as measure:
        for pairing in pairings:
            changes.append(measure(pairing))
            report(len(changes), len(pairings))
    ratio, interval = _ratio(changes[1:], changes[:1], confidence, seed)
    measurements = measure.measurements
    return MassConsolidation(
        layer,
        how,
        measurements.loss_before,
        near,
        changes[0],
        tuple(changes[1:]),
        ratio,
        interval,
        confidence,
        measurements,
    )


class _Measure(NamedTuple):
    """Loss changes of merges; what was measured before is not measured again."""

    merger: Merger
    loss: Sensitivity
    measurements: Measurements

    def __call__(self, pairs: Iterable[NeuronPair]) -> float:
        key = Measurements.key(pairs)
        if key not in self.measurements.losses:
            with applied(self.merger.edits(IndexPairs(*torch.tensor(key).T))):
                self.measurements.add(key, _measured(self.loss, self.merger.model, key))
        return self.measurements.losses[key] - self.measurements.loss_before


@contextmanager
def _measuring(
    merger: Merger,
    loss: Sensitivity | tuple[Iterable[Any], LossFunction],
    resume: str | Path | Measurements | None,
) -> Iterator[_Measure]:
    """The untouched network measured, and the model in eval mode; everything put back afterwards."""
    function, model = as_sensitivity(loss), merger.model
    with untouched(model, parameters=True), torch.no_grad():
        model.eval()
        started = Measurements(merger.group.layer, merger.how, fingerprint(model), _measured(function, model))
        yield _Measure(merger, function, started if resume is None else resumed(started, resume))


def _measured(loss: Sensitivity, model: nn.Module, merged: Key = ()) -> float:
    with untouched(model):  # what a forward counts or averages is the same for every measurement
        value = single_number(loss(model), "loss")
    if not math.isfinite(value):
        pairs = f"pair {merged[0]}" if len(merged) == 1 else f"{len(merged)} pairs"
        when = f"with {pairs} merged" if merged else "of the untouched network"
        raise ValueError(f"loss: expected a finite number, got {value} {when}. Check the data and the loss function.")
    return value


def _checked_seed(confidence: float, seed: int) -> int:
    checks.check_number(confidence, "confidence", "a number between 0 and 1", above=0, below=1)
    return int(checks.check_count(seed, "seed", least=0))


def _ratio(
    above: Iterable[float], below: Iterable[float], confidence: float, seed: int
) -> tuple[float | None, tuple[float, float] | None]:
    """mean |above| / mean |below| and its percentile bootstrap interval; None where nothing is below the line."""
    tops, bottoms = (torch.tensor(list(values), dtype=torch.float64).abs() for values in (above, below))
    if bottoms.mean() == 0:
        return None, None
    generator = torch.Generator().manual_seed(seed)
    means = [
        values[torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)].mean(1)
        for values in (tops, bottoms)
    ]
    ratios = torch.where(means[1] > 0, means[0] / means[1], math.inf).sort().values
    tail = (1 - confidence) / 2
    low, high = (ratios[round(share * (RESAMPLES - 1))].item() for share in (tail, 1 - tail))
    return (tops.mean() / bottoms.mean()).item(), (low, high)


def _with_interval(ratio: float | None, interval: tuple[float, float] | None, confidence: float) -> str:
    if ratio is None or interval is None:
        return "no ratio, for near merges change nothing"
    return f"{ratio:.2f} ({100 * confidence:g}% interval {interval[0]:.2f} to {interval[1]:.2f})"
