"""How kernels are started once all but their tensors is settled, and on which device: what needs none."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sdsd_kernels import _launch, available_backends
from sdsd_kernels._launch import Launch, on_device


def test_compiled_kernels_are_kept(monkeypatch):
    """What the first call returns is run from then on, on the current stream, with all arguments in their order."""
    log = []

    class Compiled:
        function, packed_metadata = "function", "metadata"

        def run(self, *arguments):
            log.append(("compiled", arguments))

    class Kernel:
        arg_names = ("tensor", "size", "WIDE")

        def __getitem__(self, grid):
            return lambda *arguments, **options: log.append(("kernel", grid, arguments, options)) or Compiled()

    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 5, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 70 + device, raising=False)
    started = Launch(Kernel(), (3, 1, 1), {"WIDE": True, "size": 5, "unknown": 0}, num_warps=4)
    started("first")
    started("second")
    started("third", grid=(7, 1, 1))
    rest = (75, "function", "metadata", None, None, None)
    assert log == [
        ("kernel", (3, 1, 1), ("first", 5, True), {"num_warps": 4}),
        ("compiled", (3, 1, 1, *rest, "second", 5, True)),
        ("compiled", (7, 1, 1, *rest, "third", 5, True)),
    ]


def test_another_thread_may_call_before_the_first_call_has_returned(monkeypatch):
    """Whoever calls while the compiled kernel is being kept compiles too, or has all that it takes to run it."""
    log = []

    class Compiled:
        function, packed_metadata = "function", "metadata"

        @property
        def run(self):
            if len(log) < 3:
                started("meanwhile")  # as another thread would
            return lambda *arguments: log.append("compiled")

    class Kernel:
        arg_names = ("tensor",)

        def __getitem__(self, grid):
            return lambda *arguments, **options: log.append("kernel") or Compiled()

    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 0, raising=False)
    started = Launch(Kernel(), (1, 1, 1), {})
    started("first")
    started("after")
    assert log == ["kernel"] * 3 + ["compiled"]


class Guard:
    """Stands in for torch.cuda.device, and notes what happens."""

    log: list[object] = []  # noqa: RUF012  (a new one each test)

    def __init__(self, device):
        self.log.append(device)

    def __enter__(self):
        self.log.append("in")

    def __exit__(self, *_):
        self.log.append("out")


@pytest.fixture
def log(monkeypatch):
    monkeypatch.setattr(Guard, "log", [])
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: 0, raising=False)
    monkeypatch.setattr(torch.cuda, "device", Guard)
    return Guard.log


def claims_device(index: int) -> SimpleNamespace:
    """A tensor that only claims to be on a device."""
    return SimpleNamespace(is_cuda=True, get_device=lambda: index, device=torch.device("cuda", index))


def test_the_current_device_is_that_of_the_tensors(log):
    for index in (0, 1):
        on_device(claims_device(index), log.append, "launch")
    assert log == ["launch", torch.device("cuda", 1), "in", "launch", "out"]


@pytest.mark.skipif("triton" not in available_backends("cpu"), reason="launches come from files that import Triton")
def test_moments_are_launched_on_the_device_of_the_gradients(monkeypatch, log):
    from sdsd_kernels.gamma_moments import launch

    monkeypatch.setattr(launch, "_launch", lambda grads, per_sample: log.append("launch"))
    for index in (0, 1):
        launch.launch_gamma_moments([claims_device(index)], False)
    assert log == ["launch", torch.device("cuda", 1), "in", "launch", "out"]


def test_plans_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(_launch, "MOST_PLANS", 3)
    plans: dict[tuple[int], int] = {}
    for number in range(7):
        assert _launch.kept(plans, (number,), number) == number
        assert len(plans) <= 3
        assert plans[(number,)] == number
