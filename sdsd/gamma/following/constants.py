"""Tensors taken for constants: further inputs of the model that do not lie as the samples do, as a mask (T, T)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor

from .tracks import Track, here, is_second, memory_of, note_written, set_track


def written(tensor: Tensor, track: Track, second: bool) -> None:
    """Something was written into `tensor`; `second`: all in it comes from the model's further inputs now."""
    if is_second(tensor) and not second:
        note_written(tensor)
    set_track(tensor, track, second)
    key = memory_of(tensor)
    if second and key in here.written:
        here.now.by_second[key] = here.written[key]


@contextmanager
def as_constants(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Inside, `tensors` do not depend on samples."""
    tensors = list(tensors)
    kept = {id(x): here.held[id(x)] for x in tensors if id(x) in here.held}
    here.held.update({key: (tensor, None, False) for key, (tensor, _, _) in kept.items()})
    written = _forget_written(tensors)
    try:
        yield
    finally:
        here.held.update(kept)
        here.written.update(written)


def constant_from_here_on(tensors: Iterable[Tensor]) -> None:
    for tensor in tensors:
        set_track(tensor, None)
    _forget_written(tensors)


def _forget_written(tensors: Iterable[Tensor]) -> dict:
    """Forget what further inputs wrote into the memory of `tensors`; what is forgotten."""
    keys = {memory_of(tensor) for tensor in tensors}
    alone = [key for key in keys if key in here.written and here.now.by_second.get(key) is here.written[key]]
    return {key: here.written.pop(key) for key in alone}
