"""Norms over all neurons in networks that have fewer of them: a neuron that stands for two counts twice."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...graphs import BETWEEN, TIED, Norm
from .edits import IndexPairs
from .group import Consumers

Norms = Literal["refuse", "repeat"]
REPEAT = "repeat"


class RepeatedNorm(nn.Module):
    """A norm that goes on to see as many neurons as before some of them were merged.

    Merged neurons have one value, so repeating it gives the norm what it saw, whatever it computes: mean and variance
    are those of the merged network. One value for each neuron that is left is given on, or the sum of those that it
    stands for, where what reads them is a writer's weight as well and cannot hold the sum of its columns.

    Args:
        norm: the norm, as wide as it was.
        dim: the dimension of its input and output that counts neurons, from the end.
        places: for each entry that the norm sees, its place among those that are left.  # shape: (before,)
        kept: which of the norm's outputs are given on.  # shape: (after,)
        summed: give on sums.
    """

    places: Tensor
    kept: Tensor
    times: Tensor | None

    def __init__(self, norm: nn.Module, dim: int, places: Tensor, kept: Tensor, summed: bool = False) -> None:
        super().__init__()
        self.norm, self.dim = norm, dim
        self.register_buffer("places", places)
        self.register_buffer("kept", kept)
        self.register_buffer("times", places.bincount(minlength=len(kept)) if summed else None)

    def __getattr__(self, name: str) -> Any:
        """What it has not, such as a weight whose dtype the model asks for, is that of the norm."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            inner = self.__dict__.get("_modules", {}).get("norm")
            if inner is None:
                raise
            return getattr(inner, name)

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Tensor:
        """The norm of the neurons that are left.

        Args:
            x: activations; neurons are along `dim`.
            others, named: what else the norm takes.

        Returns:
            As many neurons as `x` has.  # shape: that of x
        """
        wide: Tensor = self.norm(x.index_select(self.dim, self.places), *others, **named)
        given = wide.index_select(self.dim, self.kept)
        return given if self.times is None else given * self.times.reshape(-1, *[1] * (-1 - self.dim))

    def extra_repr(self) -> str:
        """How many neurons the norm sees, and how many there are."""
        return f"{len(self.places)} seen, {len(self.kept)} given on{'' if self.times is None else ', summed'}"


def with_norms_apart(model: nn.Module, group: Consumers) -> Consumers:
    """The group without what its norms keep and what they stand in the way of; ValueError where a norm cannot be kept
    as it is."""
    modules = dict(model.named_modules(remove_duplicate=False))
    names = {norm.module for norm in group.statistics}
    for obstacle in group.obstacles:
        if obstacle.norm is not None and (
            obstacle.norm not in names or any(True for _ in modules[obstacle.norm].children())
        ):
            raise ValueError(
                f"norms: 'repeat' needs norms that are modules of their own, called on one tensor. {obstacle.where}: "
                f"{obstacle.reason}, inside module {obstacle.norm!r}. Give the norm a module, or merge without removal "
                "(remove=False)."
            )
    parts = tuple(part for part in group.parts if part.name.rpartition(".")[0] not in names)
    apart = [part for part in group.parts if part.name.rpartition(".")[0] in names]
    wrong = next((part.name for part in apart if part.role != BETWEEN), None)
    if wrong is not None:
        raise ValueError(f"norms: {wrong!r} is multiplied elsewhere as well, so its norm cannot stay as it is.")
    tied, summed = group.of(TIED), _summed(group)
    for part in tied:
        behind = [norm for norm in part.behind if norm not in summed]
        if behind or not part.behind:
            raise ValueError(
                f"norms: {part.name!r} writes the neurons of {group.layer!r} and reads them, as one tensor in two "
                "places, so it cannot hold the sum of two columns. It could read sums behind a norm that nothing else "
                f"reads, and {_what(behind)}. Untie them first (give one a copy), or merge without removal "
                "(remove=False)."
            )
    others = tuple(obstacle for obstacle in group.obstacles if obstacle.norm is None)
    return dataclasses.replace(group, parts=parts, obstacles=others)


def _summed(group: Consumers) -> set[str]:
    """Norms whose outputs are read by nothing but weights that write the neurons as well."""
    tied = {part.name for part in group.of(TIED)}
    return {norm.module for norm in group.statistics if norm.readers and norm.readers <= tied}


def _what(behind: list[str]) -> str:
    named = [norm for norm in behind if norm]
    return f"{named[0]!r} has other readers" if named else "it reads them from elsewhere"


def refuse_across_groups(model: nn.Module, group: Consumers, pairs: IndexPairs) -> None:
    """ValueError for neurons that have one value and get two, in different groups of a GroupNorm."""
    for norm in group.statistics:
        taken_in = _groups_of(model, norm)
        for i, j in torch.stack(pairs, 1).tolist():
            if not torch.equal(taken_in[i], taken_in[j]):
                raise ValueError(
                    f"pairs: neurons {i} and {j} have one value when merged, which {norm.module!r} normalises in "
                    "different groups. Pair neurons of one group, or merge without removal (remove=False)."
                )


def in_one_group(model: nn.Module, group: Consumers, pairs: IndexPairs) -> Tensor:
    """Whether every norm takes the two neurons of a pair in one group.  # shape: (pairs,), bool"""
    same = torch.ones(len(pairs.first), dtype=torch.bool)
    for norm in group.statistics:
        taken_in = _groups_of(model, norm)
        same &= (taken_in[pairs.first] == taken_in[pairs.second]).all(1)
    return same


def _groups_of(model: nn.Module, norm: Norm) -> Tensor:
    """The group that a norm takes each entry of each neuron in.  # shape: (neurons, entries of each)"""
    groups = getattr(model.get_submodule(norm.module), "num_groups", 1)
    order = norm.units.argsort(stable=True).reshape(int(norm.units.max()) + 1, -1)
    return order * groups // len(norm.units)


def repeat_norms(model: nn.Module, group: Consumers, pairs: IndexPairs) -> None:
    """Put a `RepeatedNorm` in the place of every norm over the neurons of a model from which the second of each pair
    was cut."""
    summed = _summed(group)
    for norm in group.statistics:
        inner = model.get_submodule(norm.module)
        device = next((each.device for each in (*inner.parameters(), *inner.buffers())), pairs.first.device)
        places, kept = _places(norm, pairs)
        made = RepeatedNorm(inner, norm.dim, places.to(device), kept.to(device), norm.module in summed)
        made.train(inner.training)
        for module in model.modules():
            for name, child in list(module._modules.items()):
                if child is inner and module is not made:
                    setattr(module, name, made)


def _places(norm: Norm, pairs: IndexPairs) -> tuple[Tensor, Tensor]:
    units = norm.units
    stays = ~torch.isin(units, pairs.second)
    place = stays.cumsum(0) - 1  # of an entry, among those that stay
    order = units.argsort(stable=True).reshape(int(units.max()) + 1, -1)  # shape: (units, entries of each)
    source = order.clone()
    source[pairs.second] = order[pairs.first]
    places = torch.empty_like(units)
    places[order.flatten()] = place[source.flatten()]
    return places, stays.nonzero().flatten()
