"""Checks on user input. Every error says what was expected, what came, and what to do about it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_float_tensor(value: Any, name: str) -> Tensor:
    """Return `value` if it is a dense tensor of a real floating-point dtype.

    Raises:
        TypeError: not a tensor; sparse, quantised, complex, integer or an unsupported floating-point dtype.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name}: expected a torch.Tensor, got {type(value).__name__}. "
            f"Convert it first, for example with torch.as_tensor({name})."
        )
    if value.is_quantized:
        raise TypeError(
            f"{name}: expected a floating-point tensor, got a quantised one ({value.dtype}). Pass {name}.dequantize()."
        )
    if value.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got layout {value.layout}. Pass {name}.to_dense().")
    if value.is_complex():
        raise TypeError(
            f"{name}: expected real values, got {value.dtype}. "
            f"Pass torch.view_as_real({name}) with its last two dimensions joined."
        )
    if value.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"{name}: expected float64, float32, float16 or bfloat16, got {value.dtype}. Pass {name}.float()."
        )
    return value


def check_choice(value: Any, name: str, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`; otherwise a ValueError that lists them."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}: expected one of {listed}, got {value!r}.")
    return str(value)
