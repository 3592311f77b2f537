"""Layers that multiply a fixed function of their input by a weight a channel, and add a bias: g_n = Σ_t b ∘ f(x).

LayerNorm, RMSNorm, GroupNorm, InstanceNorm, BatchNorm in eval mode (f normalises), PReLU (f keeps what is negative).
The layer's own backward is untouched; f is computed once more from the saved input.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .base import Plan, Rule, UnsupportedError, Watcher, arrange, sum_of_squares, tap


class ScaleRule(Rule):
    """Subclasses say what f is and which dimensions a parameter spans."""

    @abc.abstractmethod
    def factor(self, module: Any, x: Tensor) -> Tensor:
        """f(x), of the shape of x, in float32 or better."""

    def run(
        self, module: Any, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The layer's output, and what of its forward pass spares work later (`known`)."""
        return plain(*args, **kwargs), ()

    def weight_gradients(self, module: Any, b: Tensor, x: Tensor, known: tuple[Tensor, ...], plan: Plan) -> Tensor:
        """Σ_t b ∘ f(x) of every sample; shape: (N, *parameter shape)."""
        return self.gather(module, b * self.factor(module, x), plan)

    @abc.abstractmethod
    def where(self, watcher: Watcher, module: Any, x: Tensor) -> Plan:
        """Where the samples of `x` are."""

    @abc.abstractmethod
    def gather(self, module: Any, values: Tensor, plan: Plan) -> Tensor:
        """Sum `values`, of the shape of the output, to one parameter-shaped tensor a sample; (N, *parameter shape)."""

    def check(self, watcher: Watcher, module: Any) -> None:
        """Raise UnsupportedError where the module's state forbids per-sample gradients."""

    def forward(
        self, watcher: Watcher, module: Any, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        x = args[0] if args else kwargs["input"]
        self.check(watcher, module)
        trainable = watcher.trainable(module)
        if not any(trainable):
            return plain(*args, **kwargs)
        plan = self.where(watcher, module, x)
        y, known = self.run(module, plain, args, kwargs)
        scaled, scales = watcher.scales()
        split = len(known)

        def gradients(b: Tensor, x: Tensor, known: tuple[Tensor, ...]) -> Iterator[tuple[str, Tensor]]:
            wide = _wide(b)
            for local, wanted in zip(watcher.local, trainable, strict=True):
                if wanted and local == "weight":
                    yield local, self.weight_gradients(module, wide, x, known, plan)
                elif wanted:
                    yield local, self.gather(module, wide, plan)

        def measure(b: Tensor, x: Tensor, *saved: Tensor) -> dict[str, Tensor]:
            named = dict(zip(scaled, saved[split:], strict=True))
            return {local: sum_of_squares(each, named.get(local)) for local, each in gradients(b, x, saved[:split])}

        return tap(watcher, y, measure, x, *known, *scales)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class LayerNormRule(ScaleRule):
    """LayerNorm and RMSNorm over the trailing `normalized_shape`."""

    def __init__(self, centre: bool) -> None:
        self.centre = centre
        self.name = "layer norm" if centre else "RMS norm"

    def factor(self, module: Any, x: Tensor) -> Tensor:
        shape = module.normalized_shape
        wide = _wide(x)
        if self.centre:
            return torch.nn.functional.layer_norm(wide, shape, eps=module.eps)
        return torch.nn.functional.rms_norm(
            wide, shape, eps=torch.finfo(x.dtype).eps if module.eps is None else module.eps
        )

    def run(
        self, module: Any, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        x = args[0] if args else kwargs["input"]
        if not self.centre or torch.is_autocast_enabled(x.device.type):
            return plain(*args, **kwargs), ()
        y, mean, rstd = torch.native_layer_norm(x, module.normalized_shape, module.weight, module.bias, module.eps)
        return y, (mean.detach(), rstd.detach())

    def weight_gradients(self, module: Any, b: Tensor, x: Tensor, known: tuple[Tensor, ...], plan: Plan) -> Tensor:
        if not known:
            return super().weight_gradients(module, b, x, known, plan)
        mean, rstd = known
        features = len(module.normalized_shape)
        products = arrange((_wide(x) - mean).mul_(b), plan, features).flatten(2)
        rows = arrange(rstd, plan, features).flatten(1).unsqueeze(1)
        return torch.bmm(rows.to(products.dtype), products).view(-1, *module.normalized_shape)

    def where(self, watcher: Watcher, module: Any, x: Tensor) -> Plan:
        return watcher.plan(x, len(module.normalized_shape))

    def gather(self, module: Any, values: Tensor, plan: Plan) -> Tensor:
        return arrange(values, plan, len(module.normalized_shape)).sum(1)


class ChannelRule(ScaleRule):
    """Parameters of one value a channel, dimension 1, samples in dimension 0."""

    def where(self, watcher: Watcher, module: Any, x: Tensor) -> Plan:
        if watcher.session.batch_dim != 0 or x.ndim < 2:
            raise UnsupportedError(
                f"{watcher.name}: expected a batch of shape (N, channels, …) with samples first, got shape "
                f"{tuple(x.shape)} and batch_dim={watcher.session.batch_dim}."
            )
        plan = watcher.plan(x, x.ndim - 1)
        if plan[0] != x.shape[0]:
            raise UnsupportedError(f"{watcher.name}: expected {plan[0]} samples in dimension 0, got {tuple(x.shape)}.")
        return plan

    def gather(self, module: Any, values: Tensor, plan: Plan) -> Tensor:
        return values.flatten(2).sum(2) if values.ndim > 2 else values


class GroupNormRule(ChannelRule):
    name = "group norm"

    def factor(self, module: Any, x: Tensor) -> Tensor:
        return torch.nn.functional.group_norm(_wide(x), module.num_groups, eps=module.eps)

    def run(
        self, module: Any, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        x = args[0] if args else kwargs["input"]
        kind = x.device.type
        if torch.is_autocast_enabled(kind) or (x.ndim > 2 and not x.is_contiguous()):
            return plain(*args, **kwargs), ()
        n, channels = x.shape[:2]
        positions = x[0, 0].numel()
        y, mean, rstd = torch.native_group_norm(
            x, module.weight, module.bias, n, channels, positions, module.num_groups, module.eps
        )
        return y, (mean.detach(), rstd.detach())

    def weight_gradients(self, module: Any, b: Tensor, x: Tensor, known: tuple[Tensor, ...], plan: Plan) -> Tensor:
        if not known:
            return super().weight_gradients(module, b, x, known, plan)
        # As torch does for the batch: Σ b (x − mean) · rstd from two sums a channel.
        mean, rstd = (value.to(b.dtype).repeat_interleave(b.shape[1] // module.num_groups, 1) for value in known)
        return (self.gather(module, _wide(x) * b, plan) - self.gather(module, b, plan) * mean) * rstd


class InstanceNormRule(ChannelRule):
    """InstanceNorm; and BatchNorm where it uses its running statistics."""

    def __init__(self, batch: bool = False) -> None:
        self.batch = batch
        self.name = "batch norm in eval mode" if batch else "instance norm"

    def check(self, watcher: Watcher, module: Any) -> None:
        if self.batch and (module.training or module.running_mean is None):
            raise UnsupportedError(
                f"{watcher.name}: BatchNorm in train mode mixes the samples, so a sample has no gradient of its own. "
                "Use mode='micro' with gradient accumulation, put the layer in eval mode, or replace it by GroupNorm."
            )

    def factor(self, module: Any, x: Tensor) -> Tensor:
        wide = _wide(x)
        if module.running_mean is not None and not module.training:
            shape = (1, -1, *[1] * (x.ndim - 2))
            return (wide - module.running_mean.view(shape)) * (module.running_var + module.eps).rsqrt().view(shape)
        return torch.nn.functional.instance_norm(wide, eps=module.eps)


class PReLURule(ChannelRule):
    name = "PReLU"

    def factor(self, module: Any, x: Tensor) -> Tensor:
        return _wide(x).clamp(max=0)

    def where(self, watcher: Watcher, module: Any, x: Tensor) -> Plan:
        return super().where(watcher, module, x) if module.num_parameters > 1 else watcher.plan(x, 0)

    def gather(self, module: Any, values: Tensor, plan: Plan) -> Tensor:
        if module.num_parameters > 1:
            return super().gather(module, values, plan)
        return arrange(values, plan, 0).sum(1, keepdim=True)
