"""Pairs of neurons, checked, and what is to be written where in a model's tensors."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ContextDecorator, ExitStack, contextmanager
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sdsd_kernels import checks

from ...graphs import Part
from ...models import restored

Pairs = Iterable[Sequence[Any]] | Tensor
"""(first, second) neuron indices; what follows in an entry is ignored, so that `NeuronPair`s can be passed."""


class IndexPairs(NamedTuple):
    """Checked pairs.  # shape: (k,), int64 each"""

    first: Tensor
    second: Tensor


class Edit(NamedTuple):
    """New values for some entries along one axis of a tensor."""

    tensor: Tensor
    dim: int
    entries: Tensor
    values: Tensor


def apply(edits: Iterable[Edit]) -> None:
    with torch.no_grad():
        for tensor, dim, entries, values in edits:
            tensor.index_copy_(dim, entries, values)


@contextmanager
def applied(edits: Sequence[Edit]) -> Iterator[None]:
    """Only what is edited is kept and put back: for blocks that change nothing else."""
    before = [edit._replace(values=edit.tensor.detach().index_select(edit.dim, edit.entries)) for edit in edits]
    try:
        apply(edits)
        yield
    finally:
        apply(before)


class Merging(ContextDecorator, AbstractContextManager[nn.Module]):
    """A model with edits applied inside a `with` block, as often as it is entered, and as it was afterwards."""

    def __init__(self, model: nn.Module, edits: Callable[[], Sequence[Edit]]) -> None:
        self.model, self.edits = model, edits
        self.entered: list[ExitStack] = []

    def __enter__(self) -> nn.Module:
        edits = self.edits()
        with ExitStack() as stack:
            stack.enter_context(restored(self.model))
            apply(edits)
            self.entered.append(stack.pop_all())
        return self.model

    def __exit__(self, *raised: Any) -> None:
        self.entered.pop().__exit__(*raised)


def part_tensor(model: nn.Module, part: Part) -> Tensor:
    """The parameter or buffer of that name."""
    holder, _, name = part.name.rpartition(".")
    return tensor_of(model.get_submodule(holder), name)


def tensor_of(module: nn.Module, name: str) -> Tensor:
    tensor = getattr(module, name)
    assert isinstance(tensor, Tensor)
    return tensor


def checked_pairs(pairs: Pairs, neurons: int) -> IndexPairs:
    """Pairs as two index tensors; TypeError or ValueError that names the first that cannot be merged."""
    if not isinstance(pairs, Iterable):
        raise TypeError(f"pairs: expected index pairs, as disjoint_pairs gives them, got {type(pairs).__name__}.")
    listed: list[tuple[int, int]] = []
    for pair in pairs.tolist() if isinstance(pairs, Tensor) else pairs:
        try:
            first, second = map(operator.index, (*pair[:2], *(each for each in pair[2:] if isinstance(each, Integral))))
        except (TypeError, ValueError) as error:
            raise TypeError(f"pairs: expected (first, second) neuron indices, whole numbers, got {pair!r}.") from error
        listed.append((first, second))
    seen: set[int] = set()
    for first, second in listed:
        for neuron in (first, second):
            if not 0 <= neuron < neurons:
                raise ValueError(f"pairs: expected neurons from 0 to {neurons - 1}, got {neuron} in {first, second}.")
            if neuron in seen:
                raise ValueError(f"pairs: neuron {neuron} is in two pairs; each may be in one only.")
        if first == second:
            raise ValueError(f"pairs: expected two different neurons in a pair, got ({first}, {second}).")
        seen |= {first, second}
    return IndexPairs(*torch.tensor(listed, dtype=torch.long).reshape(-1, 2).unbind(1))


def checked_neurons(neurons: Iterable[int], count: int) -> list[int]:
    """Neurons to be removed; TypeError or ValueError that names the first that cannot be."""
    if isinstance(neurons, str) or not isinstance(neurons, Iterable):
        raise TypeError(f"neurons: expected a list of indices, got {type(neurons).__name__} {neurons!r}.")
    listed = [each.item() if isinstance(each, Tensor) and each.ndim == 0 else each for each in neurons]
    if listed and all(type(each).__name__.startswith("bool") for each in listed):
        raise TypeError(
            f"neurons: expected indices, got {len(listed)} booleans. Of a mask, pass torch.as_tensor(mask).nonzero()"
            ".flatten()."
        )
    removed = [checks.check_integer(each, "neurons") for each in listed]
    bad = [neuron for neuron in removed if not 0 <= neuron < count]
    if bad or len(set(removed)) < len(removed) or len(removed) >= count:
        raise ValueError(
            f"neurons: expected different indices from 0 to {count - 1}, and at least one neuron left, got "
            f"{bad[0] if bad else f'{len(removed)} with {len(set(removed))} different ones'}."
        )
    return removed
