"""Merging pairs of neurons for the length of a `with` block, the model restored bit for bit."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from sdsd_kernels import checks

from ...graphs import BETWEEN, CONVOLUTIONS, MAKE_PERMANENT, READER, TIED, WRITER, Part, computed_tensors
from ...models import restored
from ..arithmetic import power_of_two, widened
from ..arrays import neurons_first
from .consumers import Consumers, consumers

if TYPE_CHECKING:
    import numpy as np

How = Literal["mean", "act", "absorb"]
"""The rules by which two neurons become one; `merge` says what each does."""
MERGES: tuple[How, ...] = get_args(How)
Pairs = Iterable[Sequence[Any]] | Tensor
"""(first, second) neuron indices; what follows in an entry is ignored, so that `NeuronPair`s can be passed."""


def merge(
    model: nn.Module,
    layer: str,
    pairs: Pairs,
    how: How = "mean",
    *,
    activations: Tensor | np.ndarray | None = None,
    gram: Tensor | np.ndarray | None = None,
    neuron_dim: int | None = None,
    example_input: Any = None,
) -> AbstractContextManager[nn.Module]:
    """Merge pairs (i, j) of neurons inside a `with` block; afterwards the model is as it was, bit for bit.

        "mean"    w_i, w_j ← (w_i + w_j) / 2, the same for biases, for entries of norms on the way (γ, β, means and
                  variances) and for kernels of depthwise convolutions; readers keep their weights, but those that
                  are a writer's as well, as in a tied head
        "act"     o_i, o_j ← (o_i + o_j) / 2: readers see the average of both activations; incoming weights stay
        "absorb"  o_i ← o_i + o_j ⟨a_i, a_j⟩ / ⟨a_i, a_i⟩,  o_j ← 0: j is dropped, and i stands in for it as well as
                  least squares on the activations can make it

    w are incoming weights, o the columns of the layers that read the neurons; both are found by `consumers`. Two
    neurons that always agree are merged without changing what the network computes; by "mean" where their weights, and
    their entries of norms, agree as well: averages of neurons that a BatchNorm brings together from different scales
    are another neuron. Averages are taken in float64, then rounded.

    Args:
        model: changed in place inside the block. Restored after it, whatever happens inside (training too): all
            parameters and buffers, requires_grad, train and eval modes; a copy of them waits meanwhile.
        layer: name of an nn.Linear or convolution, as in `model.named_modules()`.
        pairs: index pairs, a list or a (k, 2) tensor; no neuron may be in two of them.
        how: "mean" | "act" | "absorb".
        activations: for "absorb", what readers see of the neurons (after norm and nonlinearity), any layout, any
            number of samples.
        gram: for "absorb", instead of activations: sums of products Σ_s a_si a_sj (`GramAccumulator.gram()`).
            # shape: (n, n)
        neuron_dim: the dimension of `activations` that counts neurons; None: 1 for convolutions, else the last.
        example_input: as in `consumers`.

    Returns:
        A context manager that gives the model. Nothing happens before it is entered; `consolidate` changes for good.

    Raises:
        TypeError: as `consumers`; pairs that are no integers.
        ValueError: as `consumers`; an unknown `how`; an index out of range, a neuron in two pairs or paired with
            itself; readers that cannot be changed; weights shared with another layer; "absorb" without activations,
            or with a first neuron that is zero on all of them while the second is not.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> x, before = torch.ones(1, 3), model[0].weight.clone()
        >>> with merge(model, "0", [(0, 2)]):
        ...     hidden = model[:2](x)
        >>> bool(hidden[0, 0] == hidden[0, 2]), bool((model[0].weight == before).all())
        (True, True)
    """
    group = consumers(model, layer, example_input)
    absorption = absorption_from(model, group, activations, gram, neuron_dim) if how == "absorb" else None
    merger = Merger(model, group, how, absorption)
    return _merged(merger, merger.checked(pairs))


@contextmanager
def _merged(merger: Merger, pairs: IndexPairs) -> Iterator[nn.Module]:
    edits = merger.edits(pairs)
    with restored(merger.model):
        apply(edits)
        yield merger.model


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


def part_tensor(model: nn.Module, part: Part) -> Tensor:
    """The parameter or buffer of that name."""
    holder, _, name = part.name.rpartition(".")
    return tensor_of(model.get_submodule(holder), name)


def tensor_of(module: nn.Module, name: str) -> Tensor:
    tensor = getattr(module, name)
    assert isinstance(tensor, Tensor)
    return tensor


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
