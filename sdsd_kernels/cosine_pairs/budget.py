"""How many pairs may be returned, and what is raised where there are more."""

from __future__ import annotations


class TooManyPairsError(Exception):
    """More pairs are past the threshold than the memory allowed holds; op.py turns it into advice.

    Attributes:
        count: how many there are.
        most: how many could be returned.
        needed: bytes that all of them take, scratch included.
    """

    def __init__(self, count: int, most: int, needed: int) -> None:
        super().__init__(count, most, needed)
        self.count = count
        self.most = most
        self.needed = needed


def _pair_bytes(itemsize: int) -> int:
    """Two int64 and a cosine. On the way there pairs never take more: what was held before is given back in parts."""
    return 16 + itemsize


def most_pairs(itemsize: int, scratch: int, max_bytes: int) -> int:
    """How many pairs fit into `max_bytes` beside `scratch` bytes."""
    return max(0, max_bytes - scratch) // _pair_bytes(itemsize)


def check_count(count: int, itemsize: int, scratch: int, max_bytes: int) -> None:
    """Raise TooManyPairsError unless `count` pairs fit into `max_bytes` beside `scratch` bytes."""
    most = most_pairs(itemsize, scratch, max_bytes)
    if count > most:
        raise TooManyPairsError(count, most, scratch + count * _pair_bytes(itemsize))
