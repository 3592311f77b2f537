"""How gradients arrived: after how many writes, in whose memory, past how many hooks.

Between two steps that prove themselves nothing is computed to look for gradients that are not the samples'. But a
tensor counts the writes to it, and a .grad that came from one operation of ours is the very memory that it gave. A part
that comes from elsewhere, a penalty that begins, is one more addition or other memory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from ..uses import Pass

Arrival = tuple[Any, ...]
"""Writes beyond those of the uses and passes that were seen, or None; whether the memory is ours; hooks."""


class Arrivals:
    """How the gradient of each parameter came in steps that proved themselves."""

    def __init__(self) -> None:
        self._usual: dict[str, Arrival] = {}
        self._once: set[str] = set()
        self._varying: set[str] = set()

    def unusual(
        self,
        parameters: Mapping[str, nn.Parameter],
        groups: list[list[Pass]],
        present: Collection[str],
        *,
        proved: bool,
    ) -> list[str]:
        """Parameters whose gradient came otherwise than where steps proved themselves, of which this may be one.

        What came now so and now so in such steps, or twice otherwise than in them, is not looked at again. `present`:
        parameters whose .grad was there before; writes to it tell of no addition.
        """
        unusual: list[str] = []
        first = groups[0] if groups else []
        for name, parameter in parameters.items():
            grad = parameter.grad
            if grad is None or name in self._varying:
                continue
            uses, ours = 0, False
            for ledger in first:
                uses += ledger.counts.get(name, 0)
                given = ledger.given.get(name)
                ours = ours or (given is not None and given == grad.data_ptr())
            writes = None if name in present else grad._version - uses - len(groups)
            of_parameter, after = parameter._backward_hooks, parameter._post_accumulate_grad_hooks
            arrival = writes, ours, len(of_parameter or ()), len(after or ())  # type: ignore[arg-type]
            usual = self._usual.get(name)
            if usual == arrival:
                continue
            if proved and usual is None:
                self._usual[name] = arrival
            elif proved:
                self._varying.add(name)
            elif usual is not None:
                unusual.append(name)
                (self._varying if name in self._once else self._once).add(name)
                del self._usual[name]
        return unusual
