"""Elementwise operations of samples with parameters: sums, differences, products, quotients, and PReLU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...following import Track, arrange, track_of
from ..operand import unexpanded_of
from ..pieces import Dense, Piece, Sums, wide
from ..use import watch
from .broadcasting import apart, gathered
from .generic import any_operation

if TYPE_CHECKING:
    from ..measuring import Measuring


def combination(kind: str) -> Any:
    """The rule of `left ∘ right` for + − × ÷."""

    def rule(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
        extra = {name: value for name, value in kwargs.items() if name not in ("input", "other")}
        left = args[0] if args else kwargs.get("input")
        right = args[1] if len(args) > 1 else kwargs.get("other")
        if extra or len(args) > 2 or not isinstance(left, Tensor) or not isinstance(right, Tensor):
            return any_operation(mode, func, args, kwargs, parameters)
        if kind == "subtract from":
            left, right, sign_of = right, left, "subtract"
        else:
            sign_of = kind
        places = [place for place, t in enumerate((left, right)) if track_of(t) is None and t.requires_grad]
        if len(places) != 1:
            return any_operation(mode, func, args, kwargs, parameters)
        place = places[0]
        operand = (left, right)[place]
        other = (left, right)[1 - place]
        in_place = getattr(func, "__name__", "").rstrip("_") != getattr(func, "__name__", "")
        shape = unexpanded_of(operand).shape
        needs_other = sign_of == "multiply" or (sign_of == "divide")
        if in_place and needs_other:
            other = other.detach().clone()  # what it was before it is written over
        out = mode.run(func, args, kwargs)
        track, n = track_of(out), mode.ledger.n

        def measure(b: Tensor, other: Tensor | None, own: Tensor | None) -> Iterator[tuple[int, Piece]]:
            assert isinstance(track, Track)
            if sign_of in ("add", "multiply") and shape == b.shape[-1:] and track.axis < b.ndim - 1:
                whole = other is None or other.shape == b.shape
                if whole and all(t is None or mode.ledger.serves(t) for t in (b, other)):
                    rows = None if other is None else arrange(other, track, n, 1)
                    yield 0, Sums(arrange(b, track, n, 1), rows)
                    return
            if sign_of == "add" or (sign_of == "subtract" and place == 0):
                values = b
            elif sign_of == "subtract":
                values = -b
            elif sign_of == "multiply":
                assert other is not None
                values = wide(b) * wide(other).conj()
            else:
                assert other is not None
                if place == 0:
                    values = wide(b) / wide(other).conj()
                else:
                    assert own is not None
                    values = -wide(b) * (wide(other) / wide(own).square()).conj()
            if operand.is_complex() is False and values.is_complex():
                values = values.real
            yield 0, apart(values, track, n, shape)

        saved = (other if needs_other else None, operand if sign_of == "divide" and place == 1 else None)
        watch(mode, _NAMES[sign_of], out, [operand], saved, measure, unexpanded=True)
        return out

    return rule


_NAMES = {"add": "sum", "subtract": "difference", "multiply": "product", "divide": "quotient"}


def prelu(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
    """torch.prelu(x, weight): weight (1,) or one value a channel, dimension 1."""
    x, weight = (args[k] if k < len(args) else kwargs[name] for k, name in enumerate(("input", "weight")))
    if track_of(weight) is not None or not isinstance(track_of(x), Track):
        return any_operation(mode, func, args, kwargs, parameters)
    out = mode.run(func, args, kwargs)
    track, n = track_of(out), mode.ledger.n
    spread = torch.Size([weight.numel(), *[1] * (x.ndim - 2)] if x.ndim > 1 and weight.numel() > 1 else [1] * x.ndim)

    def measure(b: Tensor, x: Tensor) -> Iterator[tuple[int, Piece]]:
        assert isinstance(track, Track)
        gradients = gathered(wide(b) * wide(x).clamp(max=0), track, n, spread)
        assert gradients is not None
        yield 0, Dense(gradients.reshape(n, *weight.shape))

    watch(mode, "PReLU", out, [weight], (x,), measure)
    return out
