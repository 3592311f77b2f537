"""Measured steps in CUDA graphs: real ones on a GPU, and what the monitor does about them without one."""

from __future__ import annotations

import gc

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import sdsd
from sdsd.gamma.monitor import meter, session


def make() -> nn.Module:
    return nn.Sequential(nn.Embedding(11, 16), nn.LayerNorm(16), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 11))


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(ids).flatten(0, 1), ids.flatten())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_replays_give_what_eager_steps_give():
    model = make().cuda()
    batches = [torch.randint(0, 11, (4, 8), device="cuda") for _ in range(3)]
    monitor = sdsd.GammaMonitor(model)
    wanted = []
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for ids in batches:
            model.zero_grad()
            loss_of(model, ids).backward()
            wanted.append(monitor.step())
        model.zero_grad()
    torch.cuda.current_stream().wait_stream(side)
    given = batches[0].clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss_of(model, given).backward()
        assert monitor.step() is None
    found = []
    for ids in batches:
        given.copy_(ids)
        graph.replay()
        found.append(monitor.replayed())
    for one, other in zip(found, wanted, strict=True):
        assert one.n == other.n
        for name, own in one.parameters.items():
            assert own.noise == pytest.approx(other.parameters[name].noise, rel=1e-3, abs=1e-12)
            assert own.signal == pytest.approx(other.parameters[name].signal, rel=1e-3, abs=1e-12)


@pytest.fixture
def capture(monkeypatch):
    """Switches the belief that launches go into a graph; on a CPU they run at once, as a replay would."""

    def switch(on: bool) -> None:
        for module in (meter, session):
            monkeypatch.setattr(module, "capturing", lambda: on)

    return switch


def test_a_captured_step_says_nothing_until_it_is_replayed(capture):
    model, ids = make(), torch.randint(0, 11, (4, 8))
    twin, seen = sdsd.GammaMonitor(make()), []
    twin.model.load_state_dict(model.state_dict())
    monitor = sdsd.GammaMonitor(model)
    monitor.add_observer(lambda _, stats: seen.append(stats))
    with pytest.raises(RuntimeError, match="no step was captured"):
        monitor.replayed()
    capture(True)
    loss_of(model, ids).backward()
    assert monitor.step() is None
    assert not seen
    capture(False)
    loss_of(twin.model, ids).backward()
    wanted, found = twin.step(), monitor.replayed()
    assert seen == [found]
    assert (found.n, found.noise, found.signal) == (wanted.n, wanted.noise, wanted.signal)
    assert found.smoothed.noise == wanted.smoothed.noise
    # A replay writes over the captured numbers, and not over those that were given out.
    monitor._meter.captured.raw.mul_(4)
    again = monitor.replayed()
    assert again.signal == pytest.approx(4 * wanted.signal)
    assert found.signal == wanted.signal


def test_a_captured_step_is_not_proved(capture):
    """A proof reads numbers, which there are none of yet."""
    model, ids = make(), torch.randint(0, 11, (4, 8))
    monitor = sdsd.GammaMonitor(model)
    capture(True)
    loss_of(model, ids).backward()
    model[2].weight.grad.mul_(2)
    assert monitor.step() is None
    capture(False)
    model.zero_grad()
    loss_of(model, ids).backward()
    model[2].weight.grad.mul_(2)
    with pytest.raises(ValueError, match="does not prove itself"):
        monitor.step()


def test_a_scaler_is_refused_in_a_graph(capture):
    model, ids = make(), torch.randint(0, 11, (4, 8))
    monitor = sdsd.GammaMonitor(model, scaler=torch.amp.GradScaler("cpu"))
    capture(True)
    loss_of(model, ids).backward()
    with pytest.raises(RuntimeError, match="not with several ranks or with a GradScaler"):
        monitor.step()


def test_nodes_are_made_anew_on_another_stream(monkeypatch):
    """One that was made on the default stream would make a capture fail."""
    model, ids = make(), torch.randint(0, 11, (4, 8))
    monitor = sdsd.GammaMonitor(model)
    stream = [7]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: stream[0], raising=False)

    def kept() -> list[int]:
        loss_of(model, ids).backward()
        monitor.step()
        model.zero_grad()
        return [id(operand) for operand in monitor._session.operands.values()]

    first, second = kept(), kept()
    assert first == second
    held = list(monitor._session.operands.values())
    stream[0] = 8
    assert not set(kept()) & {id(operand) for operand in held}


def test_nothing_holds_a_node_after_a_step():
    """Not even a cycle that waits for the garbage collector: torch makes a new node where the old one is gone."""
    model, ids = make(), torch.randint(0, 11, (4, 8))
    monitor = sdsd.GammaMonitor(model)
    gc.collect()
    gc.disable()
    try:
        for _ in range(2):  # the second by plans, which hold operands, too
            loss_of(model, ids).backward()
            monitor.step()
            model.zero_grad()
        assert monitor._session.plans
        for parameter in model.parameters():
            torch.autograd.graph.get_gradient_edge(parameter).node.metadata["old"] = True
        monitor._session.forget()
        nodes = [torch.autograd.graph.get_gradient_edge(parameter).node for parameter in model.parameters()]
    finally:
        gc.enable()
    assert not any("old" in node.metadata for node in nodes)
