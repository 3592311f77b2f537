"""Γ watched while it moves: how often the interval of a running average holds the present value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...gamma import GammaMonitor, GammaStats, averaging, averaging_lag
from ...gamma.monitor import RunningAverages, Step
from ...report import figures
from ...report.figures import draw_curves, draw_level
from ..digits import load_digits
from ..documents import SDSD
from ..engine import Measured, Progress, Study, StudyResult, Verdict, fraction_interval, mean_interval
from ..rules import RULES

WARM = 4
"""Memories that an average has before it is compared with a later one."""
COVERED = 0.9
MISSES = 0.1
CONFIDENCE = 0.95


def measure(
    seed: int,
    progress: Progress,
    *,
    emas: Sequence[float] = (0.9, 0.98),
    noise_scales: Sequence[float] = (0.5, 4.0),
    moves: Sequence[float] = (-0.2, -0.1, -0.05, -0.02, 0.0, 0.02, 0.05, 0.1, 0.2),
    runs: int = 200,
    dim: int = 30,
    batch: int = 32,
    networks: int = 3,
    hidden: int = 128,
    learning_rate: float = 0.1,
    steps: int = 600,
    every: int = 20,
) -> dict[str, Any]:
    """Gaussian gradients whose Γ moves by a steady factor, and networks that learn digits.

    `moves` are changes of log Γ in one memory; `noise_scales` are in batches, at the last step.
    """
    simulated = [
        {"ema": ema, "noise scale": scale, "move": move, **_simulate(ema, move, runs, dim, batch, scale)}
        for ema in progress.each(emas, f"seed {seed}: simulated gradients")
        for scale in noise_scales
        for move in moves
    ]
    looks = []
    for number in progress.each(range(networks), f"seed {seed}: networks that learn digits"):
        looks += _train(networks * seed + number, hidden, learning_rate, batch, steps, every=every, emas=emas)
    return {"simulated": simulated, "looks": looks}


def _apart(ema: float) -> int:
    """The fewest steps between two averages that `averaging_lag` compares."""
    return math.ceil(averaging.APART * ema / (1 - ema) - 1e-9)


def _read(averages: RunningAverages, names: tuple[str, ...], batch: int) -> GammaStats:
    return GammaStats(
        averages.source(names, batch),
        n=batch,
        samples_per_gradient=1,
        batch_size=batch,
        confidence=CONFIDENCE,
        population=None,
    )


def _simulate(ema: float, move: float, runs: int, dim: int, batch: int, noise_scale: float) -> dict[str, Any]:
    """Runs side by side, each as a parameter of its own; Tr Var of a gradient is 1."""
    memory, apart = ema / (1 - ema), _apart(ema)
    warm = round(WARM * memory)
    truth = 1 / (noise_scale * batch)
    averages = RunningAverages(runs, ema, torch.device("cpu"))
    names = tuple(map(str, range(runs)))
    readings = []
    for step in range(warm + apart + 1):
        gamma = truth * math.exp(move * (step - warm - apart) / memory)
        averages.update(Step(_gradients(gamma, runs, dim, batch), batch, 1, batch))
        if step in (warm, warm + apart):
            readings.append(_read(averages, names, batch).parameters)
    points = []
    for name in names:
        earlier, now = (each[name] for each in readings)
        assert now.interval is not None
        low, high = now.interval
        short = averaging_lag(earlier, now, steps=apart, ema=ema).present
        points.append((low <= truth <= high, short is True, 2 * truth * abs(math.expm1(-move)) / (high - low)))
    return {
        "runs": runs,
        "holds": sum(held for held, _, _ in points),
        "short": sum(short for _, short, _ in points),
        "short and misses": sum(short and not held for held, short, _ in points),
        "ratio": median(ratio for _, _, ratio in points),
    }


def _gradients(gamma: float, runs: int, dim: int, batch: int) -> Tensor:
    """‖mean‖² and Σ‖g‖² of `batch` Gaussian gradients a run, with Γ = `gamma` and noise alike in `dim` directions."""
    mean = torch.randn(runs, dim, dtype=torch.float64) / math.sqrt(dim * batch)
    mean[:, 0] += math.sqrt(gamma)
    degrees = torch.tensor(float(dim * (batch - 1)), dtype=torch.float64)
    deviations = torch.distributions.Chi2(degrees).sample((runs,)) / dim
    signal = mean.square().sum(1)
    return torch.stack([signal, batch * signal + deviations])


def _train(
    seed: int, hidden: int, learning_rate: float, batch: int, steps: int, *, every: int, emas: Sequence[float]
) -> list[dict[str, Any]]:
    """Looks at a network under SGD: whether intervals hold Γ of all digits at these weights; what the rule says."""
    images, labels = load_digits(seed)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10))
    optimizer = torch.optim.SGD(model.parameters(), learning_rate)
    averages = {ema: RunningAverages(1, ema, torch.device("cpu")) for ema in emas}
    kept: dict[tuple[float, int], GammaStats] = {}
    looks = []
    with GammaMonitor(model, ema=0.0) as monitor:
        for step in range(1, steps + 1):
            chosen = torch.randint(len(labels), (batch,))
            optimizer.zero_grad()
            cross_entropy(model(images[chosen]), labels[chosen]).backward()
            stats = monitor.step()
            assert stats is not None
            squares = stats.noise * (batch - 1) + batch * stats.signal
            raw = torch.tensor([[stats.signal], [squares]], dtype=torch.float64)
            look = step % every == 0
            truth = _of_all(model, images, labels) if look else math.nan
            for ema, average in averages.items():
                average.update(Step(raw, batch, 1, batch))
                now = kept[ema, step] = _read(average, ("all",), batch)
                earlier = kept.pop((ema, step - _apart(ema)), None)
                if look and now.interval is not None:
                    short = earlier and averaging_lag(earlier, now, steps=_apart(ema), ema=ema).present
                    held = now.interval[0] <= truth <= now.interval[1]
                    looks.append({"ema": ema, "step": step, "holds": held, "short": short})
            optimizer.step()
    return looks


def _of_all(model: nn.Sequential, images: Tensor, labels: Tensor) -> float:
    """Γ of a single sample over all of them, from the gradients of two linear layers in one pass."""
    first, second = (model[0], model[2])
    with torch.no_grad():
        before = first(images)
        active = before.relu()
        errors = second(active).softmax(1)
        errors[torch.arange(len(labels)), labels] -= 1
        inner = (errors @ second.weight) * (before > 0)
        squares, signal = 0.0, 0.0
        for inputs, outputs in ((images, inner), (active, errors)):
            inputs, outputs = inputs.double(), outputs.double()
            squares += (outputs.square().sum(1) * (inputs.square().sum(1) + 1)).mean().item()
            signal += (outputs.mT @ inputs / len(labels)).square().sum().item() + outputs.mean(0).square().sum().item()
    return signal / (squares - signal)


def judge(result: StudyResult) -> list[Verdict]:
    points = result.pooled("simulated")
    everywhere = mean_interval(
        [_share(series["looks"], "holds") for series in result.series],
        "of 95% intervals hold Γ of the present weights",
    )
    looks = result.pooled("looks")
    by_ema = ", ".join(
        f"{_share([look for look in looks if look['ema'] == ema], 'holds'):.2f} at ema={ema:g}"
        for ema in result.config["emas"]
    )
    known = [look for look in looks if look["short"] is not None]
    short = [look for look in known if look["short"]]
    words = f"short at {len(short)} of {len(looks)} looks" + (
        f", of which {_share(short, 'holds'):.2f} hold it" if short else ""
    )
    worst = max((_missing(points, move) for move in result.config["moves"]), key=lambda share: share.value)
    return [
        Verdict(
            claim="Γ can be monitored along SGD, by averages over the steps that are made",
            source=f"{SDSD} §5, Monitoring Γ during SGD",
            verdict=_word(everywhere, worst),
            published="a procedure, without error bars",
            our_figure=everywhere,
            corrected=f"An average is of the past: {by_ema} while small networks learn. Of simulated averages, by how "
            "far log Γ moves in one memory of ema / (1 − ema) steps, hold the present value: "
            + "; ".join(f"{_said(points, move)} at {move:g}".replace("-", "−") for move in result.config["moves"])
            + f". `averaging_lag` tells from two averages which are short enough; those that it calls so and that miss "
            f"are at most {worst.value:.2f} of all at one drift. While networks learn it calls them {words}, too long "
            f"at {len(known) - len(short)}, and cannot tell at the others: too little signal, or no average that is "
            "old enough.",
            **RULES["averaging"].stated(),
        )
    ]


def _share(looks: Sequence[dict[str, Any]], key: str) -> float:
    return sum(look[key] for look in looks) / len(looks)


def _summed(points: Sequence[dict[str, Any]], move: float, key: str) -> int:
    return int(sum(point[key] for point in points if point["move"] == move))


def _missing(points: Sequence[dict[str, Any]], move: float) -> Measured:
    """The share of all averages at one drift that are called short and miss the present value."""
    return fraction_interval(_summed(points, move, "short and misses"), _summed(points, move, "runs"))


def _said(points: Sequence[dict[str, Any]], move: float) -> str:
    """The share of intervals that hold the present value, and of averages that are called short."""
    holds, short, runs = (_summed(points, move, key) for key in ("holds", "short", "runs"))
    return f"{holds / runs:.2f} ({short / runs:.0%} called short)"


def _word(everywhere: Measured, worst: Measured) -> str:
    if everywhere.low is None or everywhere.high is None or worst.low is None or worst.high is None:
        return "inconclusive"
    if everywhere.low > COVERED:
        return "reproduced"
    if worst.low > MISSES:
        return "refuted"
    return "direction only" if everywhere.high < COVERED and worst.high < MISSES else "inconclusive"


def draw(result: StudyResult) -> Any:
    figure, axes = figures.new_figure(7.6, 4.4)
    points, moves = result.pooled("simulated"), list(result.config["moves"])

    def covered(ema: float, scale: float) -> list[float]:
        chosen = [point for point in points if (point["ema"], point["noise scale"]) == (ema, scale)]
        return [_summed(chosen, move, "holds") / _summed(chosen, move, "runs") for move in moves]

    curves = {
        f"ema {ema:g}, noise scale {scale:g} batches": covered(ema, scale)
        for ema in result.config["emas"]
        for scale in result.config["noise_scales"]
    }
    draw_curves(
        axes,
        moves,
        curves,
        xlabel="change of log Γ in one memory of the average",
        ylabel="95% intervals that hold the present Γ",
        marker="o",
        legend="lower center",
    )
    draw_level(axes, CONFIDENCE, "0.95")
    axes.set_ylim(0, 1.02)
    figures.set_title(axes, "An average is of the past: where Γ moves, its interval misses the present")
    return figure


STUDIES = (
    Study(
        name="averaging",
        summary="Γ by running averages while it moves: how often the interval holds the present value",
        claim="Γ can be monitored along SGD",
        source=f"{SDSD} §5",
        quick={"emas": (0.9,), "noise_scales": (0.5,), "runs": 100, "networks": 1, "steps": 200},
        measure=measure,
        judge=judge,
        draw=draw,
        expected_seconds=45,
        needs=("sklearn",),
    ),
)
