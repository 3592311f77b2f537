"""The records of GPUs, and which of them an unknown card borrows."""

from __future__ import annotations

import importlib
import importlib.util
import re
import runpy
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from sdsd_kernels import _device
from sdsd_kernels._backend import triton_problem
from sdsd_kernels._device import RECORDS, DeviceRecord, device_record, find_record
from sdsd_kernels.pairwise import config

FAMILIES = {"sm_80", "sm_90", "sm_100", "hip", "interpreted"}


@pytest.mark.parametrize("record", RECORDS.values(), ids=lambda record: record.name)
def test_records_are_consistent(record):
    assert record.family in FAMILIES
    assert find_record(record.name) is record
    if record.target is not None:
        backend, architecture, _ = record.target
        assert record.name == (f"sm_{architecture}" if backend == "cuda" else architecture)


def test_one_record_a_family_is_compiled_ahead():
    families = [record.family for record in RECORDS.values() if record.compile_ahead]
    assert sorted(families) == sorted(FAMILIES - {"interpreted"})


def test_fast_float64_is_what_data_centre_cards_have():
    fast = {name for name, record in RECORDS.items() if record.fast_float64}
    assert fast == {"sm_80", "sm_90", "sm_100", "gfx90a", "gfx942", "gfx950", "interpreted"}


@pytest.mark.parametrize(
    ("architecture", "family", "shared_kib", "target"),
    [
        ("sm_87", "sm_80", 99, ("cuda", 87, 32)),
        ("sm_75", "sm_80", 99, ("cuda", 75, 32)),
        ("sm_101", "sm_100", 227, ("cuda", 101, 32)),
        ("sm_121", "sm_80", 99, ("cuda", 121, 32)),
        ("sm_130", "sm_80", 99, ("cuda", 130, 32)),
        ("gfx940", "hip", 64, ("hip", "gfx940", 64)),
        ("gfx1201", "hip", 64, ("hip", "gfx1201", 32)),
    ],
)
def test_an_unknown_card_borrows_the_nearest_record(architecture, family, shared_kib, target):
    record = find_record(architecture)
    assert (record.name, record.family, record.target) == (architecture, family, target)
    assert record.shared_bytes == shared_kib * 1024
    assert not record.fast_float64
    assert not record.compile_ahead


def test_the_processor_has_the_interpreters_record():
    assert device_record(torch.device("cpu")) is _device.INTERPRETED


@pytest.mark.parametrize(
    ("hip", "properties", "name"),
    [
        (None, {"major": 9, "minor": 0}, "sm_90"),
        (None, {"major": 12, "minor": 0}, "sm_120"),
        ("6.4", {"gcnArchName": "gfx942:sramecc+:xnack-"}, "gfx942"),
    ],
)
def test_a_card_is_known_by_its_properties(monkeypatch, hip, properties, name):
    found = SimpleNamespace(multi_processor_count=114, **properties)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    monkeypatch.setattr(torch.version, "hip", hip)
    record = device_record.__wrapped__(torch.device("cuda:0"))
    assert (record.name, record.multiprocessors) == (name, 114)
    assert record.shared_bytes == RECORDS[name].shared_bytes


# A new GPU is one record

FOLDERS = (
    "cosine_pairs",
    "cosine_topk",
    "gamma_moments",
    "lookup_squares_into",
    "pairwise",
    "per_sample",
)
"""Folders with kernels."""


def declaring(folder: str) -> ModuleType:
    """The module of a folder that declares what is compiled ahead of time."""
    found = importlib.util.find_spec(f"sdsd_kernels.{folder}.aot")
    return importlib.import_module(f"sdsd_kernels.{folder}.{'aot' if found else 'kernel'}")


@pytest.fixture
def new_card(monkeypatch) -> DeviceRecord:
    """A GPU nobody has built, with the configurations of the H100, as the only device of this machine."""
    card = replace(
        RECORDS["sm_90"],
        name="sm_95",
        multiprocessors=77,
        shared_bytes=99_000,
        matrix_instruction="QGMMA",
        target=("cuda", 95, 32),
    )
    monkeypatch.setitem(RECORDS, card.name, card)
    properties = SimpleNamespace(major=9, minor=5, multi_processor_count=70)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return card


def test_a_new_card_is_found(new_card):
    assert find_record("sm_95") is new_card
    assert device_record.__wrapped__(torch.device("cuda:0")) == replace(new_card, multiprocessors=70)


def test_the_folders_are_all_that_have_kernels():
    root = Path(_device.__file__).parent
    assert {path.parent.name for path in root.glob("*/kernel.py")} == set(FOLDERS)


@pytest.mark.skipif(triton_problem() is not None, reason=f"no Triton: {triton_problem()}")
@pytest.mark.parametrize("folder", FOLDERS)
def test_a_new_card_is_compiled_for_as_its_family_is(new_card, folder):
    by_target: dict[Any, list[Any]] = {}
    for case in declaring(folder).aot_cases():
        by_target.setdefault(case.target, []).append(case)
    assert set(by_target) == {record.target for record in RECORDS.values() if record.compile_ahead}
    family, own = by_target[RECORDS["sm_90"].target], by_target[new_card.target]
    as_known = {"HGMMA": new_card.matrix_instruction, None: None}
    assert own == [replace(case, target=new_card.target, expect_mma=as_known[case.expect_mma]) for case in family]


def test_a_new_card_gets_its_family_s_tiles_and_its_own_ranges(new_card):
    known = RECORDS["sm_90"]
    for neurons in (64, 4096, 20_000):
        for three in (False, True):
            tile = config.tile_of(new_card, neurons, 4096, three)
            assert tile is config.tile_of(known, neurons, 4096, three)
    # Fewer multiprocessors are filled by fewer ranges of samples.
    assert new_card.multiprocessors < known.multiprocessors
    few, many = (config.range_samples(36, 2**20, 512, tile, record) for record in (new_card, known))
    assert few > many


def test_shared_memory_is_held_against_the_records(new_card):
    limits = runpy.run_path(str(Path(__file__).parent / "aot.py"))["SHARED_LIMIT"]
    assert limits[95] == 99_000
    assert {name: limits[name] for name in (80, 90, 100, "gfx942")} == {
        80: 163 * 1024,
        90: 227 * 1024,
        100: 227 * 1024,
        "gfx942": 64 * 1024,
    }


FACTS = re.compile(
    r"get_device_(properties|capability)|multi_processor_count|gcnArchName|[\"'](gfx\w+|\w*GMMA|HMMA)[\"']"
)


def test_only_records_know_facts_of_a_card():
    root = Path(_device.__file__).parent
    code = {path: re.sub(r'""".*?"""', "", path.read_text(encoding="utf-8"), flags=re.S) for path in root.rglob("*.py")}
    assert [path.name for path, text in code.items() if FACTS.search(text)] == ["_device.py"]
