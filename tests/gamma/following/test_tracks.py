"""The account of a pass, samples arranged, writes that reach what shares the memory."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from sdsd.gamma.following import (
    ENTRYWISE,
    SHAPE_ONLY,
    Mixed,
    Rows,
    Track,
    Tracks,
    arrange,
    is_second,
    name_of,
    set_second,
    set_track,
    stated,
    take_over,
    track_of,
    using,
)

from .oracle import Recorder


@pytest.fixture(autouse=True)
def account() -> Any:
    with using(Tracks()) as tracks:
        yield tracks


def test_a_track_is_known_in_its_own_account() -> None:
    x = torch.ones(3, 2)
    assert track_of(x) is None
    assert not stated(x)
    set_track(x, Track(0))
    assert track_of(x) == Track(0, 1, 1)
    with using(Tracks()):
        assert track_of(x) is None
        set_track(x, Track(1))
        assert track_of(x) == Track(1)
    assert track_of(x) == Track(0)
    set_track(x, None)
    assert track_of(x) is None
    assert stated(x)


def test_nothing_is_kept_on_tensors_and_no_buffer_misleads_the_next_pass() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    kept: list[Tensor] = []
    x = torch.randn(3, 4)
    set_track(x, Track(0))
    with Recorder(3):
        out = model(x)
        model[1].running_mean.add_(out.mean(0).detach())
        kept += [out, model[0](x), out.detach()]
    assert isinstance(track_of(model[1].running_mean), Mixed)
    assert [vars(t) for t in (x, *kept, *model.state_dict(keep_vars=True).values()) if vars(t)] == []
    with using(Tracks()):
        assert track_of(model[1].running_mean) is None


def test_the_statistics_that_batch_norm_writes_are_mixed() -> None:
    x, mean, var = torch.randn(3, 4), torch.zeros(4), torch.ones(4)
    set_track(x, Track(0))
    with Recorder(3):
        F.batch_norm(x, mean, var, training=True)
        shifted = x - mean
    assert isinstance(track_of(mean), Mixed)
    assert isinstance(track_of(shifted), Mixed)


def test_tensors_are_not_kept_alive_and_no_other_takes_their_place() -> None:
    x = torch.ones(3)
    set_track(x, Track(0))
    reference = weakref.ref(x)
    del x
    assert reference() is None
    assert [t for t in (torch.ones(3) for _ in range(50)) if track_of(t) is not None] == []


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


def test_a_further_input_that_lies_otherwise_is_no_samples() -> None:
    n = 4
    scores, mask, other = torch.randn(n, 2, n, n), torch.randn(n, n), torch.randn(n, 2, n, 3)
    for x in (scores, mask, other):
        set_track(x, Track(0))
    with Recorder(n) as recorder:
        refused = scores + mask
    assert recorder.mixing == [track_of(refused)]
    set_second(mask)
    with Recorder(n) as recorder:
        along = [mask * 2, scores[:, 0, 0] * mask]
        trained = scores + mask.clone().requires_grad_()
        assert is_second(mask)
        made = mask.view(1, 1, n, n).expand(n, 2, n, n).exp()
        assert is_second(made)
        found = [
            scores + mask,
            scores.masked_fill(made > 1, 0.0),
            torch.where(made > 1, scores, 0.0),
            F.scaled_dot_product_attention(other, other, other, attn_mask=mask),
            torch.baddbmm(mask[None], other[:, 0], other[:, 0].transpose(1, 2)),
            scores @ mask,
            torch.einsum("st,nhtd->nhsd", mask, other),
        ]
        joined = torch.cat([scores[:, 0, 0], mask.T])
    assert [track_of(x) for x in found] == [Track(0)] * 7
    assert not any(is_second(x) for x in found)
    assert [track_of(x) for x in along] == [Track(0)] * 2
    assert isinstance(track_of(joined), Mixed)
    assert track_of(mask) is None, "from there on a constant"
    assert isinstance(track_of(trained), Mixed), "what has a gradient is no mask"


def test_what_samples_wrote_too_is_no_constant() -> None:
    n = 4
    scores, mask, memory = torch.randn(n, 2, n, n), torch.randn(n, n), torch.zeros(n, n)
    for x in (scores, mask):
        set_track(x, Track(0))
    set_second(mask)
    with Recorder(n):
        memory.add_(mask)
        assert track_of(scores + memory.unsqueeze(0)) == Track(0)
        view = memory.add_(mask).unsqueeze(0)
        memory.add_(scores[:, 0, 0])
        refused = [scores + memory, scores + view]
    assert [type(track_of(x)) for x in refused] == [Mixed] * 2


def test_names() -> None:
    assert name_of(Tensor.add_) == name_of(torch.add) == "add"
    assert name_of(Tensor.__getitem__) == "__getitem__"
    assert name_of(Tensor.T.__get__) == "T"  # type: ignore[attr-defined]
    assert {"to", "type_as", "zeros_like", "new_zeros", "expand_as"} <= SHAPE_ONLY
    assert not {"normal", "new_tensor", "add", "copy"} & SHAPE_ONLY
    assert {torch.relu, F.gelu, torch.add, Tensor.__mul__, F.relu} <= ENTRYWISE
    assert not {Tensor.add_, Tensor.__iadd__, torch.where, torch.softmax, torch.sum} & ENTRYWISE


def test_entrywise_functions_take_over() -> None:
    x, y = torch.randn(3, 2), torch.randn(3, 2)
    set_track(x, Track(0), second=True)
    take_over(y, x)
    assert track_of(y) == Track(0)
    assert is_second(y)


def view_of_columns(buffer: Tensor, x: Tensor) -> list[Tensor]:
    column, turned = buffer[:, 0], buffer.T
    column.copy_(x[:, 0])
    return [column, buffer, turned]


def view_of_one_row(buffer: Tensor, x: Tensor) -> list[Tensor]:
    row, other = buffer[0], buffer[1]
    row.copy_(x[:, 0])
    return [row, buffer, other]


def view_of_a_part(buffer: Tensor, x: Tensor) -> list[Tensor]:
    buffer.flatten()[2:6].copy_(x[:, 0])
    return [buffer]


def centred_in_place(buffer: Tensor, x: Tensor) -> list[Tensor]:
    y = x * 1
    turned, first = y.T, y[:, 0]
    y.sub_(y.mean(0))
    return [y, turned, first]


def written_over(buffer: Tensor, x: Tensor) -> list[Tensor]:
    y = x * 1
    turned = y.T
    y.copy_(x.T)
    return [turned * 1]


def cleared_and_written_over(buffer: Tensor, x: Tensor) -> list[Tensor]:
    y = x * 1
    turned = y.T
    y.zero_()
    y.add_(x.T)
    return [turned * 1]


@pytest.mark.parametrize(
    ("program", "wanted"),
    [
        (view_of_columns, [Track, Track, Mixed]),
        (view_of_one_row, [Track, Track, Mixed]),
        (view_of_a_part, [Mixed]),
        (centred_in_place, [Mixed, Mixed, Mixed]),
        (written_over, [Mixed]),
        (cleared_and_written_over, [Mixed]),
    ],
)
def test_writes_reach_what_shares_the_memory(program: Any, wanted: list[type]) -> None:
    x = torch.randn(4, 4)
    set_track(x, Track(0))
    with Recorder(4) as recorder:
        found = program(torch.zeros(4, 4), x)
        verdicts = [type(track_of(each)) for each in found]
    assert verdicts == wanted
    assert recorder.mixing or Mixed not in wanted[:2]


def test_out_is_written_to() -> None:
    x = torch.randn(4, 4)
    set_track(x, Track(0))
    whole = torch.zeros(4, 4)
    with Recorder(4) as recorder:
        torch.mul(x[:, 0], 2, out=whole.flatten()[2:6])
    assert isinstance(track_of(whole), Mixed)
    assert len(recorder.mixing) == 1


def test_positions_where_all_is_chosen_are_constants() -> None:
    """By value, as documented: the positions in a mask that leaves nothing out are those of any batch of its shape."""
    full, part = torch.ones(4, 3, dtype=torch.bool), torch.eye(4, 3, dtype=torch.bool)
    for x in (full, part):
        set_track(x, Track(0))
    with Recorder(4):
        assert track_of(full.nonzero()) is None
        assert isinstance(track_of(part.nonzero()), Rows)
