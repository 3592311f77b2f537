"""What torch's settings let products of float32 be rounded to, by torch's names of before 2.9 and since.

`torch.backends.cuda.matmul.allow_tf32` and `torch.get_float32_matmul_precision` raise where a program has set
`torch.backends.….fp32_precision`, of which they know nothing; that one knows what either has set.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch


def layers_may_use_tf32() -> bool:
    """Whether torch may round factors of matrix products on a GPU to tf32."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def convolutions_may_use_tf32() -> bool:
    """The same of convolutions."""
    precision: str = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    return precision == "tf32"


def exact_float32() -> AbstractContextManager[None]:
    """Products of float32 in float32 within, whatever torch is set to."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:
        return _ieee(torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    return nullcontext() if before == "highest" else _highest(before)


@contextmanager
def _highest(before: str) -> Iterator[None]:
    try:
        torch.set_float32_matmul_precision("highest")
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Convolutions and recurrent layers of float32 in float32 on a GPU within, whatever torch is set to."""
    with ExitStack() as stack:
        try:
            stack.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
        except RuntimeError:
            stack.enter_context(_ieee(torch.backends.cudnn.conv, torch.backends.cudnn.rnn))  # type: ignore[attr-defined]
        yield


@contextmanager
def _ieee(*settings: Any) -> Iterator[None]:
    """By the new name of settings alone."""
    lowered = [(each, each.fp32_precision) for each in settings if each.fp32_precision not in ("none", "ieee")]
    try:
        for each, _ in lowered:
            each.fp32_precision = "ieee"
        yield
    finally:
        for each, before in lowered:
            each.fp32_precision = before
