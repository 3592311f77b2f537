"""How gradients arrived: after how many writes, in whose memory, past how many hooks.

Between two steps that prove themselves nothing is computed to look for gradients that are not the samples'. But a
tensor counts the writes to it, and a .grad that came from one operation of ours is the very memory that it gave. A part
that comes from elsewhere, a penalty that begins, is one more addition or other memory. Where gradients are added to a
.grad that is there, all of this is looked at as they come (`Marks.watch`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..uses import Pass
from .marks import Marks

Arrival = tuple[Any, ...]
"""Of each pass that was seen: whether the memory is ours, writes beyond its own, whether a view; and hooks."""

MOST = 2
"""What came in more ways than these in steps that proved themselves (recurrent layers add up over a sequence of any
length) may come in any."""


class Arrivals:
    """How the gradient of each parameter came in steps that proved themselves."""

    def __init__(self) -> None:
        self._proved: dict[tuple[Any, ...], set[Arrival]] = {}
        """By name, number of uses, whether one of them gave memory, the parameter's strides, which torch gives to its
        gradient, and whether it was looked at as it came: uses that are measured in another way are no news."""

    def unusual(
        self, parameters: Mapping[str, nn.Parameter], groups: list[list[Pass]], marks: Marks, *, proved: bool
    ) -> list[str]:
        """Parameters whose gradient came otherwise than in any step that proved itself, of which this may be one.

        `marks`: of what was there when the first gradients came, and of how those that were watched came.
        """
        unusual: list[str] = []
        present = marks.present or ()
        for name, parameter in parameters.items():
            grad, came = parameter.grad, marks.came.get(name)
            if grad is None or (came is None and name in present):
                continue
            uses, given = 0, {}
            for group in groups:
                for ledger in group:
                    uses += ledger.counts.get(name, 0)
                    if name in ledger.given:
                        memory, writes = ledger.given[name]
                        given[memory] = writes
            ways = set()
            own = grad.data_ptr() if given else 0, grad._version + 1 - len(groups), False
            for memory, writes, view in came or (own,):
                ways.add((memory in given, writes - given.get(memory, 0), view and memory not in given))
            arrival = frozenset(ways), marks.hooks.get(name)
            key = name, uses / max(1, len(groups)), bool(given), parameter.stride(), came is None
            if proved:
                self._proved.setdefault(key, set()).add(arrival)
            elif arrival not in (known := self._proved.get(key, {arrival})) and len(known) <= MOST:
                unusual.append(name)
        return unusual
