"""What examinations say to the claims of "Functional Geometry in Deep Neural Networks".

Each claim is judged on one network, over the seeds it was examined with. Over several seeds a ratio is their geometric
mean with Student's interval of the logarithms; for a single one it is that run's, with the bootstrap interval over its
pairs, where there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from ...geometry import COHORTS
from ...report.figures import plain_number
from ..documents import FUNCTIONAL_GEOMETRY
from ..engine import Measured, Verdict, geometric_interval, mean_interval

Run = Mapping[str, Any]
"""What `Examination.run` gave."""

RATIO_RULE = (
    "reproduced if the interval lies above 1 and the ratio is at least half the document's; direction only if the "
    "interval lies above 1; not reproduced otherwise"
)
BATCH_CLAIM = "Merging a far pair of neurons costs about 5 times what merging a near pair costs (mean over a cohort)"
SINGLE_CLAIM = "Merging the farthest pair costs about 14 times what merging the nearest costs"
MASS_CLAIM = "Merging many near pairs at once is about 1.8 times as stable as merging as many random pairs"
WEIGHTS_CLAIM = "It is the geometry of activations that predicts which neurons are redundant"
PRUNING_CLAIM = "Compression informed by the manifold outperforms naive approaches"
CONTROLS_CLAIM = "Learned activation manifolds differ sharply from untrained and pixel-shuffled controls"
SEED_SINGLE, SEED_BATCH, SEED_MASS, SEED_PLASTICITY = 14.0, 5.0, 1.8, -2.1
FEWEST = 3
"""Seeds that single pairs are judged on: one pair against one pair is noise."""
WIDE = 10
SHARP = 1.5
CLUSTERED = 0.05
"""Silhouettes below it are those of no clusters at all."""
ALONE = "in a single run, whose spread nobody knows"
SAME = 1.0
"""Points of accuracy below which a difference is none."""


def judge_network(runs: Sequence[Run]) -> list[Verdict]:
    """A verdict for each claim that was measured in every one of `runs`, of one network with different seeds."""
    judges: tuple[tuple[str, Callable[[Sequence[Run]], Verdict]], ...] = (
        ("biopsy", _judge_batch),
        ("biopsy", _judge_single),
        ("consolidation", _judge_mass),
        ("biopsy", _judge_weights),
        ("equal size", _judge_pruning),
        ("controls", _judge_controls),
        ("plasticity", _judge_plasticity),
    )
    return [judge(runs) for key, judge in judges if runs and all(run.get(key) for run in runs)]


def _untestable(claim: str, source: str, seed_figure: str) -> Verdict:
    return Verdict(
        claim=claim,
        source=source,
        verdict="untestable here",
        rule="untestable here if a number that decides cannot be had with every seed",
        seed_figure=seed_figure,
        our_figure=None,
        corrected="Where merges change nothing there is no ratio, and where a layer cannot shrink no smaller "
        "network; see the numbers of this network.",
    )


def _held(held: bool, runs: Sequence[Run]) -> str:
    """For figures that have an interval over seeds alone: a single run shows a direction and no more."""
    return "not reproduced" if not held else "reproduced" if len(runs) > 1 else "direction only"


def _above_one(ours: Measured) -> bool:
    """With the whole interval, where there is one."""
    return (ours.value if ours.low is None else ours.low) > 1


def over_seeds(values: Sequence[float | None], unit: str, interval: Sequence[float] | None = None) -> Measured | None:
    """A ratio over the runs of a network; `interval` is that of a single run. None where a run has none."""
    known = [value for value in values if value is not None and value > 0]
    if not values or len(known) < len(values):
        return None
    if len(known) == 1:
        low, high = (None, None) if interval is None else (float(interval[0]), float(interval[1]))
        return Measured(known[0], low, high, unit)
    return geometric_interval(known, unit)


def judge_ratio(ours: Measured, document: float) -> str:
    """By `RATIO_RULE`."""
    if ours.low is None or ours.low <= 1:
        return "not reproduced"
    return "reproduced" if ours.value >= document / 2 else "direction only"


def _biopsy(runs: Sequence[Run], geometry: str, key: str) -> list[Any]:
    return [run["biopsy"][geometry][key] for run in runs]


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return plain_number(low) if low == high else f"{plain_number(low)} to {plain_number(high)}"


def _judge_batch(runs: Sequence[Run]) -> Verdict:
    intervals = _biopsy(runs, "activations", "interval")
    ours = over_seeds(_biopsy(runs, "activations", "ratio"), "× far / near", intervals[0])
    if ours is None:
        return _untestable(BATCH_CLAIM, f"{FUNCTIONAL_GEOMETRY}, Phase II", "5 × (0.0594 / 0.0119)")
    near, random, far = (fmean(run["biopsy"]["activations"][name]["mean"] for run in runs) for name in COHORTS)
    return Verdict(
        claim=BATCH_CLAIM,
        source=f"{FUNCTIONAL_GEOMETRY}, Phase II",
        verdict=judge_ratio(ours, SEED_BATCH),
        rule=RATIO_RULE,
        seed_figure="5 × (0.0594 / 0.0119)",
        our_figure=ours,
        corrected=f"Mean |change of {runs[0]['measure']}|: near {plain_number(near)}, random {plain_number(random)}, "
        f"far {plain_number(far)}.",
    )


def _judge_single(runs: Sequence[Run]) -> Verdict:
    values = _biopsy(runs, "activations", "single ratio")
    ours = over_seeds(values, "× far / near, one pair each")
    if ours is None:
        return _untestable(SINGLE_CLAIM, f"{FUNCTIONAL_GEOMETRY}, Phase II", "14 ×")
    few = len(runs) < FEWEST
    spread = "" if few else f"It was {_range(values)} over {len(runs)} seeds. "
    verdict = "untestable here" if few else judge_ratio(ours, SEED_SINGLE)
    if verdict == "reproduced" and ours.low is not None and ours.high is not None and ours.high > WIDE * ours.low:
        verdict = "direction only"
    return Verdict(
        claim=SINGLE_CLAIM,
        source=f"{FUNCTIONAL_GEOMETRY}, Phase II",
        verdict=verdict,
        rule=f"untestable here with fewer than {FEWEST} seeds; {RATIO_RULE}; direction only, too, if the interval "
        f"spans more than a factor of {WIDE}",
        seed_figure="14 ×",
        our_figure=ours,
        corrected=f"{spread}One pair against one pair is too noisy to quote: read the cohorts.",
    )


def _judge_mass(runs: Sequence[Run]) -> Verdict:
    merged = [run["consolidation"]["activations"] for run in runs]
    ours = over_seeds([each["ratio"] for each in merged], "× random / geometry", merged[0]["interval"])
    if ours is None:
        return _untestable(MASS_CLAIM, f"{FUNCTIONAL_GEOMETRY}, Phase III", "1.8 × (0.681 / 0.376, one pairing)")
    geometry = fmean(abs(each["change"]) for each in merged)
    random = fmean(fmean(map(abs, each["random"])) for each in merged)
    return Verdict(
        claim=MASS_CLAIM,
        source=f"{FUNCTIONAL_GEOMETRY}, Phase III",
        verdict=judge_ratio(ours, SEED_MASS),
        rule=RATIO_RULE,
        seed_figure="1.8 × (0.681 / 0.376, one pairing)",
        our_figure=ours,
        corrected=f"{merged[0]['pairs']} pairs: |change of {runs[0]['measure']}| {plain_number(geometry)} by geometry, "
        f"{plain_number(random)} at random, over {len(merged[0]['random'])} pairings.",
    )


def _judge_weights(runs: Sequence[Run]) -> Verdict:
    """Is it the activations that know? Pairs by the cosine of weights have seen no data."""
    pairs = [(run["biopsy"]["activations"]["ratio"], run["biopsy"]["weights"]["ratio"]) for run in runs]
    ours = over_seeds([a / w if a and w else None for a, w in pairs], "× the far / near ratio of pairs by weights")
    if ours is None:
        return _untestable(WEIGHTS_CLAIM, f"{FUNCTIONAL_GEOMETRY}, Core Hypothesis", "implied")
    changes = [
        (abs(run["consolidation"]["activations"]["change"]), abs(run["consolidation"]["weights"]["change"]))
        for run in runs
        if run.get("consolidation")
    ]
    at_once = ""
    if changes:
        by_activations, by_weights = (fmean(each) for each in zip(*changes, strict=True))
        at_once = (
            f" Merged at once, pairs by activations cost {plain_number(by_activations)}, pairs by weights "
            f"{plain_number(by_weights)}."
        )
    return Verdict(
        claim=WEIGHTS_CLAIM,
        source=f"{FUNCTIONAL_GEOMETRY}, Core Hypothesis",
        verdict=_held(_above_one(ours), runs),
        rule="reproduced if far / near by activations is larger than far / near by the cosine of incoming weights, "
        f"with its interval; direction only if it is larger {ALONE}; not reproduced otherwise",
        seed_figure="implied",
        our_figure=ours,
        corrected=f"far / near is {_range([a for a, _ in pairs])} by activations and {_range([w for _, w in pairs])} "
        f"by weights.{at_once}",
    )


def _judge_pruning(runs: Sequence[Run]) -> Verdict:
    if any(not run["equal size"].get("ways") for run in runs):
        return _untestable(PRUNING_CLAIM, f"{FUNCTIONAL_GEOMETRY}, Key Findings", "stated")
    ways = [{name: abs(way["change"]) for name, way in run["equal size"]["ways"].items()} for run in runs]
    merged, absorbed, pruned = (
        [each[name] for each in ways]
        for name in ("nearest activations, averaged", "nearest activations, absorbed", "smallest weights, pruned")
    )
    ours = over_seeds([p / m if m else None for p, m in zip(pruned, merged, strict=True)], "× pruned / merged")
    if ours is None:
        return _untestable(PRUNING_CLAIM, f"{FUNCTIONAL_GEOMETRY}, Key Findings", "stated")
    first = runs[0]["equal size"]
    return Verdict(
        claim=PRUNING_CLAIM,
        source=f"{FUNCTIONAL_GEOMETRY}, Key Findings",
        verdict=_held(_above_one(ours), runs),
        rule="reproduced if pruning the smallest weights costs more than merging near pairs at equal size, with its "
        f"interval; direction only if it costs more {ALONE}; not reproduced otherwise",
        seed_figure="stated",
        our_figure=ours,
        corrected=f"{first['removed']} of {first['neurons'][0]} neurons fewer, mean |change of {runs[0]['measure']}|: "
        f"{plain_number(fmean(merged))} averaged, {plain_number(fmean(absorbed))} absorbed by least squares, "
        f"{plain_number(fmean(pruned))} pruned by magnitude.",
    )


def compared_silhouettes(runs: Sequence[Run]) -> dict[str, list[float]]:
    """Silhouettes at one number of clusters: "trained" and each control, of the runs that have one."""
    return {name: values for name, values in _figures_of_maps(runs, "compared").items() if values}


def _figures_of_maps(runs: Sequence[Run], key: str) -> dict[str, list[float]]:
    silhouettes: dict[str, list[float]] = {}
    for run in runs:
        for name, each in {"trained": run["map"], **run["controls"]}.items():
            silhouettes.setdefault(name, []).extend([each[key]] if each.get(key) is not None else [])
    return silhouettes


def _judge_controls(runs: Sequence[Run]) -> Verdict:
    silhouettes, ranks = (_figures_of_maps(runs, key) for key in ("compared", "effective_rank"))
    trained = silhouettes["trained"]
    controls = [
        [each["compared"] for each in run["controls"].values() if each.get("compared") is not None] for run in runs
    ]
    if len(trained) < len(runs) or not all(controls):
        return _untestable(CONTROLS_CLAIM, f"{FUNCTIONAL_GEOMETRY}, Phase I", "differ sharply (pictures)")
    pairs = [(own, max(others)) for own, others in zip(trained, controls, strict=True)]
    differences = [own - other for own, other in pairs]
    above = min(differences) > 0
    sharp = above and all(own > SHARP * max(other, 0) for own, other in pairs) and min(trained) > CLUSTERED
    partly = [
        f" “{name}”: enough neurons were alive to compare in {len(values)} of {len(runs)} runs."
        for name, values in silhouettes.items()
        if len(values) < len(runs)
    ]
    return Verdict(
        claim=CONTROLS_CLAIM,
        source=f"{FUNCTIONAL_GEOMETRY}, Phase I",
        verdict=_held(sharp, runs) if sharp or not above else "direction only",
        rule=f"reproduced if the silhouette of ten clusters is over {CLUSTERED} and over {SHARP} times that of every "
        f"control, with every seed; direction only if it is above every control's, or is so {ALONE}; not reproduced "
        "otherwise",
        seed_figure="differ sharply (pictures)",
        our_figure=mean_interval(differences, "silhouette, trained less the closest control"),
        corrected=f"Silhouette {_listed(silhouettes)}; effective rank {_listed(ranks)}.{''.join(partly)}",
    )


def _listed(values: Mapping[str, Sequence[float]]) -> str:
    return ", ".join(f"{plain_number(fmean(each))} {name}" for name, each in values.items() if each)


def _judge_plasticity(runs: Sequence[Run]) -> Verdict:
    points = [100 * run["plasticity"]["difference"] for run in runs]
    ours = mean_interval(points, "points, geometry − random")
    peaks = {name: [100 * max(run["plasticity"][name]) for run in runs] for name in ("geometry", "random", "untouched")}
    listed = ", ".join(f"{fmean(values):.1f}% {name}" for name, values in peaks.items())
    lower = ours.value <= -SAME and (ours.high is None or ours.high < 0)
    return Verdict(
        claim="Trained on, a network merged by geometry peaks lower than one merged at random (84.7 against 86.8%)",
        source=f"{FUNCTIONAL_GEOMETRY}, Phase IV",
        verdict=_held(lower, runs),
        rule=f"reproduced if it peaks {SAME:g} point or more lower, and the interval lies below 0; direction only if "
        f"it peaks so much lower {ALONE}; not reproduced otherwise",
        seed_figure=f"{SEED_PLASTICITY} points",
        our_figure=ours,
        corrected=f"Peak accuracy {listed}; the difference was {plain_number(median(points))} points in the median.",
    )
