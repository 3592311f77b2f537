"""scaled_dot_product_attention with a mask of parameters: T5's position biases.

The operation runs once more on the whole batch, with the random numbers it drew and a mask for every sample: the
gradient of that mask holds every sample's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...following import Mixed, Track, track_of
from ..operand import Operand, leaves_of
from ..pieces import Piece
from ..use import watch
from .broadcasting import apart
from .generic import any_operation

if TYPE_CHECKING:
    from ..measuring import Measuring


def attention(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
    """F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, …)."""
    names = ("query", "key", "value", "attn_mask", "dropout_p")
    given = dict(zip(names, args, strict=False)) | kwargs
    q, k, v, mask = (given.get(name) for name in names[:4])
    dropout = given.get("dropout_p", 0.0)
    track = track_of(q)
    plain = all(track_of(t) == track for t in (k, v)) and q.ndim == k.ndim == v.ndim and parameters[0] is mask
    if not isinstance(track, Track) or len(parameters) > 1 or not plain or track.axis >= q.ndim - 2:
        if dropout > 0:
            out = mode.run(func, args, kwargs)
            why = "attention with dropout on it, which draws other numbers when it runs again"
            mode.lost([Operand(t, leaves_of(t, mode.session)[0]) for t in parameters], Mixed(why))
            return out
        return any_operation(mode, func, args, kwargs, parameters)
    state = _state(q.device) if dropout > 0 else None
    out = mode.run(func, args, kwargs)
    n = mode.ledger.n
    settings = {name: value for name, value in given.items() if name not in names[:4]}
    whole = [*q.shape[:-2], *mask.shape[-2:]] if mask.ndim <= q.ndim else list(mask.shape)
    # Only the samples' dimension is spread; heads that share a mask go on sharing it.
    front = [1] * (q.ndim - mask.ndim) + list(mask.shape)
    spread = [whole[d] if d == track.axis and size == 1 else size for d, size in enumerate(front)]

    def measure(b: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Iterator[tuple[int, Piece]]:
        with torch.enable_grad(), torch.random.fork_rng(devices=[q.device] if q.device.type == "cuda" else []):
            if state is not None:
                _set_state(q.device, state)
            each = mask.expand(spread).clone().requires_grad_()
            again = func(q, k, v, attn_mask=each, **settings)
            (gradient,) = torch.autograd.grad(again, each, b)
        yield 0, apart(gradient, track, n, mask.shape)

    watch(mode, "attention mask", out, [mask], (q, k, v, mask), measure)
    return out


def _state(device: torch.device) -> Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def _set_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)
