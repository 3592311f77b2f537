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
    """Fill fresh floating-point memory with NaN, so that an element nobody wrote shows."""

    def poison(allocate):
        def allocated(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            # A leaf that requires a gradient may be filled only outside of autograd's sight.
            with torch.no_grad():
                return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return allocated

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))
