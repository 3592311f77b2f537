"""Is my batch too big? The runs behind docs/is-my-batch-too-big.md: python examples/batch_size.py [--out FOLDER]

A network of 64-128-10 neurons reads 1,797 real digits. First it is trained with a monitor, to read the noise scale.
Then it is trained at eight batch sizes, and the steps and samples to a given loss are counted. A figure and a table
of all numbers are written.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sdsd

LEARNING_RATE, BATCH, STEPS = 0.2, 32, 400
TARGETS = (0.5, 0.2)
BATCHES = (4, 8, 16, 32, 64, 128, 256, 512)
RATES = (0.2, 0.4, 0.8, 1.6, 3.2)
SEEDS = (0, 1, 2)
SHOWN = (1, 10, 30, 50, 100, 200, 300, 400)
SETTLE_AFTER = (0, 50, 400)


def data() -> tuple[Tensor, Tensor]:
    pixels, classes = load_digits(return_X_y=True)
    return torch.from_numpy(pixels).float() / 16 - 0.3, torch.from_numpy(classes).long()


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def watch(images: Tensor, labels: Tensor, seed: int = 0) -> list[dict[str, Any]]:
    """Train with a monitor; its reading at every step, and the truth over all images at some."""
    model, draw = network(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    readings = []
    with sdsd.GammaMonitor(model, mode="exact") as monitor:
        for step in range(1, STEPS + 1):
            chosen = torch.randint(len(images), (BATCH,), generator=draw)
            truth = true_noise_scale(model, images, labels) if step in (1, 2, 5) or step % 10 == 0 else None
            loss = cross_entropy(model(images[chosen]), labels[chosen])
            loss.backward()
            stats = monitor.step()
            optimizer.step()
            optimizer.zero_grad()
            smoothed = stats.smoothed
            readings.append(
                {
                    "step": step,
                    "loss": loss.item(),
                    "single_step": stats.noise_scale,
                    "smoothed": smoothed.noise_scale,
                    "interval": smoothed.noise_scale_interval,
                    "gamma": smoothed.gamma_unbiased,
                    "gamma_interval": smoothed.interval,
                    "true": truth,
                }
            )
    return readings


def settle(images: Tensor, labels: Tensor, after: int, batch: int, steps: int = 1000) -> list[float]:
    """Half-width of the smoothed interval, relative to Γ, at each step with the weights of step `after` held still."""
    model, draw = network(0), torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    for _ in range(after):
        chosen = torch.randint(len(images), (BATCH,), generator=draw)
        optimizer.zero_grad()
        cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    widths = []
    with sdsd.GammaMonitor(model, mode="exact", ema=0.999) as monitor:
        for _ in range(steps):
            chosen = torch.randint(len(images), (batch,), generator=draw)
            model.zero_grad()
            cross_entropy(model(images[chosen]), labels[chosen]).backward()
            smoothed = monitor.step().smoothed
            low, high = smoothed.interval or (-math.inf, math.inf)
            widths.append((high - low) / 2 / abs(smoothed.gamma_unbiased))
    return widths


def true_noise_scale(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Over all images: the population's variance over the squared mean gradient."""
    model = copy.deepcopy(model)
    model.zero_grad()
    with sdsd.GammaMonitor(model, mode="exact") as monitor:
        cross_entropy(model(images), labels).backward()
        stats = monitor.step()
    return stats.noise * (stats.n - 1) / stats.n / stats.signal


def race(images: Tensor, labels: Tensor, batch: int, rate: float, seed: int) -> dict[float, int] | None:
    """Steps until the loss over all images is at each target; None where it does not get to the last."""
    model, draw = network(seed), torch.Generator().manual_seed(100 + seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    reached: dict[float, int] = {}
    every = max(1, 64 // batch)
    limit = 1500 if batch >= 32 else 48000 // batch
    for step in range(1, limit + 1):
        chosen = torch.randint(len(images), (batch,), generator=draw)
        optimizer.zero_grad()
        cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
        if step % every == 0:
            with torch.no_grad():
                loss = cross_entropy(model(images), labels).item()
            if not math.isfinite(loss):
                return None
            for target in TARGETS:
                if loss <= target:
                    reached.setdefault(target, step)
            if len(reached) == len(TARGETS):
                return reached
    return None


def trade_off(images: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """Mean steps to each target at each batch size, with the learning rate that needs fewest to the last target."""
    rows = []
    for batch in BATCHES:
        best: dict[float, float] | None = None
        best_rate = math.nan
        for rate in RATES:
            runs = []
            for seed in SEEDS:
                run = race(images, labels, batch, rate, seed)
                if run is None:
                    break
                runs.append(run)
            else:
                means = {target: statistics.mean(run[target] for run in runs) for target in TARGETS}
                if best is not None and means[TARGETS[-1]] >= best[TARGETS[-1]]:
                    break
                best, best_rate = means, rate
        assert best is not None
        rows.append({"batch": batch, "rate": best_rate, "steps": best})
        print(f"batch {batch:>4}, rate {best_rate}: " + ", ".join(f"{s:.0f} steps to {t}" for t, s in best.items()))
    return rows


def critical_batch(rows: list[dict[str, Any]], target: float) -> tuple[float, float]:
    """(fewest steps, critical batch size) of S = S_min (1 + B_crit / B), fitted to relative errors."""
    steps = np.array([row["steps"][target] for row in rows])
    slope, fewest = np.polyfit([1 / row["batch"] for row in rows], steps, 1, w=1 / steps)
    return float(fewest), float(slope / fewest)


def draw(readings: list[dict[str, Any]], rows: list[dict[str, Any]], path: Path) -> None:
    from sdsd.report import figures

    figure, (left, right) = figures.new_figure(10.4, 4.0, columns=2)
    shown = [r for r in readings if r["interval"] is not None]
    known = [r for r in readings if r["true"] is not None]
    figures.draw_noise_scale(
        left,
        [r["step"] for r in shown],
        [r["smoothed"] for r in shown],
        [r["interval"][0] for r in shown],
        [r["interval"][1] for r in shown],
        BATCH,
        exact_steps=[r["step"] for r in known],
        exact=[r["true"] for r in known],
    )
    left.set_xlabel("training step")
    figures.set_title(left, "The noise scale while it learns")
    for target, colour in zip(TARGETS, (figures.GREEN, figures.BLUE), strict=True):
        steps = [row["steps"][target] for row in rows]
        samples = [row["batch"] * row["steps"][target] for row in rows]
        right.plot(samples, steps, color=colour, marker="o", label=f"to a loss of {target}")
        for row, x, y in zip(rows, samples, steps, strict=True):
            if target == TARGETS[-1]:
                right.annotate(str(row["batch"]), (x, y), xytext=(5, 4), textcoords="offset points", color=colour)
    right.set_xscale("log")
    right.set_yscale("log")
    right.margins(0.08)
    figures.log_axis(right.xaxis, *right.get_xlim())
    figures.log_axis(right.yaxis, *right.get_ylim())
    right.set_xlabel("samples needed")
    right.set_ylabel("steps needed")
    right.legend(frameon=False)
    figures.set_title(right, "What a bigger batch buys (numbers: batch size)")
    figures.save_png(figure, path, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out/batch_size"))
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    images, labels = data()
    readings = watch(images, labels)
    for step in SHOWN:
        r = readings[step - 1]
        bounds = "–" if r["interval"] is None else "[{:.0f}, {:.0f}]".format(*r["interval"])
        print(
            f"step {step:>3}: loss {r['loss']:.3f}, single step {r['single_step']:.0f}, smoothed {r['smoothed']:.0f} "
            f"{bounds}, true {r['true']:.0f}"
        )
    trusted = {}
    for after in SETTLE_AFTER:
        for batch in (32, 128):
            widths = settle(images, labels, after, batch)
            trusted[f"{after}/{batch}"] = {
                within: next((i + 1 for i in range(len(widths)) if max(widths[i:]) <= within), None)
                for within in (0.5, 0.2, 0.1)
            }
            print(
                f"weights of step {after}, batch {batch}: steps until the interval stays within",
                trusted[f"{after}/{batch}"],
            )
    rows = trade_off(images, labels)
    fits = {target: critical_batch(rows, target) for target in TARGETS}
    for target, (fewest, critical) in fits.items():
        print(f"to {target}: at least {fewest:.0f} steps and {fewest * critical:.0f} samples; B_crit {critical:.0f}")
    draw(readings, rows, folder / "batch-size.png")
    (folder / "batch_size.json").write_text(
        json.dumps({"readings": readings, "trusted": trusted, "trade_off": rows, "fits": fits}, indent=1)
    )


if __name__ == "__main__":
    main()
