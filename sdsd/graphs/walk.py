"""A walk over a running model: every operation that torch carries out, one after the other, by the rule of its kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..models import place_of
from .operations import Step, step_of, tensors

Known = TypeVar("Known")
TAKES_OUT = {"_local_scalar_dense", "is_nonzero", "equal", "nonzero"}
"""Operations by which numbers leave tensors."""


class Chance:
    """Follows random numbers through operations, to where they leave tensors."""

    def __init__(self) -> None:
        self.decides = False
        self.drawn: Any = WeakIdKeyDictionary()

    def step(self, step: Step) -> None:
        """One operation."""
        drawn = torch.Tag.nondeterministic_seeded in step.func.tags or any(each in self.drawn for each in step.given)
        if not drawn:
            return
        if step.name in TAKES_OUT:
            self.decides = True
        for each in tensors(step.out):
            self.drawn[each] = True


class Walk(Generic[Known]):
    """What is known of each tensor of one run, and the loop over its operations.

    What is asked of a model is a class of its own below this one, with a table of rules, one a kind of row: `CutWalk`
    for what can be cut, `MoveWalk` of `sdsd.theory` for what can be moved. It says as well what is known of a tensor
    that no operation gave, and what becomes of tensors that go into an operation without a rule.

    Attributes:
        named: what is known of parameters and buffers, by the ids of the tensors.
        values: what is known of others, while they are held.
        module: the name of the module that runs.
        ran: names of modules that were called.
        looking: whether an operation is looked at right now.
    """

    rules: ClassVar[Mapping[str, Callable[[Any, Step], None]]]

    def __init__(self, named: dict[int, Known]) -> None:
        self.named = named
        self.values: Any = WeakIdKeyDictionary()
        self.module = ""
        self.ran: set[str] = set()
        self.looking = False
        self.chance = Chance()

    # ---- what is asked -----------------------------------------------------------------------------------------------

    def given(self, tensor: Any) -> Known:
        """What is known of what no operation gave: a constant, or no tensor at all."""
        raise NotImplementedError

    def unknown(self, step: Step) -> None:
        """An operation without a rule."""
        raise NotImplementedError

    def left(self, name: str, given: tuple[Any, ...], output: Any) -> None:
        """A module has run: its name, what it took, by name after what came by its place, and what it gave."""

    def written_into(self, parameter: Tensor) -> None:
        """The forward writes into a parameter, which is put back after the run."""

    def ended(self, outputs: list[Any]) -> None:
        """The model has run, and is not yet as it was before."""

    # ---- values ------------------------------------------------------------------------------------------------------

    def value(self, tensor: Any) -> Known:
        """What is known of a tensor."""
        if not isinstance(tensor, Tensor):
            return self.given(tensor)
        known = self.named.get(id(tensor)) or self.values.get(tensor)
        return self.given(tensor) if known is None else known

    def sharing(self, tensor: Tensor) -> Iterator[tuple[Tensor, Known]]:
        """Tensors that lie in the memory of this one, as views do, and what is known of them."""
        place = place_of(tensor)
        for other, value in list(self.values.items()) if place else ():
            if other is not tensor and place_of(other) == place:
                yield other, value

    # ---- one operation after the other -------------------------------------------------------------------------------

    def step(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """What a dispatch mode is told of an operation that was carried out."""
        self.looking = True
        try:
            self.follow(step_of(func, args, kwargs, out))
        finally:
            self.looking = False

    def follow(self, step: Step) -> None:
        """One operation, by the rule of its kind."""
        self.rules.get(step.row.kind, type(self).unknown)(self, step)
