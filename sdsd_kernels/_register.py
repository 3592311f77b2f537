"""The one way an operator gets into torch: schema, implementation, fake and, where there is one, gradient.

`torch.library.custom_op` takes them too, but what it makes runs fourteen Python functions before the implementation,
and its first call imports the compiler, which takes seconds. What `register` makes runs one, or three where there is a
gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

_LIBRARY = torch.library.Library("sdsd", "FRAGMENT")


class Gradient(NamedTuple):
    """How to differentiate an operator, as `torch.library.register_autograd` takes it."""

    save: Callable[[Any, tuple[Any, ...], Any], None]
    """(ctx, inputs, output): keeps what `backward` needs."""
    backward: Callable[..., tuple[Tensor | None, ...]]
    """(ctx, *gradients of the outputs) → one entry an input, None for what has no gradient."""


def register(
    schema: str, compute: Callable[..., Any], *, fake: Callable[..., Any], gradient: Gradient | None = None
) -> torch._ops.OpOverload:
    """Make `torch.ops.sdsd.<name>` and return it, ready to be called.

    Args:
        schema: "name(Tensor rows, int k, …) -> Tensor", without default values: a caller leaves nothing out.
        compute: the implementation, for every device.
        fake: the same arguments → empty outputs of the right shape, dtype and device. torch.compile and meta tensors
            take it.
        gradient: None where callers detach their inputs.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=torch.Tag.pt2_compliant_tag)
    _LIBRARY.impl(name, compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"sdsd::{name}", fake, lib=_LIBRARY)
    operator: torch._ops.OpOverload = getattr(torch.ops.sdsd, name).default
    if any(argument.has_default_value() for argument in operator._schema.arguments):
        raise ValueError(f"schema: expected no default values, got {schema!r}. Give them to the public function.")
    torch.library.register_vmap(f"sdsd::{name}", _one_by_one(operator), lib=_LIBRARY)
    if gradient is not None:
        _LIBRARY.impl(name, _differentiable(operator, gradient), "Autograd", with_keyset=True)
    for device in ("CPU", "CUDA"):
        _LIBRARY.impl(name, _outside_autocast(operator), f"Autocast{device}")
    return operator


def _one_by_one(operator: torch._ops.OpOverload) -> Callable[..., Any]:
    """What torch.vmap calls: the operator for one entry of the batch after the other, results stacked."""
    written = [place for place, argument in enumerate(operator._schema.arguments) if argument.is_write]

    def rule(info: Any, dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        for place in written:
            if dims[place] is None:
                name = operator._schema.arguments[place].name
                raise ValueError(
                    f"{name}: expected a tensor that torch.vmap cuts as it does the others, got one for all "
                    f"{info.batch_size}, which each of them would write into. Pass one for each, through in_dims."
                )
        if info.batch_size == 0:
            raise ValueError(f"{operator.name()}: expected a batch of one entry at least in torch.vmap, got none.")
        results = [operator(*_entry(list(inputs), list(dims), index)) for index in range(info.batch_size)]
        if results[0] is None:
            return None, None
        if isinstance(results[0], Tensor):
            return torch.stack(results), 0
        return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(results[0])

    return rule


def _entry(inputs: list[Any], dims: list[Any], index: int) -> list[Any]:
    """One entry of every tensor that has a dimension of the batch, in lists too."""
    return [
        _entry(value, dim, index) if isinstance(dim, list) else value if dim is None else value.select(dim, index)
        for value, dim in zip(inputs, dims, strict=True)
    ]


def is_transformed(tensor: Tensor) -> bool:
    """Whether torch.func is at work, or the tensor has a forward-mode tangent. torch.compile handles both by itself."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or _has_tangent(tensor)


def check_no_transform(name: str) -> None:
    """ValueError inside torch.vmap and torch.func, for what gives as much as values say."""
    if torch._C._are_functorch_transforms_active() and not torch.compiler.is_compiling():
        raise ValueError(f"{name}: expected a tensor outside torch.vmap and torch.func, got one inside. Call it first.")


def _has_tangent(tensor: Any) -> bool:
    if forward_ad._current_level < 0 or not isinstance(tensor, Tensor):
        return False
    return forward_ad.unpack_dual(tensor).tangent is not None


_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)


def _outside_autocast(operator: torch._ops.OpOverload) -> Callable[..., Any]:
    """What is called under autocast alone, which would round the factors of products within."""

    def plainly(*inputs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return operator(*inputs)

    return plainly


def _differentiable(operator: torch._ops.OpOverload, gradient: Gradient) -> Callable[..., Any]:
    """What `torch.library.register_autograd` would make, but for the four calls it spends where nothing is saved."""

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, keys: Any, *inputs: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                output = operator.redispatch(keys & torch._C._after_autograd_keyset, *inputs)
            gradient.save(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            return None, *gradient.backward(ctx, *grads)

    def dispatch(keys: Any, *inputs: Any) -> Any:
        if forward_ad._current_level >= 0 and any(map(_has_tangent, inputs)):
            raise NotImplementedError(
                f"{operator.name()}: expected tensors without forward-mode tangents, got some. The public function in "
                "sdsd_kernels takes them."
            )
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*inputs):
            return Differentiable.apply(keys, *inputs)
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keys & torch._C._after_autograd_keyset, *inputs)

    return dispatch
