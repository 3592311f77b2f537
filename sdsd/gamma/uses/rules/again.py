"""One function of torch, run again by itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

DRAWING = (
    "dropout",
    "rrelu",
    "bernoulli",
    "multinomial",
    "normal",
    "rand",
    "gumbel",
    "lstm",
    "gru",
    "rnn_tanh",
    "rnn_relu",
)
"""Functions that may draw random numbers, by how their names begin."""


def in_dtype(x: Any, dtype: torch.dtype | None) -> Any:
    """`x` in another dtype if it is numbers and one is given."""
    return x.to(dtype) if dtype is not None and isinstance(x, Tensor) and x.is_floating_point() else x


def run_again(func: Any, values: list[Any], structure: Any, cast: torch.dtype | None) -> Any:
    """func of its arguments as `values` and their structure, in the parameters' dtype `cast` where autocast was on."""
    if cast is None:
        args, kwargs = pytree.tree_unflatten(values, structure)
        return func(*args, **kwargs)
    values = [in_dtype(x, cast) for x in values]
    args, kwargs = pytree.tree_unflatten(values, structure)
    device = next(x.device.type for x in values if isinstance(x, Tensor))
    with torch.autocast(device, enabled=False):
        return func(*args, **kwargs)
