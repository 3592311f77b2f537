"""The hidden layers of a model, each as the rows and masses of its neurons."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..quotient import Slice, Symmetries, symmetries

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


HINT = "layers=[('fc1', 'fc2')] for the neurons that fc1 writes and fc2 reads"


class NeuronLayer(NamedTuple):
    """One hidden layer: a row and a mass for each of its neurons.

    `rows` (n, d): incoming weights and bias. `mass` (n,): ‖row‖ · ‖outgoing weights‖.
    """

    name: str
    rows: Tensor
    mass: Tensor


def hidden_layers(model: nn.Module | Symmetries, layers: Iterable[tuple[str, str]] | None = None) -> list[NeuronLayer]:
    """The hidden layers of `model` as rows and masses, in the graph of its parameters.

    Without `layers` these are the neurons that `symmetries` finds can be rescaled: those behind which scale passes to
    the next weights, as through ReLU, pooling and dropout. Neurons that a residual add joins are one layer. A norm
    between weights and activation leaves (γ, β) as all that can be rescaled, which is no direction in the inputs: name
    such layers.

    Args:
        model: what `symmetries` can trace, or its result, found once for many calls; any module with `layers`.
        layers: (name of the layer that writes the neurons, name of the layer that reads them), as in
            `model.named_modules()`. Whether scale may pass between the two is then the caller's word.

    Returns:
        One `NeuronLayer` a hidden layer, in the order of the model.

    Raises:
        ValueError: no hidden layer found; a norm that writes the neurons; an unknown name; layers whose sizes do not
            fit, or grouped convolutions as readers; a model that torch.fx cannot trace.
        TypeError: a name that is no Linear or convolution.
    """
    if layers is not None:
        module = model.model if isinstance(model, Symmetries) else model
        pairs = [_neuron_layer(module, writer, reader) for writer, reader in layers]
    else:
        pairs = _rescalable_layers(model if isinstance(model, Symmetries) else symmetries(model))
    if not pairs:
        raise ValueError("layers: expected at least one pair of names, got none.")
    return pairs


def _rescalable_layers(found: Symmetries) -> list[NeuronLayer]:
    """One layer for each set of neurons that can be rescaled one by one."""
    parameters = dict(found.model.named_parameters())
    layers = []
    for scaling in found.scalings:
        if not scaling.outgoing:
            continue
        name = " + ".join(scaling.layers)
        if scaling.norms or all(parameters[part.name].ndim < 2 for part in scaling.incoming):
            raise ValueError(
                f"model: a norm stands between the weights and the activation of {name!r} and has a scale of its own. "
                f"Name the hidden layers to measure: {HINT}."
            )
        rows, out = (_by_neuron(parameters, parts, scaling.width) for parts in (scaling.incoming, scaling.outgoing))
        mass = torch.linalg.vector_norm(rows, dim=1) * torch.linalg.vector_norm(out, dim=1)
        layers.append(NeuronLayer(name, rows, mass))
    if not layers:
        raise ValueError(
            f"model: no hidden layer whose neurons can be rescaled in {type(found.model).__name__}, so their masses "
            f"are not defined. To measure some all the same: {HINT}. "
            f"Found: {'; '.join(found.not_analysed) or 'nothing'}."
        )
    return layers


def _by_neuron(parameters: dict[str, nn.Parameter], parts: Iterable[Slice], width: int) -> Tensor:
    """All entries of `parts` that belong to each neuron; shape: (width, entries)."""
    columns = []
    for part in parts:
        entries = parameters[part.name].movedim(part.axis, 0)
        neurons = part.neurons(len(entries), width).to(entries.device)
        columns.append(entries[neurons.argsort(stable=True)].reshape(width, -1))
    return torch.cat(columns, 1)


def _neuron_layer(model: nn.Module, writer: str, reader: str) -> NeuronLayer:
    incoming, outgoing = (_weighted(model, name) for name in (writer, reader))
    neurons, columns = incoming.weight.shape[0], outgoing.weight[0].numel()
    if getattr(outgoing, "groups", 1) != 1:
        raise ValueError(f"layers: expected {reader!r} to read all neurons, got a convolution of groups.")
    if columns % neurons:
        raise ValueError(
            f"layers: expected {reader!r} to read the {neurons} neurons of {writer!r}, got {columns} inputs."
        )
    rows = incoming.weight.flatten(1)
    if incoming.bias is not None:
        rows = torch.cat((rows, incoming.bias[:, None]), 1)
    out = outgoing.weight.flatten(1).unflatten(1, (neurons, -1))
    mass = torch.linalg.vector_norm(rows, dim=1) * torch.linalg.vector_norm(out, dim=(0, 2))
    return NeuronLayer(writer, rows, mass)


def _weighted(model: nn.Module, name: str) -> nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d:
    known = {key: module for key, module in model.named_modules() if isinstance(module, WEIGHTED)}
    if name in known:
        return known[name]
    if any(name == key for key, _ in model.named_modules()):
        raise TypeError(f"layers: expected a Linear or convolution layer, got {name!r}, which is none.")
    raise ValueError(f"layers: the model has no layer {name!r}. It has: {', '.join(known) or 'none'}.")
