"""Running studies: what a run leaves, resumed, interrupted, on several processes."""

from __future__ import annotations

import math
import pickle

import pytest
import torch

pytest.importorskip("matplotlib")

from sdsd.studies.catalogue import CATALOGUE
from sdsd.studies.engine import (
    Progress,
    Runner,
    run_study,
)

from ..strict_json import RESULT, strict_json
from .toys import MEASURED, toy


def test_what_a_run_leaves(tmp_path):
    result = run_study(toy(), tmp_path, Progress())
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "toy.png", "report.html", "seeds"}
    found = strict_json(tmp_path / "results.json")
    assert set(found) == RESULT
    assert (found["schema"], found["study"], found["status"], found["seeds"]) == (4, "toy", "complete", [0, 1, 2])
    assert found["config"] == {"quick": False, "size": 10, "interrupt_at": None}
    assert found["series"][1] == {
        "seed": 1,
        "numbers": [1, 10],
        "nothing": None,
        "endless": None,
        "endless_is": "inf",
        "pair": [1, 2],
    }
    (verdict,) = found["verdicts"]
    assert set(verdict) == {
        "claim",
        "source",
        "verdict",
        "rule",
        "fixed",
        "replaced",
        "published",
        "our_figure",
        "corrected",
        "effect",
    }
    assert verdict["our_figure"]["value"] == 33
    assert result.series[2]["endless"] == math.inf
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for text in ("<h1>Toy</h1>", "Refuted: c", "sdsd study toy --seed 0 --seeds 3", "<svg"):
        assert text in page


def test_finished_seeds_are_not_measured_again(tmp_path):
    first = run_study(toy(), tmp_path, Progress(), seeds=(0, 1))
    assert MEASURED == [0, 1]
    more = run_study(toy(), tmp_path, Progress(), seeds=(0, 1, 2))
    assert MEASURED == [0, 1, 2]
    assert more.series[:2] == first.series
    run_study(toy(), tmp_path, Progress(), quick=True)
    assert MEASURED == [0, 1, 2, 0]  # other settings: nothing is taken over
    again = run_study(toy(), tmp_path, Progress(), seeds=(0, 1, 2))
    assert MEASURED == [0, 1, 2, 0]  # and nothing was lost
    assert again.series == more.series
    run_study(toy(), tmp_path, Progress(), seeds=(1,), fresh=True)
    assert MEASURED == [0, 1, 2, 0, 1]


def test_another_version_is_measured_again(tmp_path, monkeypatch):
    run_study(toy(), tmp_path, Progress(), seeds=(0,))
    monkeypatch.setattr("sdsd.studies.engine.seeds.versions", lambda: {"sdsd": "99", "torch": "1"})
    run_study(toy(), tmp_path, Progress(), seeds=(0,))
    assert MEASURED == [0, 0]


def test_an_interrupt_keeps_what_is_finished(tmp_path):
    result = run_study(toy(interrupt_at=2), tmp_path, Progress())
    assert result.interrupted
    found = strict_json(tmp_path / "results.json")
    assert (found["status"], found["seeds"]) == ("interrupted", [0, 1])
    assert [series["numbers"] for series in found["series"]] == [[0, 10], [1, 10]]
    assert found["verdicts"] == found["figures"] == []
    assert not (tmp_path / "toy.png").exists()
    assert len(list((tmp_path / "seeds").iterdir())) == 2


def test_an_interrupt_while_it_is_drawn_leaves_no_verdict(tmp_path):
    def interrupt(result):
        raise KeyboardInterrupt

    run_study(toy(draw=interrupt), tmp_path, Progress())
    found = strict_json(tmp_path / "results.json")
    assert (found["status"], found["seeds"], found["verdicts"]) == ("interrupted", [0, 1, 2], [])


def test_a_broken_seed_file_is_named(tmp_path):
    run_study(toy(), tmp_path, Progress(), seeds=(0,))
    (file,) = (tmp_path / "seeds").iterdir()
    file.write_text("{")
    with pytest.raises(ValueError, match=r"0-[0-9a-f]{8}\.json: expected a finished seed of the study; delete"):
        run_study(toy(), tmp_path, Progress(), seeds=(0,))


def test_what_measure_returns_must_be_json(tmp_path):
    with pytest.raises(TypeError, match="study 'toy': measure must return what JSON can hold, but .*set"):
        run_study(toy(measure=lambda seed, progress: {"numbers": {1}}, quick={}), tmp_path, Progress())
    assert not (tmp_path / "seeds").exists()


def test_a_study_leaves_torch_as_it_was(tmp_path):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    run_study(CATALOGUE["selection"], tmp_path, Progress(), seeds=(1,), quick=True)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_several_processes_give_the_same_numbers(tmp_path):
    study = CATALOGUE["selection"]
    alone = run_study(study, tmp_path / "alone", Progress(), seeds=(0, 1), quick=True)
    ((_, together),) = Runner(tmp_path, Progress(), count=2, quick=True, jobs=2).run([study])
    assert together.series == alone.series
    assert len(list((tmp_path / "selection" / "seeds").iterdir())) == 2


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_study_can_be_sent_to_another_process(name):
    measure = CATALOGUE[name].measure
    assert pickle.loads(pickle.dumps(measure)) is measure
