"""What is said through the standard library's logger `sdsd`, and that nobody hears it who does not listen."""

from __future__ import annotations

import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import sdsd
from sdsd import cli
from sdsd.studies import Runner, choose_progress, choose_studies
from sdsd_kernels import _validate
from sdsd_kernels._validate import ValidationReport, ValidationRow


@pytest.fixture
def said(caplog):
    """Of a call: what was logged, as (area, level, message)."""
    caplog.set_level(logging.INFO, logger="sdsd")

    def said() -> list[tuple[str, str, str]]:
        found = [(each.name, each.levelname, each.getMessage()) for each in caplog.records]
        caplog.clear()
        return found

    return said


def test_a_command_says_how_it_began_and_ended(said, capsys, tmp_path):
    np.save(tmp_path / "grads.npy", np.random.default_rng(0).standard_normal((8, 5), dtype=np.float32))
    path = str(tmp_path / "grads.npy")
    assert cli.main(["gamma", path]) == 0
    assert said() == [
        ("sdsd.cli", "INFO", f"begins: sdsd gamma {path}"),
        ("sdsd.cli", "INFO", "ends with status 0"),
    ]
    assert cli.main(["gama"]) == cli.BAD_INPUT
    _, (_, level, message), (_, _, end) = said()
    assert (level, end) == ("ERROR", f"ends with status {cli.BAD_INPUT}")
    assert capsys.readouterr().err == f"error: {message}\n"


def test_warnings_of_a_command_are_logged_and_shown(said, capsys, tmp_path):
    np.save(tmp_path / "grads.npy", np.full((4, 3), np.nan, dtype=np.float32))
    assert cli.main(["gamma", str(tmp_path / "grads.npy")]) == cli.FELL_SHORT
    (warning,) = [message for _, level, message in said() if level == "WARNING"]
    assert capsys.readouterr().err == f"warning: {warning}\n"


def test_an_interrupted_command_is_a_warning(said, monkeypatch):
    def interrupt(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", interrupt)
    assert cli.main([]) == cli.INTERRUPTED
    assert ("sdsd.cli", "WARNING", "interrupted") in said()


def test_studies_say_what_was_measured_read_and_left_out(said, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    studies = choose_studies(["rank"])

    def run() -> list[tuple[str, str, str]]:
        list(Runner(tmp_path, choose_progress(quiet=True), count=1, quick=True).run(studies))
        return said()

    ((area, level, first),) = run()
    assert (area, level) == ("sdsd.studies", "INFO")
    assert first.startswith("rank, seed 0: measured in ")
    ((_, _, again),) = run()
    assert again.startswith("rank, seed 0: finished earlier, read from ")
    (file,) = (tmp_path / "rank" / "seeds").iterdir()
    assert first.endswith(str(file))
    assert again.endswith(str(file))

    def without(*_: object, **__: object) -> None:
        raise sdsd._extras.MissingExtraError("drawing needs matplotlib")

    monkeypatch.setattr("sdsd.studies.engine.runner.run_study", without)
    list(Runner(tmp_path, choose_progress(quiet=True), quick=True).run([*studies, *studies]))
    assert said() == 2 * [("sdsd.studies", "WARNING", "rank is left out: drawing needs matplotlib")]


def test_validate_says_what_falls_short(said, monkeypatch):
    rows = (
        ValidationRow("gamma_moments", "torch", "noise", (2, 1), "float32", 1e-7, 1e-6),
        ValidationRow("cosine_topk", "torch", "plain", (9, 4), "float16", float("nan"), 1e-6),
    )
    for part in ("_gamma_rows", "_cosine_rows", "_parts_of_cosine_rows", "_weight_grad_rows"):
        monkeypatch.setattr(_validate, part, lambda *_, part=part: iter(rows if part == "_gamma_rows" else ()))
    report = sdsd.validate("cpu", verbose=False)
    assert report == ValidationReport("cpu", rows)
    short = "falls short: cosine_topk, torch, plain, 9×4, float16: error nan, allowed 1.0e-06"
    summary = "2 comparisons on cpu, backends: torch; 1 fall short"
    assert said() == [("sdsd.validate", "WARNING", short), ("sdsd.validate", "INFO", summary)]


def test_a_check_says_how_far_it_was_off(said):
    model = nn.Linear(3, 2)
    monitor = sdsd.GammaMonitor(model)
    report = monitor.check(lambda model, batch: model(batch).square().mean(), torch.randn(6, 3))
    message = f"check: 2 parameters, largest difference from the loop {report.difference:.1e}"
    assert said() == [("sdsd.gamma", "INFO", message)]


def test_a_history_that_is_gone_on_with(said, tmp_path):
    path = tmp_path / "run.jsonl"

    def history_of(*steps: int) -> None:
        history = sdsd.GammaHistory(path)
        for step in steps:
            history.append(step, sdsd.gamma_stats(torch.randn(8, 5)))
        history.flush()

    history_of(1, 2, 3)
    assert said() == []
    with path.open("a") as file:
        file.write('{"step": 4, "para')
    history_of(2)
    assert said() == [
        ("sdsd.gamma", "INFO", f"{path}: 3 rows of an earlier run are gone on with"),
        ("sdsd.gamma", "WARNING", f"{path}: the last line is cut off"),
        ("sdsd.gamma", "INFO", "step 2 comes again: 2 rows from it on are replaced"),
    ]


def test_measurements_that_are_gone_on_with(said, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    inputs, targets = torch.randn(40, 4), torch.arange(40) % 3

    def biopsy() -> None:
        sdsd.biopsy(
            model,
            "0",
            lambda model: nn.functional.cross_entropy(model(inputs), targets),
            activations=model[0](inputs).relu().detach(),
            pairs=2,
            resume=tmp_path / "losses.jsonl",
        )

    biopsy()
    assert said() == []
    kept = len((tmp_path / "losses.jsonl").read_text().splitlines()) - 1
    biopsy()
    assert said() == [
        ("sdsd.geometry", "INFO", f"layer 0: {kept} losses measured earlier, read from {tmp_path / 'losses.jsonl'}")
    ]


def test_nobody_hears_it_who_does_not_listen():
    program = "import sdsd, sdsd_kernels._validate as v, logging\n" + "\n".join(
        f"logging.getLogger({name!r}).error('heard')" for name in ("sdsd", "sdsd.cli", "sdsd.studies.engine")
    )
    kernels_alone = (
        "import sdsd_kernels._validate as v\n"
        "v.log(v.ValidationReport('cpu', (v.ValidationRow('a', 'b', 'c', (1,), 'd', 2.0, 1.0),)))"
    )
    for each in (program, kernels_alone):
        done = subprocess.run([sys.executable, "-c", each], capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ("", "")


def test_a_file_can_listen_to_a_command(tmp_path):
    program = (
        "import logging, sys\n"
        "logging.basicConfig(filename='run.log', level='INFO', format='%(name)s %(levelname)s %(message)s')\n"
        "from sdsd.cli import main; sys.exit(main(['gamma', 'nowhere.npy']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (cli.BAD_INPUT, "")
    message = done.stderr.removeprefix("error: ").strip()
    assert (tmp_path / "run.log").read_text().splitlines() == [
        "sdsd.cli INFO begins: sdsd gamma nowhere.npy",
        f"sdsd.cli ERROR {message}",
        "sdsd.cli INFO ends with status 2",
    ]
