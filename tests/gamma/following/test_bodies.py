"""Bodies of functions run, and what `follow` says of a call that mixes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sdsd.gamma.following import (
    COMPOSITE,
    Mixed,
    Rows,
    Summed,
    Track,
    Tracks,
    body,
    follow,
    set_track,
    track_of,
    using,
)

from .oracle import Recorder


@pytest.fixture(autouse=True)
def account() -> Any:
    with using(Tracks()) as tracks:
        yield tracks


def plain_and_body(f: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any, Tensor, Tensor]:
    class Inside(TorchFunctionMode):
        seen: list[Any] = []  # noqa: RUF012

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Inside.seen.append(func)
            return func(*args, **(kwargs or {}))

    torch.manual_seed(2)
    plain = f(*args, **kwargs)
    after = torch.rand(2)
    torch.manual_seed(2)
    with Inside():
        inside = body(f)(*args, **kwargs)
    assert Inside.seen
    assert f not in Inside.seen, "the function was handed over as a whole"
    return plain, inside, after, torch.rand(2)


@pytest.mark.parametrize("need", [False, True])
def test_bodies_give_the_same_bits_and_draw_the_same(need: bool) -> None:
    q = torch.randn(5, 3, 8)
    w, b, out = torch.randn(24, 8), torch.randn(24), torch.randn(8, 8)
    args = (q, q, q, 8, 2, w, b, None, None, False, 0.5, out, torch.zeros(8))
    plain, inside, after, again = plain_and_body(F.multi_head_attention_forward, *args, need_weights=need)
    assert torch.equal(plain[0], inside[0])
    assert (plain[1] is None) == (inside[1] is None) == (not need)
    assert plain[1] is None or torch.equal(plain[1], inside[1])
    assert torch.equal(after, again)


def test_composite_functions_have_a_body() -> None:
    assert F.multi_head_attention_forward in COMPOSITE
    assert F.linear not in COMPOSITE
    assert all(callable(body(f)) for f in COMPOSITE)
    with pytest.raises(TypeError, match="written in Python"):
        body(torch.add)


class Opaque(torch.autograd.Function):
    """A function whose inside is out of sight, as one that launches a kernel of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            return (x - x.mean(0)).clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Shown(Opaque):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2


class Empty(Opaque):
    """The kernel writes into memory that torch allocated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = torch.empty_permuted(x.shape, (0, 1))
        with torch._C.DisableTorchFunction():
            out.copy_(x - x.mean(0))
        return out


class Zeros(Opaque):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        with torch._C.DisableTorchFunction():
            out.copy_(x - x.mean(0))
        return out


@pytest.mark.parametrize("function", [Opaque, Empty, Zeros])
def test_what_an_unseen_function_made_is_mixed(function: Any) -> None:
    x = torch.randn(4, 3, requires_grad=True)
    set_track(x, Track(0))
    with Recorder(4) as recorder:
        out = function.apply(x) + x
        shown = Shown.apply(x) + x
    verdict = track_of(out)
    assert isinstance(verdict, Mixed)
    assert function.__name__ in verdict.reason
    assert recorder.mixing == [verdict]
    assert track_of(shown) == Track(0)


def test_functions_of_parameters_alone_stay_without_samples() -> None:
    w = nn.Parameter(torch.randn(4, 4))
    x = torch.randn(4, 4)
    set_track(x, Track(0))
    with Recorder(4):
        rounded = Shown.apply(w)
        scaled = w / w.norm() * torch.eye(4)
        out = F.linear(x, rounded + scaled)
    assert track_of(rounded) is None
    assert track_of(scaled) is None
    assert track_of(out) == Track(0)


def told(func: Any, *args: Any, **kwargs: Any) -> tuple[Any, Mixed | None]:
    out = func(*args, **kwargs)
    mixed = follow(func, args, kwargs, out, 6)
    return out, mixed


def test_the_call_that_mixes_says_so_once() -> None:
    x = torch.randn(6, 8)
    set_track(x, Track(0))
    mean, mixed = told(Tensor.mean, x, 0)
    assert track_of(mean) == Summed("torch.Tensor.mean over the samples (dimension 0 of shape (6, 8))")
    assert mixed is None
    centred, mixed = told(Tensor.sub, x, mean)
    assert mixed is not None
    assert mixed == track_of(centred)
    assert "torch.Tensor.mean over the samples" in mixed.reason
    rest, again = told(Tensor.mul, centred, 2)
    assert track_of(rest) == mixed
    assert again is None
    both, again = told(torch.add, centred, x)
    assert track_of(both) == again == mixed
    number, mixed = told(Tensor.exp, told(Tensor.sum, x)[0])
    assert isinstance(track_of(number), Summed)  # of what does not train: a number of the batch
    assert mixed is None
    loss, mixed = told(F.mse_loss, x, torch.zeros(6, 8, requires_grad=True))
    assert isinstance(track_of(loss), Summed)
    assert mixed is None
    exponential, mixed = told(Tensor.exp, loss)
    assert isinstance(track_of(exponential), Mixed)
    assert mixed is not None
    assert "not linear" in mixed.reason
    halves = x.chunk(2)
    assert follow(Tensor.chunk, (x, 2), {}, halves, 6) is None
    assert isinstance(track_of(halves[0]), Rows)
    turned, mixed = told(torch.cat, [halves[1], halves[0]])
    assert track_of(turned).owners.known == (3, 4, 5, 0, 1, 2)
    assert mixed is None
    both, mixed = told(torch.add, turned, x)
    assert isinstance(track_of(both), Mixed)
    assert mixed == track_of(both)
    whole, mixed = told(torch.cat, list(halves))
    assert track_of(whole) == Track(0)
    assert mixed is None
    side, mixed = told(torch.cat, list(halves), 1)
    assert mixed == track_of(side)
    stacked, mixed = told(torch.stack, list(halves))
    assert mixed == track_of(stacked)
    others = x.clone(), x.clone()
    for other in others:
        set_track(other, Track(0))
    one, two = (other.unbind() for other in others)
    for other, rows in zip(others, (one, two), strict=True):
        follow(Tensor.unbind, (other,), {}, rows, 6)
    whole, mixed = told(torch.stack, [*one[:3], *two[3:]])
    assert track_of(whole) == Track(0)
    assert mixed is None
    mingled, mixed = told(torch.mul, one[0].requires_grad_(), two[1].requires_grad_())
    assert mixed is not None
    assert mixed == track_of(mingled)


def test_reasons_are_sentences_for_users() -> None:
    x = torch.randn(6, 8)
    set_track(x, Track(0))
    assert told(Tensor.amax, x)[1] == Mixed("torch.Tensor.amax over the samples (dimension 0 of shape (6, 8))")
    mixed = told(F.batch_norm, x, None, None, training=True)[1]
    assert mixed == Mixed("BatchNorm in train mode, which mixes the samples, over an input of shape (6, 8)")
    mixed = told(Tensor.view, x, 2, 3, 8)[1]
    assert mixed is not None
    assert "splits the samples along dimension 0" in mixed.reason


def test_a_rule_that_fails_gives_mixed() -> None:
    x = torch.randn(6, 8)
    set_track(x, Track(0))
    out = torch.zeros(6)
    mixed = follow(Tensor.sum, (x, "no dimension"), {}, out, 6)
    assert mixed == track_of(out)
    assert mixed is not None
    assert "could not be read" in mixed.reason
