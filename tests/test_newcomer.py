"""The newcomer's script sees what goes wrong, and knows a use of everything there is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import newcomer

ROOT = Path(__file__).resolve().parent.parent
HELP = """usage: sdsd [-h] COMMAND ...

commands:
  COMMAND
    demo      train on real digits, map the
              neurons
    completion
              a script

Run `sdsd COMMAND --help` for its options.
"""


def test_commands_are_read_off_the_help():
    assert newcomer.commands_of(HELP) == ["demo", "completion"]


def test_a_use_of_every_command_is_known():
    done = subprocess.run(
        [sys.executable, "-m", "sdsd", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    listed = newcomer.commands_of(done.stdout)
    assert {"gamma", "demo", "validate"} <= set(listed) <= set(newcomer.USES)
    for name, uses in newcomer.USES.items():
        assert uses
        assert all(use.split()[0] == name for use in uses)


def test_every_line_of_the_readme_is_run_by_somebody():
    blocks = newcomer.readme_blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    assert set(blocks) == {"", "python"}
    lines = [line for block in blocks[""] for line in newcomer.typed(block)]
    assert any(line.startswith("sdsd gamma") for line in lines)
    assert all(line.startswith(("sdsd ", "make ")) for line in lines)


def test_a_command_without_a_known_use_fails(tmp_path):
    tool = tmp_path / "tool.py"
    tool.write_text(f"print({HELP.replace('demo ', 'dance')!r})")
    with pytest.raises(newcomer.FailedError, match="no real use is known here of dance"):
        newcomer.use_commands([sys.executable, str(tool)], tmp_path, None)


def test_a_command_that_ends_badly_fails(tmp_path):
    with pytest.raises(newcomer.FailedError, match="(?s)ended with 3.*broken"):
        newcomer.run([sys.executable, "-c", "print('broken'); raise SystemExit(3)"], tmp_path)


def test_a_step_that_fails_is_in_the_status(monkeypatch, capsys):
    def fails(folder: Path) -> None:
        raise newcomer.FailedError("no report")

    monkeypatch.setattr(newcomer, "STEPS", {"good": lambda folder: None, "bad": fails, "other": fails})
    monkeypatch.setattr(sys, "argv", ["newcomer", "--only", "good", "bad"])
    assert newcomer.main() == 1
    assert capsys.readouterr().out.endswith("1 passed, 1 failed; not run: other\n")
    monkeypatch.setattr(sys, "argv", ["newcomer", "--only", "good"])
    assert newcomer.main() == 0


@pytest.mark.parametrize("whole", [False, True])
def test_make_test_runs_the_whole_suite_where_it_is_asked_for(monkeypatch, capsys, tmp_path, whole):
    commands = []

    def run(command: list[str], cwd: Path, **_: object) -> str:
        commands.append(command)
        return "...\n=== 3 passed in 1s ===\n"

    monkeypatch.setattr(newcomer, "run", run)
    monkeypatch.setattr(newcomer, "clone", lambda folder: tmp_path)
    (tmp_path / "out" / "demo").mkdir(parents=True)
    (tmp_path / "out" / "demo" / "report.html").touch()
    monkeypatch.setattr(sys, "argv", ["newcomer", "--only", "two-commands", *(["--whole-suite"] if whole else [])])
    assert newcomer.main() == 0
    told = capsys.readouterr().out
    assert ("3 passed in 1s (the whole suite)" if whole else "all with --whole-suite)") in told
    (test,) = (command for command in commands if command[:2] == ["make", "test"])
    assert (len(test) == 2) is whole


@pytest.mark.parametrize("more", [["--quick"], ["--only", "wheel"], ["--without", "two-commands"]])
def test_the_whole_suite_of_a_step_that_is_left_out_is_refused(monkeypatch, more):
    monkeypatch.setattr(sys, "argv", ["newcomer", "--whole-suite", *more])
    with pytest.raises(SystemExit) as stop:
        newcomer.main()
    assert stop.value.code == 2


def test_this_python_is_at_hand():
    found = newcomer.pythons()
    assert found[f"{sys.version_info.major}.{sys.version_info.minor}"] == sys.executable
    assert all(tuple(map(int, version.split("."))) >= newcomer.OLDEST for version in found)
