"""gamma_stats against the published formula, torch.var_mean, torch.compile of the formula, and the read floor."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sdsd

from .cases import (
    BESIDE_PINNED,
    BESIDE_SPINNING,
    COMPILED,
    CORE_BUSY,
    OURS,
    PUBLISHED_FORMULA,
    READ_FLOOR,
    WITH_CONFIDENCE,
    Case,
    cases_for,
)
from .harness import Comparison, Provider, Unavailable

OP = "gamma_stats"
COLUMNS_AT_ONCE = 65_536


def ours(grads: Tensor, confidence: float | None) -> sdsd.GammaStats:
    """Our call; on the CPU its numbers are read too, so that nothing is left undone."""
    stats = sdsd.gamma_stats(grads, confidence=confidence)
    if grads.device.type == "cpu":
        _ = stats.gamma, stats.interval
    return stats


def published_formula(grads: Tensor) -> Tensor:
    mean = grads.mean(0)
    return (mean**2).sum() / (grads.var(0).sum() + 1e-10)


def var_mean(grads: Tensor) -> Tensor:
    variance, mean = torch.var_mean(grads, 0)
    return mean.dot(mean) / (variance.sum() + 1e-10)


def read_floor(grads: Tensor) -> Callable[[], Any]:
    """Something that reads all of `grads` once and does almost nothing else."""
    flat = grads.view(-1)
    if grads.device.type == "cpu":
        return lambda: torch.dot(flat, flat)
    words = flat.view(torch.float32)
    return lambda: words.sum()


def compiled_formula(grads: Tensor) -> Provider:
    if grads.device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        return Unavailable("torch.compile needs a C++ compiler, and this machine has none")
    torch._dynamo.reset()
    compiled = torch.compile(published_formula, dynamic=False)
    return lambda: compiled(grads)


class SpinningProcess:
    """A process that keeps a core busy while a call runs, as a data loader's does, and sleeps in between."""

    PROGRAM = """
import os, sys
if sys.argv[2] == "pinned":
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
while os.getppid() == int(sys.argv[1]):
    pass
"""

    def __init__(self, *, pinned: bool) -> None:
        arguments = [sys.executable, "-c", self.PROGRAM, str(os.getpid()), "pinned" if pinned else "free"]
        self.process = subprocess.Popen(arguments)
        self.process.send_signal(signal.SIGSTOP)
        weakref.finalize(self, self._end, self.process)

    @staticmethod
    def _end(process: subprocess.Popen) -> None:
        process.kill()
        process.wait()

    def beside(self, function: Callable[[], Any]) -> Any:
        self.process.send_signal(signal.SIGCONT)
        try:
            return function()
        finally:
            self.process.send_signal(signal.SIGSTOP)
            assert self.process.poll() is None, "the process that keeps a core busy has ended"


def beside_spinning(function: Callable[[], Any], *, pinned: bool) -> Provider:
    if not hasattr(os, "sched_setaffinity"):
        return Unavailable("a process is pinned to a core on Linux only")
    spinning = SpinningProcess(pinned=pinned)
    return lambda: spinning.beside(function)


def exact_gamma(grads: Tensor) -> float:
    """‖mean‖² / Tr Var in float64, a block of columns at a time."""
    signal = noise = 0.0
    for start in range(0, grads.shape[1], COLUMNS_AT_ONCE):
        block = grads[:, start : start + COLUMNS_AT_ONCE].double()
        mean = block.mean(0)
        signal += mean.dot(mean).item()
        noise += ((block - mean) ** 2).sum().item() / (grads.shape[0] - 1)
    return signal / noise


def prepare(case: Case, device: torch.device) -> Comparison:
    """Gradients with a mean a third of their deviation, and everybody who computes their Γ."""
    generator = torch.Generator(device).manual_seed(0)
    grads = torch.empty(case.shape, dtype=case.torch_dtype, device=device)
    for row in grads:
        row.normal_(generator=generator)
    grads += torch.empty(case.shape[1:], dtype=case.torch_dtype, device=device).normal_(0, 0.3, generator=generator)
    wanted = exact_gamma(grads)
    half = case.torch_dtype in (torch.float16, torch.bfloat16)

    def check(provider: str, result: Any) -> None:
        if provider == READ_FLOOR:
            return
        own = provider in (OURS, WITH_CONFIDENCE, BESIDE_SPINNING, BESIDE_PINNED)
        got = float(result.gamma if own else result)
        allowed = 1e-5 if own else (0.05 if half else 1e-3)
        error = abs(got - wanted) / wanted
        assert error <= allowed, f"gamma {got:.6g}, expected {wanted:.6g}"

    providers: dict[str, Provider]
    if case.variant == CORE_BUSY:
        providers = {
            OURS: lambda: ours(grads, None),
            BESIDE_SPINNING: beside_spinning(lambda: ours(grads, None), pinned=False),
            BESIDE_PINNED: beside_spinning(lambda: ours(grads, None), pinned=True),
            READ_FLOOR: read_floor(grads),
        }
    else:
        providers = {
            OURS: lambda: ours(grads, None),
            WITH_CONFIDENCE: lambda: ours(grads, 0.95),
            PUBLISHED_FORMULA: lambda: published_formula(grads),
            "torch.var_mean": lambda: var_mean(grads),
            COMPILED: compiled_formula(grads),
            READ_FLOOR: read_floor(grads),
        }
    return Comparison(providers, check, baseline=READ_FLOOR, work=grads.numel() * grads.element_size())


@pytest.mark.parametrize("case", cases_for(OP), ids=str)
def test_gamma_stats(case: Case, compare: Callable) -> None:
    compare(prepare, case)
