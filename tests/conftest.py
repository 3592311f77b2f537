"""Where tests run and what they start from: the device, the seed, poisoned memory."""

from __future__ import annotations

import os
import signal
from importlib import metadata

import numpy as np
import torch

# Triton reads this when it is first imported, so it is decided before any test module is.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import pytest

from sdsd_kernels._launch import Launch
from tests.launches import Launches

# A shell lets what it runs in the background ignore Ctrl-C, which tests send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def release(version: str) -> tuple[int, int]:
    major, minor = version.split("+")[0].split(".")[:2]
    return int(major), int(minor)


def interpreter_problem(triton: str, numpy: str) -> str | None:
    """Why this Triton cannot interpret kernels with this NumPy, or None where it can."""
    if release(triton) < (3, 7) and release(numpy) >= (2, 4):
        return (
            f"Triton {triton} interprets kernels with NumPy older than 2.4, got NumPy {numpy}: every test of a kernel "
            'would fail with "only 0-dimensional arrays can be converted to Python scalars". Install numpy<2.4, or '
            "triton>=3.7 with the torch that goes with it. constraints-*.txt hold versions that go together."
        )
    return None


def pytest_configure() -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        return
    try:
        triton = metadata.version("triton")
    except metadata.PackageNotFoundError:
        return  # tests of kernels say that they are skipped
    problem = interpreter_problem(triton, np.__version__)
    if problem:
        raise pytest.UsageError(problem)


@pytest.fixture
def device() -> torch.device:
    """CUDA where there is one (kernels compiled), else the CPU (kernels interpreted)."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill fresh memory with NaN, and with numbers no index or count has, so that an element nobody wrote shows."""

    def poison(allocate):
        def allocated(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            if tensor.dtype == torch.bool or tensor.dtype.is_complex:
                return tensor
            value = float("nan") if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max // 3
            # A leaf that requires a gradient may be filled only outside of autograd's sight.
            with torch.no_grad():
                return tensor.fill_(value)

        return allocated

    for name in ("empty", "empty_like", "empty_strided", "empty_permuted"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(torch.Tensor, name, poison(getattr(torch.Tensor, name)))


_launches = Launches()
"""One for the whole run, as plans are kept from test to test."""


@pytest.fixture(autouse=True)
def launches_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hold every interpreted launch to what a compiled one would take for granted."""
    if torch.cuda.is_available():
        return
    monkeypatch.setattr(Launch, "__call__", lambda launch, *tensors, grid=None: _launches(launch, tensors, grid))
