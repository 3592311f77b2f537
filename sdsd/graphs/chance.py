"""Random numbers by which a forward decides what it does, so that one run does not show all of it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from .walk import Chance

RUNS = 8
"""How often a forward is run that decides by chance: of two equally likely ways one is missed once in 128 times."""


@contextmanager
def seeded(seed: int | None, devices: Sequence[torch.device]) -> Iterator[None]:
    """The generators of torch, Python and NumPy start from `seed` inside; afterwards all are as they were.

    Args:
        seed: None: they go on from where they are.
        devices: GPUs whose generators are meant, too.

    Yields:
        None.
    """
    before = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.default_generator.manual_seed(seed)
            for device in devices:
                torch.cuda.default_generators[device.index or 0].manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])


@contextmanager
def draws(chance: Chance, seed: int | None, devices: Sequence[torch.device]) -> Iterator[None]:
    """As `seeded`, and `chance` is told whether Python's or NumPy's generator is used."""
    with seeded(seed, devices):
        start = _states()
        yield
        chance.decides |= _states() != start


def _states() -> tuple[Any, ...]:
    kind, keys, *others = np.random.get_state()
    return random.getstate(), kind, np.asarray(keys).tobytes(), *others
