"""What sort a function of torch is of, as the mode meets it in a call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..following import COMPOSITE, PROPERTIES, SHAPE_ONLY, WRITING, by_shape

_LOOKS = frozenset(
    [
        "size",
        "dim",
        "stride",
        "numel",
        "is_contiguous",
        "element_size",
        "storage_offset",
        "data_ptr",
        "get_device",
        "is_floating_point",
        "is_complex",
        "nelement",
        "ndimension",
        "__len__",
        "_set_grad_enabled",
        "item",
        "tolist",
        "numpy",
        "__bool__",
        "__repr__",
        "__hash__",
        "__int__",
        "__float__",
        "__index__",
        "register_hook",
        "register_post_accumulate_grad_hook",
        "retain_grad",
        "backward",
        "is_pinned",
        "__contains__",
        "__format__",
        "is_inference",
        "requires_grad_",
        "has_names",
        "is_nonzero",
        "is_same_size",
    ]
)
"""Functions that only look at a tensor, by name."""

LOOKS_ONLY, WRITES, IS_COMPOSITE, BY_SHAPE, BY_FIRST, BY_VALUE = (
    "looks",
    "writes",
    "composite",
    "by shape",
    "by its first tensor's shape",
    "by value",
)
"""Sorts of functions; the last three say what decides where the output carries samples."""
QUICK = frozenset([BY_SHAPE, BY_FIRST])
SORTS: dict[Any, str] = {}
PLAIN = frozenset([Tensor, torch.nn.Parameter])
SEQUENCES = frozenset([tuple, list, torch.Size, slice])
WHOLE = frozenset([int])
CONSTANTS = frozenset(
    [
        int,
        float,
        bool,
        str,
        type(None),
        type(Ellipsis),
        torch.dtype,
        torch.device,
        torch.memory_format,
        torch.layout,
    ]
)


def name_of(func: Any) -> str:
    return getattr(func, "__name__", "")


def sort_of(func: Any) -> str:
    """The sort of a function, kept from the first call on."""
    name = name_of(func)
    if name in _LOOKS or (name == "__get__" and func.__self__.__name__ not in PROPERTIES):
        sort = LOOKS_ONLY
    elif func in WRITING:
        sort = WRITES
    elif func in COMPOSITE:
        sort = IS_COMPOSITE
    elif name in SHAPE_ONLY or func is Tensor.__getitem__:
        sort = BY_FIRST
    else:
        sort = BY_SHAPE if by_shape(func) else BY_VALUE
    SORTS[func] = sort
    return sort


def spread(values: Any) -> list[Any]:
    """What nested sequences and slices hold, one after another, with their lengths before them."""
    parts: list[Any] = []
    for value in values:
        if type(value) is slice:
            parts += ("slice", value.start, value.stop, value.step)
        elif type(value) in SEQUENCES:
            # A list as an index is not a tuple.
            parts += (type(value).__name__, len(value), *spread(value))
        else:
            parts.append(value)
    return parts
