"""A layer by its name, or what to name instead."""

from __future__ import annotations

import difflib

from torch import nn
from torch.nn.utils import parametrize

from ...graphs import DENSE, MAKE_PERMANENT, computed_tensors
from ...models import check_model, quantised


def dense_layer(model: nn.Module, layer: str) -> nn.Module:
    """The layer of that name, as `consumers` takes it; for the name of a parameter, the module that holds it."""
    check_model(model)
    if not isinstance(layer, str):
        raise TypeError(f"layer: expected the name of a layer, a str, got {type(layer).__name__}.")
    modules = dict(model.named_modules(remove_duplicate=False))
    holder, _, local = layer.rpartition(".")
    if layer not in modules and holder in modules and local in modules[holder]._parameters:
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
    inside = [repr(name) for name, each in modules.items() if name.startswith(f"{layer}.") and _is_dense(each)]
    writes = f"one inside it ({', '.join(inside[:5])})" if inside else "what writes the neurons, not what follows it"
    return TypeError(
        f"layer: expected an nn.Linear, a convolution or another layer with a weight, got {layer!r}, which is "
        f"{kind.__name__} of {kind.__module__} and has none of its own. Name {writes}."
    )


def _is_dense(module: nn.Module) -> bool:
    if isinstance(module, DENSE):
        return True
    own = [each for each in module._parameters.values() if each is not None]
    return any(each.ndim > 1 for each in own)


def _check_weight(module: nn.Module, layer: str) -> None:
    if parametrize.is_parametrized(module) or not isinstance(module._parameters.get("weight"), nn.Parameter):
        raise ValueError(
            f"layer: the weight of {layer!r} is computed from other parameters (by pruning or a parametrisation, "
            f"weight or spectral norm, for example). {MAKE_PERMANENT}"
        )
    computed = computed_tensors(module)
    if computed:
        raise ValueError(f"layer: the {computed[0]} of {layer!r} is computed from other tensors. {MAKE_PERMANENT}")
