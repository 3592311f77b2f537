"""The rules by which two neurons become one: what each writes, and what it needs to know."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from sdsd_kernels import checks

from ...graphs import BETWEEN, CONVOLUTIONS, MAKE_PERMANENT, READER, TIED, WRITER, Part, computed_tensors
from ..arithmetic import power_of_two, widened
from ..arrays import neurons_first
from .edits import Edit, IndexPairs, Pairs, apply, checked_pairs, part_tensor
from .group import Consumers

if TYPE_CHECKING:
    import numpy as np

How = Literal["mean", "act", "absorb"]
"""The rules by which two neurons become one; `merge` says what each does."""
MERGES: tuple[How, ...] = get_args(How)


class Merger:
    """Computes the edits of merging pairs in one layer of one model.

    Args:
        model: what is to be edited.
        group: the layer and its readers; from `model`, or from a model that `model` is a copy of.
        how: one of `MERGES`.
        absorption: for "absorb", ⟨a_i, a_j⟩ / ⟨a_i, a_i⟩ of pairs.
    """

    def __init__(
        self, model: nn.Module, group: Consumers, how: How, absorption: Callable[[IndexPairs], Tensor] | None = None
    ) -> None:
        check_how(how)
        if how == "mean":
            group.require_known()
            refuse_computed(model, group)
        else:
            group.require(f"how={how!r}", removal=False)
            refuse_tied(group, f"how={how!r}")
        self.model, self.group, self.how, self.absorption = model, group, how, absorption

    def checked(self, pairs: Pairs) -> IndexPairs:
        """ValueError or TypeError for pairs that cannot be merged."""
        return checked_pairs(pairs, self.group.neurons)

    def edits(self, pairs: IndexPairs) -> list[Edit]:
        """What to write where, in this order: several axes of a tensor one after the other. `pairs`: from `checked`."""
        roles = (WRITER, BETWEEN, TIED) if self.how == "mean" else (READER,)
        parts = [part for part in self.group.parts if part.role in roles]
        share = self.absorption(pairs) if self.how == "absorb" and self.absorption is not None else None
        names, edits, changed = [part.name for part in parts], list[Edit](), dict[str, Tensor]()
        for part in parts:
            tensor = part_tensor(self.model, part)
            now = changed.setdefault(part.name, tensor.detach().clone()) if names.count(part.name) > 1 else tensor
            own = [_averaged(now, part, pairs)] if share is None else added(now, part, pairs, share)
            if now is not tensor:
                apply(own)
            edits += [edit._replace(tensor=tensor) for edit in own]
        return edits


def check_how(how: str) -> None:
    checks.check_choice(how, "how", MERGES)


def added(weight: Tensor, reader: Part, pairs: IndexPairs, share: Tensor) -> list[Edit]:
    """o_i + share · o_j in the place of o_i, and 0 in that of o_j."""
    first, second = (reader.entries(which).to(weight.device) for which in pairs)
    times = share.repeat_interleave(len(first) // max(1, len(share))).to(weight.device)
    shape = [-1 if dim == reader.dim else 1 for dim in range(weight.ndim)]
    kept, dropped = (widened(weight.detach().index_select(reader.dim, which)) for which in (first, second))
    total = (kept + dropped * times.reshape(shape)).to(weight.dtype)
    return [
        Edit(weight, reader.dim, first, total),
        Edit(weight, reader.dim, second, torch.zeros_like(total)),
    ]


def _averaged(tensor: Tensor, touched: Part, pairs: IndexPairs) -> Edit:
    dim = touched.dim
    first, second = (touched.entries(which).to(tensor.device) for which in pairs)
    both = [tensor.detach().index_select(dim, which) for which in (first, second)]
    if not (tensor.is_floating_point() or tensor.is_complex()) and not torch.equal(*both):
        raise ValueError(
            f"pairs: the entries of {touched.name!r} are {tensor.dtype}, which has no averages, and differ between the "
            "neurons of a pair. Merge neurons whose entries agree, or by how='absorb', which leaves them."
        )
    halves = [widened(each) / 2 for each in both]
    average = (halves[0] + halves[1]).to(tensor.dtype)
    return Edit(tensor, dim, torch.cat((first, second)), torch.cat((average, average), dim))


def refuse_tied(group: Consumers, what: str) -> None:
    """ValueError where an axis of one tensor both gives the neurons' values and reads them."""
    for part in group.of(TIED):
        raise ValueError(
            f"layer: {part.name!r} writes the neurons of {group.layer!r} and reads them, as one tensor in two places, "
            f"so changing the one changes the other; {what} would. Untie them first (give one a copy), choose another "
            "layer, or merge by how='mean' with remove=False."
        )


def refuse_computed(model: nn.Module, group: Consumers) -> None:
    """ValueError where what would be averaged is computed from other tensors before each call."""
    for part in group.parts:
        holder = part.name.partition(".parametrizations")[0].rpartition(".")[0]
        computed = computed_tensors(model.get_submodule(holder)) if part.role in (WRITER, BETWEEN, TIED) else []
        if computed:
            raise ValueError(
                f"layer: the {computed[0]} of {holder!r}, behind {group.layer!r}, is computed from other tensors, so "
                f"it cannot be averaged. {MAKE_PERMANENT}"
            )


def layer_rows(model: nn.Module, group: Consumers, activations: Tensor | np.ndarray, neuron_dim: int | None) -> Tensor:
    """The activations of a layer's neurons. Of neurons with several rows, these are samples.  # shape: (neurons, …)"""
    if neuron_dim is None:
        holder = dict(model.named_modules(remove_duplicate=False)).get(group.layer)
        neuron_dim = 1 if isinstance(holder, CONVOLUTIONS) else -1
    rows = neurons_first(activations, neuron_dim)
    if rows.shape[0] == len(group.rows) != group.neurons:
        order = group.rows.argsort(stable=True).to(rows.device)
        rows = rows.flatten(1)[order].reshape(group.neurons, -1)
    samples = rows[0].numel() if len(rows) else 0
    if rows.shape[0] != group.neurons or samples == 0:
        raise ValueError(
            f"activations: expected samples of {group.neurons} neurons, got {rows.shape[0]} neurons along dimension "
            f"{neuron_dim} and {samples} samples. neuron_dim names the dimension that counts neurons."
        )
    return rows


def absorption_from(
    model: nn.Module,
    group: Consumers,
    activations: Tensor | np.ndarray | None,
    gram: Tensor | np.ndarray | None,
    neuron_dim: int | None,
) -> Callable[[IndexPairs], Tensor]:
    """A function that gives ⟨a_i, a_j⟩ / ⟨a_i, a_i⟩ of pairs, in float64: what "absorb" needs."""
    neurons = group.neurons
    if gram is not None:
        products = torch.as_tensor(gram).detach()
        if tuple(products.shape) != (neurons, neurons) or not products.is_floating_point():
            raise ValueError(
                f"gram: expected sums of products of {neurons} neurons, floating point of shape ({neurons}, {neurons}),"
                f" got {products.dtype} of shape {tuple(products.shape)}."
            )
        return lambda pairs: _shares(
            products[pairs.first, pairs.second].double().cpu(), products.diagonal().double().cpu(), pairs
        )
    if activations is None:
        raise ValueError(
            "how='absorb' needs activations= or gram=: the share of j that i takes over is ⟨a_i, a_j⟩ / ⟨a_i, a_i⟩. "
            "how='mean' and how='act' need neither."
        )
    rows = layer_rows(model, group, activations, neuron_dim)

    def shares(pairs: IndexPairs) -> Tensor:
        squares = torch.zeros(neurons, dtype=torch.float64)
        products = torch.zeros(len(pairs.first), dtype=torch.float64)
        for place, (i, j) in enumerate(torch.stack(pairs, 1).tolist()):
            a, b = rows[i].double(), rows[j].double()
            scale = power_of_two(-torch.frexp(torch.maximum(a.abs().max(), b.abs().max())).exponent)
            a, b = a * scale, b * scale  # so that squares stay in range
            squares[i], squares[j], products[place] = (a * a).sum(), (b * b).sum(), (a * b).sum()
        return _shares(products, squares, pairs)

    return shares


def _shares(products: Tensor, squares: Tensor, pairs: IndexPairs) -> Tensor:
    kept, dropped = squares[pairs.first], squares[pairs.second]
    for i, j, own, other, product in zip(*pairs, kept, dropped, products, strict=True):
        if not bool(torch.isfinite(own + other + product)):
            raise ValueError(f"activations: those of neurons {i} and {j} are not finite.")
        if own == 0 and other > 0:
            raise ValueError(
                f"pairs: neuron {i} is zero on every sample, so it cannot stand in for neuron {j}. Pass the pair as "
                f"({j}, {i}), or leave it out."
            )
    return torch.where(kept == 0, 0.0, products / kept.clamp_min(torch.finfo(torch.float64).tiny))
