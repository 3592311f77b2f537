"""One recording a model, kept while the model is as it was."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..models import check_model, plainly
from .examples import on_inputs
from .groups import Groups
from .recorder import record
from .settings import DEPTH, MOST_ENTRIES, is_setting, parts_of

_kept: weakref.WeakKeyDictionary[nn.Module, tuple[Any, Any, list[Groups]]] = weakref.WeakKeyDictionary()


def look(model: nn.Module, example_input: Any = None) -> list[Groups]:
    """What running the model says about the entries of its parameters.

    Args:
        model: any model; it is left as it was.
        example_input: a tensor, a tuple of positional or a dictionary of keyword arguments. None: everything of a
            likely shape that the model runs on, each recorded.

    Returns:
        One for the example; without one, one for each input that the model ran on. They are kept, and given again as
        long as the model has the same modules, settings, parameters and the same example.

    Raises:
        TypeError: no module, or one that was scripted, traced or exported.
        ValueError: a model without values (meta device); the model does not run on `example_input`, or on nothing that
            was tried; parameters that were made under torch.inference_mode.
    """
    check_model(model)
    key = (_signature(model), _signature_of_example(example_input))
    kept = _kept.get(model)
    if kept is not None and kept[0] == key:
        return kept[2]
    with plainly(model):  # in inference mode layers are one operation each, under autocast they multiply copies
        looks = on_inputs(model, example_input, lambda each: Groups(record(model, each)))
    _kept[model] = (key, example_input, looks)
    return looks


def _signature(model: nn.Module) -> tuple[Any, ...]:
    """Changes with the modules, their settings and the shapes of their tensors, and not with the values of these."""
    return tuple(
        (
            name,
            id(module),
            type(module),
            tuple((key, id(each), tuple(each.shape)) for key, each in module._parameters.items() if each is not None),
            tuple((key, each.dtype, tuple(each.shape)) for key, each in module._buffers.items() if each is not None),
            tuple((key, _setting(each)) for key, each in vars(module).items() if key != "training" and key[0] != "_"),
            _config_of(module),
        )
        for name, module in model.named_modules(remove_duplicate=False)
    )


def _setting(value: Any, depth: int = DEPTH) -> Any:
    """What an attribute says, as far as it is numbers and words, in lists, dictionaries and configurations too."""
    if isinstance(value, (list, tuple, dict)) and len(value) <= MOST_ENTRIES and depth:
        return tuple(_setting(each, depth - 1) for each in (value.items() if isinstance(value, dict) else value))
    if isinstance(value, Tensor):
        return id(value), _version(value)
    if isinstance(value, (int, float, str)):
        return value
    if hasattr(value, "__dict__") and depth and is_setting(value, depth):
        return tuple((key, _setting(each, depth - 1)) for key, each in parts_of(value))
    return id(value)


def _version(tensor: Tensor) -> int:
    """Changes when it is written into."""
    return 0 if tensor.is_inference() else tensor._version


def _config_of(module: nn.Module) -> str:
    config = getattr(module, "config", None)
    return repr(sorted(vars(config).items(), key=lambda item: item[0])) if hasattr(config, "__dict__") else ""


def _signature_of_example(value: Any) -> Any:
    if isinstance(value, Tensor):
        return id(value), _version(value), tuple(value.shape), value.dtype
    if isinstance(value, Mapping):
        return tuple((name, _signature_of_example(part)) for name, part in value.items())
    if isinstance(value, (tuple, list)):
        return tuple(map(_signature_of_example, value))
    return value if isinstance(value, (int, float, str, bool, type(None))) else id(value)
