"""What the monitor does carries its name in a profile, and asks nothing of a step that nobody profiles."""

from __future__ import annotations

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

import sdsd


def step(model: nn.Module, monitor: sdsd.GammaMonitor) -> sdsd.GammaStats:
    nn.functional.cross_entropy(model(torch.ones(4, 3)), torch.arange(4) % 2).backward()
    stats = monitor.step()
    model.zero_grad()
    return stats


def test_a_profile_names_the_monitor():
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    monitor = sdsd.GammaMonitor(model)
    before = step(model, monitor)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        during = step(model, monitor)
    counts = {event.key: event.count for event in found.key_averages()}
    assert counts["GammaMonitor.step"] == 1
    assert counts["GammaMonitor.squares"] == 2  # one a layer
    assert (during.signal, during.noise) == (before.signal, before.noise)


def test_nothing_is_labelled_where_nobody_profiles(monkeypatch):
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} was labelled")

    model = nn.Linear(3, 2)
    monitor = sdsd.GammaMonitor(model)
    monkeypatch.setattr(torch.profiler, "record_function", refuse)
    assert step(model, monitor).n == 4
