"""GammaHistory: rows of measured steps in memory and in a file, and what is made of them."""

from __future__ import annotations

import csv
import errno
import json
import math
import os
import pickle
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

import sdsd
from sdsd._extras import MissingExtraError
from sdsd.gamma import history as module


def train(monitor, model, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    taken = []
    for _ in range(steps):
        model.zero_grad()
        model(torch.randn(8, 3, generator=generator)).square().mean().backward()
        taken.append(monitor.step())
    return taken


def monitored(**options):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return sdsd.GammaMonitor(model, **options), model


def test_a_row_a_measured_step():
    monitor, model = monitored(every=2, confidence=0.9, history=sdsd.GammaHistory())
    taken = train(monitor, model, 5)
    assert [row["step"] for row in monitor.history] == [1, 3, 5]
    for row, stats in zip(monitor.history, taken[::2], strict=True):
        assert row["parameter"] == "total"
        assert row["batch_size"] == 8
        for name in ("signal", "noise", "gamma", "gamma_unbiased", "noise_scale"):
            assert row[name] == getattr(stats, name)
        smoothed = stats.smoothed
        assert row["smoothed_noise_scale"] == smoothed.noise_scale
        assert row["smoothed_gamma"] == smoothed.gamma_unbiased
        assert row["phase"] == smoothed.phase
        bounds = (row["noise_scale_low"], row["noise_scale_high"])
        if smoothed.noise_scale_interval is None:
            assert all(map(math.isnan, bounds))
            assert row["confidence"] is None
        else:
            assert bounds == smoothed.noise_scale_interval
            assert row["confidence"] == 0.9
    assert monitor.steps == 5


def test_rows_of_parameters():
    monitor, model = monitored(history=sdsd.GammaHistory(parameters=True))
    taken = train(monitor, model, 3)
    assert [row["parameter"] for row in monitor.history] == ["total", "weight", "bias"] * 3
    assert monitor.history.column("noise", "bias") == [stats.parameters["bias"].noise for stats in taken]
    with pytest.raises(ValueError, match="expected one of step, "):
        monitor.history.column("nois")
    with pytest.raises(ValueError, match="expected one of total, weight, bias, got 'head'"):
        monitor.history.column("noise", "head")


def test_numbers_stay_on_their_device_until_enough_have_come(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "WAITING", 3)
    monkeypatch.setattr(module, "SECONDS", math.inf)
    monitor, model = monitored(history=tmp_path / "run.jsonl")
    train(monitor, model, 2)
    assert not (tmp_path / "run.jsonl").exists()
    train(monitor, model, 1)
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 3
    train(monitor, model, 1)
    monitor.detach()
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 4


def test_who_watches_a_slow_run_waits_seconds_and_not_64_steps(monkeypatch, tmp_path):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monitor, model = monitored(history=tmp_path / "run.jsonl")
    for seconds, written in ((4.9, False), (0.2, True), (4.9, True)):
        now[0] += seconds
        train(monitor, model, 1)
        assert (tmp_path / "run.jsonl").exists() == written
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) == 2
    monitor.detach()


def test_rows_carry_the_recommendation(tmp_path):
    monitor, model = monitored(history=sdsd.GammaHistory(tmp_path / "run.jsonl", parameters=True))
    taken = train(monitor, model, 25)
    monitor.detach()
    *_, total, weight, bias = sdsd.GammaHistory(tmp_path / "run.jsonl")
    advice = sdsd.recommend_batch(taken[-1].smoothed)
    assert (total["recommended_batch"], total["verdict"], total["advice"]) == (
        advice.samples,
        advice.verdict,
        str(advice),
    )
    part = sdsd.recommend_batch(taken[-1].smoothed.parameters["weight"])
    assert (weight["recommended_batch"], weight["verdict"], weight["advice"]) == (part.samples, part.verdict, None)
    assert bias["parameter"] == "bias"


def test_a_file_is_gone_on_with_and_steps_that_come_again_are_replaced(tmp_path):
    path = tmp_path / "run.jsonl"
    whole, model = monitored(history=tmp_path / "whole.jsonl")
    train(whole, model, 5, seed=1)
    whole.detach()

    first, model = monitored(history=path)
    generator_steps = train(first, model, 3, seed=1)
    assert generator_steps
    state = first.state_dict()
    train(first, model, 4, seed=9)  # ran on beyond the checkpoint, and was stopped
    first.detach()
    with path.open("a") as file:
        file.write('{"step": 8, "par')  # in the middle of a line
    assert len(sdsd.GammaHistory(path)) == 7  # by who looks at it; the next run's first write mends it

    second, model = monitored(history=path)
    second.load_state_dict(state)
    batches = torch.Generator().manual_seed(1)
    for _ in range(3):
        torch.randn(8, 3, generator=batches)
    for _ in range(2):
        model.zero_grad()
        model(torch.randn(8, 3, generator=batches)).square().mean().backward()
        second.step()
    second.detach()
    for row, wanted in zip(sdsd.GammaHistory(path), sdsd.GammaHistory(tmp_path / "whole.jsonl"), strict=True):
        assert row == {
            name: pytest.approx(value, rel=1e-9, nan_ok=True) if isinstance(value, float) else value
            for name, value in wanted.items()
        }


def test_the_last_step_that_comes_again_is_replaced(tmp_path):
    monitor, model = monitored()
    one, other = train(monitor, model, 2)
    history = sdsd.GammaHistory(tmp_path / "run.jsonl")
    for step, stats in ((1, one), (2, one), (2, other)):
        history.append(step, stats)
    history.flush()
    for each in (history, sdsd.GammaHistory(tmp_path / "run.jsonl")):
        assert each.column("step") == [1, 2]
        assert each.column("noise") == pytest.approx([one.noise, other.noise])


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello\nthere\n")
    with pytest.raises(ValueError, match=r"notes.txt, line 1: expected a row of a GammaHistory, got 'hello'"):
        sdsd.GammaHistory(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "hello\nthere\n"


def test_a_place_that_cannot_hold_a_history_is_refused_before_the_run(tmp_path):
    (tmp_path / "array.npy").write_bytes(b"\x93NUMPY\x01\x00")
    for path, said in (
        (tmp_path, "got a directory"),
        (tmp_path / "nowhere" / "run.jsonl", "in a folder that is there"),
        (tmp_path / "array.npy", "array.npy: expected a history"),
        (Path("/dev/full"), "/dev/full: expected a file for the history, got a device or a pipe"),
        (Path("/proc/run.jsonl"), r"/proc/run.jsonl: expected a file that can be written, and it cannot be \(No such"),
    ):
        with pytest.raises(ValueError, match=said):
            sdsd.GammaHistory(path)


def test_what_is_no_history_is_refused_before_the_run(tmp_path):
    for given in (b"run.jsonl", 3, open(tmp_path / "run.jsonl", "wb")):  # noqa: SIM115
        with pytest.raises(TypeError, match=r"history: expected a path, such as 'run\.jsonl', a GammaHistory, or"):
            monitored(history=given)


def test_a_name_with_a_line_separator_stays_one_line(tmp_path):
    model = nn.Sequential()
    model.add_module("a\u2028b\x85c", nn.Linear(3, 2))
    history = sdsd.GammaHistory(tmp_path / "run.jsonl", parameters=True)
    with sdsd.GammaMonitor(model, history=history) as monitor:
        train(monitor, model, 2)
    names = [row["parameter"] for row in history]
    assert "a\u2028b\x85c.weight" in names
    assert [row["parameter"] for row in sdsd.GammaHistory(tmp_path / "run.jsonl")] == names


def test_two_runs_with_one_file_are_told_so_and_the_later_keeps_it(tmp_path):
    path = tmp_path / "run.jsonl"
    (first, model), (second, other) = monitored(history=path), monitored(history=path)
    train(first, model, 3)
    first.history.flush()
    train(first, model, 1)
    train(second, other, 2)
    with pytest.warns(RuntimeWarning, match=r"run\.jsonl has changed.*another run writes to the same file"):
        second.history.flush()  # opened before the first wrote
    assert (len(second.history), len(path.read_text().splitlines())) == (2, 3)
    third, another = monitored(history=path)
    train(third, another, 2)
    third.detach()
    train(first, model, 1)
    with pytest.warns(RuntimeWarning, match=r"stay in memory from here on"):
        first.detach()
    assert [row["step"] for row in sdsd.GammaHistory(path)] == [1, 2]
    assert [row["step"] for row in first.history] == [1, 2, 3, 4, 5]


def test_a_file_that_is_taken_away_is_written_anew_in_whole(tmp_path):
    monitor, model = monitored(history=tmp_path / "run.jsonl")
    train(monitor, model, 3)
    monitor.history.flush()
    (tmp_path / "run.jsonl").unlink()
    train(monitor, model, 2)
    monitor.detach()
    assert [row["step"] for row in sdsd.GammaHistory(tmp_path / "run.jsonl")] == [1, 2, 3, 4, 5]


def test_a_write_that_fails_is_made_up_for(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "runs" / "run.jsonl")
    monitor, model = monitored(history=tmp_path / "link.jsonl")
    train(monitor, model, 2)
    monitor.history.flush()
    (tmp_path / "runs").rename(tmp_path / "away")
    train(monitor, model, 1)
    with pytest.raises(OSError, match=r"link\.jsonl: the history could not be written there \(No such.*make room"):
        monitor.history.flush()
    (tmp_path / "away").rename(tmp_path / "runs")
    with (tmp_path / "runs" / "run.jsonl").open("a") as file:
        file.write('{"step": 3, "par')  # as a full disk leaves it
    monitor.history._size = None
    train(monitor, model, 1)
    monitor.detach()
    assert (tmp_path / "link.jsonl").is_symlink()
    assert [row["step"] for row in sdsd.GammaHistory(tmp_path / "runs" / "run.jsonl")] == [1, 2, 3, 4]


@contextmanager
def no_room(monkeypatch):
    """As on a disk that is full: a write fails with an error that names no file."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(module, "line_of", full)
        yield


def test_a_full_disk_is_named_by_the_file_and_nothing_is_lost(monkeypatch, tmp_path):
    monitor, model = monitored(history=tmp_path / "run.jsonl")
    train(monitor, model, 2)
    with no_room(monkeypatch):
        for _ in range(2):
            with pytest.raises(OSError, match=r"run\.jsonl: the history could not be written there \(No space left"):
                monitor.history.flush()
        assert len(monitor.history) == 2, "reading needs no room"
        monitor.history.save_csv(tmp_path / "elsewhere.csv")
        assert len(pickle.loads(pickle.dumps(monitor.history))) == 2
    monitor.history.flush()
    assert [row["step"] for row in sdsd.GammaHistory(tmp_path / "run.jsonl")] == [1, 2], "without another step"
    monitor.detach()
    with no_room(monkeypatch), pytest.raises(OSError, match=r"run\.jsonl: the history could not"):
        sdsd.GammaHistory(tmp_path / "run.jsonl").append(2, monitor.stats)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere.csv", "run.jsonl"]


def test_a_step_that_comes_again_on_a_full_disk_is_written_later(monkeypatch, tmp_path):
    monitor, model = monitored(history=tmp_path / "run.jsonl")
    train(monitor, model, 3)
    monitor.detach()
    history = sdsd.GammaHistory(tmp_path / "run.jsonl")
    with no_room(monkeypatch), pytest.raises(OSError, match=r"run\.jsonl: the history could not"):
        history.append(2, monitor.stats)
    history.append(3, monitor.stats)
    history.flush()
    assert [row["step"] for row in sdsd.GammaHistory(tmp_path / "run.jsonl")] == [1, 2, 3]


def test_what_is_not_finite_is_null_with_a_word_and_comes_back(tmp_path):
    monitor, model = monitored(history=tmp_path / "run.jsonl")
    x = torch.tensor([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]])
    for _ in range(2):
        model.zero_grad()
        (model(x) * torch.tensor([[1.0, 1.0], [1.0, 1.0]])).sum(1).mean().backward()
        monitor.step()
    monitor.detach()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    values = [row["noise_scale_low"] for row in monitor.history]
    assert math.isnan(values[0])
    assert lines[0]["noise_scale_low"] is None
    assert lines[0]["noise_scale_low_is"] == "nan"
    read = list(sdsd.GammaHistory(tmp_path / "run.jsonl"))
    assert [str(row) for row in read] == [str(row) for row in monitor.history]


def test_tables(tmp_path):
    pandas = pytest.importorskip("pandas")
    monitor, model = monitored(history=sdsd.GammaHistory())
    train(monitor, model, 4)
    frame = monitor.history.dataframe()
    assert list(frame.columns) == list(module.COLUMNS)
    assert frame["noise"].tolist() == monitor.history.column("noise")
    path = monitor.history.save_csv(tmp_path / "run.csv")
    with path.open(newline="") as file:
        assert [float(row["noise"]) for row in csv.DictReader(file)] == monitor.history.column("noise")
    assert pandas.read_csv(path)["step"].tolist() == [1, 2, 3, 4]


def test_pictures_show_the_numbers():
    pytest.importorskip("matplotlib")
    monitor, model = monitored(history=sdsd.GammaHistory(parameters=True))
    train(monitor, model, 20)
    figure, axes = monitor.history.plot()
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    top = axes.get_ylim()[1]
    assert drawn["noise scale"] == [min(value, top) for value in monitor.history.column("smoothed_noise_scale")]
    assert drawn["batch size"] == [8] * 20
    assert monitor.history.plot("bias", axes=axes) == (figure, axes)
    figure, axes = monitor.smoothed.plot()
    assert [label.get_text() for label in axes.get_yticklabels()] == ["weight", "bias", "total"]
    with pytest.raises(ValueError, match="at least one measured step"):
        sdsd.GammaHistory().plot()


def test_without_extras_the_error_says_what_to_install(monkeypatch):
    monitor, model = monitored(history=sdsd.GammaHistory())
    train(monitor, model, 1)
    for package, use in (("pandas", monitor.history.dataframe), ("matplotlib", monitor.history.plot)):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingExtraError, match=f"pip install {package}"):
            use()


def test_a_monitor_without_one_says_how_to_keep_one():
    monitor, _ = monitored()
    with pytest.raises(RuntimeError, match=r"history='run.jsonl'"):
        _ = monitor.history


def test_notebooks_show_a_table():
    monitor, model = monitored()
    (stats,) = train(monitor, model, 1)
    shown = stats._repr_html_()
    assert shown.count("<tr>") == 4
    assert f"<td>{stats.noise:.4g}</td>" in shown
    named = sdsd.gamma_stats({"<b>": torch.randn(4, 3)})
    assert "<b>" not in named._repr_html_()


def test_notebooks_show_the_last_rows_of_a_history(tmp_path):
    monitor, model = monitored(history=sdsd.GammaHistory(parameters=True))
    train(monitor, model, 12)
    shown = monitor.history._repr_html_()
    assert shown.count("<tr>") == 1 + module.LAST
    assert "<td>2</td>" not in shown
    last = monitor.history.column("noise_scale_low")[-1]
    assert f"<td>{last:.4g}</td>" in shown
    assert "12 measured steps, in total; the last 10." in shown
    assert monitor.history.column("advice")[-1] in shown
    empty = sdsd.GammaHistory()._repr_html_()
    assert empty.count("<tr>") == 1
    first, other = monitored(history=sdsd.GammaHistory())
    train(first, other, 1)
    assert "<td>–</td>" in first.history._repr_html_()
    assert "nan" not in first.history._repr_html_()


def test_files_from_before_intervals_had_a_level(tmp_path):
    path = tmp_path / "gamma.jsonl"
    monitor, model = monitored(confidence=0.9, history=sdsd.GammaHistory(path))
    train(monitor, model, 5)
    monitor.history.flush()
    assert sdsd.GammaHistory(path).column("confidence")[-1] == 0.9
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(row.pop("confidence", row) is not row for row in rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    again = sdsd.GammaHistory(path)
    assert again.column("confidence") == [None] * 5
    assert again.column("noise_scale_low")[-1] == monitor.history.column("noise_scale_low")[-1]
