"""What a change to a network costs: functions of the model, to be measured before and after."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from ...graphs import outputs
from ...models import check_loss_function, running, untouched, unwritten

Sensitivity = Callable[[nn.Module], Any]
"""A function of the model that gives one number, a float or a tensor with one element."""

LossFunction = Callable[[nn.Module, Any], Tensor]
"""(model, batch) → the batch's mean loss, as `compute_gamma` takes it."""


NO_SAMPLES = (
    "loader: expected at least one batch with samples, got none. A generator is empty after its first reading; pass a "
    "list or a DataLoader."
)


def mean_loss(loader: Iterable[Any], loss_fn: LossFunction) -> Sensitivity:
    """A function of the model: the mean over all samples of `loss_fn(model, batch)`.

    Args:
        loader: any iterable of batches that can be read again and again, and gives the same samples each time.
        loss_fn: (model, batch) → the batch's mean loss.

    Returns:
        A function of a model that gives a float.

    Raises:
        TypeError: a loss of torch.nn, which takes outputs and targets; when it is called, a loss that is no number.
        ValueError: when it is called, a loader without a batch.

    Example:
        >>> data = [(torch.eye(2), torch.tensor([0, 1]))]
        >>> loss = mean_loss(data, lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1]))
        >>> round(loss(nn.Identity()), 4)
        0.3133
    """
    check_loss_function(loss_fn)

    def loss(model: nn.Module) -> float:
        total, samples = 0.0, 0
        for batch in loader:
            size = _batch_size(batch)
            with unwritten(batch):  # it is read again for every measurement
                total += single_number(loss_fn(model, batch), "loss_fn") * size
            samples += size
        if samples == 0:
            raise ValueError(NO_SAMPLES)
        return total / samples

    return loss


def kl_to_untouched(
    model: nn.Module, loader: Iterable[Any], forward: Callable[[nn.Module, Any], Tensor] | None = None
) -> Sensitivity:
    """A function of a model: mean Kullback–Leibler divergence, in nats, from the outputs of `model` as it is now.

        mean over samples of Σ_c p_c (log p_c − log q_c),   p, q = softmax of the outputs now and then

    For a pretrained classifier: no label is needed. Outputs of `model` are kept, samples × classes.

    Args:
        model: the untouched network.
        loader: as in `mean_loss`.
        forward: (model, batch) → logits (…, classes); None: the model of a batch's first part, or of the parts of a
            batch that is a dict which the model's forward names. Of an output that is an object or a dictionary, its
            logits, or its first floating-point tensor, are taken.

    Returns:
        A function of a model that gives a float, in nats, 0 for `model` as it was.

    Raises:
        ValueError: a loader without a batch.
    """
    return _against_untouched(model, loader, forward, _kl_divergence)


def cosine_to_untouched(
    model: nn.Module, loader: Iterable[Any], forward: Callable[[nn.Module, Any], Tensor] | None = None
) -> Sensitivity:
    """A function of a model: mean of 1 − cosine between its embeddings and those of `model` as it is now.

    Arguments and errors as in `kl_to_untouched`; `forward` gives embeddings (…, features).

    Returns:
        A function of a model that gives a float between 0 and 2, 0 for `model` as it was.
    """
    return _against_untouched(model, loader, forward, lambda before, now: 1 - cosine_similarity(before, now, dim=-1))


def _kl_divergence(before: Tensor, now: Tensor) -> Tensor:
    log_p, log_q = before.log_softmax(-1), now.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _against_untouched(
    model: nn.Module,
    loader: Iterable[Any],
    forward: Callable[[nn.Module, Any], Tensor] | None,
    distance: Callable[[Tensor, Tensor], Tensor],
) -> Sensitivity:
    run = forward or _forward
    with running(model):
        answers = [_answer(run, model, batch).detach() for batch in loader]
    if not answers:
        raise ValueError("loader: expected at least one batch, got none. Pass a list or a DataLoader.")

    def mean_distance(changed: nn.Module) -> float:
        with untouched(changed):
            distances = [
                distance(before.double(), _answer(run, changed, batch).double()).flatten()
                for before, batch in zip(answers, loader, strict=False)
            ]
        if len(distances) < len(answers):
            raise ValueError(
                f"loader: expected the same {len(answers)} batches each time, got {len(distances)}. A generator is "
                "empty after its first reading; pass a list or a DataLoader."
            )
        return torch.cat(distances).mean().item()

    return mean_distance


def _answer(run: Callable[[nn.Module, Any], Tensor], model: nn.Module, batch: Any) -> Tensor:
    with unwritten(batch):
        return run(model, batch)


def _forward(model: nn.Module, batch: Any) -> Tensor:
    if isinstance(batch, Mapping):
        parameters = inspect.signature(model.forward).parameters
        takes_any = any(each.kind == inspect.Parameter.VAR_KEYWORD for each in parameters.values())
        output = model(**{name: value for name, value in batch.items() if takes_any or name in parameters})
    else:
        output = model(batch[0] if isinstance(batch, (tuple, list)) else batch)
    return _tensor_of(output)


def _tensor_of(output: Any) -> Tensor:
    """The logits of an output that is an object or a dictionary, or its first tensor of floating-point numbers."""
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    for each in (named, *outputs(output)):
        if isinstance(each, Tensor) and each.is_floating_point() and each.ndim > 0:
            return each
    raise TypeError(
        f"forward: expected the model to give a tensor, or an object or dictionary with one, got "
        f"{type(output).__name__}. Pass forward=lambda model, batch: …, which gives the logits."
    )


def as_sensitivity(loss: Sensitivity | tuple[Iterable[Any], LossFunction]) -> Sensitivity:
    """A function of the model from itself or from (loader, loss_fn)."""
    if isinstance(loss, tuple) and len(loss) == 2 and callable(loss[1]):
        return mean_loss(*loss)
    if not callable(loss):
        raise TypeError(f"loss: expected a function of the model, or (loader, loss_fn), got {type(loss).__name__}.")
    return loss


def single_number(value: Any, name: str) -> float:
    """A float from what a user's function gave."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if hasattr(value, "item") and getattr(value, "shape", None) is not None and math.prod(value.shape) == 1:
        return float(value.item())
    got = f"shape {tuple(value.shape)}" if hasattr(value, "shape") else type(value).__name__
    raise TypeError(f"{name}: expected one number, a float or a tensor with one element, got {got}.")


def _batch_size(batch: Any) -> int:
    """Length of the first dimension of the first tensor in a batch; 1 where there is none."""
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.ndim else 1
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    return next((_batch_size(part) for part in parts if isinstance(part, (Tensor, Mapping, tuple, list))), 1)
