"""How tracks are kept and taken off again, samples arranged, and bodies of functions run."""

from __future__ import annotations

import io
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sdsd.gamma.following import (
    COMPOSITE,
    Mixed,
    Track,
    arrange,
    body,
    end_pass,
    follow,
    new_pass,
    set_track,
    track_of,
)

from .oracle import Recorder
from .test_networks import NETWORKS, given


def test_a_track_is_known_for_one_pass() -> None:
    new_pass()
    x = torch.ones(3, 2)
    assert track_of(x) is None
    set_track(x, Track(0))
    assert track_of(x) == Track(0, 1, 1)
    set_track(x, None)
    assert track_of(x) is None
    set_track(x, Track(0))
    new_pass()
    assert track_of(x) is None


def test_nothing_stays_on_what_outlives_the_pass() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    kept: list[Tensor] = []
    new_pass()
    x = torch.randn(3, 4)
    set_track(x, Track(0))
    with Recorder(3):
        out = model(x)
        model[1].running_mean.add_(out.mean(0).detach())
        kept += [out, model[0].weight.requires_grad_(), out.detach()]
    assert isinstance(track_of(model[1].running_mean), Mixed)
    end_pass()
    assert [vars(t) for t in (x, *kept, *model.state_dict(keep_vars=True).values()) if vars(t)] == []
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    assert set(torch.load(stream, weights_only=True)) == set(model.state_dict())


def test_tensors_are_not_kept_alive() -> None:
    new_pass()
    x = torch.ones(3)
    set_track(x, Track(0))
    reference = weakref.ref(x)
    del x
    assert reference() is None


@pytest.mark.parametrize(
    ("shape", "track", "features", "wanted"),
    [
        ((3, 5), Track(0), 1, (3, 1, 5)),
        ((3, 7, 5), Track(0), 1, (3, 7, 5)),
        ((7, 3, 5), Track(1), 1, (3, 7, 5)),
        ((6, 7, 5), Track(0, 1, 2), 1, (3, 14, 5)),
        ((6, 7, 5), Track(0, 2, 1), 1, (3, 14, 5)),
        ((2, 12, 4, 5), Track(1, 2, 2), 2, (3, 8, 4, 5)),
        ((3,), Track(0), 0, (3, 1)),
        ((3, 0, 5), Track(0), 1, (3, 0, 5)),
        ((3, 4, 0), Track(0), 1, (3, 4, 0)),
    ],
)
def test_arranged_by_sample(shape: tuple[int, ...], track: Track, features: int, wanted: tuple[int, ...]) -> None:
    n = 3
    index = (torch.arange(shape[track.axis]) // track.inner) % n
    samples = torch.zeros(shape, dtype=torch.int64)
    samples.movedim(track.axis, -1).copy_(index)
    arranged = arrange(samples, track, n, features)
    assert arranged.shape == wanted
    assert all(bool((arranged[k] == k).all()) for k in range(n))
    x = torch.randn(shape)
    tail = x.shape[x.dim() - features :]
    rows = list(x.reshape(-1, *tail)) if x.numel() else []
    order = list(arrange(x, track, n, features).reshape(-1, *tail)) if x.numel() else []
    assert sorted(r.sum().item() for r in rows) == sorted(r.sum().item() for r in order)


def test_arranged_as_a_view_where_possible() -> None:
    x = torch.randn(4, 7, 5)
    assert arrange(x, Track(0), 4, 1).data_ptr() == x.data_ptr()
    assert arrange(x, Track(1), 7, 1).data_ptr() == x.data_ptr()
    assert arrange(x, Track(0, 1, 2), 2, 1).data_ptr() == x.data_ptr()


def test_samples_among_the_features_cannot_be_arranged() -> None:
    with pytest.raises(ValueError, match="before its last 1 dimensions"):
        arrange(torch.randn(4, 3), Track(1), 3, 1)


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


def test_bodies_give_the_same_bits_and_draw_the_same() -> None:
    q = torch.randn(5, 3, 8)
    w, b = torch.randn(24, 8), torch.randn(24)
    out = torch.randn(8, 8)
    for need in (False, True):
        args = (q, q, q, 8, 2, w, b, None, None, False, 0.5, out, torch.zeros(8))
        plain, inside, after, again = plain_and_body(F.multi_head_attention_forward, *args, need_weights=need)
        assert torch.equal(plain[0], inside[0])
        assert (plain[1] is None) == (inside[1] is None) == (not need)
        assert plain[1] is None or torch.equal(plain[1], inside[1])
        assert torch.equal(after, again)
    x, y = torch.randn(4, 3), torch.randn(4, 3)
    plain, inside, *_ = plain_and_body(F.cosine_embedding_loss, x, y, torch.ones(4), reduction="none")
    assert torch.equal(plain, inside)
    assert body(F.cosine_embedding_loss) is body(F.cosine_embedding_loss)


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


@pytest.mark.parametrize("function", [Opaque, Empty])
def test_what_an_unseen_function_made_is_mixed(function: Any) -> None:
    new_pass()
    x = torch.randn(4, 3, requires_grad=True)
    set_track(x, Track(0))
    with Recorder(4):
        out = function.apply(x) + x
        shown = Shown.apply(x) + x
    verdict = track_of(out)
    assert isinstance(verdict, Mixed)
    assert function.__name__ in verdict.reason
    assert track_of(shown) == Track(0)


@pytest.mark.parametrize("name", ["perceptron", "perceptron of tokens", "encoder", "gpt", "swin", "last token"])
def test_an_empty_batch_breaks_nothing(name: str) -> None:
    make, spec = NETWORKS[name]
    x, track = given(spec, 0, 5)
    new_pass()
    set_track(x, track)
    with Recorder(0):
        out = make()(x)
    assert track_of(out) is not None


def test_functions_of_parameters_alone_stay_without_samples() -> None:
    new_pass()
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


def test_reasons_are_sentences_for_users() -> None:
    new_pass()
    x = torch.randn(6, 8)
    set_track(x, Track(0))
    out = x.mean()
    follow(torch.Tensor.mean, (x,), {}, out, 6)
    assert track_of(out) == Mixed("torch.Tensor.mean over the samples (dimension 0 of shape (6, 8))")
    out = F.batch_norm(x, None, None, training=True)
    follow(F.batch_norm, (x, None, None), {"training": True}, out, 6)
    assert track_of(out) == Mixed("BatchNorm in train mode, over an input of shape (6, 8)")
    out = x.view(2, 3, 8)
    follow(torch.Tensor.view, (x, 2, 3, 8), {}, out, 6)
    verdict = track_of(out)
    assert isinstance(verdict, Mixed)
    assert "splits the samples along dimension 0" in verdict.reason


def test_indices_that_count_are_known_without_reading_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: Tensor) -> Any:
        raise AssertionError("the values of an index were read")

    monkeypatch.setattr(torch.Tensor, "cpu", read)
    new_pass()
    x, i = torch.randn(4, 4), torch.tensor([1, 0, 3, 3])
    set_track(x, Track(0))
    set_track(i, Track(0))
    with Recorder(4):
        a = x[torch.arange(x.shape[0]), i]
        rows = torch.arange(4)[:, None, None].to(torch.long)
        b = x[rows, torch.arange(4)[None, None, :]]
        c = x[torch.arange(4), 0]
        backwards = x[torch.arange(3, -1, -1)]
    assert track_of(a) == Track(0)
    assert track_of(b) == Track(0)
    assert track_of(c) == Track(0)
    assert isinstance(track_of(backwards), Mixed)
