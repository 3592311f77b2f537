"""What calls for pairs of neurons cost in Python before the device has its work, in counts no machine changes."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

import sdsd
from sdsd_kernels import available_backends

if "triton" not in available_backends("cpu"):
    pytest.skip("counted under Triton's interpreter", allow_module_level=True)

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
    assert 10 < count <= 140, calls.names.most_common()


def test_neighbours_take_few_calls(monkeypatch):
    calls = Calls(monkeypatch, left_out=LEFT_OUT)
    x = torch.randn(32, 48)
    count = calls.before_last_launch(lambda: sdsd.neuron_neighbors(x, 3, backend="triton"))
    assert len(calls.at_launch) == 3
    assert 10 < count <= 120, calls.names.most_common()


def test_compiled_kernels_are_kept(monkeypatch):
    """What the first call returns is run from then on, with all arguments in the kernel's order."""
    log = []

    class Compiled:
        function, packed_metadata = "function", "metadata"

        def run(self, *arguments):
            log.append(("compiled", arguments))

    class Kernel:
        arg_names = ("tensor", "size", "WIDE")

        def __getitem__(self, grid):
            return lambda *arguments, **options: log.append(("kernel", grid, arguments, options)) or Compiled()

    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: f"stream {device}", raising=False)
    started = launch.Launch(Kernel(), (3, 1, 1), {"WIDE": True, "size": 5, "unknown": 0}, num_warps=4)
    started("first")
    started("second")
    started("third", grid=(7, 1, 1))
    rest = ("stream 0", "function", "metadata", None, None, None)
    assert log == [
        ("kernel", (3, 1, 1), ("first", 5, True), {"num_warps": 4}),
        ("compiled", (3, 1, 1, *rest, "second", 5, True)),
        ("compiled", (7, 1, 1, *rest, "third", 5, True)),
    ]


def test_the_current_device_is_that_of_the_neurons(monkeypatch):
    """Kernels start on the current device; seen with a tensor that only claims to be on another."""
    log = []

    class Guard:
        def __init__(self, device):
            log.append(device)

        def __enter__(self):
            log.append("in")

        def __exit__(self, *_):
            log.append("out")

    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
    monkeypatch.setattr(torch.cuda, "device", Guard)
    for index in (0, 1):
        where = SimpleNamespace(is_cuda=True, get_device=lambda index=index: index, device=f"cuda:{index}")
        launch.on_device(where, log.append, "launch")
    assert log == ["launch", "cuda:1", "in", "launch", "out"]
