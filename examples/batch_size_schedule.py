"""A batch that grows with the noise scale: python examples/batch_size_schedule.py

A network of 64-128-10 neurons learns 1,797 real digits, at first in batches of 8. Every 20 steps `sdsd.recommend_batch`
is asked, and where the whole interval of the batch worth having lies above the batch in use, steps take more samples;
what is more than 64 is accumulated over several backward passes, as on a device that holds no more. The same training
with the first batch and with the largest one throughout shows what the schedule buys. Seconds on a CPU.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sdsd

FIRST, LARGEST = 8, 256
AT_ONCE = 64
"""Samples of one backward pass at most."""
LOOK_EVERY = 20
LEARNING_RATE = 0.4
TARGET = 0.1
MOST_STEPS = 3000
SEEDS = (0, 1, 2)


class Run(NamedTuple):
    """A training until the loss over all images was at the target, or for as many steps as allowed."""

    steps: int
    samples: int
    loss: float
    batches: list[int]
    """The batch of every step."""


def data() -> tuple[Tensor, Tensor]:
    pixels, classes = load_digits(return_X_y=True)
    return torch.from_numpy(pixels).float() / 16 - 0.3, torch.from_numpy(classes).long()


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def next_batch(advice: sdsd.BatchRecommendation, batch: int) -> int:
    """Samples a step from now on.

    It follows the lower bound of the batch worth having, so that an interval that is open above is enough to grow, at
    most to the double at once: after a larger step the averages are to catch up first.
    """
    if advice.verdict != "can grow" or advice.samples_interval is None:
        return batch
    return max(batch, min(int(advice.samples_interval[0]), 2 * batch, LARGEST))


def backward(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """The gradient of the mean loss over a batch, accumulated where it is too large for one pass."""
    for x, y in zip(images.split(AT_ONCE), labels.split(AT_ONCE), strict=True):
        (cross_entropy(model(x), y) * len(x) / len(images)).backward()


def train(images: Tensor, labels: Tensor, batch: int, seed: int, *, grow: bool = False, show: bool = False) -> Run:
    """Train with `batch` samples a step, more of them where `grow` and the noise scale say so."""
    model, draw = network(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    # Exact mode, for "auto" would take the backward passes for samples once there are four. A memory of 39 steps.
    monitor = sdsd.GammaMonitor(model, mode="exact", ema=0.95) if grow else None
    batches: list[int] = []
    loss = float("inf")
    while len(batches) < MOST_STEPS and loss > TARGET:
        chosen = torch.randint(len(images), (batch,), generator=draw)
        backward(model, images[chosen], labels[chosen])
        stats = monitor.step() if monitor is not None else None
        optimizer.step()
        optimizer.zero_grad()
        batches.append(batch)
        if len(batches) % LOOK_EVERY:
            continue
        with torch.no_grad():
            loss = cross_entropy(model(images), labels).item()
        if stats is not None and stats.smoothed is not None:
            advice = sdsd.recommend_batch(stats.smoothed)
            if show:
                print(row(len(batches), sum(batches), loss, advice))
            batch = next_batch(advice, batch)
    if monitor is not None:
        monitor.detach()
    return Run(len(batches), sum(batches), loss, batches)


def row(step: int, samples: int, loss: float, advice: sdsd.BatchRecommendation) -> str:
    worth = "–" if advice.samples is None else f"{advice.samples:.0f}"
    bounds = "–" if advice.samples_interval is None else "{:.0f} to {:.0f}".format(*advice.samples_interval)
    verdict = advice.verdict or "cannot tell"
    return f"{step:>5} {samples:>8,} {loss:>7.3f} {advice.batch_size:>6} {worth:>13} {bounds:>14}  {verdict}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    torch.set_num_threads(1)
    images, labels = data()
    print(f"{'step':>5} {'samples':>8} {'loss':>7} {'batch':>6} {'worth having':>13} {'95% interval':>14}  verdict")
    scheduled = [train(images, labels, FIRST, seed, grow=True, show=seed == SEEDS[0]) for seed in SEEDS]
    print(f"\nto a loss of {TARGET} over all images, means of {len(SEEDS)} seeds, learning rate {LEARNING_RATE}:")
    for name, runs in (
        ("scheduled", scheduled),
        *(
            (f"{batch} throughout", [train(images, labels, batch, seed) for seed in SEEDS])
            for batch in (FIRST, LARGEST)
        ),
    ):
        steps, samples = (sum(getattr(run, what) for run in runs) / len(runs) for what in ("steps", "samples"))
        missed = sum(run.loss > TARGET for run in runs)
        print(f"{name:>16}: {steps:6.0f} steps {samples:9,.0f} samples" + (f", {missed} not reached" if missed else ""))


if __name__ == "__main__":
    main()
