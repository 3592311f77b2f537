"""Examinations that are stopped and go on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("plotly")
pytest.importorskip("plyfile")


from sdsd.geometry import mean_loss
from sdsd.studies.geometry import examine
from sdsd.studies.geometry.arc import ArcConfig, Examination
from sdsd.studies.geometry.subject import (
    Subject,
    classification_loss,
)

from ...strict_json import strict_json
from .small_net import CONFIG, data, quiet, small


def test_a_second_run_measures_nothing_again(examined):
    calls: list[int] = []
    again = examine([small(calls)], examined.folder, CONFIG, quiet=True)
    assert len(calls) == 1  # only the untouched network, to see that it is the same
    assert len(again.resumed) == 6
    assert again.result.series == examined.result.series
    assert {path.name for path in again.written} == {path.name for path in examined.written}


def test_a_map_of_a_control_that_is_gone_is_drawn_again(examined):
    (kept,) = (examined.folder / "measurements").glob("*-untrained-map.npz")
    before = (examined.folder / "small-net-untrained-map.ply").read_bytes()
    kept.unlink()
    examine([small()], examined.folder, CONFIG, quiet=True)
    assert kept.exists()
    assert (examined.folder / "small-net-untrained-map.ply").read_bytes() == before


def again_in(folder: Path, subject: Subject, config: ArcConfig = CONFIG) -> Examination:
    examination = Examination(subject, config, folder / "measurements", quiet())
    examination.run()
    return examination


@pytest.mark.parametrize("stop_at", [1, 16])
def test_an_interrupt_keeps_what_there_is(tmp_path, stop_at):
    stopped = examine([small([], stop_at)], tmp_path, CONFIG, quiet=True)
    assert stopped.result.interrupted
    found = strict_json(tmp_path / "results.json")
    assert (found["status"], len(found["series"])) == ("interrupted", 0 if stop_at == 1 else 1)
    assert "This run was interrupted" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("stop_at", [1, 4, 12, 16, 20, 22])
def test_a_stopped_run_goes_on(examined, tmp_path, stop_at):
    straight, calls = [], []
    again_in(tmp_path / "straight", small(straight))
    assert stop_at < len(straight)
    with pytest.raises(KeyboardInterrupt):
        again_in(tmp_path, small(calls, stop_at))
    first = len(calls)
    calls.clear()
    assert again_in(tmp_path, small(calls)).series == examined.result.series[0]
    # Made twice are the interrupted measurement, those of the untouched network, and those of smaller networks.
    assert len(calls) + first <= len(straight) + 8


def test_other_settings_and_other_networks_stand_beside(examined):
    other = again_in(examined.folder, small(seed=1))
    assert other.notebook.resumed == []
    assert other.before != examined.result.series[0]["before"]
    assert again_in(examined.folder, small(), dataclasses.replace(CONFIG, pairs=2)).notebook.resumed == []
    assert len(again_in(examined.folder, small()).notebook.resumed) == 6


def test_damaged_notes_are_named(examined, tmp_path):
    again_in(tmp_path, small())
    (path,) = [path for path in (tmp_path / "measurements").glob("*.json") if not path.name.endswith("-map.json")]
    path.write_text("{")
    with pytest.raises(ValueError, match="delete the file"):
        again_in(tmp_path, small())


def test_what_a_layer_cannot_do_is_said(tmp_path):
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.head = nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 3)

        def forward(self, x):
            return self.head(self.norm(torch.relu(self.first(x))))

    torch.manual_seed(0)
    batches = data()
    subject = Subject("normed", Normed(), "first", batches, mean_loss(batches, classification_loss))
    found = examine([subject], tmp_path, CONFIG, quiet=True).result
    assert "statistics over all neurons" in found.series[0]["equal size"]["why not"]
    assert "This layer cannot shrink by itself" in (tmp_path / "report.html").read_text(encoding="utf-8")
    (verdict,) = [verdict.verdict for verdict in found.verdicts if "outperforms naive" in verdict.claim]
    assert verdict == "untestable here"
