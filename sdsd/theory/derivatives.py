"""Gradients of samples and Hessian-vector products of a mean loss, with nothing left behind in the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from sdsd_kernels import checks

from ..graphs import seeded
from ..models import check_loss_function, check_module, paused, untouched

LossFunction = Callable[[nn.Module, Any], Tensor]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """What forward passes inside change in the model or in a random state is put back, and no GammaMonitor measures
    them.

    Attention takes its mathematical form, the only one with second derivatives.
    """
    check_module(model)
    devices = sorted({p.device for p in model.parameters() if p.device.type == "cuda"}, key=str)
    with ExitStack() as stack:
        stack.enter_context(paused(model))
        stack.enter_context(untouched(model))
        stack.enter_context(seeded(None, devices))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name.

    Raises:
        ValueError: there are none; one is complex.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not parameters:
        raise ValueError("model: expected at least one parameter that requires a gradient, got none.")
    for name, parameter in parameters.items():
        if parameter.is_complex():
            raise ValueError(
                f"model: expected parameters that are real numbers, got {parameter.dtype} in {name!r}. Keep real and "
                "imaginary part as a real parameter, and put them together in the forward (torch.view_as_complex), or "
                "freeze it."
            )
    return parameters


def length_of(batch: Any, name: str = "batch") -> int:
    """How many samples a batch holds: the common first dimension of its tensors.

    Raises:
        ValueError: no tensor in it, or tensors of different lengths.
    """
    lengths = {leaf.shape[0] for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor) and leaf.ndim}
    if len(lengths) != 1:
        raise ValueError(f"{name}: expected tensors with one common first dimension, got lengths {sorted(lengths)}.")
    return lengths.pop()


def part_of(batch: Any, start: int, stop: int) -> Any:
    """Samples `start` to `stop` of a batch."""
    return pytree.tree_map(lambda leaf: leaf[start:stop] if isinstance(leaf, Tensor) and leaf.ndim else leaf, batch)


def reordered(batch: Any, order: list[int], size: int) -> Any:
    """A batch with its parts of `size` samples each in another order."""
    if order == sorted(order):
        return batch
    places = (torch.tensor(order)[:, None] * size + torch.arange(size)).flatten()
    return pytree.tree_map(
        lambda leaf: leaf[places.to(leaf.device)] if isinstance(leaf, Tensor) and leaf.ndim else leaf, batch
    )


def mixing_layers(model: nn.Module) -> list[str]:
    """Layers that mix the samples of a batch: BatchNorm with the batch's own statistics."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None)
    ]


def mean_loss(loss_fn: LossFunction, model: nn.Module, batch: Any) -> Tensor:
    """`loss_fn(model, batch)`, checked to be one number."""
    check_loss_function(loss_fn)
    loss = loss_fn(model, batch)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = tuple(loss.shape) if isinstance(loss, Tensor) else f"{type(loss).__name__} (a tensor, without .item())"
        raise ValueError(f"loss_fn: expected one number, the batch's mean loss, got {got}.")
    return loss.reshape(())


class _Reads(TorchFunctionMode):
    """Whether torch is called with one of these tensors."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self._tensors, self.seen = {id(tensor) for tensor in tensors}, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = self.seen or any(id(leaf) in self._tensors for leaf in pytree.tree_leaves((args, kwargs)))
        return func(*args, **(kwargs or {}))


def check_uses_model(model: nn.Module, loss_fn: LossFunction, batch: Any) -> None:
    """ValueError for a loss that none of the model's parameters that train has a part in: it looks at another model.

    Nothing is said of a loss without a gradient (a share of errors) of a scripted model, whose calls nobody sees.
    """
    parameters = list(trainable(model).values())
    with torch.enable_grad(), _Reads(parameters) as reads:
        loss = mean_loss(loss_fn, model, batch)
    if loss.requires_grad:
        used = any(each is not None for each in torch.autograd.grad(loss, parameters, allow_unused=True))
    else:
        used = reads.seen or any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())
    if not used:
        raise ValueError(
            "loss_fn: expected a loss of the model it is given, got one in which no parameter that trains has a part. "
            "Run the first argument, which may be a copy, and not a model from outside: "
            "lambda model, batch: loss(model(batch[0]), batch[1])."
        )


class _Loss(nn.Module):
    """The loss as a module of its model, so that functional_call can put other parameters into the model."""

    def __init__(self, model: nn.Module, loss_fn: LossFunction) -> None:
        super().__init__()
        self.model, self.loss_fn = model, loss_fn

    def forward(self, batch: Any) -> Tensor:
        return mean_loss(self.loss_fn, self.model, batch)


def gradient_rows(model: nn.Module, loss_fn: LossFunction, batch: Any, samples_per_gradient: int) -> Tensor:
    """One gradient for every `samples_per_gradient` samples; shape: (n, trainable parameters).

    Args:
        model: its parameters that train are differentiated; it stays as it is, with .grad and random states, and a
            GammaMonitor on it does not count these passes.
        loss_fn: (model, batch) → mean loss.
        batch: a tensor, or a tuple, list or dict of tensors with the samples first.
        samples_per_gradient: over how many samples each gradient is a mean; it divides the batch.

    Returns:
        The gradients, flattened and joined in the order of `model.parameters()`, in the widest of their dtypes.
        # shape: (n, parameters)

    Raises:
        TypeError: no model; a loss of torch.nn.
        ValueError: samples_per_gradient that is no whole number above 0, or does not divide the samples; no parameter
            that trains, or a complex one; BatchNorm in train mode with single samples; a loss that is no number, or
            that no parameter has a part in.
    """
    with undisturbed(model):
        rows = rows_of(model, loss_fn, batch, samples_per_gradient)
        if not bool(rows.any()):
            check_uses_model(model, loss_fn, batch)
        return rows


def rows_of(model: nn.Module, loss_fn: LossFunction, batch: Any, samples_per_gradient: int) -> Tensor:
    """`gradient_rows` without looking after the model: use it inside `undisturbed`."""
    check_loss_function(loss_fn)
    samples, samples_per_gradient = length_of(batch), checks.check_count(samples_per_gradient, "samples_per_gradient")
    if samples % samples_per_gradient:
        raise ValueError(f"batch: its {samples} samples do not divide into gradients of {samples_per_gradient}.")
    parameters = trainable(model)
    if samples_per_gradient > 1:
        starts = range(0, samples, samples_per_gradient)
        return torch.stack(
            [gradient(model, loss_fn, part_of(batch, start, start + samples_per_gradient)) for start in starts]
        )
    if mixing := mixing_layers(model):
        raise ValueError(
            f"model: {mixing[0]} is a BatchNorm in train mode, which mixes the samples, so a sample has no gradient of "
            "its own. Use samples_per_gradient > 1, or put it in eval mode."
        )
    constant = {f"model.{name}": p.detach() for name, p in model.named_parameters() if name not in parameters}
    loss = _Loss(model, loss_fn)

    def of_sample(moving: dict[str, Tensor], sample: Any) -> Tensor:
        one = pytree.tree_map(lambda leaf, axis: leaf if axis is None else leaf[None], sample, axes)
        return torch.func.functional_call(loss, {**constant, **moving}, (one,))

    moving = {f"model.{name}": parameter.detach() for name, parameter in parameters.items()}
    axes = pytree.tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) and leaf.ndim else None, batch)
    rows = None
    with suppress(Exception):  # torch.func does not take recurrent layers, or branches on values
        rows = torch.func.vmap(torch.func.grad(of_sample), (None, axes), randomness="different")(moving, batch)
    if rows is None:
        return torch.stack([gradient(model, loss_fn, part_of(batch, start, start + 1)) for start in range(samples)])
    return torch.cat([rows[name].reshape(samples, value.numel()) for name, value in moving.items()], 1)


def gradient(model: nn.Module, loss_fn: LossFunction, batch: Any) -> Tensor:
    """Gradient of the mean loss of a batch; shape: (trainable parameters,)."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(mean_loss(loss_fn, model, batch), parameters, materialize_grads=True)
    return torch.cat([part.flatten() for part in gradients])


class Hessian:
    """The Hessian H of the mean loss of a batch, as products with vectors: double backward over one kept graph.

    Use it inside `undisturbed`. `chunk` bounds how many samples' graphs are kept at a time.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFunction, batch: Any, chunk: int | None = None) -> None:
        self._model, self._loss_fn, self._batch = model, loss_fn, batch
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._sizes = [parameter.numel() for parameter in self._parameters]
        self._samples = length_of(batch, "curvature_batch")
        self._chunk = chunk or self._samples

    def _graphs(self) -> Iterator[tuple[float, list[Tensor], list[int]]]:
        """Weight, gradients with a graph, and the places of their parameters, for each chunk."""
        for start in range(0, self._samples, self._chunk):
            part = part_of(self._batch, start, start + self._chunk)
            loss = mean_loss(self._loss_fn, self._model, part)
            gradients = torch.autograd.grad(loss, self._parameters, create_graph=True, materialize_grads=True)
            bent = [place for place, each in enumerate(gradients) if each.requires_grad]
            yield length_of(part) / self._samples, [gradients[place] for place in bent], bent

    def products(self, vectors: Callable[[int], Tensor], count: int) -> Iterator[tuple[int, Tensor]]:
        """(k, the part of H·vectors(k) that one chunk gives) for every k < count and every chunk; float64.

        Sums over chunks are left to the caller, who can take inner products first and keep numbers.
        """
        for weight, gradients, bent in self._graphs():
            for k in range(count):
                pieces = vectors(k).split(self._sizes)
                seeds = [
                    pieces[place].view_as(each).to(each.dtype) for place, each in zip(bent, gradients, strict=True)
                ]
                result = (
                    torch.autograd.grad(gradients, self._parameters, seeds, retain_graph=True, materialize_grads=True)
                    if gradients
                    else [torch.zeros_like(parameter) for parameter in self._parameters]
                )
                yield k, weight * torch.cat([part.flatten() for part in result]).double()

    def product(self, vector: Tensor) -> Tensor:
        """H·vector; shape: (trainable parameters,), float64."""
        return torch.stack([part for _, part in self.products(lambda _: vector, 1)]).sum(0)
