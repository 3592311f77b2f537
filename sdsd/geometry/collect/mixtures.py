"""Whether a mean, a maximum or a pooling puts several neurons of a layer together, as maxout does, and keeps others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .function_names import POOLINGS

Undo = tuple[tuple[str, tuple[int, ...]], ...]
"""What brings the layout of a layer's output back, last first: reshapes to a shape and permutations."""


def mixes_neurons(name: str, value: Tensor, undo: Undo, neuron_dim: int, args: Sequence[Any], named: Any) -> bool:
    """Whether what `name` makes of `value` has, in one entry, some of the neurons, and not all.

    Args:
        name: of a function that sums up or pools.
        value: what it takes, made of a layer's output by changes of layout alone.
        undo: what brings that layout back.
        neuron_dim: the dimension of the layer's output that counts neurons.
        args, named: what the function was called with.
    """
    dims = _dims(name, value.ndim, args, named)
    neurons = _neurons(value, undo, neuron_dim)
    if neurons is None or not dims:
        return False
    least, most = neurons.amin(dims), neurons.amax(dims)
    whole = name not in POOLINGS and bool((least == neurons.min()).all() and (most == neurons.max()).all())
    return not whole and bool((least != most).any())


def _dims(name: str, ndim: int, args: Sequence[Any], named: Mapping[str, Any]) -> list[int]:
    """The dimensions along which entries are put together."""
    if name in POOLINGS:
        return list(range(ndim - int(name[-2]), ndim)) if name[-2].isdigit() else list(range(2, ndim))
    place = 2 if name in ("norm", "vector_norm") else 1
    dims = named.get("dim", named.get("axis", args[place] if len(args) > place else None))
    if dims is None:
        return list(range(ndim))
    return [dim % ndim for dim in (dims if isinstance(dims, (tuple, list)) else (dims,)) if isinstance(dim, int)]


def _neurons(value: Tensor, undo: Undo, neuron_dim: int) -> Tensor | None:
    """The neuron each entry is of, in the layout of `value`; sizes of 1 stand for what has no neurons along it."""
    shapes = [tuple(value.shape)]
    for what, numbers in reversed(undo):
        shapes.append(numbers if what == "reshape" else tuple(shapes[-1][dim] for dim in numbers))
    original, *later = reversed(shapes)
    dim = neuron_dim % len(original)
    neurons = torch.arange(original[dim]).view([-1 if each == dim else 1 for each in range(len(original))])
    if any(what == "reshape" for what, _ in undo):
        neurons = neurons.expand(original)
    for (what, numbers), shape in zip(undo, later, strict=True):
        if what == "permute":
            neurons = neurons.permute([numbers.index(dim) for dim in range(len(numbers))])
        elif neurons.numel() == torch.Size(shape).numel():
            neurons = neurons.reshape(shape)
        else:
            return None  # pooled in between
    return neurons
