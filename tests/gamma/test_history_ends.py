"""The last rows of a GammaHistory, where a run ends without detaching its monitor, and long runs that go on."""

from __future__ import annotations

import gc
import subprocess
import sys
import tracemalloc

import pytest
import torch
from torch import nn

import sdsd
from sdsd.gamma.rows import line_of

SCRIPT = """
import os, shutil, sys
import torch, sdsd

def main(path, end):
    model = torch.nn.Linear(3, 2)
    monitor = sdsd.GammaMonitor(model, history=path)
    for step in range(3):
        model(torch.randn(8, 3)).square().mean().backward()
        monitor.step()
        model.zero_grad()
    assert not os.path.exists(path)
    if end == "Ctrl-C":
        raise KeyboardInterrupt
    if end == "an error":
        raise RuntimeError("training failed")
    if end == "a fork":
        child = os.fork()
        if child == 0:
            sys.exit()
        os.waitpid(child, 0)
        assert not os.path.exists(path)
    if end == "no folder":
        shutil.rmtree(os.path.dirname(path))

main(*sys.argv[1:])
"""


@pytest.mark.parametrize("end", ["the end", "Ctrl-C", "an error", "a fork", "no folder"])
def test_rows_are_written_when_python_ends(tmp_path, end):
    if end == "a fork" and sys.platform == "win32":
        pytest.skip("no fork on Windows")
    path = tmp_path / "runs" / "run.jsonl"
    path.parent.mkdir()
    quiet = "-Wignore:Please use the new API"  # what torch 2.9 says of its own settings
    done = subprocess.run([sys.executable, quiet, "-c", SCRIPT, path, end], capture_output=True, text=True, timeout=120)
    assert (done.returncode == 0) == (end in ("the end", "a fork", "no folder")), done.stderr
    if end == "no folder":
        assert "RuntimeWarning" in done.stderr
        assert "run.jsonl: the last rows could not be written" in done.stderr
    else:
        assert "Warning" not in done.stderr
        assert [row["step"] for row in sdsd.GammaHistory(path)] == [1, 2, 3]


def train(path, steps=3):
    model = nn.Linear(3, 2)
    monitor = sdsd.GammaMonitor(model, history=path)
    for _ in range(steps):
        model(torch.randn(8, 3)).square().mean().backward()
        monitor.step()
        model.zero_grad()
    return monitor, model


def test_rows_are_written_when_nobody_holds_the_history(tmp_path):
    train(tmp_path / "run.jsonl")
    gc.collect()
    assert [row["step"] for row in sdsd.GammaHistory(tmp_path / "run.jsonl")] == [1, 2, 3]


def test_a_notebook_that_runs_its_cell_again_keeps_the_later_run(tmp_path):
    """The first run is let go of when the second has begun: nothing of it may come after that."""
    path = tmp_path / "run.jsonl"
    first = train(path)
    second = train(path, 2)
    noise = second[0].history.column("noise")
    del first
    gc.collect()
    second[0].detach()
    assert sdsd.GammaHistory(path).column("noise") == noise


def test_a_history_that_was_refused_ends_in_silence(tmp_path):
    with pytest.raises(ValueError, match="got a directory"):
        sdsd.GammaHistory(tmp_path)
    with pytest.raises(TypeError):
        sdsd.GammaHistory(3)
    gc.collect()


def test_a_long_history_takes_little_memory(tmp_path):
    """Of 17 values a row: eight bytes each in a tuple, 24 a number, and texts once."""
    monitor, _ = train(tmp_path / "one.jsonl", 20)
    row = monitor.history[-1]
    assert len(row["advice"]) > 100
    path = tmp_path / "run.jsonl"
    path.write_text("".join(line_of(row | {"step": step}) for step in range(1, 3001)), encoding="utf-8")
    tracemalloc.start()
    history = sdsd.GammaHistory(path)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert history[2999] == row | {"step": 3000}
    assert history[2990:][-1] == list(history)[-1] == history[2999]
    assert taken <= 3000 * (40 + 17 * 8 + 17 * 32 + 16)


@pytest.mark.parametrize("cut", [1, 3, 9, 40, 150])
def test_a_last_line_that_was_cut_anywhere_is_mended_by_the_next_write(tmp_path, cut):
    """In a character of several bytes, too, at the line's end, or filled with zeros where a machine stopped."""
    monitor, _ = train(path := tmp_path / "run.jsonl", 3)
    monitor.detach()
    whole = path.read_bytes()
    last = line_of(monitor.history[-1] | {"step": 4, "advice": "Γ" * 200}).encode()
    for end in (last[:cut], last[:-cut], last[: -cut - 1], bytes(cut)):
        path.write_bytes(whole + end)
        steps = [1, 2, 3, 4] if end == last[:-1] else [1, 2, 3]
        history = sdsd.GammaHistory(path)
        assert [row["step"] for row in history] == steps
        assert path.read_bytes() == whole + end  # looked at, and perhaps another run's that is writing the line
        history.append(5, monitor.stats)
        history.flush()
        assert [row["step"] for row in sdsd.GammaHistory(path)] == [*steps, 5]
        assert path.read_bytes().endswith(b"\n")


@pytest.mark.parametrize("data", [b'{"lr": 0.1}', b"notes", b"\x80\x02}q", b'{"step": 1}\n'], ids=repr)
def test_another_file_is_left_as_it_is_whatever_its_end(tmp_path, data):
    path = tmp_path / "config.json"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"config\.json.*: expected a .*[hH]istory.* Name another file"):
        sdsd.GammaHistory(path)
    assert path.read_bytes() == data
