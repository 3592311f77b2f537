"""What README shows runs as pasted, and satisfies a strict type checker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)


def test_there_is_something_to_run():
    assert len(BLOCKS) >= 1
    assert "monitor.step()" in "".join(BLOCKS)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("\n")[0])
def test_a_block_runs_as_pasted(block, tmp_path):
    environment = {
        name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET", "SDSD_BACKEND")
    }
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("\n")[0])
def test_a_block_satisfies_mypy_strict(block, tmp_path):
    pytest.importorskip("mypy", reason="the type checker comes with the extra dev")
    (tmp_path / "pasted.py").write_text(block, encoding="utf-8")
    done = subprocess.run(
        # Tensor.backward has no types in torch itself.
        [sys.executable, "-m", "mypy", "--strict", "--allow-untyped-calls", "--follow-imports=silent", "pasted.py"],
        cwd=tmp_path,
        env=dict(os.environ, MYPYPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
