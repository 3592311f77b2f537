"""Plain arithmetic whatever surrounds the call, and how far a long call has come."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

Progress = bool | Callable[[int, int], None]
"""What a long call takes as `progress`: False, True for a line on standard error, or a function (done, total)."""


@contextmanager
def plain_arithmetic(device: torch.device) -> Iterator[None]:
    """No gradients, no autocast, products of float32 in float32, and memory that later calls may write.

    Tensors made under torch.inference_mode, where hooks often run, refuse to be written outside it.
    """
    before = torch.get_float32_matmul_precision()
    if before != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        if before != "highest":
            torch.set_float32_matmul_precision(before)


def reporter(progress: Progress, what: str) -> Callable[[int, int], None]:
    """The function that a long call tells (done, total). TypeError for a `progress` that is neither."""
    if progress is False:
        return lambda done, total: None
    if progress is True:
        return lambda done, total: _print_line(what, done, total)
    if not callable(progress):
        raise TypeError(
            f"progress: expected True, False or a function of (done, total), got {type(progress).__name__}."
        )
    return progress


def _print_line(what: str, done: int, total: int) -> None:
    end = "\n" if done == total else ""
    print(f"\r{what}: {done}/{total}", end=end, file=sys.stderr, flush=True)
