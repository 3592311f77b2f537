"""Description length of networks that learn digits: the bound √(K/N), true labels and noisy ones, and its course."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...report import figures
from ...report.figures import draw_level
from ...theory import description_length
from ..digits import load_digits
from ..documents import MOVES
from ..engine import Effect, Progress, Study, StudyResult, Verdict, geometric_interval, mean_interval, rank_correlation
from ..rules import RULES

LATER = Effect(nothing=1.0, above=False, negligible=1.05)
TRUE_LABELS = Effect(nothing=1.0, above=False, negligible=1.05)
HELD_OUT = 897


def measure(
    seed: int,
    progress: Progress,
    *,
    samples: Sequence[int] = (100, 200, 400, 900),
    noise: Sequence[float] = (0.0, 0.5, 1.0),
    hidden: int = 64,
    batch: int = 50,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-3,
    most_steps: int = 6000,
    longer: int = 4,
    tolerance: float = 0.01,
) -> dict[str, Any]:
    """Bits, bound and measured gap of networks trained until no error is left, and `longer` times as long."""
    images, classes = load_digits(seed)
    draw = torch.Generator().manual_seed(seed)
    networks = []
    for count, share in progress.each([(n, s) for n in samples for s in noise], f"seed {seed}: training"):
        labels = classes.clone()
        noisy = torch.rand(len(labels), generator=draw) < share
        labels[noisy] = torch.randint(10, (int(noisy.sum()),), generator=draw)
        known, held_out = (images[:count], labels[:count]), (images[-HELD_OUT:], labels[-HELD_OUT:])
        for decay in (0.0, weight_decay) if share == 0 else (0.0,):
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))
            optimizer = torch.optim.SGD(model.parameters(), learning_rate, momentum, weight_decay=decay)
            fitted, first_fit = _train(
                model,
                optimizer,
                known,
                batch=batch,
                most_steps=most_steps,
                longer=longer,
                draw=draw,
                tolerance=tolerance,
            )
            description = description_length(model, known, _error, tolerance=tolerance)
            networks.append(
                {
                    "samples": count,
                    "noise": share,
                    "weight_decay": decay,
                    "steps_to_fit": fitted,
                    "bits": description.bits,
                    "bits_at_first_fit": first_fit,
                    "bound": description.bound(count),
                    "error": description.rounded_loss,
                    "gap": _error(description.model, held_out).item() - description.rounded_loss,
                }
            )
    return {"networks": networks}


def _train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    known: tuple[Tensor, Tensor],
    *,
    batch: int,
    most_steps: int,
    longer: int,
    draw: torch.Generator,
    tolerance: float,
) -> tuple[int | None, float | None]:
    """Train until no error is left and `longer` times as long: the step of that, and the bits then."""
    step, fitted, bits = 0, None, None
    while step < (most_steps if fitted is None else fitted * longer):
        for places in torch.randperm(len(known[1]), generator=draw).split(batch):
            optimizer.zero_grad()
            cross_entropy(model(known[0][places]), known[1][places]).backward()
            optimizer.step()
            step += 1
        if fitted is None and _error(model, known).item() == 0:
            fitted, bits = step, description_length(model, known, _error, tolerance=tolerance).bits
    return fitted, bits


@torch.no_grad()
def _error(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]).argmax(1) != batch[1]).double().mean()


def _correlation(networks: list[dict[str, Any]]) -> float:
    """Of √(K/N) and the gap, over networks."""
    predicted = torch.tensor([math.sqrt(each["bits"] / each["samples"]) for each in networks])
    return rank_correlation(predicted, torch.tensor([each["gap"] for each in networks]))


def _within(networks: list[dict[str, Any]]) -> float:
    """The same among networks of one N, averaged over N."""
    sizes = sorted({each["samples"] for each in networks})
    correlations = [_correlation([each for each in networks if each["samples"] == n]) for n in sizes]
    return sum(correlations) / len(correlations)


def _plain(networks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in networks if not each["weight_decay"]]


def judge(result: StudyResult) -> list[Verdict]:
    runs = [series["networks"] for series in result.series]
    source = f"{MOVES}, The Conjecture"
    later = geometric_interval(
        [
            _mean_ratio([(each["bits"], each["bits_at_first_fit"]) for each in _plain(run) if each["steps_to_fit"]])
            for run in runs
        ],
        f"× the bits at the first fit, {result.config['longer']} times as many steps on",
        against=1,
    )
    decayed = geometric_interval(
        [_compared(run, lambda each: each["weight_decay"] > 0, lambda each: not each["noise"]) for run in runs],
        "× as many",
    )
    labels = geometric_interval(
        [_compared(_plain(run), lambda each: each["noise"] == 0, lambda each: each["noise"] == 1) for run in runs],
        "× the bits of networks that fit random labels",
        against=1,
    )
    trajectory = LATER.verdict(later)
    fewer = decayed.high is not None and decayed.high < 1
    if trajectory == "reproduced" and fewer:
        trajectory = "direction only"
    return [
        _bound_verdict(result),
        Verdict(
            claim="SGD's trajectory implicitly minimises the description length of the learned function",
            source=source,
            verdict=trajectory,
            published="a conjecture, without a number",
            our_figure=later,
            corrected=f"Once no training error is left, training on makes the rounded network take {later}. "
            f"{'It is no minimum: w' if fewer else 'W'}ith weight decay {result.config['weight_decay']:g} networks of "
            f"the same labels take {decayed}.",
            **RULES["occam: trajectory"].stated(),
        ),
        Verdict(
            claim="Real-world data have a structure of low description length",
            source=source,
            verdict=TRUE_LABELS.verdict(labels),
            published="a conjecture, without a number",
            our_figure=labels,
            corrected=f"Networks that fit the digits' own labels take {labels}, at the same number of samples: one set "
            "of data.",
            effect=TRUE_LABELS,
            **RULES["occam: data"].stated(),
        ),
    ]


def _bound_verdict(result: StudyResult) -> Verdict:
    every = result.pooled("networks")
    # A share of HELD_OUT samples is within 1.5/√HELD_OUT of its expectation, three standard deviations at most.
    broken = sum(each["gap"] > each["bound"] + 1.5 / math.sqrt(HELD_OUT) for each in every)
    vacuous = sum(each["bound"] + each["error"] >= 1 for each in every)
    overall = mean_interval(
        [_correlation(_plain(series["networks"])) for series in result.series],
        "is Spearman's correlation of √(K/N) and the gap between errors",
        against=0,
    )
    within = mean_interval([_within(_plain(series["networks"])) for series in result.series], within=(-1, 1))
    if broken:
        word = "refuted"
    elif 2 * vacuous <= len(every):
        word = "reproduced"
    else:
        word = "direction only" if overall.low is not None and overall.low > 0 else "inconclusive"
    return Verdict(
        claim="Generalization error is bounded by the square root of complexity over samples",
        source=f"{MOVES}, The Entropic Selection Principle, 3",
        verdict=word,
        published="ε ≲ √(K/N)",
        our_figure=overall,
        corrected=f"With K the length of a code that was fixed before the data, the bound holds ({broken} of "
        f"{len(every)} networks break it) and says nothing: for {vacuous} of {len(every)} it allows every error "
        f"(bounds from {min(each['bound'] for each in every):.2g} to {max(each['bound'] for each in every):.2g}). It "
        f"ranks networks; among those of one N the correlation is {within}.",
        **RULES["occam: bound"].stated(),
    )


def _compared(
    networks: list[dict[str, Any]], above: Callable[[dict[str, Any]], bool], below: Callable[[dict[str, Any]], bool]
) -> float:
    """Bits of the networks `above` over those of the others of the same N that are `below`; geometric mean over N."""
    bits: dict[int, list[float]] = {each["samples"]: [0.0, 0.0] for each in networks}
    for each in networks:
        if above(each):
            bits[each["samples"]][0] = each["bits"]
        elif below(each):
            bits[each["samples"]][1] = each["bits"]
    return _mean_ratio([(first, second) for first, second in bits.values()])


def _mean_ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """Geometric mean of ratios."""
    return math.exp(sum(math.log(above / below) for above, below in pairs) / len(pairs))


def draw(result: StudyResult) -> Any:
    every = _plain(result.pooled("networks"))
    figure, (left, right) = figures.new_figure(10.6, 4.1, columns=2)
    for share, colour in zip(result.config["noise"], (figures.BLUE, figures.PURPLE, figures.ORANGE), strict=False):
        chosen = [each for each in every if each["noise"] == share]
        left.scatter(
            [math.sqrt(each["bits"] / each["samples"]) for each in chosen],
            [each["gap"] for each in chosen],
            s=20,
            color=colour,
            label=f"{share:.0%} of labels random",
        )
        right.scatter(
            [each["samples"] for each in chosen],
            [each["bits"] for each in chosen],
            s=20,
            color=colour,
        )
    left.set_xlabel("√(K/N)")
    left.set_ylabel("error on new samples less error on its own")
    left.legend(fontsize=9.5)
    figures.set_title(left, "√(K/N) ranks networks")
    right.set_xscale("log")
    right.set_xlabel("samples N")
    right.set_ylabel("bits K")
    right.set_ylim(bottom=0)
    least = 2 * min(each["samples"] for each in every) / math.log(2)
    draw_level(right, least, "bits below which the bound at the smallest N says something", at=0.02)
    figures.set_title(right, "And K is far too large to bound anything")
    return figure


STUDIES = (
    Study(
        name="occam",
        summary="bits that trained networks take, the bound √(K/N) from them, and the gap it should bound",
        claim="ε ≲ √(K/N), and SGD minimises K",
        source=f"{MOVES}, The Conjecture",
        quick={"samples": (100, 200), "most_steps": 1500, "noise": (0.0, 1.0), "longer": 2},
        quick_seeds=3,
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=60,
        needs=("sklearn",),
    ),
)
