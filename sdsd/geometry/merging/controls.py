"""What a finding about geometry is held against, networks and pairs in which it should not show; and plain training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sdsd_kernels import checks, cosine_matrix

from ...graphs import row_dim
from ...models import check_loss_function, copy_of
from .edits import tensor_of
from .layers import dense_layer
from .sensitivity import LossFunction

Training = Callable[[nn.Module], Iterable[object]]
"""A generator function: it trains the model it is given and yields after each epoch."""


def untrained(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy of the model with fresh parameters, as its modules initialise themselves.

    Args:
        model: not changed.
        seed: of the fresh parameters; the global generators are left as they are.

    Returns:
        The copy, in the mode that the model is in.

    Raises:
        ValueError: parameters of a module without `reset_parameters` (a class token, say), which are named.
    """
    fresh = copy_of(model)
    kept: list[str] = []
    with torch.random.fork_rng(devices=cuda_devices(model)):
        torch.manual_seed(checks.check_integer(seed, "seed"))
        for name, module in fresh.named_modules():
            reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
            if callable(reset):
                reset()
            else:
                kept += [f"{name}.{local}".lstrip(".") for local, _ in module.named_parameters(recurse=False)]
    if kept:
        raise ValueError(
            f"model: {', '.join(map(repr, kept[:5]))} belong to modules without reset_parameters. Give them one, or "
            "build an untrained model yourself."
        )
    return fresh


def trained(model: nn.Module, train: Training, epochs: int, seed: int = 0) -> nn.Module:
    """A copy of the model, trained for some epochs; the same seed gives the same network.

    Trained from `untrained(model)` on `shuffled_pixels`, it is the control that has seen everything but the images.

    Args:
        model: not changed.
        train: a generator function that trains and yields after each epoch; `sgd_training` makes one.
        epochs: how many.
        seed: of the global generators during training, which are put back.

    Returns:
        The trained copy, in the mode that `train` left it in.

    Raises:
        TypeError: `seed` is no int.
        ValueError: `epochs` is no whole number, 0 or more.
    """
    network = copy_of(model)
    with torch.random.fork_rng(devices=cuda_devices(model)):
        torch.manual_seed(checks.check_integer(seed, "seed"))
        for _ in itertools.islice(train(network), epochs):
            pass
    return network


def sgd_training(
    loader: Iterable[Any], loss_fn: LossFunction, lr: float = 0.05, momentum: float = 0.9, weight_decay: float = 0.0
) -> Training:
    """Plain training with momentum SGD, as `plasticity` and `trained` take it.

    Args:
        loader: any iterable of batches that can be read again and again.
        loss_fn: (model, batch) → the batch's mean loss.
        lr, momentum, weight_decay: of torch.optim.SGD.

    Raises:
        TypeError: a loss of torch.nn, which takes outputs and targets.
    """
    check_loss_function(loss_fn)

    def train(model: nn.Module) -> Iterator[None]:
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trainable, lr=lr, momentum=momentum, weight_decay=weight_decay)
        while True:
            model.train()
            steps = 0
            for batch in loader:
                optimizer.zero_grad()
                loss_fn(model, batch).backward()
                optimizer.step()
                steps += 1
            if steps == 0:
                raise ValueError("loader: expected at least one batch, got none. Pass a list or a DataLoader.")
            yield

    return train


def shuffled_pixels(images: Tensor, seed: int = 0) -> Tensor:
    """The images with their pixels in random order, another order for each image, one for all channels of an image.

    What is left of an image is the distribution of its pixels.

    Args:
        images: (N, pixels), or (N, channels, height, width), or with more dimensions behind channels.
        seed: of the permutations.

    Returns:
        A new tensor of the same shape, dtype and device.

    Raises:
        ValueError: three dimensions, which may be channels or rows, or fewer than two.
    """
    if images.ndim < 2 or images.ndim == 3:
        raise ValueError(
            f"images: expected (N, pixels) or (N, channels, height, width), got shape {tuple(images.shape)}. Give "
            "images without channels a dimension of 1: images.unsqueeze(1)."
        )
    flat = images.reshape(len(images), 1, -1) if images.ndim == 2 else images.flatten(2)
    generator = torch.Generator().manual_seed(checks.check_integer(seed, "seed"))
    order = torch.rand(len(images), 1, flat.shape[2], generator=generator).argsort(2)
    return flat.gather(2, order.expand_as(flat).to(images.device)).reshape(images.shape)


def weight_cosine(model: nn.Module, layer: str) -> Tensor:
    """Cosine of the incoming weights of every pair of neurons: geometry that has seen no data.  # shape: (n, n)

    Raises:
        TypeError, ValueError: as `consumers`, for the layer.
    """
    module = dense_layer(model, layer)
    return cosine_matrix(tensor_of(module, "weight").detach(), neuron_dim=row_dim(module))


def cuda_devices(model: nn.Module) -> list[int]:
    return sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
