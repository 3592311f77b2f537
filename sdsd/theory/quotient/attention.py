"""What attention leaves free besides scales and mixings: whole heads, and shifts of keys.

Heads can change places, with all that writes and reads them. And what is added to all keys alike adds one number to all
scores of a query, which softmax takes away again. Whether either holds depends on what lies between: rotary and
relative positions, masks, norms, sinks. So the channels of a run say what could move, and the model itself decides: a
copy with random numbers added to its parameters, so that nothing is zero or alike by chance, has to compute the same
with heads in another order, and to have no gradient where a shift is free.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...graphs import Atoms, Ids, seeded
from ...models import copy_of
from .channels import BIAS, READ, WRITING, Attention, Channels, Use
from .same_function import arguments_in_float64, in_floats
from .segments import Order, Slice

NUDGE = 0.1
"""Spread of what is added to parameters, in parts of their own size, or as it is where that is smaller."""
SAME = 1e-5
"""Outputs or gradients that differ by less, in parts of their size, are the same: some models round to float32."""


def heads_and_shifts(
    model: nn.Module, example_input: Any, channels: Channels, uses: dict[str, list[Use]]
) -> tuple[list[Order], list[Slice], list[str]]:
    """Heads that can change places, entries of biases that can be shifted, and what could not be tried.

    Args:
        model: left as it is.
        uses: of parameters that train and nothing holds, by name.
    """
    made = (_heads(each, channels, uses) for each in channels.attentions)
    orders = list({tuple(part.key for part in order.parts): order for order in made if order is not None}.values())
    shifts = dict(_shifts(channels, uses))
    if not orders and not shifts:
        return [], [], []
    try:
        trial = _Trial(model, example_input)
        return trial.orders(orders), list(trial.shifts(shifts, uses)), []
    except Exception as error:
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        return (
            [],
            [],
            [f"permutations of heads and shifts of keys: a copy with random parameters does not run ({line})"],
        )


# ---- what could move -------------------------------------------------------------------------------------------------


def _heads(attention: Attention, channels: Channels, uses: dict[str, list[Use]]) -> Order | None:
    """The heads of one attention: with keys in common they go together."""
    blocks = [attention.queries, attention.keys, *attention.values]
    if len(blocks) < 3 or any(len(each) != len(attention.queries) or not each.all() for each in blocks):
        return None
    rows = np.concatenate([channels.along.roots(each) for each in blocks], axis=1)
    head = _classes(rows)
    count = int(head.max()) + 1
    if count < 2:
        return None
    owner = np.full(channels.count, -1)
    owner[rows.ravel()] = np.repeat(head, rows.shape[1])
    owner = np.where(np.arange(channels.count) > 0, owner[channels.along.roots(np.arange(channels.count))], -1)
    parts: dict[Any, Slice] = {}
    writers: dict[str, None] = {}
    readers: dict[str, None] = {}
    for use in (use for each in uses.values() for use in each):
        units = use.units(owner)
        sizes = np.bincount(units[units >= 0], minlength=count)
        if not sizes[0] or (sizes != sizes[0]).any():
            continue  # nothing of theirs, or what all of them share
        part = Slice(use.name, use.axis, torch.from_numpy(units))
        parts[part.key] = part
        if use.role in WRITING:
            writers[use.layer] = None
        elif use.role == READ:
            readers[use.layer] = None
    if not writers or not readers:
        return None
    return Order(count, count, tuple(writers), tuple(readers), tuple(parts.values()), "heads")


def _classes(rows: Ids) -> Ids:
    """The class of each row: rows that have an entry in common are of one, numbered as they come."""
    entries = Atoms()
    entries.new(int(rows.max()) + 1)
    entries.unite(np.repeat(rows[:, 0], rows.shape[1]), rows)
    return entries.numbered(rows[:, 0])[1]


def _shifts(channels: Channels, uses: dict[str, list[Use]]) -> Iterable[tuple[str, Ids]]:
    """Biases that add alike to all queries or all keys of an attention, and which of their entries do."""
    entries: dict[str, set[int]] = {}
    for attention in channels.attentions:
        ids = np.unique(np.concatenate([attention.queries.ravel(), attention.keys.ravel()]))
        roots = np.unique(channels.along.roots(ids[ids > 0]))
        for name in attention.offsets:
            for use in uses.get(name, ()):
                if use.role == BIAS:
                    mine = (use.channels > 0) & np.isin(channels.along.roots(use.channels), roots)
                    entries.setdefault(name, set()).update(np.flatnonzero(mine).tolist())
    return [(name, np.array(sorted(each))) for name, each in entries.items() if each]


# ---- what the model says ---------------------------------------------------------------------------------------------


@dataclass
class _Trial:
    """A copy in float64 with random numbers added to its parameters, on the example."""

    model: nn.Module
    example: Any

    def __post_init__(self) -> None:
        self.model = copy_of(self.model).double().requires_grad_(True).eval()
        self.args, self.kwargs = arguments_in_float64(self.example)
        device = next(self.model.parameters()).device
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.model.parameters():
                size = parameter.square().mean().sqrt().clamp(max=1.0) if parameter.numel() else parameter.sum()
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(device)
                parameter.add_(noise * torch.where(size > 0, size, 1.0) * NUDGE)
        self.parameters = dict(self.model.named_parameters())

    def run(self) -> list[Tensor]:
        """All outputs, in eval mode."""
        with seeded(0, []):
            return in_floats(self.model(*self.args, **self.kwargs))

    def orders(self, orders: list[Order]) -> list[Order]:
        """Those with which the model computes the same: all at once, or one by one where they do not."""
        if not orders:
            return []
        with torch.no_grad():
            before = self.run()
            if self._same(before, orders):
                return orders
            return [order for order in orders if self._same(before, [order])]

    def _same(self, before: list[Tensor], orders: list[Order]) -> bool:
        kept = {part.name: self.parameters[part.name].clone() for order in orders for part in order.parts}
        for order in orders:
            for part in order.parts:
                parameter = self.parameters[part.name]
                entries = part.entries(order.width)
                places = torch.arange(parameter.shape[part.axis])
                places[entries.flatten()] = entries.roll(1, 0).flatten()
                parameter.copy_(parameter.index_select(part.axis, places.to(parameter.device)))
        after = self.run()
        for name, value in kept.items():
            self.parameters[name].copy_(value)
        return all(_alike(one, two) for one, two in zip(before, after, strict=True))

    def shifts(self, entries: dict[str, Ids], uses: dict[str, list[Use]]) -> Iterable[Slice]:
        """Of entries of biases those that have no gradient, while what else writes the same neurons does."""
        if not entries:
            return
        generator = torch.Generator().manual_seed(1)
        with torch.enable_grad():
            given = [each for each in self.run() if each.requires_grad]
            weights = [torch.randn(each.shape, generator=generator).to(each) for each in given]
            total = torch.stack([(one * two).sum() for one, two in zip(given, weights, strict=True)]).sum()
        gradients = torch.autograd.grad(total, list(self.parameters.values()), allow_unused=True)
        sizes = {
            name: each.abs().cpu() for name, each in zip(self.parameters, gradients, strict=True) if each is not None
        }
        scales = self._scales(sizes, uses)
        for name, mine in entries.items():
            if name not in sizes:
                continue
            scale = torch.zeros(len(sizes[name]), dtype=torch.float64)
            for use in uses[name]:
                scale = torch.maximum(scale, scales[torch.from_numpy(use.channels)])
            free = torch.from_numpy(mine)
            free = free[(scale[free] > 0) & (sizes[name][free] <= SAME * scale[free])]
            if len(free):
                units = torch.full((len(sizes[name]),), -1)
                units[free] = torch.arange(len(free))
                yield Slice(name, 0, units)

    def _scales(self, sizes: dict[str, Tensor], uses: dict[str, list[Use]]) -> Tensor:
        """The largest gradient of what else writes each channel."""
        most = 1 + max(int(use.channels.max(initial=0)) for each in uses.values() for use in each)
        scales = torch.zeros(most, dtype=torch.float64)
        for use in (use for each in uses.values() for use in each):
            if use.role in WRITING and use.role != BIAS and use.name in sizes:
                size = sizes[use.name].movedim(use.axis, 0).reshape(len(use.channels), -1)
                scales.scatter_reduce_(0, torch.from_numpy(use.channels), size.amax(1), "amax")
        scales[0] = 0
        return scales


def _alike(one: Tensor, two: Tensor) -> bool:
    finite = one.isfinite()
    if not torch.equal(finite, two.isfinite()):
        return False
    one, two = one[finite], two[finite]
    return not one.numel() or bool((one - two).abs().max() <= SAME * one.abs().max())
