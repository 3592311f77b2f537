"""What calls for pairs of neurons cost in Python before the device has its work, in counts no machine changes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import sdsd
from sdsd_kernels import available_backends

if "triton" not in available_backends("cpu"):
    pytest.skip("counted under Triton's interpreter", allow_module_level=True)

from sdsd_kernels._device import SM_90, SM_100
from sdsd_kernels.pairwise import launch
from tests.kernels.calls import TRITON, Calls

LEFT_OUT = (TRITON, "<frozen importlib")


@pytest.mark.parametrize(
    ("dtype", "center", "launches"),
    [
        (torch.bfloat16, False, 2),  # norms, products
        (torch.float32, False, 3),  # norms, halves, products
        (torch.float32, True, 3),
    ],
)
def test_a_matrix_takes_few_calls(monkeypatch, dtype, center, launches):
    calls = Calls(monkeypatch, left_out=LEFT_OUT)
    x = torch.randn(32, 48).to(dtype).T.contiguous().T
    count = calls.before_last_launch(lambda: sdsd.neuron_cosine_matrix(x, center=center, backend="triton"))
    assert len(calls.at_launch) == launches
    assert 10 < count <= 60, calls.names.most_common()


def test_an_update_takes_few_calls(monkeypatch):
    calls = Calls(monkeypatch, left_out=LEFT_OUT)
    gram = sdsd.GramAccumulator(16, backend="triton")
    gram._plan = dataclasses.replace(gram._plan, part=8)
    x = torch.randn(32, 16).bfloat16().T.contiguous().T
    gram.update(x)
    count = calls.before_last_launch(lambda: gram.update(x))
    assert len(calls.at_launch) == 2
    assert 10 < count <= 60, calls.names.most_common()


def test_neighbours_take_few_calls(monkeypatch):
    calls = Calls(monkeypatch, left_out=LEFT_OUT)
    x = torch.randn(32, 48)
    count = calls.before_last_launch(lambda: sdsd.neuron_neighbors(x, 3, backend="triton"))
    assert len(calls.at_launch) == 3
    assert 10 < count <= 120, calls.names.most_common()


@pytest.mark.parametrize(
    ("triton", "record", "guarded"),
    [("3.6.0", SM_100, False), ("3.7.1", SM_100, True), ("3.5.1", SM_100, True), ("3.6.0", SM_90, True)],
)
@pytest.mark.parametrize(("store", "strips"), [("matrix", 0), ("add", 256)])
def test_bfloat16_is_written_anew_where_triton_cannot_guard_it(monkeypatch, triton, record, guarded, store, strips):
    monkeypatch.setattr(launch, "TRITON", triton)
    rows = torch.empty(4096, 1, 1024, dtype=torch.bfloat16)
    made = launch.Triangle(rows, record, store, strips=strips, precision="float32", center=False)
    assert made.guard == made.prepare.in_place == guarded
