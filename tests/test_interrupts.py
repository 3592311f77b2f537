"""Ctrl-C ends a command, also where what is running at that moment swallows KeyboardInterrupt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sdsd import _interrupts, cli

ROOT = Path(__file__).resolve().parent.parent
SWALLOWS = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000): pass
except KeyboardInterrupt:
    print("swallowed")
"""
NETWORK = """
import torch
from torch import nn
model = nn.Linear(4, 3)
loader = [torch.randn(8, 4)]
steps = 5
"""


def sdsd(folder: Path, *arguments: str, before: str = "", ignored: bool = False) -> tuple[int, str, str]:
    """Status, output and errors of a command that runs `before` and then as the installed `sdsd` does."""
    handler = "SIG_IGN" if ignored else "default_int_handler"
    program = (
        f"import os, signal, sys; signal.signal(signal.SIGINT, signal.{handler}); "
        f"sys.argv = ['sdsd', *{list(arguments)!r}]\n{before}\nfrom sdsd.__main__ import start; start()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join((str(folder), str(ROOT)))),
    )
    return done.returncode, done.stdout, done.stderr


def test_while_the_command_is_imported(tmp_path):
    before = (
        "import builtins; real = builtins.__import__\n"
        "def late(name, globals=None, *more):\n"
        "    if name == 'parser' and globals['__name__'] == 'sdsd.cli': os.kill(os.getpid(), signal.SIGINT)\n"
        "    return real(name, globals, *more)\n"
        "builtins.__import__ = late"
    )
    assert sdsd(tmp_path, "--help", before=before) == (cli.INTERRUPTED, "", "interrupted\n")


@pytest.mark.parametrize("command", sorted(set(cli.COMMANDS) - {"completion"}))
def test_while_torch_is_imported_by_a_command(command, tmp_path):
    (tmp_path / "torch.py").write_text(SWALLOWS)
    arguments = {"gamma": ["a.npy"], "map": ["a.npy"], "watch": ["a.jsonl"], "study": ["rank"], "theory": ["rank"]}
    status, out, err = sdsd(tmp_path, command, *arguments.get(command, []))
    assert (status, out, err) == (cli.INTERRUPTED, "", "interrupted\n")
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["torch.py"]


def test_while_the_process_ends(tmp_path):
    status, out, err = sdsd(
        tmp_path, "--help", before="import atexit; atexit.register(os.kill, os.getpid(), signal.SIGINT)"
    )
    assert (status, err) == (cli.OK, "")
    assert "commands:" in out


@pytest.mark.parametrize(
    "then",
    [
        "import swallows",
        "class Closed:\n    def __del__(self):\n        exec(open('swallows.py').read())\nClosed()",
    ],
    ids=["import", "finalizer"],
)
def test_while_users_code_is_in_an_import_or_a_finalizer(then, tmp_path):
    """Without the handler the import, or the finalizer, swallows it, and training goes on to its end."""
    (tmp_path / "swallows.py").write_text(SWALLOWS)
    (tmp_path / "train.py").write_text(f"import time\n{then}\ntime.sleep(20)\nraise AssertionError('went on')")
    assert sdsd(tmp_path, "gamma", "train.py") == (cli.INTERRUPTED, "", "interrupted\n")


def test_what_was_measured_is_kept_where_a_step_imports_something(tmp_path):
    (tmp_path / "swallows.py").write_text(SWALLOWS)
    (tmp_path / "train.py").write_text(
        f"{NETWORK}\nsteps, taken = 1000, []\n"
        "def loss(model, batch):\n"
        "    taken.append(1)\n"
        "    if len(taken) == 3:\n"
        "        import swallows, time\n"
        "        time.sleep(20)\n"
        "    return (model(batch) - 1).square().mean()\n"
    )
    status, out, err = sdsd(tmp_path, "gamma", "train.py", "--history", "run.jsonl")
    assert (status, err) == (cli.INTERRUPTED, "")
    assert "2 steps, 2 measured" in out
    assert len((tmp_path / "run.jsonl").read_text().splitlines()) >= 2


def test_a_process_in_the_background_ignores_it_as_before(tmp_path):
    (tmp_path / "train.py").write_text(
        f"{NETWORK}\n{SWALLOWS}\nloss = lambda model, batch: (model(batch) - 1).square().mean()\n"
    )
    status, out, err = sdsd(tmp_path, "gamma", "train.py", ignored=True)
    assert (status, err) == (cli.OK, "")
    assert "5 steps, 5 measured" in out


def frame_in_an_import(name: str = "<frozen importlib._bootstrap>"):
    namespace: dict = {}
    exec(compile("import sys\nframe = sys._getframe()", name, "exec"), namespace)
    return namespace["frame"]


def test_an_import_that_never_ends_does_not_hold_it_up(monkeypatch):
    handler, frame = _interrupts.Patient(), frame_in_an_import()
    monkeypatch.setattr(_interrupts, "LOOK_AGAIN", 3600)
    handler(signal.SIGINT, frame)
    waiting = handler.again
    assert waiting is not None
    assert waiting.is_alive()
    monkeypatch.setattr(_interrupts, "LONGEST_WAIT", 0)
    with pytest.raises(KeyboardInterrupt):
        handler(signal.SIGINT, frame)
    waiting.join(10)
    assert not waiting.is_alive()
    assert (handler.again, handler.since) == (None, None)


def test_elsewhere_it_is_raised_at_once():
    with pytest.raises(KeyboardInterrupt):
        _interrupts.Patient()(signal.SIGINT, frame_in_an_import("train.py"))


def test_handlers_of_others_stay(monkeypatch):
    kept = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, frame_in_an_import)
        _interrupts.end_at_once_until_work_begins()
        _interrupts.work_begins()
        assert signal.getsignal(signal.SIGINT) is frame_in_an_import
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _interrupts.work_begins()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, kept)
