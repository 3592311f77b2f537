"""Words that an argument or a property can be are known to a type checker: a misspelt one is found before it runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOUND = """
from typing import assert_never

import torch
from torch import Tensor, nn

import sdsd
from sdsd.gamma import Phase
from sdsd.geometry import How


def advice(phase: Phase) -> str:
    if phase == "drift":
        return "smaller"
    if phase == "diffusion":
        return "larger"
    if phase == "critical":
        return "stay"
    assert_never(phase)


def read(stats: sdsd.GammaStats) -> str:
    return "unknown" if stats.phase is None else advice(stats.phase)


def look(model: nn.Module, inputs: Tensor, how: How) -> None:
    with sdsd.merge(model, "0", [(0, 1)], how=how, example_input=inputs):
        model(inputs)


look(nn.Linear(2, 2), torch.ones(2, 2), "absorb")
"""


WRONG = {
    "how": ('torch.ones(2, 2), "absorb")', 'torch.ones(2, 2), "absorbed")'),
    "phase": ('phase == "drift"', 'phase == "drifting"'),
    "phase_forgotten": ('    if phase == "critical":\n        return "stay"\n', ""),
    "none_forgotten": ('"unknown" if stats.phase is None else advice(stats.phase)', "advice(stats.phase)"),
}
"""Sound code, and what is put in its place."""


def test_wrong_words_are_found_and_right_ones_pass(tmp_path):
    pytest.importorskip("mypy", reason="the type checker comes with the extra dev")
    (tmp_path / "sound.py").write_text(SOUND, encoding="utf-8")
    for name, (right, wrong) in WRONG.items():
        assert right in SOUND
        (tmp_path / f"{name}.py").write_text(SOUND.replace(right, wrong), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--python-version=3.11", "."],
        cwd=tmp_path,
        env=dict(os.environ, MYPYPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    complained = {line.partition(".py:")[0] for line in done.stdout.splitlines() if ": error:" in line}
    assert complained == set(WRONG), done.stdout
