"""How gradients arrived: after how many writes, in whose memory, past how many hooks.

Between two steps that prove themselves nothing is computed to look for gradients that are not the samples'. But a
tensor counts the writes to it, and a .grad that came from one operation of ours is the very memory that it gave. A part
that comes from elsewhere, a penalty that begins, is one more addition or other memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ..uses import Pass
from .marks import Marks

Arrival = tuple[Any, ...]
"""Writes beyond those of the uses and passes that were seen, or None; whether the memory is ours; hooks."""

MOST = 2
"""What came in more ways than these in steps that proved themselves (recurrent layers add up over a sequence of any
length) may come in any."""


class Arrivals:
    """How the gradient of each parameter came in steps that proved themselves."""

    def __init__(self) -> None:
        self._proved: dict[tuple[Any, ...], set[Arrival]] = {}
        """By name, number of uses, whether one of them gave memory, the parameter's strides, which torch gives to its
        gradient, and whether it had one before: uses that are measured in another way are no news."""

    def unusual(
        self,
        parameters: Mapping[str, nn.Parameter],
        groups: list[list[Pass]],
        marks: Marks,
        *,
        proved: bool,
    ) -> list[str]:
        """Parameters whose gradient came otherwise than in any step that proved itself, of which this may be one.

        `marks`: of what was there when the first gradients came; writes to a .grad that was tell of no addition.
        """
        unusual: list[str] = []
        first, present = groups[0] if groups else [], marks.present or ()
        for name, parameter in parameters.items():
            grad = parameter.grad
            if grad is None:
                continue
            uses, gave, ours = 0, False, None
            for ledger in first:
                uses += ledger.counts.get(name, 0)
                given = ledger.given.get(name)
                if given is not None:
                    gave, ours = True, given if given[0] == grad.data_ptr() else ours
            earlier = len(groups) + uses + (ours[1] if ours is not None else 0)
            writes = None if name in present else grad._version - earlier
            arrival = writes, ours is not None, marks.hooks.get(name)
            key = name, uses, gave, parameter.stride(), writes is None
            known = self._proved.get(key)
            if known is not None and (arrival in known or len(known) > MOST):
                continue
            if proved:
                self._proved.setdefault(key, set()).add(arrival)
            elif known is not None:
                unusual.append(name)
        return unusual
