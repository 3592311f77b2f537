"""Merging neurons for good: fewer rows in a layer, fewer columns in the layers that read it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sdsd_kernels import checks

from ...graphs import READER, Attribute, FewerHeads, Plain, as_arguments, first_line, fit_sizes, is_fitted
from ...models import evaluating, untouched
from .consumers import Consumers, consumers
from .cost import foretold_change, products_of
from .merge import (
    How,
    IndexPairs,
    Merger,
    Pairs,
    absorption_from,
    added,
    applied,
    apply,
    check_how,
    checked_neurons,
    part_tensor,
    refuse_tied,
)
from .norms import REPEAT, Norms, RepeatedNorm, refuse_across_groups, repeat_norms, with_norms_apart
from .proof import outcome, prove, zeroed

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Consolidation:
    """What `consolidate` did. Each of the pairs of numbers is (before, after).

    Attributes:
        layer: name of the layer.
        how: "mean" | "act" | "absorb"; "" where neurons were removed without merging.
        pairs: the merged pairs.
        removed: indices, in the old layer, of neurons that are gone.
        neurons: of the layer.
        parameters: of the whole model.
        flops: of matrix products and convolutions in one forward pass over the example input, a multiplication and
            an addition counting two; None without one.
        compared: whether the smaller network was run beside the merged one, and agreed to rounding.
        foretold: root mean square change of what the readers get, over what they get, from activations or gram alone,
            as `merge_cost` foretells it; None where neither was given.
    """

    layer: str
    how: How | Literal[""]
    pairs: tuple[tuple[int, int], ...]
    removed: tuple[int, ...]
    neurons: tuple[int, int]
    parameters: tuple[int, int]
    flops: tuple[int, int] | None
    compared: bool
    foretold: float | None = None

    def __str__(self) -> str:
        done = f"{len(self.pairs)} pairs merged (how={self.how!r})" if self.how else "neurons removed"
        flops = "not counted (pass example_input)" if self.flops is None else _change(self.flops)
        return (
            f"{self.layer!r}: {done}\n  neurons    {_change(self.neurons)}\n"
            f"  parameters {_change(self.parameters)}\n  FLOPs      {flops}"
            + (
                ""
                if self.foretold is None
                else f"\n  readers    get values that differ by {self.foretold:.2%}, foretold (root mean square)"
            )
            + (f"\n  outputs    {outcome(self.compared)}" if self.compared or self.removed else "")
        )


def _change(numbers: tuple[int, int]) -> str:
    before, after = numbers
    percent = f" (−{100 * (before - after) / before:.1f}%)" if after != before else ""
    return f"{before:,} → {after:,}{percent}"


@torch.inference_mode(False)
def consolidate(
    model: nn.Module,
    layer: str,
    pairs: Pairs,
    how: How = "mean",
    *,
    remove: bool = True,
    norms: Norms = "refuse",
    inplace: bool = False,
    activations: Tensor | np.ndarray | None = None,
    gram: Tensor | np.ndarray | None = None,
    neuron_dim: int | None = None,
    example_input: Any = None,
    check: bool = True,
) -> tuple[nn.Module, Consolidation]:
    """Merge pairs (i, j) of neurons for good and take j out of the network.

    The smaller network computes what `merge` makes the whole one compute, in eval mode and to rounding:

        "mean"    row i becomes the average of both, and readers add o_j to o_i, for both neurons are the same
        "absorb"  row i stays, and readers add o_j ⟨a_i, a_j⟩ / ⟨a_i, a_i⟩ to o_i

    "act" averages two activations that stay different, so nothing can be removed; use it with remove=False.

    Before it is returned, both are run on the same inputs, in eval mode and as in training without dropout and with
    running statistics, and compared: on `example_input`, on other sizes and values where the forward decides by them,
    and on random numbers of its shapes, or without an example on random numbers of a shape that the model runs on. They
    may differ by 64 times what one rounding error in each weight of the layer and its readers does.

    Args:
        model: any model whose readers of `layer` are known (`consumers` prints them).
        layer, pairs, how, activations, gram, neuron_dim: as in `merge`. With activations or gram the report says what
            the readers will get other than now, whatever `how`.
        remove: False merges for good and keeps the shapes.
        norms: what becomes of norms over all neurons, as LayerNorm over a residual stream. "refuse": their mean and
            variance would be others, so nothing is removed. "repeat", for how="mean": each becomes a `RepeatedNorm`,
            which shows it the merged neurons twice, and before a tied head gives their sum. It keeps its parameters,
            under "norm." in its place, so the model's class and configuration no longer build it: save it with
            torch.save, whole.
        inplace: change `model` instead of a copy. An optimizer has to be made anew then: parameters are new tensors.
            A call that fails leaves the model as it was.
        example_input: as in `consumers`; with it FLOPs are counted, too.
        check: False: do not compare.

    Returns:
        (model, `Consolidation`). The model is made of the same modules as before with fewer rows and columns, so
        state_dict, torch.export, pickling and training work as before. With norms="repeat" the same holds, but for the
        class of these norms.

    Raises:
        TypeError, ValueError: as `merge`; removal where the neurons are read by something that cannot be cut, with
            the place, the reason and what to do; a smaller network that computes something else than the merged one,
            or does not run, with the first module where they part.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> smaller, report = consolidate(model, "0", [(0, 2), (1, 3)], example_input=torch.ones(1, 3))
        >>> print(smaller)
        Sequential(
          (0): Linear(in_features=3, out_features=2, bias=True)
          (1): ReLU()
          (2): Linear(in_features=2, out_features=2, bias=True)
        )
        >>> print(report)
        '0': 2 pairs merged (how='mean')
          neurons    4 → 2 (−50.0%)
          parameters 26 → 14 (−46.2%)
          FLOPs      40 → 20 (−50.0%)
          outputs    equal to the merged network's, to rounding
    """
    group = consumers(model, layer, example_input)
    check_how(how)
    absorption = absorption_from(model, group, activations, gram, neuron_dim) if how == "absorb" else None
    if remove and how == "act":
        raise ValueError(
            "how: 'act' averages two activations that stay different, so neither neuron can be removed. Pass "
            "remove=False, or how='mean' or 'absorb'."
        )
    checks.check_choice(norms, "norms", ("refuse", REPEAT))
    fewer = group
    if remove and norms == REPEAT:
        if how != "mean":
            raise ValueError(f"norms: 'repeat' needs how='mean', which makes both neurons the same; got how={how!r}.")
        fewer = with_norms_apart(model, group)
    if remove:
        fewer.require("Removing neurons", removal=True)
    if remove and fewer is group:
        refuse_tied(group, "removal")
    merger = Merger(model, group, how, absorption)
    checked = merger.checked(pairs)
    listed = [(i, j) for i, j in torch.stack(checked, 1).tolist()]
    sizes = sizes_of_model(model, example_input)
    if fewer is not group:
        refuse_across_groups(model, group, checked)
    edits = merger.edits(checked)
    known = products_of(model, group, activations, gram, neuron_dim)
    foretold = None if known is None else foretold_change(model, group, checked, how, known)
    if not remove:
        changed = model if inplace else copied(model, [group], sharing=False)
        apply(Merger(changed, group, how, absorption).edits(checked))
        report = _report(group, how, listed, [], before=sizes, after=sizes, compared=False)
        return changed, replace(report, foretold=foretold)
    smaller = copied(model, [group], inplace)
    shrink(smaller, [(fewer, Merger(smaller, group, how, absorption), checked)])
    if fewer is not group:
        repeat_norms(smaller, group, checked)
    compared = check and prove(model, smaller, group.parts, applied(edits), example_input)
    removed = [j for _, j in listed]
    after = sizes_of_model(smaller, example_input)
    report = _report(group, how, listed, removed, before=sizes, after=after, compared=compared)
    return given_back(model, smaller, [group], inplace), replace(report, foretold=foretold)


def shrink(smaller: nn.Module, merges: Sequence[tuple[Consumers, Merger, IndexPairs]]) -> None:
    """Merge pairs in groups of a copy, then take every second neuron out."""
    for _, merger, pairs in merges:
        apply(merger.edits(pairs))
    for group, merger, pairs in merges:
        if merger.how == "mean":
            ones = torch.ones(len(pairs.first), dtype=torch.float64)
            for part in group.of(READER):
                apply(added(part_tensor(smaller, part), part, pairs, ones))
    cut(smaller, [(group, pairs.second.tolist()) for group, _, pairs in merges])


@torch.inference_mode(False)
def remove_neurons(
    model: nn.Module,
    layer: str,
    neurons: Iterable[int],
    *,
    inplace: bool = False,
    example_input: Any = None,
    check: bool = True,
) -> tuple[nn.Module, Consolidation]:
    """Take neurons out of the network without a substitute, as pruning does; arguments and results of `consolidate`.

    The smaller network computes what the whole one does with the columns of these neurons in their readers set to 0.

    Args:
        neurons: indices of rows of the layer, each once, not all.

    Raises:
        TypeError, ValueError: as `consolidate`; an index that is out of range or listed twice; removing all.
    """
    group = consumers(model, layer, example_input)
    group.require("Removing neurons", removal=True)
    removed = checked_neurons(neurons, group.neurons)
    sizes = sizes_of_model(model, example_input)
    smaller = copied(model, [group], inplace)
    cut(smaller, [(group, removed)])
    compared = check and prove(model, smaller, group.parts, applied(zeroed(model, group, removed)), example_input)
    after = sizes_of_model(smaller, example_input)
    report = _report(group, "", [], removed, before=sizes, after=after, compared=compared)
    return given_back(model, smaller, [group], inplace), report


def copied(model: nn.Module, groups: Sequence[Consumers], sharing: bool) -> nn.Module:
    """A copy to be cut; with `sharing` it has every tensor that is not cut in common with the model."""
    memo: dict[int, Any] = {}
    if sharing:
        touched = {id(part_tensor(model, part)) for group in groups for part in group.parts}
        memo = {id(each): each for each in (*model.parameters(), *model.buffers()) if id(each) not in touched}
    for module in model.modules():  # what pruning and weight norm compute before each call has a graph behind it
        computed = [each for each in vars(module).values() if isinstance(each, Tensor) and not each.is_leaf]
        memo.update({id(each): each.detach().clone() for each in computed})
    return copy.deepcopy(model, memo)


def _holders(model: nn.Module, groups: Sequence[Consumers]) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """Every place of a tensor that removal cuts: a tensor may have several names."""
    touched = {id(part_tensor(model, part)) for group in groups for part in group.parts}
    for module in model.modules():
        for name, tensor in _tensors_of(module).items():
            if id(tensor) in touched:
                yield module, name, tensor


def given_back(model: nn.Module, smaller: nn.Module, groups: Sequence[Consumers], inplace: bool) -> nn.Module:
    """The smaller network; in place, the model with its tensors and sizes."""
    if not inplace:
        return smaller
    others = dict(smaller.named_modules(remove_duplicate=False))
    touched = {id(tensor) for _, _, tensor in _holders(model, groups)}
    attributes = [attribute for group in groups for attribute in group.attributes]
    sized = {attribute.module for attribute in attributes}
    configured = {(each.module, each.name.rpartition(".")[0]) for each in attributes}
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(others[path], RepeatedNorm) and not isinstance(module, RepeatedNorm):
            holder, _, name = path.rpartition(".")
            setattr(model.get_submodule(holder), name, others[path])
            continue
        if isinstance(others[path], FewerHeads):
            module.__class__ = FewerHeads
            sized.add(path)
        mine = [name for name, tensor in _tensors_of(module).items() if id(tensor) in touched]
        for name in mine:
            setattr(module, name, getattr(others[path], name))
        if mine or path in sized:
            for name, value in vars(others[path]).items():
                if (isinstance(value, (int, tuple)) and name != "training") or (path, name) in configured:
                    setattr(module, name, value)
    return model


def cut(model: nn.Module, removals: Sequence[tuple[Consumers, list[int]]]) -> None:
    """Remove the entries of these neurons from every tensor that has some, and from the sizes that modules state."""
    groups = [group for group, removed in removals if removed]
    holders = list(_holders(model, groups))
    modules = {id(module): module for module, _, _ in holders}
    shapes = {
        key: {name: tuple(each.shape) for name, each in _tensors_of(module).items()} for key, module in modules.items()
    }
    kept: dict[tuple[int, int], Tensor] = {}
    attributes: list[tuple[Attribute, int]] = []
    for group, removed in removals:
        gone = torch.tensor(removed, dtype=torch.long)
        for part in group.parts if removed else ():
            key, stays = (id(part_tensor(model, part)), part.dim), ~torch.isin(part.units, gone)
            kept[key] = kept.get(key, stays) & stays
        for attribute in group.attributes if removed else ():
            attributes.append((attribute, int((~torch.isin(attribute.units, gone)).sum())))
    made: dict[int, Tensor] = {}
    for module, name, tensor in holders:
        if id(tensor) not in made:
            fewer = tensor.detach()
            for (owner, dim), stays in kept.items():
                if owner == id(tensor):
                    fewer = fewer.index_select(dim, stays.nonzero().flatten().to(tensor.device))
            fewer = fewer.contiguous()
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(fewer, requires_grad=tensor.requires_grad) if is_parameter else fewer
        setattr(module, name, made[id(tensor)])
    for module in model.modules():
        if type(module) is nn.MultiheadAttention and {id(module), id(module.out_proj)} & modules.keys():
            module.__class__ = FewerHeads
            fit_sizes(module, {})
    for place, module in modules.items():
        fit_sizes(module, shapes[place])
    for attribute, left in attributes:
        module = model.get_submodule(attribute.module)
        if not is_fitted(module, attribute.name):
            _fit_attribute(module, attribute, left)


def _fit_attribute(module: Any, attribute: Attribute, left: int) -> None:
    """The number in proportion; a configuration becomes the module's own, for others share it."""
    owner, _, name = attribute.name.rpartition(".")
    if owner:
        setattr(module, owner, copy.copy(getattr(module, owner)))
        module = getattr(module, owner)
    setattr(module, name, getattr(module, name) * left // len(attribute.units))


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    stores = (module._parameters, module._buffers)
    return {name: each for store in stores for name, each in store.items() if each is not None}


def sizes_of_model(model: nn.Module, example_input: Any) -> tuple[int, int | None]:
    """Parameters, and FLOPs of one forward pass where there is an example; ValueError for one that does not run."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if example_input is None:
        return parameters, None
    arguments, named = as_arguments(example_input)
    counter = _Flops()
    try:
        with untouched(model), evaluating(model), torch.random.fork_rng(devices=[]), counter, Plain():
            model(*arguments, **named)
    except Exception as error:
        reason = f"the network does not run on example_input ({type(error).__name__}: {first_line(error)})"
        raise ValueError(f"consolidation: {reason}. With check=True the error says where it stops.") from error
    return parameters, counter.total


class _Flops(TorchDispatchMode):
    """Counts as `torch.utils.flop_counter` does, whose own mode hooks modules and fails on views of parameters."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch.utils.flop_counter import flop_registry

        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def _report(
    group: Consumers,
    how: How | Literal[""],
    pairs: list[tuple[int, int]],
    removed: list[int],
    *,
    before: tuple[int, int | None],
    after: tuple[int, int | None],
    compared: bool,
) -> Consolidation:
    flops = None if before[1] is None or after[1] is None else (before[1], after[1])
    neurons = (group.neurons, group.neurons - len(removed))
    return Consolidation(
        group.layer, how, tuple(pairs), tuple(removed), neurons, (before[0], after[0]), flops, compared
    )
