"""The records of GPUs, and which of them an unknown card borrows."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sdsd_kernels import _device
from sdsd_kernels._device import RECORDS, device_record, find_record

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
