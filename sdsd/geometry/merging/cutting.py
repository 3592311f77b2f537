"""Neurons taken out of a copy of a network: fewer rows, fewer columns, and sizes that say so."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ...graphs import READER, Attribute, FewerHeads, Plain, as_arguments, first_line, fit_sizes, is_fitted, seeded
from ...models import copy_of, evaluating, untouched, unwritten
from .edits import IndexPairs, apply, part_tensor
from .group import Consumers
from .merger import Merger, added, refuse_tied
from .norms import REPEAT, Norms, RepeatedNorm, with_norms_apart


def to_remove(model: nn.Module, group: Consumers, norms: Norms) -> Consumers:
    """The group as neurons are taken out of it; ValueError where they cannot be."""
    fewer = with_norms_apart(model, group) if norms == REPEAT and group.statistics else group
    fewer.require("Removing neurons", removal=True)
    if fewer is group:
        refuse_tied(group, "removal")
    return fewer


def copied(model: nn.Module, groups: Sequence[Consumers], sharing: bool) -> nn.Module:
    """A copy to be cut; with `sharing` it has every tensor that is not cut in common with the model."""
    memo: dict[int, Any] = {}
    if sharing:
        touched = {id(part_tensor(model, part)) for group in groups for part in group.parts}
        memo = {id(each): each for each in (*model.parameters(), *model.buffers()) if id(each) not in touched}
    return copy_of(model, memo)


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
            vars(getattr(others[path], name)).update(vars(getattr(module, name)))  # what training goes by, as no_decay
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
            fewer = fewer.contiguous(memory_format=_format_of(tensor))
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


def _format_of(tensor: Tensor) -> torch.memory_format:
    """Channels last where the tensor has them last."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = formats.get(tensor.ndim, torch.contiguous_format)
    plain = tensor.is_contiguous() or not tensor.is_contiguous(memory_format=last)
    return torch.contiguous_format if plain else last


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
        with untouched(model), unwritten(arguments, named), evaluating(model), seeded(None, []):
            counter.of(lambda: model(*arguments, **named))
    except Exception as error:
        reason = f"the network does not run on example_input ({type(error).__name__}: {first_line(error)})"
        raise ValueError(f"consolidation: {reason}. With check=True the error says where it stops.") from error
    return parameters, counter.total


class _Flops(TorchDispatchMode):
    """Counts as `torch.utils.flop_counter` does, whose own mode hooks modules and fails on views of parameters."""

    total = 0

    def of(self, run: Callable[[], Any]) -> None:
        with self, Plain():
            run()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch.utils.flop_counter import flop_registry

        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


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
