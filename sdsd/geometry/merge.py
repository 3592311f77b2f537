"""Merging neurons for the length of a `with` block, the weights restored bit for bit."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

MERGES = ("mean",)


@contextmanager
def merged(
    model: nn.Module, layer_name: str, pairs: Iterable[tuple[int, int]], how: str = "mean"
) -> Iterator[nn.Module]:
    """Make both neurons of each pair compute the same, inside the block; afterwards the weights are as before.

    "mean": the two rows of incoming weights, and the two biases, become their average; the outgoing weights stay.

    Args:
        model: changed in place inside the block, restored bit for bit after it, whatever happens inside.
        layer_name: an nn.Linear of the model, as in `model.named_modules()`; its outputs are the neurons.
        pairs: (first, second) neuron indices; no neuron may be in two pairs.
        how: "mean".

    Yields:
        The model.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> before = layer.weight.clone()
        >>> with merged(nn.Sequential(layer), "0", [(0, 1)]):
        ...     bool((layer.weight[0] == layer.weight[1]).all())
        True
        >>> bool((layer.weight == before).all())
        True
    """
    if how not in MERGES:
        raise ValueError(f"how: expected one of {', '.join(map(repr, MERGES))}, got {how!r}.")
    layer = _linear_layer(model, layer_name)
    first, second = _checked_pairs(pairs, layer.out_features)
    touched = torch.cat((first, second))
    parameters: list[Tensor] = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    saved = [parameter.detach()[touched.to(parameter.device)].clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter in parameters:
                rows = parameter.detach().double()
                here, there = first.to(parameter.device), second.to(parameter.device)
                average = (rows[here] / 2 + rows[there] / 2).to(parameter.dtype)
                parameter[here] = average
                parameter[there] = average
        yield model
    finally:
        with torch.no_grad():
            for parameter, rows in zip(parameters, saved, strict=True):
                parameter[touched.to(parameter.device)] = rows


def _linear_layer(model: nn.Module, layer_name: str) -> nn.Linear:
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if layer_name in layers:
        return layers[layer_name]
    everything = dict(model.named_modules())
    if layer_name in everything:
        kind = type(everything[layer_name]).__name__
        raise TypeError(f"layer_name: expected an nn.Linear, got {layer_name!r}, which is {kind}.")
    near = difflib.get_close_matches(layer_name, layers, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"layer_name: the model has no layer {layer_name!r}. Its Linear layers: {', '.join(layers) or 'none'}.{hint}"
    )


def _checked_pairs(pairs: Iterable[tuple[int, int]], neurons: int) -> tuple[Tensor, Tensor]:
    seen: set[int] = set()
    listed = [(int(pair[0]), int(pair[1])) for pair in pairs]
    for pair in listed:
        for neuron in pair:
            if not 0 <= neuron < neurons:
                raise ValueError(f"pairs: expected neurons from 0 to {neurons - 1}, got {neuron} in {pair}.")
            if neuron in seen:
                raise ValueError(f"pairs: neuron {neuron} comes up twice; each may be in one pair only.")
            seen.add(neuron)
    indices = torch.tensor(listed, dtype=torch.long).reshape(-1, 2)
    return indices[:, 0], indices[:, 1]
