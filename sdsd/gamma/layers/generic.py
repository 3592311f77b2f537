"""Any other module that owns parameters: its own backward pass, once a sample, by vmap.

Exact wherever the module treats samples independently and torch.func can batch it; it reruns the module's forward
and backward pass, so it costs what the module costs. What it cannot do it refuses by name: random layers (the rerun
would draw other numbers), recurrent layers, modules that vmap cannot batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..attachment import compiling
from .base import Contribution, Rule, UnsupportedError, Watcher, sum_of_squares
from .convolution import chunks


class GenericRule(Rule):
    name = "generic (reruns the module a sample at a time, by vmap)"

    def forward(
        self, watcher: Watcher, module: Any, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        if not any(watcher.trainable(module)):
            return plain(*args, **kwargs)
        if compiling():
            raise UnsupportedError(
                f"{watcher.name}: {type(module).__name__} has no rule of its own, and rerunning it a sample at a time "
                "cannot be traced by torch.compile. Use mode='micro', or leave its parameters out with parameters=…."
            )
        random = next((name for name, child in module.named_modules() if _random(child)), None)
        if random is not None:
            raise UnsupportedError(
                f"{watcher.name}: {type(module).__name__} has no rule of its own, and rerunning it would draw other "
                f"random numbers than the forward pass did (in {random or type(module).__name__}). Set dropout to 0 "
                "there, move its parameters into layers of their own, or use mode='micro'."
            )
        inputs, structure = pytree.tree_flatten((args, kwargs))
        outputs, out_structure = pytree.tree_flatten(plain(*args, **kwargs))
        wanted = [k for k, out in enumerate(outputs) if isinstance(out, Tensor) and out.requires_grad]
        if not wanted:
            return pytree.tree_unflatten(outputs, out_structure)
        n, axis = _batch(watcher)
        for k in wanted:
            if axis < outputs[k].ndim and outputs[k].shape[axis] == n:
                continue
            # An unbatched output, a positional table say: every sample gets its own copy of the output's gradient.
            if axis == 0 and (outputs[k].ndim < 2 or outputs[k].shape[0] == 1 or _unbatched(inputs, n, axis)):
                kept = outputs[k][0] if outputs[k].ndim >= 2 and outputs[k].shape[0] == 1 else outputs[k]
                outputs[k] = kept.expand(n, *kept.shape)
                continue
            raise UnsupportedError(
                f"{watcher.name}: expected {n} samples along dimension {axis} of its output, got shape "
                f"{tuple(outputs[k].shape)}. Pass batch_dim or batch_size, or use mode='micro'."
            )
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        rerun = _Rerun(watcher, module, inputs, structure, wanted, n, axis)
        tapped = _GenericTap.apply(watcher, rerun, len(wanted), *(outputs[k] for k in wanted), *tensors)
        for k, out in zip(wanted, tapped, strict=True):
            outputs[k] = out
        return pytree.tree_unflatten(outputs, out_structure)


def _batch(watcher: Watcher) -> tuple[int, int]:
    if watcher.session.batch is None:
        raise UnsupportedError(f"{watcher.name}: ran before the batch size was known. Pass batch_size to the monitor.")
    return watcher.session.batch, watcher.session.batch_dim


def _unbatched(inputs: list[Any], n: int, axis: int) -> bool:
    return not any(isinstance(x, Tensor) and x.ndim > axis and x.shape[axis] == n for x in inputs)


def _random(module: Any) -> bool:
    dropout = getattr(module, "p", None) if "Dropout" in type(module).__name__ else getattr(module, "dropout", None)
    return module.training and isinstance(dropout, float) and dropout > 0


class _Rerun:
    """Per-sample gradients of a module's own parameters from its saved inputs and its outputs' gradients."""

    def __init__(
        self, watcher: Watcher, module: Any, inputs: list[Any], structure: Any, wanted: list[int], n: int, axis: int
    ) -> None:
        self.watcher, self.module, self.structure, self.wanted = watcher, module, structure, wanted
        self.constants = [None if isinstance(value, Tensor) else value for value in inputs]
        self.is_tensor = [isinstance(value, Tensor) for value in inputs]
        self.n, self.axis = n, axis
        self.local = [name for name in watcher.local if getattr(module, name).requires_grad]

    def per_sample(
        self, start: int, stop: int, grads: tuple[Tensor, ...], tensors: tuple[Tensor, ...]
    ) -> dict[str, Tensor]:
        """Gradients of samples start … stop; name → (stop − start, *shape)."""
        n, axis = self.n, self.axis
        batched = [t.ndim > axis and t.shape[axis] == n for t in tensors]
        parts = tuple(
            t.narrow(axis, start, stop - start) if is_batched else t
            for t, is_batched in zip(tensors, batched, strict=True)
        )
        cotangents = tuple(grad.narrow(axis, start, stop - start) for grad in grads)
        own = {name: getattr(self.module, name).detach() for name in self.local}
        held = {
            name: value.detach()
            for name, value in (*self.module.named_parameters(), *self.module.named_buffers())
            if name not in own
        }

        def outputs(own: dict[str, Tensor], *sample: Tensor) -> tuple[Tensor, ...]:
            remaining = iter(
                t.unsqueeze(axis) if is_batched else t for t, is_batched in zip(sample, batched, strict=True)
            )  # fmt: skip
            values = [
                next(remaining) if is_tensor else constant
                for is_tensor, constant in zip(self.is_tensor, self.constants, strict=True)
            ]
            args, kwargs = pytree.tree_unflatten(values, self.structure)
            out = torch.func.functional_call(self.module, {**held, **own}, args, kwargs)
            flat = pytree.tree_leaves(out)
            return tuple(
                flat[k].squeeze(axis) if any(batched) and flat[k].ndim > axis and flat[k].shape[axis] == 1 else flat[k]
                for k in self.wanted
            )

        def gradient(cotangent: tuple[Tensor, ...], *sample: Tensor) -> dict[str, Tensor]:
            found, pull = torch.func.vjp(lambda own: outputs(own, *sample), own)  # type: ignore[misc]
            shaped = tuple(c.reshape(out.shape) for c, out in zip(cotangent, found, strict=True))
            return pull(shaped)[0]

        session = self.watcher.session
        with session.aside():
            try:
                return torch.func.vmap(
                    gradient, in_dims=(axis, *(axis if is_batched else None for is_batched in batched))
                )(cotangents, *parts)
            except Exception as error:
                raise UnsupportedError(
                    f"{self.watcher.name}: {type(self.module).__name__} has no rule of its own and cannot be rerun a "
                    f"sample at a time ({type(error).__name__}: {error}). Use mode='micro', or leave its parameters "
                    "out with parameters=…."
                ) from error


class _GenericTap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, watcher: Watcher, rerun: _Rerun, count: int, *tensors: Tensor) -> Any:
        ctx.save_for_backward(*tensors[count:])
        ctx.watcher, ctx.rerun, ctx.count = watcher, rerun, count
        ctx.shapes = [(t.shape, t.dtype, t.device) for t in tensors[:count]]
        return tuple(t.detach() for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        watcher, rerun = ctx.watcher, ctx.rerun
        tensors = tuple(t.detach() for t in ctx.saved_tensors)
        full = tuple(
            torch.zeros(shape, dtype=dtype, device=device) if grad is None else grad
            for grad, (shape, dtype, device) in zip(grads, ctx.shapes, strict=True)
        )

        def per_sample(start: int, stop: int) -> Iterator[tuple[str, Tensor]]:
            yield from rerun.per_sample(start, stop, full, tensors).items()

        if watcher.shared:
            watcher.session.keep(watcher, Contribution(rerun.n, per_sample, {}))
        else:
            squares: dict[str, Tensor] = {}
            size = sum(getattr(rerun.module, local).numel() for local in rerun.local) * 4
            for start, stop in chunks(rerun.n, size, watcher.session.max_bytes):
                for local, each in per_sample(start, stop):
                    part = sum_of_squares(each, watcher.scale(local))
                    squares[local] = part if local not in squares else squares[local] + part
            watcher.session.add(watcher, squares)
        return (None, None, None, *grads, *(None for _ in tensors))
