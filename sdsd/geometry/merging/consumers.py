"""Which neurons belong together, and which layers write, change and read them, found by running the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ...graphs import (
    DENSE,
    MAKE_PERMANENT,
    MERGING,
    READER,
    READING,
    REMOVAL,
    Group,
    Groups,
    Obstacle,
    Part,
    can_have_fewer_heads,
    computed_tensors,
    look,
    row_dim,
)
from ...models import memory_of_others, place_of
from .group import Consumers
from .layers import dense_layer

ONE_TENSOR = "Give it memory of its own (nn.Parameter(tensor.clone())), or use the one parameter in both places."
BY_SHAPE = "what reads its neurons depends on the shape of the input"
PASS_EXAMPLE = "Pass example_input, so that shapes are known."


def consumers(model: nn.Module, layer: str, example_input: Any = None) -> Consumers:
    """Find what writes, changes and reads the neurons of `layer`.

    The model is run on the example, in eval mode and as in training (for heads that run in training only are readers,
    too), on other sizes and values where its forward decides by them, and every operation of torch is followed: which
    entries of which parameters become one value, however the forward is written. Neurons that elementwise operations
    join, as a gate and what it gates, or every writer of a residual stream, are one group. Where an operation mixes
    them, takes them by their places, or has no rule, that is an obstacle, named with its module. The recording is kept
    while the model is as it was: its modules, their settings, the shapes of its tensors.

    Args:
        model: any model that runs; it is not changed.
        layer: name of a layer, as in `model.named_modules()`: Linear, a convolution, or any other module with a weight
            that is multiplied (a class of your own). Where a module has several, as experts do, the parameter's name.
        example_input: a tensor, a tuple of positional or a dictionary of keyword arguments the model runs on. None:
            inputs of likely shapes are tried; where they say different things, an example is asked for.

    Returns:
        `Consumers`.

    Raises:
        TypeError: `model` is no module, or `layer` has no weight that is multiplied.
        ValueError: no layer of that name (the nearest is suggested), one that the model's forward never calls, or a
            model that does not run.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10))
        >>> print(consumers(model, "0", torch.rand(1, 1, 8, 8)))
        '0' (Conv2d, 8 neurons)
          read by '4' (Linear), 9 columns a neuron
    """
    module = dense_layer(model, layer)
    looks = look(model, example_input)
    weight, dim = _rows(looks, module, layer)
    group, *others = [each.of(weight, dim) for each in looks]
    obstacles = [obstacle for each in (group, *others) for obstacle in each.obstacles]
    if any(not _same(group, other) for other in others):
        obstacles.append(Obstacle(repr(layer), BY_SHAPE, PASS_EXAMPLE, MERGING))
    modules = dict(model.named_modules(remove_duplicate=False))
    kinds = {name: type(each).__name__ for name, each in modules.items()}
    obstacles += _of_modules(modules, group.parts)
    dense = [each for each in (*model.parameters(), *model.buffers()) if each.layout == torch.strided]
    memory = [0, *(place_of(each) if each.untyped_storage().nbytes() >= each.nbytes else 0 for each in dense)]
    obstacles += _of_memory(model, group.parts) if len(set(memory)) < len(memory) else []
    in_the_way = tuple(dict.fromkeys(obstacles))
    kind, statistics = type(module).__name__, group.norms
    return Consumers(layer, kind, group.units, group.rows, group.parts, in_the_way, group.attributes, kinds, statistics)


def _same(one: Group, other: Group) -> bool:
    if one.units != other.units or len(one.parts) != len(other.parts):
        return False
    return all(
        (a.name, a.dim, a.role) == (b.name, b.dim, b.role) and torch.equal(a.units, b.units)
        for a, b in zip(one.parts, other.parts, strict=True)
    )


def _of_modules(modules: dict[str, nn.Module], parts: Iterable[Part]) -> list[Obstacle]:
    """What the modules that hold the tensors stand in the way with."""
    obstacles = []
    for part in parts:
        name = part.name.rpartition(".")[0]
        module = modules[name]
        for holder in (name, name.rpartition(".")[0]):
            attention = modules.get(holder)
            if isinstance(attention, nn.MultiheadAttention) and not can_have_fewer_heads(attention):
                kind = type(attention).__name__
                reason = f"{holder!r} is a {kind}, which takes the size of a head from embed_dim and num_heads"
                advice = "Merge without removal (remove=False), or use torch.nn.MultiheadAttention itself."
                obstacles.append(Obstacle(repr(holder), reason, advice, REMOVAL))
        computed = computed_tensors(module)
        if computed and part.name.rpartition(".")[2].startswith(computed[0]):
            reason = f"its {computed[0]} is computed from other tensors (pruning or a parametrisation)"
            obstacles.append(Obstacle(repr(name), reason, MAKE_PERMANENT, READING if part.role == READER else REMOVAL))
    return obstacles


def _of_memory(model: nn.Module, parts: Iterable[Part]) -> list[Obstacle]:
    """Tensors that cannot be changed without another one."""
    others = memory_of_others(model)
    tensors = dict((*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)))
    obstacles = []
    for name in dict.fromkeys(part.name for part in parts if others and id(tensors[part.name]) in others):
        other = others[id(tensors[name])]
        own = f"several entries of {name!r} are one number in memory, as expand makes them"
        reason = own if other == name else f"{name!r} lies in the memory of {other!r}, so that both change together"
        obstacles.append(Obstacle(repr(name), reason, ONE_TENSOR, MERGING))
    return obstacles


def _rows(looks: list[Groups], module: nn.Module, layer: str) -> tuple[str, int]:
    """The parameter and the axis of it that runs over the layer's neurons."""
    if layer in looks[0].recording.values:
        names = [layer]
    elif isinstance(module, (*DENSE, nn.Embedding)):
        weight = f"{layer}.weight"
        if any(each.used(weight) for each in looks):
            return weight, row_dim(module)
        names = []
    else:
        names = [f"{layer}.{name}" for name, each in module.named_parameters(recurse=False) if each.ndim > 1]
    places = [(name, dim) for name in names for dim in looks[0].rows_of(name)]
    if len(places) != 1:
        raise _no_rows(looks, layer, places)
    return places[0]


def _no_rows(looks: list[Groups], layer: str, places: list[tuple[str, int]]) -> ValueError:
    if places:
        listed = ", ".join(dict.fromkeys(repr(name) for name, _ in places))
        return ValueError(
            f"layer: {layer!r} multiplies by several weights: {listed}. Name the one whose rows are the neurons."
        )
    inside = layer.rpartition(".")[0]
    ran = any(layer in each.recording.ran or inside in each.recording.ran for each in looks)
    return ValueError(
        f"layer: {layer!r} is never called as a layer in the model's forward{'' if ran else ' on this example'}. "
        "It may be an expert or a branch that this example does not reach, or compute with its weight before it uses "
        "it; pass another example_input, or choose another layer."
    )
