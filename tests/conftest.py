"""Where tests run and what they start from: the device, the seed, poisoned memory."""

from __future__ import annotations

import os

import torch

# Triton reads this when it is first imported, so it is decided before any test module is.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import pytest


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
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return allocated

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))
