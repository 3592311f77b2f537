"""Grokking: addition modulo a prime is memorised at once, and understood long after, if weights decay."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...report import figures
from ...report.figures import draw_curves, draw_level
from ..documents import EXPLANATION
from ..engine import Progress, Study, StudyResult, Verdict, geometric_interval, mean_interval, unshown
from ..rules import RULES
from .training import SHOWN, Batch, Series, Watch, column, judge_functional, mean, train

GROKS, UNDECAYED, STARVED = "enough sums", "no weight decay", "too few sums"
ARMS = (GROKS, UNDECAYED, STARVED)
LEARNED = 0.95


@dataclass(frozen=True)
class Sums:
    """Addition modulo a prime, and the network that learns it."""

    prime: int
    embedding: int
    hidden: int
    learning_rate: float

    def model(self) -> nn.Sequential:
        """The two numbers embedded, one hidden layer with ReLU, a class for each sum."""
        return nn.Sequential(
            nn.Embedding(self.prime, self.embedding),
            nn.Flatten(),
            nn.Linear(2 * self.embedding, self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, self.prime),
        )

    def data(self, share: float, seed: int) -> tuple[Batch, Batch]:
        """A `share` of all sums, drawn by `seed`, and the others."""
        pairs = torch.cartesian_prod(torch.arange(self.prime), torch.arange(self.prime))
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
        pairs, sums = pairs[order], (pairs.sum(1) % self.prime)[order]
        count = round(share * len(pairs))
        return (pairs[:count], sums[:count]), (pairs[count:], sums[count:])


def measure(
    seed: int,
    progress: Progress,
    *,
    prime: int = 31,
    embedding: int = 64,
    hidden: int = 128,
    steps: int = 6000,
    share: float = 0.6,
    few: float = 0.25,
    weight_decay: float = 1.0,
    learning_rate: float = 0.005,
    batch: int = 64,
    every: int = 50,
    geometry_every: int = 10,
    longer: int = 3,
) -> dict[str, Any]:
    """Train until test accuracy has been high for a while, and the controls as long.

    The step of memorising is found to the step, and the controls go on `longer` times as long without being measured
    by anything but their test accuracy.
    """
    sums = Sums(prime, embedding, hidden, learning_rate)
    watch = Watch(batch, every=every, geometry_every=geometry_every, layers=(("2", "4"),))
    arms: dict[str, Series] = {}
    limit, later = steps, {}
    for arm in progress.each(ARMS, f"seed {seed}: adding modulo {prime}"):
        data = sums.data(few if arm == STARVED else share, seed)
        torch.manual_seed(seed)
        decay = 0.0 if arm == UNDECAYED else weight_decay
        arms[arm] = _train(sums, data, decay, watch, limit)
        if arm == GROKS:
            limit = arms[arm]["step"][-1]
        else:
            torch.manual_seed(seed)
            later[arm] = _best_later(sums, data, decay, longer * limit, every)
    data = sums.data(share, seed)
    torch.manual_seed(seed)
    return {"arms": arms, "memorised": _memorised(sums, data, weight_decay, steps), "later": later}


def _steps_of(sums: Sums, data: tuple[Batch, Batch], decay: float, steps: int) -> Iterator[nn.Module]:
    """The network before each of so many steps, and after the last."""
    shown, _ = data
    model = sums.model()
    optimizer = torch.optim.AdamW(model.parameters(), sums.learning_rate, weight_decay=decay)
    for _ in range(steps):
        yield model
        optimizer.zero_grad()
        _loss(model, shown).backward()
        optimizer.step()
    yield model


def _memorised(sums: Sums, data: tuple[Batch, Batch], decay: float, steps: int) -> float:
    """The first step at which training accuracy is high."""
    models = enumerate(_steps_of(sums, data, decay, steps))
    return next((step for step, model in models if _accuracy(model, data[0]) > LEARNED), math.inf)


def _best_later(sums: Sums, data: tuple[Batch, Batch], decay: float, steps: int, every: int) -> float:
    """The best test accuracy over so many steps."""
    models = enumerate(_steps_of(sums, data, decay, steps))
    return max(_accuracy(model, data[1]) for step, model in models if step % every == 0)


def _train(sums: Sums, data: tuple[Batch, Batch], decay: float, watch: Watch, steps: int) -> Series:
    shown, held_out = data
    model = sums.model()
    optimizer = torch.optim.AdamW(model.parameters(), sums.learning_rate, weight_decay=decay)

    def evaluate() -> dict[str, float]:
        return {"accuracy": _accuracy(model, shown), "test_accuracy": _accuracy(model, held_out)}

    def settled(rows: Series) -> bool:
        step = first_step(rows, "test_accuracy", LEARNED)
        return rows["step"][-1] >= 1.25 * step

    return train(model, shown, _loss, optimizer, watch, steps=steps, evaluate=evaluate, stop=settled)


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


@torch.no_grad()
def _accuracy(model: nn.Module, data: Batch) -> float:
    return (model(data[0]).argmax(1) == data[1]).double().mean().item()


def first_step(rows: Series, key: str, level: float) -> float:
    """The first look at which `key` is above `level`; infinite if there is none."""
    return next((step for step, value in zip(rows["step"], rows[key], strict=True) if value > level), math.inf)


def _between(rows: Series, key: str, first: float, last: float) -> list[float]:
    """`key` at the looks from step `first` to step `last`."""
    return [value for step, value in zip(rows["step"], rows[key], strict=True) if first <= step <= last]


def judge(result: StudyResult) -> list[Verdict]:
    runs = column(result.series, "arms", GROKS)
    memorised = [math.inf if step is None else step for step in column(result.series, "memorised")]
    grokked = [first_step(rows, "test_accuracy", LEARNED) for rows in runs]
    controls = {arm: column(result.series, "arms", arm) for arm in (UNDECAYED, STARVED)}
    reached = {arm: max(max(rows["test_accuracy"]) for rows in each) for arm, each in controls.items()}
    reached = {arm: max(best, *column(result.series, "later", arm)) for arm, best in reached.items()}
    late = [test / max(train, 1) for test, train in zip(grokked, memorised, strict=True)]
    if math.inf in grokked or min(late) < 5:
        shown = unshown([ratio >= 5 and test < math.inf for ratio, test in zip(late, grokked, strict=True)])
    else:
        shown = "reproduced" if max(reached.values()) < LEARNED else "direction only"
    phenomenon = Verdict(
        claim="Long after the training data are memorised, test accuracy rises from chance to one, if weights decay "
        "and data suffice",
        source="Power et al. 2022, arXiv:2201.02177",
        verdict=shown,
        published="validation accuracy rises about 1,000 times later",
        our_figure=geometric_interval(late, "times as many steps to understand as to memorise")
        if shown in SHOWN
        else None,
        corrected="Test accuracy gets to "
        + ", ".join(f"{value:.0%} with {arm}" for arm, value in reached.items())
        + f", {result.config['longer']} times as long; otherwise past {LEARNED:.0%} after "
        f"{', '.join(map(_steps, grokked))}, seen every {result.config['every']}, and of the training sums after "
        f"{', '.join(map(_steps, memorised))}.",
        **RULES["grokking"].stated(),
    )
    return [phenomenon, _judge_gamma(result, memorised, grokked, shown), judge_functional("Grokking", runs, controls)]


def _steps(step: float) -> str:
    return f"{step:,} steps" if math.isfinite(step) else "no number of steps"


def _judge_gamma(result: StudyResult, memorised: list[float], grokked: list[float], shown: str) -> Verdict:
    runs, batch = column(result.series, "arms", GROKS), result.config["batch"]
    memorised, grokked = (
        [min(step, rows["step"][-1]) for step, rows in zip(steps, runs, strict=True)] for steps in (memorised, grokked)
    )
    before = [
        mean(_between(rows, "gamma", first, (first + last) / 2))
        for rows, first, last in zip(runs, memorised, grokked, strict=True)
    ]
    at = [mean(_between(rows, "gamma", 0.8 * last, 1.1 * last)) for rows, last in zip(runs, grokked, strict=True)]
    others = [
        max(mean(_between(rows[arm], "gamma", last / 2, last)) for arm in (UNDECAYED, STARVED))
        for rows, last in zip(column(result.series, "arms"), grokked, strict=True)
    ]
    crosses = all(low < 1 < high and other < 1 for low, high, other in zip(before, at, others, strict=True))
    alone = all(high > max(low, other) for low, high, other in zip(before, at, others, strict=True))
    if shown not in SHOWN:
        held = "untestable here"
    else:
        held = "reproduced" if crosses else "direction only" if alone else "refuted"
    return Verdict(
        claim="SDSD explains grokking: it is the phase transition at Γ = 1",
        source=EXPLANATION,
        verdict=held,
        published="Γ = 1 at the transition",
        our_figure=mean_interval(at, f"Γ of a batch of {batch} round understanding"),
        corrected=f"Γ is {mean(before):.2g} after memorising and {mean(at):.2g} round understanding, and "
        f"{mean(others):.2g} in a control at that time. It would take batches of {batch / mean(at):,.0f} to be 1, of "
        f"{result.config['prime'] ** 2} sums in all.",
        **RULES["grokking: Γ"].stated(),
    )


def draw(result: StudyResult) -> Any:
    figure, (left, middle, right) = figures.new_figure(13.2, 4.1, columns=3)
    run = result.series[0]["arms"]
    colours = dict(zip(ARMS, (figures.GREEN, figures.ORANGE, figures.RED), strict=True))
    when = first_step(run[GROKS], "test_accuracy", LEARNED)
    crosses = result.verdicts[1].verdict == "reproduced"
    for axes, key, title, label in (
        (left, "test_accuracy", "It understands long after it memorised", "accuracy"),
        (
            middle,
            "gamma",
            "Γ crosses 1 there" if crosses else "Γ does not cross 1 there",
            f"Γ of {result.config['batch']} samples",
        ),
        (right, "entropy", "H_G along the way", "H_G (nats)"),
    ):
        for arm in ARMS:
            rows = run[arm]["geometry"] if key == "entropy" else run[arm]
            curve = {f"test, {arm}" if axes is left else arm: rows[key]}
            draw_curves(
                axes,
                rows["step"],
                curve,
                colours=dict.fromkeys(curve, colours[arm]),
                xlabel="step",
                ylabel=label,
                legend="",
            )
        if math.isfinite(when):
            draw_level(axes, when, "understands", vertical=True, at=0.15 if axes is left else 0.9)
        figures.set_title(axes, title)
    trained = {"training": run[GROKS]["accuracy"]}
    draw_curves(
        left,
        run[GROKS]["step"],
        trained,
        colours={"training": figures.MUTED},
        xlabel="step",
        ylabel="accuracy",
        legend="center right",
    )
    left.set_ylim(-0.02, 1.05)
    middle.set_ylim(0, 1.2 * max(1, *run[GROKS]["gamma"], *run[STARVED]["gamma"]))
    draw_level(middle, 1.0, "Γ = 1", at=0.02)
    return figure


STUDIES = (
    Study(
        name="grokking",
        summary="addition modulo a prime, with weight decay, without, and with too few examples",
        claim="SDSD explains grokking",
        source=EXPLANATION,
        quick={
            "prime": 23,
            "embedding": 32,
            "steps": 1500,
            "share": 0.8,
            "learning_rate": 0.01,
            "every": 25,
            "longer": 1,
        },
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=100,
    ),
)
