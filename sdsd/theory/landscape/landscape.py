"""The mean loss of a model on fixed data, as a function of its trainable parameters in one vector."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...models import copy_of, unwrap
from .. import quotient
from ..derivatives import Hessian, LossFunction, check_uses_model, length_of, mean_loss, trainable, undisturbed


class Landscape:
    """L(w) over all of `data`, its gradient and its Hessian's products; the model is moved about and never put back.

    Use it inside `undisturbed(landscape.model)`, on a copy of the user's model (`landscape_at`).

    Attributes:
        samples: in all batches.
        start: the trainable parameters as they came; float64; shape: (d,).
        rounding: of the coarsest of their dtypes, relative.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFunction, batches: list[Any]) -> None:
        self.model, self._loss_fn = model, loss_fn
        self._parameters = list(trainable(model).values())
        self.rounding = max(torch.finfo(parameter.dtype).eps for parameter in self._parameters)
        sizes = [length_of(batch, "data") for batch in batches]
        self.samples = sum(sizes)
        self._parts = [(size / self.samples, batch) for size, batch in zip(sizes, batches, strict=True)]
        self._sizes = [parameter.numel() for parameter in self._parameters]
        self.start = torch.cat([parameter.detach().double().flatten() for parameter in self._parameters])
        if not bool(self.start.isfinite().all()):
            raise ValueError("model: expected finite parameters, got NaN or infinity.")

    @torch.no_grad()
    def move(self, vector: Tensor) -> None:
        """Put `vector` into the model's parameters, in their dtypes."""
        for parameter, piece in zip(self._parameters, vector.split(self._sizes), strict=True):
            parameter.copy_(piece.view_as(parameter))

    @torch.no_grad()
    def loss(self, vector: Tensor) -> float:
        """L at `vector`; NaN and infinity as they come."""
        self.move(vector)
        return math.fsum(
            weight * mean_loss(self._loss_fn, self.model, batch).double().item() for weight, batch in self._parts
        )

    def loss_and_gradient(self, vector: Tensor) -> tuple[float, Tensor]:
        """L and ∇L at `vector`; the gradient in float64."""
        self.move(vector)
        total, gradient = [], torch.zeros_like(self.start)
        for weight, batch in self._parts:
            loss = mean_loss(self._loss_fn, self.model, batch)
            gradients = torch.autograd.grad(loss, self._parameters, materialize_grads=True)
            gradient += weight * torch.cat([part.double().flatten() for part in gradients])
            total.append(weight * loss.detach().double().item())
        return math.fsum(total), gradient

    def curvature(self, vector: Tensor) -> Tensor:
        """H·`vector` where the model stands; float64."""
        parts = (weight * Hessian(self.model, self._loss_fn, batch).product(vector) for weight, batch in self._parts)
        return torch.stack(list(parts)).sum(0)

    def checked_loss(self) -> float:
        """L at the start.

        Raises:
            ValueError: it is not finite, changes from one pass to the next, or has nothing to do with the model.
        """
        check_uses_model(self.model, self._loss_fn, self._parts[0][1])
        loss, again = self.loss(self.start), self.loss(self.start)
        if not math.isfinite(loss):
            raise ValueError(f"loss_fn: expected a finite loss at the model's own parameters, got {loss}.")
        if loss != again and not math.isclose(loss, again, rel_tol=1e-6):
            raise ValueError(
                f"model: its loss is random, {loss:.6g} and then {again:.6g} on the same data. Call model.eval() first "
                "(dropout), or fix the randomness in loss_fn."
            )
        return loss


def _batches(data: Any) -> list[Any]:
    """`data` as a list of batches: a tensor, mapping, tuple or list of tensors is one; anything else holds them."""
    one = isinstance(data, (Tensor, Mapping, tuple)) or (
        isinstance(data, list) and all(isinstance(entry, Tensor) for entry in data)
    )
    if not one and not isinstance(data, Iterable):
        raise TypeError(f"data: expected a batch of tensors or an iterable of batches, got {type(data).__name__}.")
    batches = [data] if one else list(data)
    if not batches or data == []:
        raise ValueError("data: expected at least one batch, got none.")
    return batches


def _check_one_batch(model: nn.Module, loss_fn: LossFunction, batch: list[Tensor]) -> None:
    """A list of tensors can be meant as a batch, (inputs, labels), or as batches: the loss says which it takes."""

    def runs(value: Any) -> bool:
        try:
            with undisturbed(model), torch.no_grad():
                mean_loss(loss_fn, model, value)
        except Exception:
            return False
        return True

    if not runs(batch) and runs(batch[0]):
        raise ValueError(
            "data: a list of tensors is one batch, [inputs, labels], and loss_fn takes a single tensor. Pass "
            "iter(data) or a DataLoader for batches that are tensors."
        )


def landscape_at(
    model: nn.Module, loss_fn: LossFunction, data: Any, canonicalize: bool, softmax_head: bool, example_input: Any
) -> Landscape:
    """The landscape round a copy of `model`, at its canonical representative where that is asked for.

    Where there is no `example_input`, symmetries are found on what `loss_fn` gives the model, if need be.

    Raises:
        ValueError: the canonical representative cannot be found.
    """
    root = unwrap(model)
    batches = _batches(data)
    if isinstance(data, list) and data and batches[0] is data:
        _check_one_batch(root, loss_fn, data)
    if not canonicalize:
        return Landscape(copy_of(root), loss_fn, batches)
    if example_input is None:
        example_input = quotient.example_for(root, batches, loss_fn)
    try:
        start = quotient.canonicalize(root, softmax_head=softmax_head, example_input=example_input)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"{error}\nWith canonicalize=False the model is taken as it stands; the number then depends on which of "
            "the parameters that compute its function it happens to have."
        ) from error
    return Landscape(start, loss_fn, batches)
