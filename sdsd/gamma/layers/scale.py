"""Layers that multiply a fixed function of their input by a weight a channel, and add a bias: g_n = Σ_t b ∘ f(x).

LayerNorm, RMSNorm, GroupNorm, InstanceNorm, BatchNorm in eval mode (f normalises), PReLU (f keeps what is negative).
The layer's own backward is untouched; f is computed once more from the saved input.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .base import Measures, Rule, Samples, UnsupportedError, Watcher, arrange, on_waves, sum_of_squares, tap


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

    def weight_gradients(
        self, module: Any, b: Tensor, x: Tensor, known: tuple[Tensor, ...], samples: Samples
    ) -> Tensor:
        """Σ_t b ∘ f(x) of every sample; shape: (N, *parameter shape)."""
        return self.gather(module, b * self.factor(module, x), samples)

    @abc.abstractmethod
    def where(self, watcher: Watcher, module: Any, x: Tensor) -> Samples:
        """Where the samples of `x` are."""

    @abc.abstractmethod
    def gather(self, module: Any, values: Tensor, samples: Samples) -> Tensor:
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
        samples = self.where(watcher, module, x)
        y, known = self.run(module, plain, args, kwargs)
        scaled, scales = watcher.scales()
        split = len(known)

        def gradients(b: Tensor, x: Tensor, known: tuple[Tensor, ...]) -> Iterator[tuple[str, Tensor]]:
            wide = _wide(b)
            for local, wanted in zip(watcher.local, trainable, strict=True):
                if wanted and local == "weight":
                    yield local, self.weight_gradients(module, wide, x, known, samples)
                elif wanted:
                    yield local, self.gather(module, wide, samples)

        def measure(b: Tensor, x: Tensor, *saved: Tensor) -> Measures:
            named = dict(zip(scaled, saved[split:], strict=True))
            return {
                local: (sum_of_squares(each, named.get(local)), on_waves(each.sum(0)))
                for local, each in gradients(b, x, saved[:split])
            }

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

    def weight_gradients(
        self, module: Any, b: Tensor, x: Tensor, known: tuple[Tensor, ...], samples: Samples
    ) -> Tensor:
        if not known:
            return super().weight_gradients(module, b, x, known, samples)
        mean, rstd = known
        features = len(module.normalized_shape)
        products = arrange((_wide(x) - mean).mul_(b), samples, features).flatten(2)
        rows = arrange(rstd, samples, features).flatten(1).unsqueeze(1)
        return torch.bmm(rows.to(products.dtype), products).view(-1, *module.normalized_shape)

    def where(self, watcher: Watcher, module: Any, x: Tensor) -> Samples:
        return watcher.samples_of(x, len(module.normalized_shape))

    def gather(self, module: Any, values: Tensor, samples: Samples) -> Tensor:
        return arrange(values, samples, len(module.normalized_shape)).sum(1)


class OwnRMSNormRule(LayerNormRule):
    """RMS norms that models bring along, as w ∘ f(x) or (1 + w) ∘ f(x): a sample's gradient is that of torch's."""

    def __init__(self, eps: float) -> None:
        super().__init__(centre=False)
        self.eps, self.name = eps, "RMS norm of the model's own"

    def factor(self, module: Any, x: Tensor) -> Tensor:
        return torch.nn.functional.rms_norm(_wide(x), module.weight.shape, eps=self.eps)

    def where(self, watcher: Watcher, module: Any, x: Tensor) -> Samples:
        return watcher.samples_of(x, 1)

    def gather(self, module: Any, values: Tensor, samples: Samples) -> Tensor:
        return arrange(values, samples, 1).sum(1)


_EPSILONS = ("variance_epsilon", "eps", "epsilon")


def own_rms_norm(module: nn.Module) -> OwnRMSNormRule | None:
    """The rule for a module that is an RMS norm by its name, its one parameter, and what it computes; else None."""
    names = [name for name, _ in module.named_parameters()]
    eps = next((value for key in _EPSILONS if isinstance(value := getattr(module, key, None), float)), None)
    if "Norm" not in type(module).__name__ or names != ["weight"] or eps is None or "forward" in module.__dict__:
        return None
    if module.get_parameter("weight").ndim != 1 or module.get_parameter("weight").is_meta:
        return None
    return OwnRMSNormRule(eps) if _is_rms_norm(module, eps) else None


def _is_rms_norm(module: nn.Module, eps: float) -> bool:
    """Whether a copy of the module, with other weights, says on three rows what the formula says."""
    try:
        copied = copy.deepcopy(module).float()
        with torch.no_grad():
            weight = copied.get_parameter("weight")
            steps = torch.arange(weight.numel(), device=weight.device, dtype=torch.float32)
            weight.copy_(torch.cos(steps) + 0.5)
            x = torch.stack([torch.sin(steps + 1), 3 * torch.cos(2 * steps), steps / (steps.numel() + 1) - 0.3])
            out = copied(x)
            f = torch.nn.functional.rms_norm(x, weight.shape, eps=eps)
            return any(torch.allclose(out, factor * f, rtol=1e-4, atol=1e-5) for factor in (weight, 1 + weight))
    except Exception:  # whatever it is, it is no RMS norm of rows
        return False


class ChannelRule(ScaleRule):
    """Parameters of one value a channel, dimension 1, samples in dimension 0."""

    def where(self, watcher: Watcher, module: Any, x: Tensor) -> Samples:
        samples = watcher.samples_of(x, x.ndim - 1)
        watcher.require_samples_first(samples, x)
        return samples

    def gather(self, module: Any, values: Tensor, samples: Samples) -> Tensor:
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

    def weight_gradients(
        self, module: Any, b: Tensor, x: Tensor, known: tuple[Tensor, ...], samples: Samples
    ) -> Tensor:
        if not known:
            return super().weight_gradients(module, b, x, known, samples)
        # As torch does for the batch: Σ b (x − mean) · rstd from two sums a channel.
        mean, rstd = (value.to(b.dtype).repeat_interleave(b.shape[1] // module.num_groups, 1) for value in known)
        return (self.gather(module, _wide(x) * b, samples) - self.gather(module, b, samples) * mean) * rstd


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

    def where(self, watcher: Watcher, module: Any, x: Tensor) -> Samples:
        return super().where(watcher, module, x) if module.num_parameters > 1 else watcher.samples_of(x, 0)

    def gather(self, module: Any, values: Tensor, samples: Samples) -> Tensor:
        if module.num_parameters > 1:
            return super().gather(module, values, samples)
        return arrange(values, samples, 0).sum(1, keepdim=True)
