"""`sdsd gamma train.py`: a user's file trained with a monitor."""

from __future__ import annotations

import errno
import json
import os
import textwrap

import pytest
import torch

import sdsd
from sdsd import cli
from sdsd.report.live import LiveRun
from sdsd.studies.engine.display import Quiet
from sdsd.studies.script import train_file
from sdsd.studies.user_file import load_script

SCRIPT = """
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
loader = [(torch.randn(8, 4), torch.randint(3, (8,))) for _ in range(5)]


def loss(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


if __name__ == "__main__":
    raise SystemExit("not when the monitor runs it")
"""


@pytest.fixture
def script(tmp_path):
    def write(text=SCRIPT, extra=""):
        path = tmp_path / "train.py"
        path.write_text(textwrap.dedent(text) + textwrap.dedent(extra))
        return path

    return write


def run(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_table_of_a_run(capsys, script):
    status, out, err = run(capsys, "gamma", script(), "--steps", "12")
    assert (status, err) == (0, "")
    assert "step 12/12 · loss" in out
    assert "train.py: 12 steps, 12 measured" in out
    for name in ("0.weight", "2.bias", "total"):
        assert name in out


def test_numbers_are_those_of_the_same_loop_by_hand(capsys, script):
    path = script(extra="optimizer = torch.optim.Adam(model.parameters(), 0.05)\nsteps = 7")
    status, out, _ = run(capsys, "gamma", path, "--every", "2", "--population", "90", "--json")
    assert status == 0
    found = json.loads(out)
    names = load_script(path)
    stats = None
    with sdsd.GammaMonitor(names.model, every=2, population=90) as monitor:
        for step in range(7):
            names.optimizer.zero_grad()
            names.loss(names.model, names.loader[step % 5]).backward()
            stats = monitor.step() or stats
            names.optimizer.step()
    assert (found["steps"], found["measured"]) == (7, 4)
    assert found["noise"] == pytest.approx(stats.noise)
    assert found["population"] == 90
    assert found["smoothed"]["signal_unbiased"] == pytest.approx(stats.smoothed.signal_unbiased)
    assert set(found["parameters"]) == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_defaults(script):
    found = load_script(script())
    assert isinstance(found.optimizer, torch.optim.SGD)
    assert found.optimizer.defaults["lr"] == 0.01
    assert found.steps == 200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = 1", "loader, loss are missing"),
        ("import torch\nmodel = torch.nn.Linear(1, 1)\nloader = [1]", "loss is missing"),
        ("model = 1\nloader = [1]\nloss = print", "model: expected an nn.Module, got int"),
        (SCRIPT + "\nloader = 3", "loader: expected batches to iterate over, got int"),
        (SCRIPT + "\nloader = []", "loader gave no batch"),
        (SCRIPT + "\nsteps = 0", "steps: expected a whole number"),
        (SCRIPT + "\noptimizer = 'adam'", "optimizer: expected a torch optimizer, got str"),
        (SCRIPT + "\nloss = lambda model, batch: model(batch[0])", r"loss: expected a scalar tensor, got shape (8, 3)"),
        (SCRIPT + "\nloss = lambda model, batch: batch[0].sum()", "does not depend on a parameter"),
        (SCRIPT + "\nmodel.requires_grad_(False)", "no parameter that trains"),
        (SCRIPT + "\nmodel.append(nn.BatchNorm1d(3))", "BatchNorm in train mode"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(capsys, script, text, message):
    status, out, err = run(capsys, "gamma", script(text))
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize(
    ("extra", "last"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("def loss(model, batch):\n    raise KeyError('label')", "KeyError"),
        ("def batches():\n    yield given[0]\n    raise OSError('disk')\ngiven, loader = loader, batches()", "disk"),
    ],
)
def test_what_the_file_raises_is_shown_as_its_own(capsys, script, extra, last):
    status, _, err = run(capsys, "gamma", script(extra="\n" + extra))
    assert status == 2
    lines = err.splitlines()
    assert lines[0].startswith("Traceback")
    assert "train.py" in lines[1]
    assert "script.py" not in err
    assert "runpy" not in err
    assert last in lines[-1]
    assert lines[-1].startswith("error: ")


def test_syntax_errors(capsys, script):
    status, _, err = run(capsys, "gamma", script("model = = 1"))
    assert status == 2
    assert "SyntaxError" in err
    assert "script.py" not in err


def test_a_history_of_the_run_is_what_sdsd_watch_reads(capsys, script, tmp_path):
    file = tmp_path / "run.jsonl"
    status, _, _ = run(capsys, "gamma", script(), "--steps", "9", "--every", "2", "--history", file)
    assert status == 0
    history = sdsd.GammaHistory(file)
    assert history.column("step") == [1, 3, 5, 7, 9]
    assert history.column("step", "2.bias") == [1, 3, 5, 7, 9]
    run(capsys, "gamma", script(), "--steps", "2", "--history", file)
    assert sdsd.GammaHistory(file).column("step") == [1, 2]
    live = LiveRun(file)
    live.update()
    assert [curve["name"] for curve in live.view()["curves"]] == ["total", "0.weight", "0.bias", "2.weight", "2.bias"]
    (tmp_path / "notes.txt").write_text("not a history\n")
    status, _, err = run(capsys, "gamma", script(), "--history", tmp_path / "notes.txt")
    assert status == 2
    assert "notes.txt, line 1: expected a row of a GammaHistory, got 'not a history'" in err
    assert (tmp_path / "notes.txt").read_text() == "not a history\n"


def test_a_full_disk_under_a_history_is_told_by_the_option(capsys, monkeypatch, script, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as a write has it: without a name

    monkeypatch.setattr("sdsd.gamma.history.line_of", full)
    for words, file, option in (
        (("gamma", script(), "--json", "--steps", "2", "--history", tmp_path / "run.jsonl"), "run.jsonl", "--history"),
        (("demo", "--epochs", "1", "--quiet", "--out", tmp_path / "demo"), "demo/history.jsonl", "--out"),
    ):
        status, out, err = run(capsys, *words)
        said = f"{tmp_path / file}: could not be written to the end (No space left on device). Make room, or choose "
        assert (status, out, err) == (2, "", f"error: {said}another with {option}.\n")


def test_a_loader_that_ends_ends_the_run(script):
    path = script(extra="\nloader = iter(loader)")
    assert train_file(path, steps=100, quiet=True).steps == 5


class Interrupting(Quiet):
    def update(self, step, headline, header, rows):
        if step == 3:
            raise KeyboardInterrupt


def test_an_interrupt_keeps_what_was_measured(script, monkeypatch, capsys):
    assert train_file(script(), display=Interrupting()).measured == 3
    monkeypatch.setattr("sdsd.studies.script.choose_display", lambda quiet: Interrupting())
    status, out, _ = run(capsys, "gamma", script())
    assert status == 130
    assert "3 steps" in out


def test_options_that_do_not_fit(capsys, script, tmp_path):
    for arguments, message in (
        ((script(), "--key", "x"), "--key is for saved gradients"),
        (("a.npy", "--steps", "3"), "--steps is for a .py file"),
        (("a.npy", "--history", "run.jsonl"), "--history is for a .py file"),
        ((script(), "a.npy"), "give it alone"),
        ((tmp_path / "none.py",), "there is no such file"),
    ):
        status, _, err = run(capsys, "gamma", *arguments)
        assert status == 2
        assert message in err
