"""What a study is: seeds, settings that `measure` reads, the catalogue and its names."""

from __future__ import annotations

import dataclasses
import functools

import pytest

pytest.importorskip("matplotlib")

from sdsd.studies.catalogue import CATALOGUE, GROUPS, choose_studies
from sdsd.studies.engine import (
    Progress,
    find_study,
    run_study,
)

from ..strict_json import strict_json
from .toys import measure, toy


def test_seeds_are_repetitions():
    study = toy()
    assert study.seed_numbers() == (0, 1, 2)
    assert study.seed_numbers(quick=True) == (0,)
    assert study.seed_numbers(5, 2) == (5, 6)
    for bad in ({"first": -1}, {"count": 0}):
        with pytest.raises(ValueError, match="expected a seed ≥ 0 and at least one"):
            study.seed_numbers(**bad)


def test_studies_are_checked_when_they_are_made():
    with pytest.raises(ValueError, match="name: expected lower-case words joined by hyphens, got 'Two words'"):
        toy("Two words")
    with pytest.raises(dataclasses.FrozenInstanceError):
        toy().name = "other"


@pytest.mark.parametrize("given", ["settings", "quick"])
def test_a_setting_that_nothing_reads_is_refused(given):
    with pytest.raises(
        ValueError, match=rf"{given}: expected keyword-only .* \(size, interrupt_at\), got 'sizes', which nothing reads"
    ):
        toy(**{given: {"sizes": 1}})


def test_settings_are_the_parameters_of_measure(tmp_path):
    study = toy(settings={"size": 7})
    assert study.config() == {"quick": False, "size": 7, "interrupt_at": None}
    assert study.config(quick=True) == {"quick": True, "size": 1, "interrupt_at": None}
    seen = {}

    def keep(seed, progress, *, size=10, steps=(1, 2)):
        seen.update(size=size, steps=steps)
        return {"numbers": [seed]}

    result = run_study(toy(measure=keep, quick={"steps": (1,)}, settings={"size": 3}), tmp_path, Progress(), quick=True)
    assert {"quick": True, **seen} == result.config == {"quick": True, "size": 3, "steps": (1,)}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert ">size</t" in page
    assert strict_json(tmp_path / "results.json")["config"] == {"quick": True, "size": 3, "steps": [1]}


def unread(seed, progress, *, size=10, depth=3):
    return {"numbers": [seed, size]}


def read_inside(seed, progress, *, size=10, depth=3):
    return {"numbers": [each + depth for each in range(size)], "more": [each + seed for each in [1]]}


def overwritten(seed, progress, *, size=10):
    size = seed  # noqa: F841
    return {"numbers": [seed]}


def without_default(seed, progress, *, size):
    return {"numbers": [seed, size]}


def takes_anything(seed, progress, **settings):
    return {"numbers": [settings["size"]]}


def in_the_old_way(config, seed, progress):
    return {"numbers": [config["size"]]}


def called_quick(seed, progress, *, quick=False):
    return {"numbers": [quick]}


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (unread, "unread takes 'depth' and never reads it"),
        (overwritten, "overwritten takes 'size' and never reads it"),
        (takes_anything, r"expected the parameters \(seed, progress, \*, settings …\), got takes_anything"),
        (in_the_old_way, r"got in_the_old_way\(config, seed, progress\)"),
        (called_quick, "'quick' is no setting"),
        (functools.partial(measure, size=1), "expected a function of a module, got partial"),
    ],
)
def test_a_measure_says_what_it_reads(measure, message):
    with pytest.raises(TypeError, match=f"measure: .*{message}"):
        toy(measure=measure, quick={})


def test_settings_read_inside_a_comprehension_are_read():
    assert toy(measure=read_inside).config() == {"quick": False, "size": 10, "depth": 3}


def test_a_setting_without_a_default_has_to_be_given():
    with pytest.raises(ValueError, match="settings: expected a value for 'size', which has no default"):
        toy(measure=without_default)
    assert toy(measure=without_default, settings={"size": 2}).config()["size"] == 2


def test_the_catalogue():
    names = [study.name for studies in GROUPS.values() for study in studies]
    assert len(names) == len(set(names))
    assert not {"all", *GROUPS} & set(names)
    assert list(CATALOGUE) == names
    for study in CATALOGUE.values():
        assert study.expected_seconds > 0
        assert study.summary
        assert study.claim
        assert study.source
        assert not study.claim.endswith(".")
        assert not study.summary.endswith(".")


def test_names_of_studies_and_groups():
    rank, well = CATALOGUE["rank"], CATALOGUE["well"]
    assert choose_studies(["rank", "well", "rank"]) == [rank, well]
    assert choose_studies(["theory"]) == choose_studies(["all"], group="theory") == list(GROUPS["theory"])
    assert choose_studies(["all"]) == list(CATALOGUE.values())
    assert find_study("rank", CATALOGUE) is rank
    with pytest.raises(ValueError, match=r"there is no study 'sensig'\. Did you mean 'sensing'\?"):
        choose_studies(["sensig"])
    with pytest.raises(ValueError, match="There are: orbit, regulariser"):
        choose_studies(["xyzzy"], group="theory")
