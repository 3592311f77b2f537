"""A growing file of measurements, read on: half lines, other files, mends, memory."""

from __future__ import annotations

import itertools
import json
import math
import os
import time

import pytest
import torch
from torch import nn

import sdsd
from sdsd.gamma.history import TOTAL, row_of_line
from sdsd.report.live import LiveRun
from sdsd.report.live import run as run_module
from sdsd.report.live.file import HistoryFile

from .rows import lines

# The file


def test_a_file_is_read_on_and_a_half_line_waits_for_its_rest(path):
    file = HistoryFile(path)
    assert not file.read().there
    one, two = lines(2, names=0)
    path.write_text(one + two[:40])
    assert [row["step"] for row in file.read().rows] == [1]
    assert file.read().rows == []
    with path.open("a") as more:
        more.write(two[40:-1])
    assert file.read().rows == []
    with path.open("a") as more:
        more.write("\n")
    (row,) = file.read().rows
    assert row == row_of_line(two)
    assert row["noise_scale_high"] == math.inf


def test_each_row_comes_once_however_the_writes_fall(path):
    text = "".join(lines(40)).encode()
    file, steps, generator = HistoryFile(path), [], torch.Generator().manual_seed(0)
    path.write_bytes(b"")
    while text:
        size = int(torch.randint(1, 900, (), generator=generator))
        with path.open("ab") as more:
            more.write(text[:size])
        text = text[size:]
        part = file.read(most=2000)
        assert not part.anew
        steps += [row["step"] for row in part.rows]
    steps += [row["step"] for row in file.read().rows]
    assert steps == [step for step in range(1, 41) for _ in range(2)]


@pytest.mark.parametrize("how", ["moved there", "cut", "written over"])
def test_another_file_in_its_place_begins_anew(path, how):
    path.write_text("".join(lines(5)))
    file = HistoryFile(path)
    file.read()
    other = "".join(lines(3 if how == "cut" else 9, scale=7.0))
    if how == "moved there":
        (path.parent / "other").write_text(other)
        os.replace(path.parent / "other", path)
    else:
        with path.open("r+") as same:
            same.truncate(0)
            same.write(other)
    part = file.read()
    assert part.anew
    assert len(part.rows) == (6 if how == "cut" else 18)
    assert not file.read().anew


def test_a_file_taken_away_and_put_back(path):
    run = LiveRun(path)
    path.write_text("".join(lines(5)))
    run.update()
    assert run.view()["step"] == 5
    path.unlink()
    run.update()
    assert (run.view()["state"], run.view()["there"], run.view()["step"]) == ("waiting", False, None)
    path.write_text("".join(lines(2)))
    run.update()
    assert run.view()["step"] == 2


def test_what_a_history_replaces_after_a_restart_is_replaced_here(path):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)

    def train(steps: int) -> None:
        with sdsd.GammaMonitor(model, history=path) as monitor:
            for _ in range(steps):
                model.zero_grad()
                model(torch.randn(8, 3)).square().mean().backward()
                monitor.step()

    run = LiveRun(path)
    train(7)
    run.update()
    train(3)
    run.update()
    view = run.view()
    assert (view["step"], view["rows"], view["curves"][0]["step"]) == (3, 3, [1, 2, 3])
    rows = sdsd.GammaHistory(path)
    assert view["curves"][0]["gamma"] == rows.column("smoothed_gamma")
    assert view["advice"] == rows[-1]["advice"] == str(sdsd.recommend_batch(monitored_again(rows)))


def monitored_again(rows):
    """The statistics behind the last row: the same three steps once more."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    for _ in range(7):
        torch.randn(8, 3)
    with sdsd.GammaMonitor(model) as monitor:
        for _ in range(3):
            model.zero_grad()
            model(torch.randn(8, 3)).square().mean().backward()
            monitor.step()
    assert monitor.smoothed.gamma_unbiased == rows[-1]["smoothed_gamma"]
    return monitor.smoothed


def test_a_line_that_is_no_row_is_said_with_its_number_and_mended(path):
    path.write_text("".join(lines(3, names=0)) + '{"loss": 3}\n')
    run = LiveRun(path)
    run.update()
    assert run.view()["state"] == "broken"
    assert "line 4: expected a row of a GammaHistory, got '{\"loss\": 3}'" in run.view()["problem"]
    version = run.version
    run.update()
    assert run.version == version
    path.write_text("".join(lines(4, names=0)))
    run.update()
    assert run.view()["problem"] is None
    assert run.view()["step"] == 4


def test_memory_does_not_grow_with_the_file(path, monkeypatch):
    monkeypatch.setattr(run_module, "MOST_POINTS", {True: 20, False: 10})
    path.write_text("".join(lines(1000, names=2)))
    run = LiveRun(path)
    run.update()
    for curve, most in zip(run.view()["curves"], (20, 10, 10), strict=True):
        steps = curve["step"]
        assert most <= len(steps) <= 2 * most + 1
        assert (steps[0], steps[-1]) == (1, 1000)
        assert len(set(steps)) == len(steps)
        gaps = {later - earlier for earlier, later in itertools.pairwise(steps[:-1])}
        assert len(gaps) == 1
        place = curve["name"].count("layer") and 1 + int(curve["name"][5])
        assert curve["gamma"] == [1 / (100 + step + place) for step in steps]


def test_of_many_parameters_the_loudest_are_shown_in_the_models_order(path, monkeypatch):
    monkeypatch.setattr(run_module, "MOST_NAMES", 3)
    path.write_text("".join(lines(2, names=6)))
    run = LiveRun(path)
    run.update()
    view = run.view()
    assert [curve["name"] for curve in view["curves"]] == [TOTAL, "layer0.weight", "layer1.weight", "layer2.weight"]
    assert view["left_out"] == 3


def test_whether_it_is_still_writing(path, monkeypatch):
    path.write_text("".join(lines(2)))
    run = LiveRun(path)
    run.update()
    assert run.view()["state"] == "writing"
    os.utime(path, (time.time() - 31, time.time() - 31))
    run.update()
    assert run.view()["state"] == "quiet"
    run._pauses.append(20.0)  # rows come every twenty seconds
    assert run.view()["state"] == "writing"


def test_values_that_are_not_finite_reach_the_page_as_strict_json(path):
    rows = [json.loads(line) for line in lines(3, names=0)]
    for key in ("smoothed_gamma", "noise_scale_low", "noise_scale_high", "smoothed_noise_scale"):
        rows[0] |= {key: None, f"{key}_is": "nan"}
    rows[0] |= {"noise_scale": None, "noise_scale_is": "inf"}
    rows[1] |= {"smoothed_gamma": None, "smoothed_gamma_is": "nan"}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = LiveRun(path)
    run.update()
    (total,) = json.loads(json.dumps(run.view(), allow_nan=False))["curves"]
    assert total["gamma"] == [0.0, pytest.approx(1 / 102), pytest.approx(1 / 103)]
    assert total["low"] == [None, 0.0, 0.0]
    assert total["high"][0] is None
    assert total["high"][2] == pytest.approx(2 / 103)
