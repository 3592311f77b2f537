"""Copies of models as they are while they are in use."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

WITH_COPIES = (torch.strided, torch.sparse_coo)
"""Layouts whose tensors torch copies itself."""

Model = TypeVar("Model", bound=nn.Module)


def copy_of(model: Model, memo: dict[int, Any] | None = None) -> Model:
    """A copy as `copy.deepcopy` makes it, also where modules keep what they computed (activations that a hook or the
    forward put away, weights that pruning computes before each call): of these the values are copied, and no graph.

    Args:
        memo: by the id of an object what stands for it in the copy; it is added to.

    Raises:
        TypeError: an attribute cannot be copied, as a lock or an open file; it is named.
    """
    try:
        with _Values():
            return copy.deepcopy(model, {} if memo is None else memo)
    except Exception as error:
        raise TypeError(
            f"model: {_what_cannot_be(model)} cannot be copied ({error}). Take it off the model for this call and put "
            "it back afterwards, on what the call gives too if that needs it; or give its class a __deepcopy__."
        ) from error


class _Values(TorchFunctionMode):
    """Tensors with a graph behind them are copied, which torch refuses, without it, and so are sparse ones."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and (not args[0].is_leaf or args[0].layout not in WITH_COPIES):
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def _what_cannot_be(model: nn.Module) -> str:
    """The first attribute whose copy fails, by its module."""
    memo: dict[int, Any] = {id(each): each for each in (*model.modules(), *model.parameters(), *model.buffers())}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            try:
                with torch.no_grad(), _Values():
                    copy.deepcopy(value, dict(memo))
            except Exception:
                return f"the attribute {attribute!r} ({type(value).__name__}) of module {name!r}"
    return f"a {type(model).__name__}"
