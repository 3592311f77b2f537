"""Readers that are no matrix product with one tensor: forms of two, pictures put together from pieces, distances."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from sdsd.geometry import consolidate, group_activations, merge

from .programs import built, conv, dense, is_refused, is_the_merged_one, linear, pictures, pointwise, rows, words


class Held(nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.w = nn.Parameter(torch.randn(shape))


def unpooled(m, x):
    h, places = functional.max_pool2d(m.a(x), 2, return_indices=True)
    return m.b(functional.max_unpool2d(m.mid(h).relu(), places, 2))


def folded(m, x):
    return m.b(functional.fold(m.a(x).flatten(2), (16, 16), 2, stride=2))


def at_points(m, x):
    shift = m.points(x.mean((2, 3))).view(-1, 2, 3)
    grid = functional.affine_grid(shift, [len(x), 12, 5, 6], align_corners=False)
    return m.b(functional.grid_sample(m.a(x), grid, align_corners=False))


def halves_from_the_end(m, x):
    h = m.a(x)
    half = h.shape[-1] // 2
    return m.b(h[..., :-half] * h[..., -half:].sigmoid())


RIGHT = {
    "a form of two tensors, left": (
        lambda m, x: m.b(m.a(x).relu(), m.c(x)),
        rows,
        lambda: dense(c=linear(16, 5), b=nn.Bilinear(12, 5, 3)),
    ),
    "a form of two tensors, right": (
        lambda m, x: m.b(m.c(x), m.a(x).relu()),
        words,
        lambda: dense(c=linear(16, 5), b=nn.Bilinear(5, 12, 3)),
    ),
    "a form of neurons and themselves": (
        lambda m, x: m.b(m.a(x).relu(), m.a(x).tanh()),
        words,
        lambda: dense(b=nn.Bilinear(12, 12, 3)),
    ),
    "what a form gives": (lambda m, x: m.b(m.a(x, x).relu()), rows, lambda: dense(a=nn.Bilinear(16, 16, 12))),
    "patches laid over each other": (folded, pictures, lambda: {"a": conv(3, 16, 1), "b": conv(4, 2, 1)}),
    "patches cut and laid again": (
        lambda m, x: m.b(functional.fold(functional.unfold(m.a(x), 3, padding=1), (8, 8), 3, padding=1)),
        pictures,
        pointwise,
    ),
    "maxima put back": (unpooled, pictures, lambda: pointwise(mid=conv(12, 12, 1))),
    "pieces of time": (lambda m, x: m.b(m.a(x).unfold(1, 3, 2).flatten(2)), words, lambda: dense(b=linear(36, 4))),
    "a diagonal of pixels": (
        lambda m, x: m.b(m.a(x).diagonal(dim1=2, dim2=3).mean(-1)),
        pictures,
        lambda: {"a": conv(3, 12, 1), "b": linear(12, 4)},
    ),
    "points between pixels": (at_points, pictures, lambda: pointwise(points=linear(3, 6))),
    "halves counted from the end": (
        halves_from_the_end,
        rows,
        lambda: {"a": linear(16, 24), "b": linear(12, 4)},
    ),
}
REFUSED = {
    "distances": (
        lambda m, x: m.b(torch.cdist(m.a(x), m.code.w)),
        rows,
        lambda: dense(code=Held(5, 12), b=linear(5, 4)),
        "adds up differences of all neurons",
    ),
    "places from elsewhere": (
        lambda m, x: m.b(functional.max_unpool2d(m.a(h := x[..., ::2, ::2]), h.long() + 1, 4)),
        lambda: pictures().abs(),
        lambda: {"a": conv(3, 3, 1), "b": conv(3, 2, 1)},
        "joins the neurons with the model's input|what no layer writes",
    ),
    "pieces of the neurons": (
        lambda m, x: m.b(m.a(x).unfold(-1, 3, 3).mean(-1)),
        rows,
        lambda: dense(b=linear(4, 4)),
        "cuts them into pieces",
    ),
    "a diagonal with the neurons": (
        lambda m, x: m.b(m.a(x).diagonal(dim1=1, dim2=2)),
        words,
        lambda: dense(b=linear(7, 4)),
        "takes some of them by their places",
    ),
    "points by neurons": (
        lambda m, x: m.b(functional.grid_sample(x, m.a(x).tanh().permute(0, 2, 3, 1), align_corners=False)),
        pictures,
        lambda: {"a": conv(3, 2, 1), "b": conv(3, 2, 1)},
        "looks pixels up along the axis of the neurons",
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("name", RIGHT)
def test_the_smaller_network_is_the_merged_one(name):
    is_the_merged_one(*built(RIGHT[name]))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_cut_is_refused_by_name(name):
    is_refused(*built(REFUSED[name]), REFUSED[name][3])


@torch.no_grad()
@pytest.mark.parametrize("how", ["act", "absorb"])
def test_both_axes_of_a_form_are_changed_one_after_the_other(how):
    """f(Pa, Pb) for what the merge makes of a and b: P averages the two, or gives the first's multiple."""
    model, drawn = built(RIGHT["a form of neurons and themselves"])
    x = drawn()
    gram = group_activations(model, [x], "a")["a"].gram()
    with merge(model, "a", [(1, 4)], how=how, gram=gram, example_input=x):
        changed = model.b.weight.clone()
        merged = model(x)
    to = torch.eye(12, dtype=torch.float64)
    share = gram[1, 4] / gram[1, 1]
    to[1, 1], to[1, 4], to[4, 1], to[4, 4] = (0.5, 0.5, 0.5, 0.5) if how == "act" else (1, share, 0, 0)
    torch.testing.assert_close(changed, torch.einsum("oij,ki,lj->okl", model.b.weight, to, to))
    if how == "absorb":
        smaller, report = consolidate(model, "a", [(1, 4)], how="absorb", gram=gram, example_input=x)
        assert report.compared
        torch.testing.assert_close(smaller(x), merged)
