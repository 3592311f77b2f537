"""`compute_gamma`: the first source document's monitoring procedure, done right."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sdsd_kernels import checks

from ..graphs import seeded
from ..models import check_loss_function, check_module, paused, untouched
from .estimators import gamma_stats
from .stats import GammaStats


def compute_gamma(
    model: nn.Module,
    dataloader: Iterable[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    n_samples: int = 20,
    *,
    samples_per_gradient: int | None = None,
    population: int | None = None,
    confidence: float | None = None,
) -> GammaStats:
    """Γ over the gradients of `n_samples` batches, as "Symmetry-Driven Spatial Density" §5 proposes it.

    What differs from the published pseudocode: `n_samples` is honoured, no absolute epsilon is added to the noise,
    the unbiased ratio stands beside the biased one, and the model is left as it was: parameters, `.grad`, buffers
    (BatchNorm statistics among them), train or eval mode, and the random number generators. A GammaMonitor that watches
    the model does not count these passes.

    Batches are taken to be independent. One pass over a shuffled data set gives disjoint ones: pass its size N as
    `population`. Where each batch of B is drawn anew, its samples without replacement, they vary less than independent
    samples do: multiply `noise` by (N − 1) / (N − B).

    Args:
        model: run in the mode it is in. Parameters that require no gradient are left out.
        dataloader: any iterable of batches; `n_samples` of them are taken.
        loss_fn: (model, batch) → the batch's mean loss, a scalar tensor.
        n_samples: how many batches, at least 2. Memory is n_samples × parameters.
        samples_per_gradient: batch size B; None reads it off the first tensor of a batch. A batch of another size
            (the last one, usually) is left out with a warning.
        population, confidence: as in `gamma_stats`.

    Returns:
        `GammaStats` by parameter and in total, `batch_size` = `samples_per_gradient` = B.

    Raises:
        ValueError: n_samples < 2, a population smaller than the samples seen, fewer than two usable batches, no
            trainable parameter, a loss that is no scalar or that no parameter has a part in.
        TypeError: no model; a loss of torch.nn.
    """
    n_samples = checks.check_count(n_samples, "n_samples", least=2, of="batches")
    check_module(model)
    check_loss_function(loss_fn)
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not trainable:
        raise ValueError("model: expected at least one parameter that requires a gradient, got none.")
    devices = sorted({p.device for p in trainable.values() if p.device.type == "cuda"}, key=str)
    collected: dict[str, list[Tensor]] = {name: [] for name in trainable}
    size, odd, count = samples_per_gradient, [], 0
    with paused(model), untouched(model), seeded(None, devices), torch.enable_grad():
        for batch in dataloader:
            length = _batch_length(batch)
            if size is None:
                if length is None:
                    raise ValueError(
                        "dataloader: found no tensor in a batch to read the batch size from. Pass samples_per_gradient."
                    )
                size = length
            elif length is not None and length != size and samples_per_gradient is None:
                odd.append(length)
                continue
            loss = loss_fn(model, batch)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                got = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
                raise ValueError(f"loss_fn: expected one number, the batch's mean loss, got {got}.")
            gradients = torch.autograd.grad(loss, list(trainable.values()), allow_unused=True)
            if all(gradient is None for gradient in gradients):
                raise ValueError(
                    "loss_fn: expected a loss of the model it is given, got one in which no parameter that trains "
                    "has a part. Run the first argument, which may be a copy, and not a model from outside."
                )
            for (name, parameter), gradient in zip(trainable.items(), gradients, strict=True):
                collected[name].append(torch.zeros_like(parameter) if gradient is None else gradient.detach())
            count += 1
            if count == n_samples:
                break
    if odd:
        warnings.warn(
            f"left out {len(odd)} batch(es) of {sorted(set(odd))} samples: the others hold {size}.", stacklevel=2
        )
    if count < 2:
        raise ValueError(f"dataloader: expected at least 2 batches of equal size, got {count}.")
    if count < n_samples:
        warnings.warn(f"the data loader gave {count} batches, {n_samples} were asked for; n is {count}.", stacklevel=2)
    assert size is not None
    stacked = {name: torch.stack(gradients) for name, gradients in collected.items()}
    return gamma_stats(
        stacked, samples_per_gradient=size, batch_size=size, population=population, confidence=confidence
    )


def _batch_length(batch: Any) -> int | None:
    """Length of the first dimension of the first tensor found in `batch`."""
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.ndim else None
    if isinstance(batch, Mapping):
        batch = list(batch.values())
    if isinstance(batch, (list, tuple)):
        return next((length for part in batch if (length := _batch_length(part)) is not None), None)
    return None
