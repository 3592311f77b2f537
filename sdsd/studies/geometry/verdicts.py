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
from ..engine import MATCH, Measured, Rule, Verdict, geometric_interval, mean_interval
from ..rules import EFFECTS, RULES

Run = Mapping[str, Any]
"""What `Examination.run` gave."""

BATCH, SINGLE, MASS, WEIGHTS, PRUNING, CONTROLS, PLASTICITY = (
    EFFECTS[f"geometry: {name}"] for name in ("batch", "single", "mass", "weights", "pruning", "controls", "plasticity")
)
UNTESTABLE = Rule("untestable here if a number that decides cannot be had with every seed", "2026-11-22")
BATCH_CLAIM = "Merging a far pair of neurons costs about 5 times what merging a near pair costs (mean over a cohort)"
SINGLE_CLAIM = "Merging the farthest pair costs about 14 times what merging the nearest costs"
MASS_CLAIM = "Merging many near pairs at once is about 1.8 times as stable as merging as many random pairs"
WEIGHTS_CLAIM = "It is the geometry of activations that predicts which neurons are redundant"
PRUNING_CLAIM = "Compression informed by the manifold outperforms naive approaches"
CONTROLS_CLAIM = "Learned activation manifolds differ sharply from untrained and pixel-shuffled controls"
PLASTICITY_CLAIM = "Trained on, a network merged by geometry peaks lower than one merged at random (84.7 against 86.8%)"
FEWEST = 3
"""Seeds that single pairs are judged on: one pair against one pair is noise."""
PUBLISHED_SINGLE, PUBLISHED_MASS = 14.0, 1.8
SHARP = 1.5
CLUSTERED = 0.05
"""Silhouettes below it are those of no clusters at all."""


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


def _untestable(claim: str, source: str, published: str) -> Verdict:
    return Verdict(
        claim=claim,
        source=source,
        verdict="untestable here",
        **UNTESTABLE.stated(),
        published=published,
        our_figure=None,
        corrected="Where merges change nothing there is no ratio, and where a layer cannot shrink no smaller "
        "network; see the numbers of this network.",
    )


def over_seeds(values: Sequence[float | None], unit: str, interval: Sequence[float] | None = None) -> Measured | None:
    """A ratio over the runs of a network; `interval` is that of a single run. None where a run has none."""
    known = [value for value in values if value is not None and value > 0]
    if not values or len(known) < len(values):
        return None
    if len(known) == 1:
        low, high = (None, None) if interval is None else (float(interval[0]), float(interval[1]))
        return Measured(known[0], low, high, unit)
    return geometric_interval(known, unit, against=1.0)


def relative(dear: float, cheap: float) -> float | None:
    """(dear − cheap) / (dear + cheap) of two costs: −1 to 1, 0 where they are alike; None where both are 0."""
    return (dear - cheap) / (dear + cheap) if dear + cheap > 0 else None


def _relative_interval(pairs: Sequence[tuple[float, float]], unit: str) -> Measured | None:
    """Mean of `relative` over independent pairs of costs; None where one is not defined."""
    values = [relative(dear, cheap) for dear, cheap in pairs]
    known = [value for value in values if value is not None]
    return None if len(known) < len(values) or not known else mean_interval(known, unit, against=0.0, within=(-1, 1))


def _matching(word: str, pairs: Sequence[tuple[float, float]], published: float) -> str:
    """`word`, unless the mean costs differ by another factor than about the document's."""
    dear, cheap = (fmean(each) for each in zip(*pairs, strict=True))
    matches = cheap > 0 and 1 / MATCH <= dear / cheap / published <= MATCH
    return "direction only" if word == "reproduced" and not matches else word


def _factor(pairs: Sequence[tuple[float, float]]) -> str:
    dear, cheap = (fmean(each) for each in zip(*pairs, strict=True))
    return f"{plain_number(dear / cheap)} ×" if cheap > 0 else "no factor"


def _biopsy(runs: Sequence[Run], geometry: str, key: str) -> list[Any]:
    return [run["biopsy"][geometry][key] for run in runs]


def _judge_batch(runs: Sequence[Run]) -> Verdict:
    intervals = _biopsy(runs, "activations", "interval")
    ours = over_seeds(_biopsy(runs, "activations", "ratio"), "× far / near", intervals[0])
    if ours is None:
        return _untestable(BATCH_CLAIM, f"{FUNCTIONAL_GEOMETRY}, Phase II", "5 × (0.0594 / 0.0119)")
    near, random, far = (fmean(run["biopsy"]["activations"][name]["mean"] for run in runs) for name in COHORTS)
    return Verdict(
        claim=BATCH_CLAIM,
        source=f"{FUNCTIONAL_GEOMETRY}, Phase II",
        verdict=BATCH.verdict(ours),
        published="5 × (0.0594 / 0.0119)",
        our_figure=ours,
        effect=BATCH,
        **RULES["geometry: batch"].stated(),
        corrected=f"Mean |change of {runs[0]['measure']}|: near {plain_number(near)}, random {plain_number(random)}, "
        f"far {plain_number(far)}.",
    )


def _judge_single(runs: Sequence[Run]) -> Verdict:
    pairs = [
        (
            abs(run["biopsy"]["activations"]["far"]["changes"][0]),
            abs(run["biopsy"]["activations"]["near"]["changes"][0]),
        )
        for run in runs
    ]
    ours = _relative_interval(pairs, "(far − near) / (far + near), one pair each")
    if ours is None:
        return _untestable(SINGLE_CLAIM, f"{FUNCTIONAL_GEOMETRY}, Phase II", "14 ×")
    few = len(runs) < FEWEST
    return Verdict(
        claim=SINGLE_CLAIM,
        source=f"{FUNCTIONAL_GEOMETRY}, Phase II",
        verdict="untestable here" if few else _matching(SINGLE.verdict(ours), pairs, PUBLISHED_SINGLE),
        published="14 ×",
        our_figure=ours,
        effect=None if few else SINGLE,
        corrected=f"Mean costs differ by {_factor(pairs)} over {_seeds(runs)}. One pair against one pair is too "
        "noisy to quote: read the cohorts.",
        **RULES["geometry: single"].stated(),
    )


def _seeds(runs: Sequence[Run]) -> str:
    return "one seed" if len(runs) == 1 else f"{len(runs)} seeds"


def _judge_mass(runs: Sequence[Run]) -> Verdict:
    merged = [run["consolidation"]["activations"] for run in runs]
    pairs = [(fmean(map(abs, each["random"])), abs(each["change"])) for each in merged]
    independent = pairs if len(runs) > 1 else [(abs(random), pairs[0][1]) for random in merged[0]["random"]]
    ours = _relative_interval(independent, "(random − geometry) / (random + geometry)")
    if ours is None:
        return _untestable(MASS_CLAIM, f"{FUNCTIONAL_GEOMETRY}, Phase III", "1.8 × (0.681 / 0.376, one pairing)")
    random, geometry = (fmean(each) for each in zip(*pairs, strict=True))
    return Verdict(
        claim=MASS_CLAIM,
        source=f"{FUNCTIONAL_GEOMETRY}, Phase III",
        verdict=_matching(MASS.verdict(ours), pairs, PUBLISHED_MASS),
        published="1.8 × (0.681 / 0.376, one pairing)",
        our_figure=ours,
        effect=MASS,
        corrected=f"{merged[0]['pairs']} pairs: |change of {runs[0]['measure']}| {plain_number(geometry)} by geometry, "
        f"{plain_number(random)} at random, over {len(merged[0]['random'])} pairings: {_factor(pairs)}.",
        **RULES["geometry: mass"].stated(),
    )


def _judge_weights(runs: Sequence[Run]) -> Verdict:
    """Is it the activations that know? Pairs by the cosine of weights have seen no data."""
    near = {name: [run["biopsy"][name]["near"]["mean"] for run in runs] for name in ("activations", "weights")}
    ratios = [w / a if a else None for a, w in zip(near["activations"], near["weights"], strict=True)]
    ours = over_seeds(ratios, "× near pairs by weights / by activations")
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
        verdict=WEIGHTS.verdict(ours),
        published="implied",
        our_figure=ours,
        effect=WEIGHTS,
        corrected=f"One near pair merged costs {plain_number(fmean(near['activations']))} by activations and "
        f"{plain_number(fmean(near['weights']))} by weights.{at_once}",
        **RULES["geometry: weights"].stated(),
    )


def _judge_pruning(runs: Sequence[Run]) -> Verdict:
    if any(not run["equal size"].get("ways") for run in runs):
        return _untestable(PRUNING_CLAIM, f"{FUNCTIONAL_GEOMETRY}, Key Findings", "stated")
    ways = [{name: abs(way["change"]) for name, way in run["equal size"]["ways"].items()} for run in runs]
    merged, absorbed, pruned = (
        [each[name] for each in ways]
        for name in ("nearest activations, averaged", "nearest activations, absorbed", "smallest weights, pruned")
    )
    ours = _relative_interval(list(zip(pruned, merged, strict=True)), "(pruned − merged) / (pruned + merged)")
    if ours is None:
        return _untestable(PRUNING_CLAIM, f"{FUNCTIONAL_GEOMETRY}, Key Findings", "stated")
    first = runs[0]["equal size"]
    return Verdict(
        claim=PRUNING_CLAIM,
        source=f"{FUNCTIONAL_GEOMETRY}, Key Findings",
        verdict=PRUNING.verdict(ours),
        effect=PRUNING,
        **RULES["geometry: pruning"].stated(),
        published="stated",
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
    sharp = all(own > SHARP * max(other, 0) for own, other in pairs) and min(trained) > CLUSTERED
    ours = mean_interval(differences, "silhouette, trained less the closest control", against=0.0)
    word = CONTROLS.verdict(ours)
    partly = [
        f" “{name}”: enough neurons were alive to compare in {len(values)} of {len(runs)} runs."
        for name, values in silhouettes.items()
        if len(values) < len(runs)
    ]
    return Verdict(
        claim=CONTROLS_CLAIM,
        source=f"{FUNCTIONAL_GEOMETRY}, Phase I",
        verdict="direction only" if word == "reproduced" and not sharp else word,
        effect=CONTROLS,
        **RULES["geometry: controls"].stated(),
        published="differ sharply (pictures)",
        our_figure=ours,
        corrected=f"Silhouette {_listed(silhouettes)}; effective rank {_listed(ranks)}.{''.join(partly)}",
    )


def _listed(values: Mapping[str, Sequence[float]]) -> str:
    return ", ".join(f"{plain_number(fmean(each))} {name}" for name, each in values.items() if each)


def _judge_plasticity(runs: Sequence[Run]) -> Verdict:
    return plasticity_verdict([run["plasticity"] for run in runs])


def plasticity_verdict(curves: Sequence[Mapping[str, Sequence[float]]]) -> Verdict:
    """What training on says, from accuracies after each epoch: a curve each of "geometry", "random", "untouched"."""
    peaks = {name: [100 * max(each[name]) for each in curves] for name in ("geometry", "random", "untouched")}
    points = [ours - others for ours, others in zip(peaks["geometry"], peaks["random"], strict=True)]
    ours = mean_interval(points, "points, geometry − random", against=0.0)
    listed = ", ".join(f"{fmean(values):.1f}% {name}" for name, values in peaks.items())
    return Verdict(
        claim=PLASTICITY_CLAIM,
        source=f"{FUNCTIONAL_GEOMETRY}, Phase IV",
        verdict=PLASTICITY.verdict(ours),
        effect=PLASTICITY,
        published=f"{PLASTICITY.published:g} points".replace("-", "−"),
        **RULES["geometry: plasticity"].stated(),
        our_figure=ours,
        corrected=f"Peak accuracy {listed}; the difference was {plain_number(median(points))} points in the median.",
    )
