"""Rows that a mask or an index chose: each depends on its owner alone, and comes back to it or is mixed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from sdsd.gamma.following import Mixed, Rows, Track

from .oracle import check, run

pytestmark = pytest.mark.usefixtures("double")

W = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def assigned(x):
    mask = x[..., 0] > 0
    out = torch.zeros_like(x)
    out[mask] = F.linear(x[mask], W).tanh() + 1
    return out


def added(x):
    rows = x.reshape(-1, 5)
    (places,) = torch.where(rows[:, 1] > 0)
    chosen = rows[places]
    out = torch.zeros_like(rows).index_add(0, places, chosen.softmax(-1) * chosen.mean(1, keepdim=True))
    return out.view_as(x)


def added_twice(x):
    rows, out = x.reshape(-1, 5), torch.zeros(x.shape[0] * x.shape[1], 5)
    for k in range(2):
        places = (rows[:, k] > 0).nonzero().squeeze(1)
        out.index_add_(0, places, rows.index_select(0, places) if k else rows[places].exp())
    return out.view_as(x)


def filled(x):
    rows = x.reshape(-1, 5)
    (places,) = torch.where(rows[:, 1] > 0)
    return torch.zeros_like(rows).index_fill(0, places, 2.0).view_as(x)


def dealt(x):
    mask = (x[..., :1] > 0).expand_as(x)
    return x.masked_scatter(mask, F.linear(x[mask[..., 0]], W))


def pairs(x):
    sample, place = torch.where(x[..., 0] > 0)
    out = torch.zeros_like(x)
    out[sample, place] = x[sample, place].cumsum(1) + W[place % 5]
    return out


BACK = {f.__name__: f for f in (assigned, added, added_twice, filled, dealt, pairs)}


@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 4, 5), (5, 2, 5), (1, 4, 5)])
@pytest.mark.parametrize("name", BACK)
def test_rows_come_back_to_their_samples(name, shape):
    assert check(BACK[name], [torch.randn(shape)], [Track(0)], shape[0], ways=("small", "large")) == [Track(0)]


def together(x):
    rows = x[x[:, 0] > 0]
    return rows - rows.mean(0)


def sorted_rows(x):
    return x[x[:, 0] > 0].sort(0).values


def other_places(x):
    places = (x[:, 0] > 0).nonzero().squeeze(1)
    return torch.zeros_like(x).index_add(0, places.flip(0), x[places])


def own_places(x):
    """Rows read at places of other samples."""
    places = (x[:, 0] > 0).nonzero().squeeze(1)
    return x[(places + 1) % len(x)]


def two_choices(x):
    return x[x[:, 0] > 0] * x[x[:, 1] > 0]


def first_rows(x):
    return x[x[:, 0] > 0][:2]


def of_everybody(x):
    return x[x[:, 0] > 0] * x.sum()


def shared_mask(x):
    return x[x[:, 0] > x[:, 0].median()]


def elsewhere(x):
    out = torch.zeros_like(x)
    out[x[:, 1] > 0] = x[x[:, 0] > 0]
    return out


def dealt_elsewhere(x):
    mask = (x[:, 1:2] > 0).expand_as(x)
    return x.masked_scatter(mask, x[x[:, 0] > 0])


MIXING = {
    f.__name__: f
    for f in (
        together,
        sorted_rows,
        other_places,
        own_places,
        two_choices,
        first_rows,
        of_everybody,
        shared_mask,
        elsewhere,
        dealt_elsewhere,
    )
}
SIGNS = torch.tensor([[1.0, -1], [1, 1], [-1, 1], [1, 1], [1, 1], [-1, -1]])


@pytest.mark.parametrize("name", MIXING)
def test_rows_that_meet_are_mixed(name):
    x = torch.randn(6, 5)
    x[:, :2] = x[:, :2].abs() * SIGNS
    assert isinstance(run(MIXING[name], [x], [Track(0)], 6)[2][0], Mixed)


def test_owners_are_read_off_the_mask():
    x = torch.randn(6, 4)
    mask = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]] * 2, dtype=torch.bool)
    _, _, (verdict,) = run(lambda x, mask: x[mask], [x, mask], [Track(0, 2, 1), Track(0, 2, 1)], 3)
    assert isinstance(verdict, Rows)
    assert verdict.owners.samples.tolist() == [0, 0, 2, 0, 0, 2]
    _, _, (verdict,) = run(lambda x, mask: x.T[mask.T], [x, mask], [Track(0), Track(0)], 6)
    assert verdict.owners.samples.tolist() == [0, 3, 2, 5, 0, 3]


def test_a_mask_that_changed_is_another_choice():
    def changed(x):
        mask = x[:, 0] > 0
        rows, out = x[mask], torch.zeros_like(x)
        mask.copy_(x[:, 1] > 0)
        out[mask] = rows
        return out

    x = torch.randn(6, 5)
    x[:, :2] = x[:, :2].abs() * SIGNS
    assert isinstance(run(changed, [x], [Track(0)], 6)[2][0], Mixed)
