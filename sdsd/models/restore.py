"""A model as it was: its tensors and its modes put back, whatever happened in between."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .held import as_now, changeable, tensor_back


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients inside; afterwards every module is in the mode it was in.

    Args:
        model: whose modules are switched.

    Yields:
        None.
    """
    with _modes_kept(model), torch.no_grad():
        model.eval()
        yield


@contextmanager
def running(model: nn.Module) -> Iterator[None]:
    """For blocks that run a model and do no more: eval mode and no gradients, and afterwards it is as it was, with what
    its forward writes into buffers and attributes.

    Args:
        model: what is run.

    Yields:
        None.
    """
    with untouched(model), evaluating(model):
        yield


@contextmanager
def plainly(model: nn.Module) -> Iterator[None]:
    """Neither torch.inference_mode nor autocast inside, so that what layers multiply are the model's own parameters.

    Args:
        model: on whose devices autocast is off.

    Yields:
        None.
    """
    kinds = {"cpu"} | {each.device.type for each in (*model.parameters(), *model.buffers())}
    with torch.inference_mode(False), ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def training_outside_torch(model: nn.Module) -> Iterator[None]:
    """Every module in training but those of torch.nn that contain no other, so that nothing is dropped and no
    statistics are taken; no gradients. Afterwards every module is in the mode it was in."""
    with _modes_kept(model), torch.no_grad():
        for module in model.modules():
            of_torch = type(module).__module__.startswith("torch.nn.")
            module.training = not of_torch or any(module.children())
        yield


@contextmanager
def _modes_kept(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def untouched(model: nn.Module, parameters: bool = False) -> Iterator[None]:
    """For blocks that run a model: afterwards its buffers are as before, bit for bit, and so is every attribute that a
    forward may set, or write into, hooks included. With `parameters` these are, too, and copies wait."""
    own = [vars(each) for each in model.modules() if not isinstance(each, torch.jit.ScriptModule)]  # not Python's
    with unwritten(*own, but=(*model.parameters(), *model.buffers())), ExitStack() as stack:
        for each in (*model.buffers(), *(model.parameters() if parameters else ())):
            stack.callback(tensor_back, each, each.detach().clone())
        yield


@contextmanager
def unwritten(*given: Any, but: Iterable[Tensor] = ()) -> Iterator[None]:
    """What is given, as arguments of a model, which may write into it or keep it, is as it was afterwards."""
    with ExitStack() as stack:
        for each in changeable(given, {id(each): each for each in but}):
            stack.callback(as_now(each))
        yield


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Afterwards parameters, buffers, requires_grad and modes are as before, bit for bit; copies wait meanwhile."""
    held: list[tuple[dict[str, Any], str, Tensor, Tensor, bool]] = [
        (store, name, tensor, tensor.detach().clone(), tensor.requires_grad)
        for module in model.modules()
        for store in (module._parameters, module._buffers)
        for name, tensor in store.items()
        if tensor is not None
    ]
    with _modes_kept(model):
        try:
            yield
        finally:
            for store, name, tensor, copy, requires_grad in held:
                store[name] = tensor
                tensor_back(tensor, copy)
                if tensor.requires_grad != requires_grad:
                    tensor.requires_grad_(requires_grad)
