"""Monitors in threads of one process: each sees its own model alone."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import sdsd

STEPS = 3
THREADS = 4
Meet = Callable[[], object]


class Meeting(nn.Module):
    """The identity, at which every thread waits until all of them are there."""

    def __init__(self, meet: Meet) -> None:
        super().__init__()
        self.meet = meet

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.meet()
        return x


class Convolutional(nn.Module):
    def __init__(self, meet: Meet) -> None:
        super().__init__()
        self.convolution, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Linear(4 * 4 * 4, 5)
        self.meeting = Meeting(meet)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.meeting(self.convolution(pixels))).relu().flatten(1))


class Reading(nn.Module):
    def __init__(self, meet: Meet) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head, self.meeting = nn.Linear(8, 5), Meeting(meet)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.meeting(self.words(tokens))).mean(1))


def dense(meet: Meet) -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(nn.Linear(6, 12), Meeting(meet), nn.Tanh(), nn.Linear(12, 5)), torch.randn(STEPS, 16, 6)


def convolutional(meet: Meet) -> tuple[nn.Module, torch.Tensor]:
    return Convolutional(meet), torch.randn(STEPS, 16, 1, 6, 6)


def reading(meet: Meet) -> tuple[nn.Module, torch.Tensor]:
    return Reading(meet), torch.randint(0, 11, (STEPS, 16, 7))


def train(model: nn.Module, inputs: torch.Tensor, meet: Meet) -> list[float]:
    """Every number a monitor gave, and the last weights."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = sdsd.GammaMonitor(model)
    found: list[float] = []
    for batch in inputs:
        loss = nn.functional.cross_entropy(model(batch), torch.arange(16) % 5)
        meet()
        loss.backward()
        meet()
        stats = monitor.step()
        assert stats is not None
        for part in (stats, *stats.parameters.values()):
            found += [part.signal, part.noise]
        optimizer.step()
        optimizer.zero_grad()
    assert stats.smoothed is not None
    return [*found, stats.smoothed.signal, stats.smoothed.noise, *(p.sum().item() for p in model.parameters())]


JOBS = [(dense, 0), (convolutional, 1), (reading, 2), (dense, 3)]


def drawn(make: Callable[[Meet], tuple[nn.Module, torch.Tensor]], seed: int, meet: Meet) -> Any:
    torch.manual_seed(seed)
    return make(meet)


def test_four_monitors_in_four_threads_agree_bit_for_bit():
    alone = [train(*drawn(make, seed, lambda: None), lambda: None) for make, seed in JOBS]
    barrier = threading.Barrier(THREADS, timeout=60)
    # Drawn here, for random numbers come from one generator for all threads.
    models = [drawn(make, seed, barrier.wait) for make, seed in JOBS]
    together: list[list[float]] = [[] for _ in JOBS]
    failures: list[BaseException] = []

    def run(place: int) -> None:
        try:
            together[place] = train(*models[place], barrier.wait)
        except BaseException as error:
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(place,)) for place in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert together == alone


@pytest.mark.parametrize("take", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
def test_a_monitor_says_how_it_is_moved(take):
    model = nn.Linear(3, 2)
    monitor = sdsd.GammaMonitor(model)
    model(torch.randn(4, 3)).square().mean().backward()
    monitor.step()
    with pytest.raises(TypeError, match=r"expected to stay with the model.*state_dict\(\)"):
        take(monitor)
    model.zero_grad()
    model(torch.randn(4, 3)).square().mean().backward()
    assert monitor.step().n == 4  # and goes on


def test_a_monitored_models_copy_is_watched_by_its_own_monitor():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    first = sdsd.GammaMonitor(model)
    inputs = torch.randn(8, 3)
    model(inputs).square().mean().backward()
    second_model = pickle.loads(pickle.dumps(model))
    second_model.zero_grad()
    second = sdsd.GammaMonitor(second_model)
    second_model(inputs).square().mean().backward()
    again, here = second.step(), first.step()
    assert (again.signal, again.noise) == (here.signal, here.noise)


def test_functions_serve_four_threads_at_once():
    activations = [torch.randn(200, 60 + 10 * k) for k in range(THREADS)]

    def answers(x: torch.Tensor) -> list[Any]:
        stats = sdsd.gamma_stats(x, confidence=0.9)
        return [
            stats.signal,
            stats.noise,
            stats.interval,
            sdsd.neuron_cosine_matrix(x).tolist(),
            sdsd.neuron_neighbors(x, k=3).values.tolist(),
        ]

    alone = [answers(x) for x in activations]
    together: list[list[Any]] = [[] for _ in activations]
    barrier = threading.Barrier(THREADS, timeout=60)

    def run(place: int) -> None:
        barrier.wait()
        together[place] = [answers(activations[place]) for _ in range(3)]

    threads = [threading.Thread(target=run, args=(place,)) for place in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [[expected] * 3 for expected in alone]
