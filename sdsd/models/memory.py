"""Which tensors of a model lie in the memory of others, so that what is written into one is written into both."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor, nn


def place_of(tensor: Tensor) -> int:
    """Where the memory begins that the tensor lies in; 0 for one that has none, as a sparse one."""
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0


def entries_of(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Places and values of a sparse tensor, of any layout."""
    listed = tensor.to_sparse().coalesce()
    return listed.indices(), listed.values()


def memory_of_others(model: nn.Module) -> dict[int, str]:
    """By the id of a parameter or buffer, the name of another in whose memory it lies, as a view.

    It is its own name where several of its entries are one number in memory. A tensor under several names is one."""
    by_storage: dict[int, dict[int, tuple[str, Tensor]]] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.layout == torch.strided and tensor.numel():
            by_storage.setdefault(place_of(tensor), {}).setdefault(id(tensor), (name, tensor))
    names: dict[int, str] = {}
    for held in by_storage.values():
        for name, tensor in held.values():
            if any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
                names[id(tensor)] = name
        for (name, one), (another, other) in itertools.combinations(held.values(), 2):
            if _overlap(one, other):
                names.setdefault(id(one), another)
                names.setdefault(id(other), name)
    return names


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one storage have a number in common."""
    (start, end), (first, last) = _span(one), _span(other)
    if end <= first or last <= start:
        return False
    dense = one.numel() * one.element_size() == end - start and other.numel() * other.element_size() == last - first
    return dense or one.dtype != other.dtype or bool(np.isin(_places(one), _places(other)).any())


def _span(tensor: Tensor) -> tuple[int, int]:
    """In bytes, from the first of its numbers to behind the last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = int(tensor.storage_offset()) * tensor.element_size()
    return start, start + (int(last) + 1) * tensor.element_size()


def _places(tensor: Tensor) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    places = np.array([tensor.storage_offset()])
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        places = (places[:, None] + np.arange(size) * stride).ravel()
    return places
