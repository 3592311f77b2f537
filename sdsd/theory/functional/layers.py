"""The hidden layers of a model, each as the rows and masses of its neurons."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..quotient import Slice, Symmetries, symmetries

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class NeuronLayer(NamedTuple):
    """One hidden layer: a row and a mass for each of its neurons.

    `rows` (n, d): incoming weights and bias. `mass` (n,): ‖row‖ · ‖outgoing weights‖.
    """

    name: str
    rows: Tensor
    mass: Tensor


def hidden_layers(
    model: nn.Module | Symmetries, layers: Iterable[tuple[str, str]] | None = None, *, example_input: Any = None
) -> list[NeuronLayer]:
    """The hidden layers of `model` as rows and masses, in the graph of its parameters.

    Without `layers` these are the neurons that `symmetries` finds can be rescaled: those behind which scale passes to
    the next weights, as through ReLU, pooling and dropout. Neurons that a residual add joins are one layer; heads of
    attention are none. A norm between weights and activation leaves (γ, β) as all that can be rescaled, which is no
    direction in the inputs: name such layers.

    Args:
        model: any that runs, or its `symmetries`, found once for many calls.
        layers: (name of the layer that writes the neurons, name of the layer that reads them), as in
            `model.named_modules()`. Whether scale may pass between the two is then the caller's word.
        example_input: as in `symmetries`.

    Returns:
        One `NeuronLayer` a hidden layer, in the order of the model.

    Raises:
        ValueError: no hidden layer found; a norm that writes the neurons; an unknown name; layers whose sizes do not
            fit, or grouped convolutions as readers; what `symmetries` raises.
        TypeError: a name that is no Linear, Conv1D or convolution.
    """
    if layers is not None:
        module = model.model if isinstance(model, Symmetries) else model
        pairs = [_neuron_layer(module, writer, reader) for writer, reader in layers]
    else:
        pairs = _rescalable_layers(model if isinstance(model, Symmetries) else symmetries(model, example_input))
    if not pairs:
        raise ValueError("layers: expected at least one pair of names, got none.")
    return pairs


def _rescalable_layers(moves: Symmetries) -> list[NeuronLayer]:
    """One layer for each set of neurons that can be rescaled one by one."""
    parameters = dict(moves.model.named_parameters())
    layers = []
    for scaling in moves.scalings:
        heads = any(len(mixing.sets) > 1 and mixing.layers == scaling.layers for mixing in moves.mixings)
        of_norm = all(parameters[part.name].ndim < 2 for part in scaling.incoming)
        if not scaling.outgoing or heads or (of_norm and not scaling.bent) or scaling.groups < scaling.width:
            continue
        name = " + ".join(scaling.layers)
        if scaling.norms or of_norm:
            raise ValueError(
                f"model: a norm stands between the weights and the activation of {name!r} and has a scale of its own. "
                f"Name the hidden layers to measure: {_hint(moves)}."
            )
        rows, out = (_by_neuron(parameters, parts, scaling.groups) for parts in (scaling.incoming, scaling.outgoing))
        mass = torch.linalg.vector_norm(rows, dim=1) * torch.linalg.vector_norm(out, dim=1)
        layers.append(NeuronLayer(name, rows, mass))
    if not layers:
        raise ValueError(
            f"model: no hidden layer whose neurons can be rescaled in {type(moves.model).__name__}, so their masses "
            f"are not defined. To measure some all the same: {_hint(moves)}. "
            f"Found: {'; '.join(moves.not_analysed[:2]) or 'nothing'}."
        )
    return layers


def _hint(moves: Symmetries) -> str:
    """Which pairs of layers of this model to name."""
    modules = dict(moves.model.named_modules())
    pairs = []
    for permutation in moves.permutations:
        writers = [name for name in permutation.layers if is_weighted(modules.get(name))]
        readers = [name for name in permutation.readers if is_weighted(modules.get(name))]
        heads = (
            any(len(mixing.sets) > 1 and writers[0] in mixing.layers for mixing in moves.mixings) if writers else True
        )
        if len(writers) == 1 and readers and not heads:
            pairs.append((writers[0], readers[0]))
    if not pairs:
        names = [name for name, module in modules.items() if is_weighted(module)]
        return f"layers=[(writer, reader)], two of its layers: {', '.join(names[:12])}"
    more = f" and {len(pairs) - 2} more" if len(pairs) > 2 else ""
    return f"layers={pairs[:2]}{more}, for the neurons that the first of each pair writes and the second reads"


def is_weighted(module: Any) -> bool:
    """Whether a module is a Linear, a convolution, or a Linear that has its weight the other way round (Conv1D)."""
    return isinstance(module, WEIGHTED) or _is_turned(module)


def _is_turned(module: Any) -> bool:
    return type(module).__name__ == "Conv1D" and getattr(getattr(module, "weight", None), "ndim", 0) == 2


def _by_neuron(parameters: dict[str, nn.Parameter], parts: Iterable[Slice], groups: int) -> Tensor:
    """All entries of `parts` that belong to each neuron; shape: (groups, entries)."""
    columns = []
    for part in parts:
        entries = parameters[part.name].movedim(part.axis, 0)
        columns.append(entries[part.entries(groups).to(entries.device)].reshape(groups, -1))
    return torch.cat(columns, 1)


def _neuron_layer(model: nn.Module, writer: str, reader: str) -> NeuronLayer:
    incoming, outgoing = (_weighted(model, name) for name in (writer, reader))
    weight, read = (each.weight.T if _is_turned(each) else each.weight for each in (incoming, outgoing))
    neurons, columns = weight.shape[0], read[0].numel()
    if getattr(outgoing, "groups", 1) != 1:
        raise ValueError(f"layers: expected {reader!r} to read all neurons, got a convolution of groups.")
    if columns % neurons:
        raise ValueError(
            f"layers: expected {reader!r} to read the {neurons} neurons of {writer!r}, got {columns} inputs."
        )
    rows = weight.flatten(1)
    if incoming.bias is not None:
        rows = torch.cat((rows, incoming.bias[:, None]), 1)
    out = read.flatten(1).unflatten(1, (neurons, -1))
    mass = torch.linalg.vector_norm(rows, dim=1) * torch.linalg.vector_norm(out, dim=(0, 2))
    return NeuronLayer(writer, rows, mass)


def _weighted(model: nn.Module, name: str) -> Any:
    known = {key: module for key, module in model.named_modules() if is_weighted(module)}
    if name in known:
        return known[name]
    if any(name == key for key, _ in model.named_modules()):
        raise TypeError(f"layers: expected a Linear or convolution layer, got {name!r}, which is none.")
    raise ValueError(f"layers: the model has no layer {name!r}. It has: {', '.join(known) or 'none'}.")
