"""Samples taken at constant places: chunks, slices, permutations, features picked by image, rows written by a mask."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.zoo.parts import N, Net, any_loss, parameter
from tests.zoo.programs.common import IDS, IMAGES, SEQUENCES, SQUARE, X, linear, of
from tests.zoo.verdict import Program

CUT = max(2, N // 2 + 1)
"""Of a chunk, so that the last one is smaller."""


def in_chunks(run):
    return lambda m, x: m.last(torch.cat([run(m, part) for part in x.split(CUT)]).mean(tuple(range(1, x.ndim - 1))))


def written_in_slices(m, x):
    out = torch.empty_like(x)
    for start in range(0, len(x), CUT):
        out[start : start + CUT] = torch.tanh(m.first(x[start : start + CUT]))
    return m.last(out)


def subset_added(m, x):
    """DINOv2: a residual of some samples alone, scaled up, and added to all by index_add."""
    some = torch.arange(len(x)).flip(0)[:CUT]
    residual = torch.tanh(m.first(x[some])) * m.gain
    flat = x.flatten(1).index_add(0, some, residual.flatten(1), alpha=len(x) / CUT)
    return m.last(flat.view_as(x))


def by_kind(m, x):
    out, even, odd = x.new_zeros(x.shape), torch.arange(0, len(x), 2), torch.arange(1, len(x), 2)
    out[even] = torch.tanh(m.first(x[even]))
    out[odd] = m.second(x[odd])
    return m.last(out)


def shuffled(m, x):
    order = torch.arange(len(x)).roll(2).flip(0)
    return m.last(torch.tanh(m.first(x[order]))[order.argsort()])


def rays_in_chunks(m, x):
    """NeRF: the points of all rays in one row, cut anywhere, and put together by ray."""
    points = x.flatten(0, 1)
    return m.last(torch.cat([torch.tanh(m.first(points[k : k + 5])) for k in range(0, len(points), 5)]).view_as(x))


def boxes(m, x):
    """A detection head: the features of boxes, each at its place in its image."""
    image, row, column = torch.tensor([0, 0, 2, 1, 2]), torch.tensor([1, 2, 3, 4, 5]), torch.tensor([5, 4, 3, 2, 1])
    return m.last(torch.relu(m.first(x))[image, :, row, column])


def contribution_of_boxes(model, i):
    rows = torch.tensor([0, 0, 2, 1, 2]) == i
    return model(IMAGES)[rows].square().sum()


def by_place(compute, batch, **parts):
    """Where a sample differs from a batch of itself alone: its contribution is its part of the whole batch's loss."""

    def contribution(model, i):
        flat = model(batch.double()).flatten(1)
        weights = torch.cos(torch.arange(flat.shape[1], dtype=flat.dtype))
        return (flat @ weights - 1).square()[i] / N

    def made():
        return Net(compute, **{k: make() for k, make in parts.items()})

    return Program(made, (batch,), any_loss, contribution=contribution, measured=True)


def dropped(m, x):
    x = x.clone()
    x[x[..., 0] > 0] = m.null
    return m.last(torch.tanh(m.first(x)))


def experts_under_checkpoint(m, x):
    rows = x.flatten(0, 1)
    out, kinds = torch.zeros_like(rows), rows[:, 0] > 0
    for kind, expert in ((True, m.first), (False, m.second)):
        chosen = (kinds == kind).nonzero()[:, 0]
        out = out.index_add(
            0, chosen, checkpoint(lambda z, e=expert: torch.tanh(e(z)), rows[chosen], use_reentrant=False)
        )
    return m.last(out.view_as(x))


def messages(m, x):
    """Along the edges of a ring, as many as there are nodes."""
    h = m.first(x)
    start = torch.arange(len(x))
    return m.last(torch.zeros_like(h).index_add(0, start.roll(1), torch.tanh(h[start])))


def hopeless(compute, batch=X, **parts):
    made = {"first": linear(), "last": linear(8, 3), **parts}
    return Program(lambda: Net(compute, **{k: make() for k, make in made.items()}), (batch,), any_loss, hopeless=True)


FIRST, LAST = {"first": linear()}, {"last": linear(8, 3)}
BOTH = FIRST | LAST

PLACES = {
    "a layer on chunks of the batch": of(
        lambda m, x: m.last(torch.cat([torch.tanh(m.first(part)) for part in x.split(CUT)])), **BOTH
    ),
    "a layer on chunks of sequences as long as the batch": of(
        in_chunks(lambda m, x: torch.tanh(m.first(x))), SQUARE, **BOTH
    ),
    "a recurrent layer on chunks": of(
        in_chunks(lambda m, x: m.first(x)[0]), SEQUENCES, first=lambda: nn.GRU(8, 8, batch_first=True), **LAST
    ),
    "a transformer's layer on chunks": of(
        in_chunks(lambda m, x: m.first(x)),
        SEQUENCES,
        first=lambda: nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True),
        **LAST,
    ),
    "a lookup, positions and a norm on chunks": of(
        lambda m, x: m.last(
            torch.cat([m.norm(m.first(part) + m.positions) for part in x.tensor_split((1, 3))]).mean(1)
        ),
        IDS,
        first=lambda: nn.Embedding(16, 8),
        positions=lambda: parameter(5, 8),
        norm=lambda: nn.LayerNorm(8),
        **LAST,
    ),
    "a weight computed once and used on chunks": of(
        lambda m, x: m.last((lambda w: torch.cat([x[:2] @ w, x[2:] @ w]))(F.normalize(m.weight))),
        weight=lambda: parameter(8, 8),
        **LAST,
    ),
    "chunks under a checkpoint": of(
        in_chunks(lambda m, x: checkpoint(lambda z: torch.tanh(m.first(z)), x, use_reentrant=False)), SEQUENCES, **BOTH
    ),
    "chunks written into slices": of(written_in_slices, **BOTH),
    "a residual of some samples, DINOv2's": by_place(subset_added, SEQUENCES, gain=lambda: parameter(8), **BOTH),
    "samples of two kinds by their numbers": by_place(by_kind, X, second=linear(), **BOTH),
    "a batch shuffled and put in order again": of(shuffled, **BOTH),
    "points of rays in chunks, NeRF's": of(rays_in_chunks, SEQUENCES, **BOTH),
    "features of boxes by their image": Program(
        lambda: Net(boxes, first=nn.Conv2d(3, 8, 3, padding=1), last=nn.Linear(8, 3)),
        (IMAGES,),
        lambda m, x: m(x).square().sum(),
        contribution=contribution_of_boxes,
        measured=True,
    ),
    "a learned row where a mask of the samples says": of(dropped, null=lambda: parameter(8), **BOTH),
    "a learned row at tokens that a mask says": of(dropped, SEQUENCES, null=lambda: parameter(8), **BOTH),
    "experts under a checkpoint that is given their rows": of(
        experts_under_checkpoint, SEQUENCES, second=linear(), **BOTH
    ),
    "mixup of features": hopeless(lambda m, x: m.last((h := m.first(x)) + h[torch.arange(len(x)).roll(1)])),
    "halves of a batch subtracted": hopeless(lambda m, x: m.last(m.first(x[: N // 2]) - m.first(x[-(N // 2) :]))),
    "statistics of a chunk": hopeless(
        lambda m, x: m.last(torch.cat([(h := m.first(part)) - h.mean(0) for part in x.split(CUT)]))
    ),
    "messages around a ring": hopeless(messages),
    "rows written to places of other samples": hopeless(
        lambda m, x: m.last(torch.zeros(len(x), 8).to(x).index_copy(0, torch.arange(len(x)).roll(1), m.first(x)))
    ),
}

PROGRAMS = {"places": PLACES}
