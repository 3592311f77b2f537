"""Which layers read the neurons of a layer, found by following them through the model's graph."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from ...graphs import (
    DENSE,
    MAKE_PERMANENT,
    MERGING,
    READING,
    REMOVAL,
    Obstacle,
    Touched,
    computed_tensors,
    follow,
    neuron_count,
)

IS_OUTPUT = "its neurons are the model's output"
CANNOT = {MERGING: "merge", READING: "change readers", REMOVAL: "remove"}


@dataclass(frozen=True)
class Consumers:
    """Who reads the neurons of a layer. Made by `consumers`; prints as a list.

    Attributes:
        layer: the layer's name.
        kind: its class, "Linear" or "Conv2d" for example.
        neurons: how many it has: output features, or channels.
        norms: modules on the way with entries for single neurons: BatchNorm, LayerNorm, PReLU, depthwise convolutions.
        readers: Linear layers and convolutions that read the neurons; `neurons[k]` of each is the neuron whose value
            its input feature or channel k is, −1 for a feature that is none of the layer's.
        obstacles: what stands in the way of changing readers, or of removing neurons: where, why, what to do.
    """

    layer: str
    kind: str
    neurons: int
    norms: tuple[Touched, ...]
    readers: tuple[Touched, ...]
    obstacles: tuple[Obstacle, ...]

    @property
    def is_output(self) -> bool:
        """Whether the neurons are what the model gives."""
        return any(obstacle.reason == IS_OUTPUT for obstacle in self.obstacles)

    @property
    def changeable(self) -> bool:
        """Whether every reader is known and can be changed, as how="act" and how="absorb" need."""
        return bool(self.readers) and not any(obstacle.blocks != REMOVAL for obstacle in self.obstacles)

    @property
    def removable(self) -> bool:
        """Whether neurons can be removed without another change to what the network computes."""
        return bool(self.readers) and not self.obstacles

    def __str__(self) -> str:
        lines = [f"{self.layer!r} ({self.kind}, {self.neurons} neurons)"]
        lines += [f"  through {norm.name!r} ({norm.kind})" for norm in self.norms]
        for reader in self.readers:
            each = int((reader.neurons >= 0).sum()) // self.neurons
            lines.append(f"  read by {reader.name!r} ({reader.kind}), {each} column{'s'[: each > 1]} a neuron")
        lines += [f"  cannot {CANNOT[o.blocks]}: {o}" for o in self.obstacles]
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
        if not self.readers and not self.obstacles:
            raise ValueError(f"{purpose} needs a layer that reads {self.layer!r}, and none does.")
        if not (self.removable if removal else self.changeable):
            listed = "\n".join(f"- {o}" for o in self.obstacles if removal or o.blocks != REMOVAL)
            raise ValueError(f"{purpose} is not possible for layer {self.layer!r}:\n{listed}")


def consumers(model: nn.Module, layer: str, example_input: Any = None) -> Consumers:
    """Find the layers that read the neurons of `layer`, and what lies between.

    The model is traced with torch.fx, as in eval mode and as in training, for heads that run in training only are
    readers, too; where torch.fx fails and an example is given, with torch.export, as in eval mode.
    The neurons are followed through element-wise functions, dropout, BatchNorm and other norms, pooling,
    concatenations and reshapes that keep them whole. Where something else joins them, as in a residual add, where they
    are mixed, or where there is no rule, they are not followed on; that is an obstacle, named with its node.

    Args:
        model: any model; it is not changed.
        layer: name of an nn.Linear or convolution, as in `model.named_modules()`.
        example_input: a tensor, a tuple of positional or a dict of keyword arguments the model runs on. Needed where a
            shape decides what an operation does, and where a convolution may be called with or without a batch;
            obstacles that it would remove say so.

    Returns:
        `Consumers`.

    Raises:
        TypeError: `model` is no module, or `layer` is neither Linear nor a convolution.
        ValueError: no layer of that name (the nearest is suggested), one that the model's forward never calls, or a
            model that cannot be traced.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 10))
        >>> import torch
        >>> print(consumers(model, "0", torch.rand(1, 1, 8, 8)))
        '0' (Conv2d, 8 neurons)
          read by '4' (Linear), 9 columns a neuron
    """
    module = dense_layer(model, layer)
    found = follow(model, module, example_input)
    if found.calls == 0:
        raise ValueError(
            f"layer: {layer!r} is never called as a layer in the model's forward. It may lie inside a module that uses "
            "its weights directly, such as nn.MultiheadAttention, or compute with its weight before it uses it; choose "
            "another layer."
        )
    obstacles = list(found.obstacles)
    if found.is_output:
        obstacles.append(Obstacle(repr(layer), IS_OUTPUT, "Choose a layer before it.", READING))
    groups = getattr(module, "groups", 1)
    if groups > 1:
        reason = f"it has groups={groups}, which read inputs of their own"
        advice = "Merge without removal (remove=False); a depthwise convolution shrinks with the layer before it."
        obstacles.append(Obstacle(repr(layer), reason, advice, REMOVAL))
    return Consumers(
        layer, type(module).__name__, neuron_count(module), tuple(found.norms.values()),
        tuple(found.readers.values()), tuple(obstacles),
    )  # fmt: skip


def dense_layer(model: nn.Module, layer: str) -> nn.Module:
    """The Linear layer or convolution of that name, as `consumers` takes it."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}.")
    if not isinstance(layer, str):
        raise TypeError(f"layer: expected the name of a layer, a str, got {type(layer).__name__}.")
    modules = dict(model.named_modules(remove_duplicate=False))
    suitable = [name for name, module in modules.items() if name and isinstance(module, DENSE)]
    if layer not in modules:
        near = difflib.get_close_matches(layer, suitable, n=1, cutoff=0.0)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        listed = ", ".join(suitable[:12]) + (", …" if len(suitable) > 12 else "")
        raise ValueError(
            f"layer: the model has no layer {layer!r}.{hint} Its Linear layers and convolutions: {listed or 'none'}."
        )
    module = modules[layer]
    if layer not in suitable:
        raise TypeError(
            f"layer: expected an nn.Linear or a convolution, got {layer!r}, which is {type(module).__name__}. "
            "Name the layer that writes the neurons, not what follows it."
        )
    if parametrize.is_parametrized(module) or not isinstance(module._parameters.get("weight"), nn.Parameter):
        raise ValueError(
            f"layer: the weight of {layer!r} is computed from other parameters (weight or spectral norm, for example). "
            "Remove the parametrisation first (torch.nn.utils.parametrize.remove_parametrizations)."
        )
    computed = computed_tensors(module)
    if computed:
        raise ValueError(f"layer: the {computed[0]} of {layer!r} is computed from other tensors. {MAKE_PERMANENT}")
    if isinstance(module._parameters["weight"], nn.UninitializedParameter):
        raise ValueError(f"layer: {layer!r} has no size yet. Run the model once.")
    return module
