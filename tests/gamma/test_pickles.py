"""What is copied, pickled, saved and sent to other processes: models that are watched, and what a monitor gave."""

from __future__ import annotations

import copy
import copyreg
import io
import pickle
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import nn
from torch.utils.data import DataLoader, Dataset

import sdsd

INPUTS = torch.arange(32.0).view(8, 4).sin()


def watched(**options: Any) -> tuple[nn.Module, sdsd.GammaMonitor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    return model, sdsd.GammaMonitor(model, confidence=0.9, **options)


def step(model: nn.Module, monitor: sdsd.GammaMonitor) -> sdsd.GammaStats:
    model.zero_grad()
    model(INPUTS).square().mean().backward()
    stats = monitor.step()
    assert stats is not None
    return stats


def saved(model: Any, **options: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, **options)


def sent(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


COPIES = {"deepcopy": copy.deepcopy, "pickle": sent, "save": lambda model: saved(model, weights_only=False)}


@pytest.mark.parametrize("take", COPIES.values(), ids=COPIES)
def test_a_watched_model_is_copied_without_its_monitor_at_every_moment_of_a_step(take):
    model, monitor = watched()
    copies = [take(model)]
    loss = model(INPUTS).square().mean()
    copies.append(take(model))
    loss.backward()
    copies.append(take(model))
    stats = monitor.step()
    copies.append(take(model))
    alone = step(*watched())
    assert (stats.signal, stats.noise) == (alone.signal, alone.noise)
    for each in copies:
        assert [type(module) for module in each.modules()] == [nn.Sequential, nn.Linear, nn.ReLU, nn.Linear]
        assert all("_sdsd" not in name for module in each.modules() for name in vars(module))
        assert torch.equal(each(INPUTS), model(INPUTS))
        own = step(each, sdsd.GammaMonitor(each))
        assert (own.signal, own.noise) == (alone.signal, alone.noise)


def test_a_saved_model_loads_with_weights_only_where_its_classes_are_named():
    model, _ = watched()
    with torch.serialization.safe_globals([nn.Sequential, nn.Linear, nn.ReLU, set, copyreg._reconstructor, object]):
        again = saved(model, weights_only=True)
    assert torch.equal(again(INPUTS), model(INPUTS))


def shout(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return 2 * output


@pytest.mark.parametrize("take", COPIES.values(), ids=COPIES)
def test_hooks_of_the_users_own_go_along(take):
    model, monitor = watched()
    plain = model(INPUTS)
    model.register_forward_hook(shout)
    assert torch.equal(take(model)(INPUTS), 2 * plain)
    monitor.detach()
    assert torch.equal(take(model)(INPUTS), 2 * plain)


@pytest.mark.parametrize("take", [copy.copy, copy.deepcopy, sent], ids=["copy", "deepcopy", "pickle"])
def test_what_a_monitor_gave_is_copied(take):
    model, monitor = watched(history=sdsd.GammaHistory(parameters=True))
    for _ in range(3):
        stats = step(model, monitor)
    for each in (stats, monitor.stats, monitor.smoothed, monitor.smoothed.parameters["0.weight"]):
        assert take(each).to_dict() == each.to_dict()
    parts = take(stats.parameters)
    assert {name: part.to_dict() for name, part in parts.items()} == stats.to_dict()["parameters"]
    assert take(monitor.coverage) == monitor.coverage
    assert list(map(str, take(monitor.history))) == list(map(str, monitor.history))
    advice = sdsd.recommend_batch(monitor.smoothed)
    assert str(take(advice)) == str(advice)


@pytest.mark.parametrize("take", [copy.copy, copy.deepcopy, sent], ids=["copy", "deepcopy", "pickle"])
def test_a_copied_history_leaves_the_file_to_the_first(take, tmp_path):
    model, monitor = watched(history=tmp_path / "run.jsonl")
    stats = step(model, monitor)
    other = take(monitor.history)
    other.append(2, stats)
    other.flush()
    assert (len(other), other.path) == (2, None)
    step(model, monitor)
    monitor.detach()
    assert [row["step"] for row in sdsd.GammaHistory(tmp_path / "run.jsonl")] == [1, 2]
    assert len(other) == 2


@pytest.mark.parametrize(
    "take", [pickle.dumps, lambda value: saved({"model": 1, "monitor": value})], ids=["pickle", "checkpoint"]
)
def test_a_monitor_in_a_checkpoint_says_what_to_save(take):
    _, monitor = watched()
    with pytest.raises(TypeError, match=r"Save monitor.state_dict\(\) and load it into a new monitor"):
        take(monitor)


def test_a_model_that_holds_its_monitor_says_where_to_keep_it():
    model, monitor = watched()
    model.monitor = monitor
    with pytest.raises(TypeError, match="keep the monitor beside it and not among its attributes"):
        copy.deepcopy(model)


class Features(Dataset):
    """A data set whose samples a model makes, in the workers."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __len__(self) -> int:
        return len(INPUTS)

    def __getitem__(self, index: int) -> torch.Tensor:
        with torch.no_grad():
            return self.model(INPUTS[index])


@pytest.mark.parametrize("how", ["spawn", "fork"])
def test_workers_of_a_loader_take_a_watched_model(how):
    model, monitor = watched()
    loader = DataLoader(Features(model), batch_size=4, num_workers=1, multiprocessing_context=how)
    with torch.no_grad():
        expected = torch.stack([model(row) for row in INPUTS])
    assert torch.equal(torch.cat(list(loader)), expected)
    assert step(model, monitor).n == 8


def in_another_process(rank: int, model: nn.Module, stats: Any, history: Any, expected: torch.Tensor) -> None:
    assert type(model[0]) is nn.Linear
    assert torch.equal(model(INPUTS), expected)
    own = step(model, sdsd.GammaMonitor(model))
    assert (own.signal, own.noise) == (stats.signal, stats.noise)
    assert [row["signal"] for row in history] == [stats.signal]


def test_spawned_processes_take_a_watched_model_and_what_it_gave(tmp_path):
    model, monitor = watched(history=tmp_path / "run.jsonl")
    stats = step(model, monitor)
    expected = model(INPUTS).detach()
    for parameter in model.parameters():
        parameter.grad = None
    torch.multiprocessing.spawn(in_another_process, (model, stats, monitor.history, expected), nprocs=1)
    with pytest.raises(TypeError, match="expected to stay with the model"):
        torch.multiprocessing.get_context("spawn").Process(target=print, args=(monitor,)).start()


def test_statistics_are_read_by_torch_load_as_it_is():
    stats = step(*watched())
    for kept in (stats, stats.smoothed, stats.parameters["0.weight"], sdsd.gamma_stats(torch.randn(8, 300))):
        assert saved(kept).to_dict() == kept.to_dict()
