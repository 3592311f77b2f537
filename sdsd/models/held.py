"""What things hold that change and stay the same object, put back as it was."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

MOST_ENTRIES = 1024
"""Of a container that is looked through for others; a longer one, as a vocabulary, holds words and numbers."""


def changeable(held: Any, seen: dict[int, Any]) -> Iterator[Any]:
    """What it holds, in containers within each other, that can change; nothing that `seen` has, by its id."""
    if id(held) not in seen:
        seen[id(held)] = held
        if isinstance(held, tuple(_kinds())) and (not isinstance(held, NOT_ALL) or _is_plain(held)):
            yield held
        for each in held.values() if isinstance(held, Mapping) else held if isinstance(held, SEQUENCES) else ():
            if len(held) <= MOST_ENTRIES:
                yield from changeable(each, seen)


def as_now(held: Any) -> Callable[[], None]:
    """What puts it back when it is called."""
    kept, back = next(both for kind, both in _kinds().items() if isinstance(held, kind))
    return partial(back, held, kept(held))


def tensor_back(tensor: Tensor, copy: Tensor) -> None:
    """Through `data`, so that graphs which hold the tensor, with these values, can still be walked."""
    if (tensor.dtype, tensor.device, tensor.shape) == (copy.dtype, copy.device, copy.shape):
        tensor.data.copy_(copy)
    else:
        tensor.data = copy


def _kinds() -> dict[type, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]]:
    """`KINDS`, with NumPy's generators where these have been imported: nobody holds one otherwise."""
    if "numpy.random" in sys.modules and np.random.Generator not in KINDS:
        KINDS[np.random.Generator] = (
            lambda x: x.bit_generator.state,
            lambda x, state: setattr(x.bit_generator, "state", state),
        )
        KINDS[np.random.RandomState] = np.random.RandomState.get_state, np.random.RandomState.set_state
    return KINDS


def _is_plain(held: Any) -> bool:
    return type(held) is Tensor and held.layout == torch.strided and not (held.is_meta or held.is_quantized)


def _written_back(tensor: Tensor, copy: Tensor) -> None:
    if tensor.shape != copy.shape or not torch.allclose(tensor.detach(), copy, rtol=0, atol=0, equal_nan=True):
        tensor_back(tensor, copy)


def _refill(store: Any, entries: Any) -> None:
    now, then = ([*map(id, x), *map(id, x.values() if isinstance(x, dict) else ())] for x in (store, entries))
    if now != then:  # one that refuses changes, as the configurations of diffusers do, has none
        store.clear()
        store.extend(entries) if isinstance(store, (list, deque)) else store.update(entries)


SEQUENCES = (tuple, list, set, deque)
NOT_ALL = (Tensor, random.SystemRandom)
"""Kinds of which not all can be copied; a generator of the system has no state."""
KINDS: dict[type, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    **{kind: (kind, _refill) for kind in (dict, list, set, deque)},
    Tensor: (lambda x: x.detach().clone(), _written_back),
    np.ndarray: (np.copy, lambda x, copy: np.copyto(x, copy) if x.flags.writeable else None),
    torch.Generator: (torch.Generator.get_state, torch.Generator.set_state),
    random.Random: (random.Random.getstate, random.Random.setstate),
}
"""How each is kept, and put back."""
