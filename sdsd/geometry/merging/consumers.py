"""Which neurons belong together, and which layers write, change and read them, found by running the model."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ...graphs import (
    BETWEEN,
    DENSE,
    IS_OUTPUT,
    MAKE_PERMANENT,
    MERGING,
    READER,
    READING,
    REMOVAL,
    TIED,
    WRITER,
    Attribute,
    Group,
    Groups,
    Norm,
    Obstacle,
    Part,
    can_have_fewer_heads,
    computed_tensors,
    look,
    row_dim,
)
from ...models import check_model, memory_of_others, quantised

CANNOT = {MERGING: "merge", READING: "change readers", REMOVAL: "remove"}
ONE_TENSOR = "Give it memory of its own (nn.Parameter(tensor.clone())), or use the one parameter in both places."
BY_SHAPE = "what reads its neurons depends on the shape of the input"
PASS_EXAMPLE = "Pass example_input, so that shapes are known."


class Touched(NamedTuple):
    """A module with entries for single neurons.

    Entry k of axis `dim` of its tensors belongs to neuron `neurons[k]`, or to something else where that is −1.
    """

    name: str
    kind: str
    dim: int
    neurons: Tensor


@dataclass(frozen=True)
class Consumers:
    """The group that a layer's neurons belong to. Made by `consumers`; prints as a list.

    A neuron here is what can be merged or removed by itself: a feature of a Linear layer, a channel of a convolution,
    a head of an attention layer, or several features that other layers couple.

    Attributes:
        layer: the layer's name.
        kind: its class, "Linear" or "Conv2d" for example.
        neurons: how many.
        rows: the neuron of each of the layer's rows: output features, or channels.
        parts: every tensor with entries for single neurons, by its name: what writes them, changes them, reads them.
        obstacles: what stands in the way of changing readers, or of removing neurons: where, why, what to do.
        attributes: numbers that modules hold and that change with the number of neurons.
        kinds: name → class of modules.
        statistics: norms that take mean or variance over the neurons.
    """

    layer: str
    kind: str
    neurons: int
    rows: Tensor
    parts: tuple[Part, ...]
    obstacles: tuple[Obstacle, ...]
    attributes: tuple[Attribute, ...]
    kinds: dict[str, str]  # of modules, by name
    statistics: tuple[Norm, ...] = ()

    def of(self, *roles: str) -> tuple[Part, ...]:
        """The parts that play one of these roles.

        Args:
            roles: as in `Part.role`.

        Returns:
            Some of `parts`, in their order.
        """
        return tuple(part for part in self.parts if part.role in roles)

    @property
    def writers(self) -> tuple[Touched, ...]:
        """Modules whose rows make the neurons' values; several where elementwise operations join them."""
        return self._modules(WRITER)

    @property
    def norms(self) -> tuple[Touched, ...]:
        """Modules on the way with entries for single neurons: BatchNorm, PReLU, depthwise convolutions."""
        writing = {writer.name for writer in self.writers}
        return tuple(each for each in self._modules(BETWEEN) if each.name not in writing)

    @property
    def readers(self) -> tuple[Touched, ...]:
        """Modules that read the neurons: `neurons[k]` is the neuron whose value input k is, −1 for another's."""
        return self._modules(READER)

    def _modules(self, role: str) -> tuple[Touched, ...]:
        modules: dict[tuple[str, int], Touched] = {}
        for part in self.of(role):
            name, _, local = part.name.rpartition(".")
            if local in ("running_mean", "running_var", "bias") and any(key[0] == name for key in modules):
                continue
            modules.setdefault((name, part.dim), Touched(name, self.kinds[name], part.dim, part.units))
        return tuple(modules.values())

    @property
    def _is_read(self) -> bool:
        return bool(self.of(READER, TIED))

    @property
    def is_output(self) -> bool:
        """Whether the neurons are what the model gives."""
        return any(obstacle.reason == IS_OUTPUT for obstacle in self.obstacles)

    @property
    def changeable(self) -> bool:
        """Whether every reader is known and can be changed, as how="act" and how="absorb" need."""
        return self._is_read and not any(obstacle.blocks != REMOVAL for obstacle in self.obstacles)

    @property
    def removable(self) -> bool:
        """Whether neurons can be removed without another change to what the network computes."""
        return self._is_read and not self.obstacles

    def __str__(self) -> str:
        each = len(self.rows) // self.neurons
        lines = [f"{self.layer!r} ({self.kind}, {self.neurons} neurons{f' of {each} rows' if each > 1 else ''})"]
        lines += [f"  with {w.name!r} ({w.kind})" for w in self.writers if w.name != self.layer]
        lines += [f"  through {norm.name!r} ({norm.kind})" for norm in self.norms]
        for reader in self.readers:
            columns = int((reader.neurons >= 0).sum()) // self.neurons
            lines.append(f"  read by {reader.name!r} ({reader.kind}), {columns} column{'s'[: columns > 1]} a neuron")
        for part in self.of(TIED):
            name = part.name.rpartition(".")[0]
            lines.append(f"  written and read by {name!r} ({self.kinds[name]})")
        lines += [f"  cannot {CANNOT[o.blocks]}: {o}" for o in self.obstacles]
        return "\n".join(lines)

    def table(self) -> list[dict[str, Any]]:
        """One row a tensor: its name, role ("writer", "between", "reader" or "writer and reader"), axis, entries in all
        and a neuron."""
        return [
            {"tensor": part.name, "role": part.role, "axis": part.dim, "entries": len(part.units), "each": part.each}
            for part in self.parts
        ]

    def picture(self) -> str:
        """Writers on the left, readers on the right, and what lies between, as text."""
        columns = [
            [f"{each.name} [{len(each.neurons)}]" for each in side] for side in (self.writers, self.norms, self.readers)
        ]
        widths = [max(map(len, column), default=0) for column in columns]
        height = max(map(len, columns))
        lines = []
        for row in range(height):
            cells = [column[row] if row < len(column) else "" for column in columns]
            joints = ["─┬→ " if row == 0 and height > 1 else "──→ " if row == 0 else " │  "] * 2
            parts = [
                f"{cell:<{width}} {joint}" for cell, width, joint in zip(cells, widths, [*joints, ""], strict=True)
            ]
            lines.append((parts[0] + (parts[1] if widths[1] else "") + parts[2]).rstrip(" │"))
        return "\n".join(lines)

    def require_known(self) -> None:
        """ValueError where it is not known which norms have entries for the neurons."""
        unknown = next((obstacle for obstacle in self.obstacles if obstacle.blocks == MERGING), None)
        if unknown is not None:
            raise ValueError(f"Merging is not possible for layer {self.layer!r}:\n- {unknown}")

    def require(self, purpose: str, removal: bool) -> None:
        """ValueError unless readers can be changed, and with `removal` neurons removed.

        Args:
            purpose: what for, in the error's words.
            removal: whether neurons are to be removed, and not only merged.
        """
        if not self._is_read and not self.obstacles:
            raise ValueError(f"{purpose} needs a layer that reads {self.layer!r}, and none does.")
        if not (self.removable if removal else self.changeable):
            listed = "\n".join(f"- {o}" for o in self.obstacles if removal or o.blocks != REMOVAL)
            raise ValueError(f"{purpose} is not possible for layer {self.layer!r}:\n{listed}")


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
    stores = [(each, each.untyped_storage()) for each in (*model.parameters(), *model.buffers())]
    memory = [0, *(store.data_ptr() if store.nbytes() >= each.nbytes else 0 for each, store in stores)]
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


def dense_layer(model: nn.Module, layer: str) -> nn.Module:
    """The layer of that name, as `consumers` takes it; for the name of a parameter, the module that holds it."""
    check_model(model)
    if not isinstance(layer, str):
        raise TypeError(f"layer: expected the name of a layer, a str, got {type(layer).__name__}.")
    modules = dict(model.named_modules(remove_duplicate=False))
    holder, _, local = layer.rpartition(".")
    if layer not in modules and isinstance(getattr(modules.get(holder), local, None), nn.Parameter):
        return modules[holder]
    if layer not in modules or not layer or not _is_dense(modules[layer]):
        raise _no_layer(modules, layer)
    if isinstance(modules[layer], DENSE):
        _check_weight(modules[layer], layer)
    return modules[layer]


def _no_layer(modules: dict[str, nn.Module], layer: str) -> Exception:
    if layer not in modules:
        suitable = [name for name, module in modules.items() if name and _is_dense(module)]
        near = difflib.get_close_matches(layer, suitable, n=1, cutoff=0.0)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        listed = ", ".join(suitable[:12]) + (", …" if len(suitable) > 12 else "")
        return ValueError(
            f"layer: the model has no layer {layer!r}.{hint} Its Linear layers and convolutions: {listed or 'none'}."
        )
    kind = type(modules[layer])
    if quantised(modules[layer]):
        return TypeError(
            f"layer: {layer!r} is {kind.__name__} of {kind.__module__}, whose weights are packed into whole numbers. "
            "Pass the model as it was before quantisation, and quantise the smaller one."
        )
    return TypeError(
        f"layer: expected an nn.Linear, a convolution or another layer with a weight, got {layer!r}, which is "
        f"{kind.__name__}. Name the layer that writes the neurons, not what follows it."
    )


def _is_dense(module: nn.Module) -> bool:
    if isinstance(module, DENSE):
        return True
    own = [each for each in module._parameters.values() if each is not None]
    return any(each.ndim > 1 for each in own)


def _check_weight(module: nn.Module, layer: str) -> None:
    if parametrize.is_parametrized(module) or not isinstance(module._parameters.get("weight"), nn.Parameter):
        raise ValueError(
            f"layer: the weight of {layer!r} is computed from other parameters (weight or spectral norm, for example). "
            "Remove the parametrisation first (torch.nn.utils.parametrize.remove_parametrizations)."
        )
    computed = computed_tensors(module)
    if computed:
        raise ValueError(f"layer: the {computed[0]} of {layer!r} is computed from other tensors. {MAKE_PERMANENT}")
