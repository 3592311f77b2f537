"""Progress: bars, plain lines, and which of them."""

from __future__ import annotations

import importlib.util
import sys

import pytest

pytest.importorskip("matplotlib")

from sdsd.studies.engine import progress as _progress


def test_plain_progress(capsys):
    progress = _progress.PlainProgress(every=0)
    assert list(progress.each("ab", "reading")) == ["a", "b"]
    assert capsys.readouterr().out == "reading …\nreading · 50%\n"
    hushed = _progress.PlainProgress(every=1000)
    assert list(hushed.each(range(100), "reading")) == list(range(100))
    assert capsys.readouterr().out == "reading …\n"


def test_bars(capsys):
    pytest.importorskip("rich")
    progress = _progress.RichProgress()
    assert list(progress.each(range(3), "reading")) == [0, 1, 2]
    progress.say("done [not markup]")
    progress.stop()
    progress.stop()
    assert "done [not markup]" in capsys.readouterr().out


def test_which_progress(monkeypatch):
    assert type(_progress.choose_progress(quiet=True)) is _progress.Progress
    assert type(_progress.choose_progress()) is _progress.PlainProgress
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    rich = importlib.util.find_spec("rich") is not None
    assert type(_progress.choose_progress()) is (_progress.RichProgress if rich else _progress.PlainProgress)
