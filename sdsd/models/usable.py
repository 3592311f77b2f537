"""Whether what came is a model whose layers can be watched and changed, and if not, what to pass instead."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy


def check_model(model: Any, *, only_run: bool = False) -> None:
    """TypeError or ValueError for what is no model in Python with values.

    Args:
        model: what came.
        only_run: whether it is called and no more: values may lie elsewhere until a layer is called (accelerate's
            hooks), and wrappers may hold on to parameters.
    """
    check_module(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            f"model: expected an nn.Module in Python, got {type(model).__name__}, whose layers cannot be watched. Pass "
            "the model that was scripted or traced."
        )
    # What `ExportedProgram.module()` gives has an `eval` of its own, which raises.
    if isinstance(model, torch.fx.GraphModule) and "eval" in vars(model):
        raise TypeError(
            f"model: expected an nn.Module as it was written, got the {type(model).__name__} of an exported program, "
            "whose layers are operations of a graph. Pass the model that was exported."
        )
    refuse_meta(model, only_run)
    if not only_run:
        refuse_bound(model)


def check_module(model: Any) -> None:
    """TypeError for what is no module, with what to pass instead."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {_what(model)}.")


def check_loss_function(loss_fn: Any) -> None:
    """TypeError for what is no function (model, batch) → loss, as are the losses of torch.nn."""
    name = getattr(loss_fn, "__name__", type(loss_fn).__name__)
    if str(getattr(loss_fn, "__module__", "")).startswith("torch.nn"):
        raise TypeError(
            f"loss_fn: expected a function (model, batch) → loss, got torch's {name}, which takes outputs and targets. "
            "Pass a function that runs the model, for example lambda model, batch: loss(model(batch[0]), batch[1])."
        )
    if not callable(loss_fn):
        raise TypeError(f"loss_fn: expected a function (model, batch) → loss, got {name}.")


def _what(model: Any) -> str:
    if isinstance(model, torch.export.ExportedProgram):
        return "ExportedProgram. Pass the model that was exported"
    if isinstance(model, type) and issubclass(model, nn.Module):
        return f"the class {model.__name__}. Make a model of it first"
    if hasattr(model, "items") and any(isinstance(each, torch.Tensor) for _, each in model.items()):
        return f"{type(model).__name__} of tensors. Load it into a model (load_state_dict), and pass that"
    return type(model).__name__


def refuse_meta(model: nn.Module, offloaded: bool) -> None:
    """ValueError for tensors without values or sizes, now or in what would be made of the model."""
    for path, module in model.named_modules():
        if offloaded and hasattr(module, "_hf_hook"):
            continue
        tensors = [*module.named_parameters(path, recurse=False), *module.named_buffers(path, recurse=False)]
        for name, tensor in tensors:
            if is_lazy(tensor):
                raise ValueError(f"model: {name!r} has no size yet. Run the model once.")
            if tensor.device.type == "meta":
                raise ValueError(
                    f"model: {name!r} is on the meta device and has no values. Load its weights first "
                    "(from_pretrained, or to_empty and load_state_dict)."
                )
    holder = nn.Module()
    holder.probe = nn.Parameter(torch.zeros(1))
    if holder.probe.device.type == "meta":
        raise ValueError(
            "model: new tensors go to the meta device here and have no values. Call this outside of "
            "torch.device('meta') and init_empty_weights."
        )


def refuse_scripted_parts(modules: dict[str, nn.Module]) -> None:
    """TypeError for layers that cannot be watched."""
    for name, module in modules.items():
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"layers: {name!r} is {type(module).__name__}, whose values cannot be watched. Put the module that was "
                "scripted or traced in its place."
            )


def refuse_bound(model: nn.Module) -> None:
    """ValueError for wrappers that hold on to the parameters they were made with: they would not see new ones."""
    for name, module in model.named_modules():
        if type(module).__name__ in ("DistributedDataParallel", "FullyShardedDataParallel"):
            where = f"{name!r} in the model" if name else "it"
            raise ValueError(
                f"model: {where} is a {type(module).__name__}, which would go on with the parameters of the larger "
                "network. Pass the module inside it (model.module), and wrap the smaller one anew."
            )


def quantised(module: nn.Module) -> bool:
    """Whether the module's weights are packed in whole numbers, as torch.ao and bitsandbytes do it."""
    home = type(module).__module__
    return "quantized" in home or home.startswith("bitsandbytes.")
