"""How a drawn model ends, and losses: each as people write it, and what samples contribute to it, written apart."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from .model import Drawn, Value


class Out(NamedTuple):
    logits: Tensor
    hidden: Tensor


WRAPS: dict[str, tuple[Callable[[Tensor, Tensor], Any], Callable[[Any], Tensor]]] = {
    "plain": (lambda y, h: y, lambda o: o),
    "tuple": (lambda y, h: (y, h), lambda o: o[0]),
    "dictionary": (lambda y, h: {"hidden": h, "logits": y}, lambda o: o["logits"]),
    "named tuple": (Out, lambda o: o.logits),
    "nested": (lambda y, h: [{"y": (h, y)}], lambda o: o[0]["y"][1]),
}


def by_sample(value: Value) -> Tensor:
    """(N, entries), whatever the dimensions are."""
    x = value.x
    k, group = value.at, value.dims[value.at]
    sizes = [value.n if size == "N" else size for size in group]
    x = x.unflatten(k, sizes) if len(group) > 1 else x
    return x.movedim(k + group.index("N"), 0).flatten(1) if x.dim() > 1 else x.unsqueeze(1)


def _weights(flat: Tensor) -> Tensor:
    return torch.cos(torch.arange(flat.shape[1], dtype=flat.dtype))


def _targets(flat: Tensor) -> Tensor:
    return torch.arange(len(flat)) * 5 % flat.shape[1]


def _mask(flat: Tensor) -> Tensor:
    mask = torch.arange(flat.numel()).view(flat.shape) % 3 != 1
    mask[:, 0] = True
    return mask


def _goals(flat: Tensor) -> Tensor:
    return torch.sin(torch.arange(flat.numel(), dtype=flat.dtype)).view(flat.shape)


# Each: the loss of outputs (N, entries), and what sample i has of it, (N,).
LOSSES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "weighted squares": (
        lambda y: (y @ _weights(y) - 1).square().mean(),
        lambda y: ((y * _weights(y)).sum(1) - 1) ** 2 / len(y),
    ),
    "sum": (
        lambda y: (y @ _weights(y) - 1).square().sum(),
        lambda y: ((y * _weights(y)).sum(1) - 1) ** 2,
    ),
    "classes": (
        lambda y: F.cross_entropy(y, _targets(y)),
        lambda y: -F.log_softmax(y, 1)[torch.arange(len(y)), _targets(y)] / len(y),
    ),
    "none, then mean": (
        lambda y: F.cross_entropy(y, _targets(y), reduction="none").mean(),
        lambda y: -F.log_softmax(y, 1)[torch.arange(len(y)), _targets(y)] / len(y),
    ),
    "squares": (lambda y: F.mse_loss(y, _goals(y)), lambda y: (y - _goals(y)).square().sum(1) / y.numel()),
    "masked": (
        lambda y: (F.smooth_l1_loss(y, _goals(y), reduction="none") * _mask(y)).sum() / _mask(y).sum(),
        lambda y: F.smooth_l1_loss(y, _goals(y), reduction="none").masked_fill(~_mask(y), 0).sum(1) / _mask(y).sum(),
    ),
    "chosen": (
        lambda y: (y - _goals(y))[_mask(y)].square().mean(),
        lambda y: ((y - _goals(y)).square() * _mask(y)).sum(1) / _mask(y).sum(),
    ),
    "tokens": (
        lambda y: F.cross_entropy(
            torch.stack([y, 0.5 * y, y.sin()], 1).transpose(1, 2).flatten(0, 1),
            torch.where(_mask(y), torch.arange(y.numel()).view(y.shape) % 3, -100).flatten(),
        ),
        lambda y: (
            -torch.stack([y, 0.5 * y, y.sin()], 2)
            .log_softmax(2)
            .gather(2, (torch.arange(y.numel()) % 3).view(*y.shape, 1))
            .squeeze(2)
            .masked_fill(~_mask(y), 0)
            .sum(1)
            / _mask(y).sum()
        ),
    ),
    "weighed samples": (
        lambda y: ((y.square().mean(1) + y[:, 0]) * torch.arange(1.0, len(y) + 1)).mean(),
        lambda y: (y.square().mean(1) + y[:, 0]) * torch.arange(1.0, len(y) + 1) / len(y),
    ),
    "heads": (
        lambda y: F.binary_cross_entropy_with_logits(y, _goals(y).abs()) + 0.3 * y.square().mean(1).mean(),
        lambda y: (
            (
                F.binary_cross_entropy_with_logits(y, _goals(y).abs(), reduction="none").mean(1)
                + 0.3 * y.square().mean(1)
            )
            / len(y)
        ),
    ),
}


class Ending(NamedTuple):
    """What a model gives back: `loss`, and whether the model computes it itself; how outputs are wrapped."""

    loss: str
    inside: bool
    wrap: str

    @staticmethod
    def drawn(random: Random) -> Ending:
        return Ending(random.choice(sorted(LOSSES)), random.random() < 0.3, random.choice(sorted(WRAPS)))

    def finish(self, model: Drawn, value: Value, parts: bool = False) -> Any:
        """(`parts`: what every sample contributes, for the loop over samples alone.)"""
        y = by_sample(value)
        whole, by_samples = LOSSES[self.loss]
        if parts:
            return by_samples(y)
        if self.inside:
            return WRAPS[self.wrap][0](whole(y), y)
        return WRAPS[self.wrap][0](y, value.x)

    def whole(self, output: Any) -> Tensor:
        """The loss, of what the model gave."""
        y = WRAPS[self.wrap][1](output)
        return y if self.inside else LOSSES[self.loss][0](y)
