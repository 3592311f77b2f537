"""What merging will change, foretold from the weights that read the neurons and from products of activations."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...graphs import READER, TIED, Part, spatial_dims
from ...models import check_loss_function, plainly, running, unwritten
from .edits import IndexPairs, part_tensor
from .group import Consumers
from .merger import layer_rows
from .sensitivity import LossFunction

if TYPE_CHECKING:
    import numpy as np

SAMPLES = 2**14
"""Samples of which products are taken together."""
TINY = torch.finfo(torch.float64).tiny


def weights_of(model: nn.Module, group: Consumers, roots: dict[str, Tensor]) -> Tensor:
    """`outgoing_weights` of a group that is known; `roots`: F^½ of each reader, by name."""
    columns = []
    for part in group.of(READER, TIED):
        weight = part_tensor(model, part).detach()
        if weight.is_complex():
            raise TypeError(f"layer: expected readers with real weights, got {part.name!r} of {weight.dtype}.")
        weight = weight.double()
        entries = part.entries(torch.arange(group.neurons)).to(weight.device)
        each = weight.index_select(part.dim, entries).movedim(part.dim, 0)
        if module_of(part) in roots:
            each = torch.einsum("no...,or->nr...", each, roots[module_of(part)])
        columns.append(each.reshape(group.neurons, -1))
    return torch.cat([each.to(columns[0].device) for each in columns], 1)


def roots_of(
    model: nn.Module, groups: Iterable[Consumers], loss: tuple[Iterable[Any], LossFunction]
) -> dict[str, Tensor]:
    """F^½ of all readers of some groups, from one reading of the data; errors as in `outgoing_weights`."""
    groups = list(groups)
    for group in groups:
        if why := unweighable(group):
            raise ValueError(why)
    return _roots(model, {module_of(part) for group in groups for part in group.of(READER)}, *loss)


def products_of(
    model: nn.Module,
    group: Consumers,
    activations: Tensor | np.ndarray | None,
    gram: Tensor | np.ndarray | None,
    neuron_dim: int | None,
) -> Tensor | None:
    """Σ_s a_si a_sj of a layer's neurons, float64 on the CPU; None where nothing is known of them."""
    if gram is not None:
        return torch.as_tensor(gram).detach().double().cpu()
    if activations is None:
        return None
    rows = layer_rows(model, group, activations, neuron_dim).flatten(1)
    products = torch.zeros(group.neurons, group.neurons, dtype=torch.float64)
    for part in rows.split(SAMPLES, 1):
        wide = part.double().cpu()
        products += wide @ wide.T
    return products


def foretold_change(model: nn.Module, group: Consumers, pairs: IndexPairs, how: str, products: Tensor) -> float | None:
    """√(tr ΔᵀGΔ / tr VᵀGV): what merging changes in what the readers get, over what they get, both root mean squares.

    V are outgoing weights, Δ what the merge changes in them with activations as they are, G products of activations:
    exactly for "act" and "absorb" and readers with one column a neuron; see `merge_cost`. None for complex weights.
    """
    parts = [(part_tensor(model, part).detach(), part) for part in group.of(READER, TIED)]
    if any(weight.is_complex() for weight, _ in parts):
        return None
    outgoing = _columns(group, parts)
    first, second = outgoing[pairs.first], outgoing[pairs.second]
    if how == "absorb":
        share = products[pairs.first, pairs.second] / products.diagonal()[pairs.first].clamp_min(TINY)
        change = torch.cat((share[:, None] * second, -second))
    else:
        change = torch.cat((second - first, first - second)) / 2
    both = torch.cat(pairs)
    changed = ((products[both][:, both] @ change) * change).sum().clamp_min(0)
    whole = ((products @ outgoing) * outgoing).sum()
    return float((changed / whole).sqrt()) if bool(whole > 0) else 0.0


def _columns(group: Consumers, parts: list[tuple[Tensor, Part]]) -> Tensor:
    """The weights of all readers side by side, float64 on the CPU.  # shape: (neurons, weights)"""
    columns = []
    for weight, part in parts:
        entries = part.entries(torch.arange(group.neurons)).to(weight.device)
        each = weight.index_select(part.dim, entries).movedim(part.dim, 0)
        columns.append(each.reshape(group.neurons, -1).double().cpu())
    return torch.cat(columns, 1)


def unweighable(group: Consumers) -> str:
    """Why a loss cannot weigh what the group's readers get; "" where it can."""
    plain = [part.name for part in group.of(READER) if part.name.rpartition(".")[2] == "weight"]
    wrong = next((part.name for part in group.of(READER, TIED) if part.name not in plain), None)
    if wrong is None:
        return ""
    return (
        f"loss: {wrong!r} reads {group.layer!r} and is not the weight of a layer with an output of its own, so what a "
        "change of it does to the loss is not known. Leave loss= out, or choose another layer."
    )


def module_of(part: Part) -> str:
    return part.name.rpartition(".")[0]


def _roots(model: nn.Module, readers: Iterable[str], loader: Iterable[Any], loss_fn: LossFunction) -> dict[str, Tensor]:
    """For each reader a root R of F = R Rᵀ.  # shape: (outputs, outputs) each"""
    check_loss_function(loss_fn)
    modules = {name: model.get_submodule(name) for name in sorted(readers)}
    sums: dict[str, Tensor] = {}
    samples = 0
    with plainly(model), running(model), torch.enable_grad(), ExitStack() as stack:
        seen: dict[str, list[Tensor]] = {name: [] for name in modules}
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(_added_zero(seen[name])).remove)
        for batch in loader:
            for zeros in seen.values():
                zeros.clear()
            with unwritten(batch):
                value = loss_fn(model, batch)
                flat = [(name, zero) for name, zeros in seen.items() for zero in zeros]
                size = flat[0][1].shape[0] if flat else 0
                gradients = torch.autograd.grad(value, [zero for _, zero in flat], allow_unused=True)
            for (name, _), gradient in zip(flat, gradients, strict=True):
                if gradient is None:
                    continue
                axis = -1 - spatial_dims(modules[name])
                rows = gradient.detach().movedim(axis, -1).reshape(-1, gradient.shape[axis]).double() * size
                sums[name] = sums.get(name, 0) + rows.T @ rows
            samples += size
    missing = [name for name in modules if name not in sums]
    if missing:
        raise ValueError(
            f"loss: expected a loss over at least one batch that depends on {missing[0]!r}, which reads the layer, got "
            "none. Pass (loader, loss_fn) that runs the whole model; a generator is empty after its first reading."
        )
    return {name: _root(total / samples) for name, total in sums.items()}


def _added_zero(seen: list[Tensor]) -> Any:
    """A hook that adds zeros, whose gradient is that of the output, also where no parameter trains."""

    def hook(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        zero = torch.zeros_like(output, requires_grad=True)
        seen.append(zero)
        return output + zero

    return hook


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp_min(0).sqrt()
