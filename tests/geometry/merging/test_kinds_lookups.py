"""Places looked up or written with an index for every neuron: the index has as many entries as there are neurons."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sdsd.geometry import consumers

from .programs import built, dense, is_refused, is_the_merged_one, linear, words


def masked(m, x):  # masked autoencoders: some positions, and all in their order again
    h, order = m.a(x), x.sum(-1).argsort(1)
    seen = h.gather(1, order[:, :3].unsqueeze(-1).repeat(1, 1, h.shape[-1]))
    h = torch.cat([seen.relu(), m.c.weight.expand(len(x), 4, -1)], 1)
    return m.b(h.gather(1, order.argsort(1).unsqueeze(-1).repeat(1, 1, h.shape[2])))


def merged_positions(m, x):  # token merging
    h = m.a(x)
    even, odd = h[:, :-1:2], h[:, 1::2]
    nearest = (x[:, :-1:2] @ x[:, 1::2].mT).argmax(-1, keepdim=True)
    return m.b(odd.scatter_reduce(1, nearest.expand(-1, -1, h.size(-1)), even, "mean"))


def some_positions(m, x):  # mixture of depths
    h = m.a(x)
    index = x.sum(-1).argsort(1)[:, :3, None].expand(-1, -1, h.shape[-1])
    return m.b(h.scatter_add(1, index, m.c(h.gather(1, index)).relu()))


def of_groups(m, x):  # sums over the rows of a group, in new memory
    h = m.a(x.flatten(0, 1)).relu()
    group = (x.flatten(0, 1)[:, :1] > 0).long()
    return m.b(torch.zeros(2, h.shape[1], dtype=h.dtype).scatter_add_(0, group.expand(-1, h.shape[1]), h))


def dropped_by_a_mask(m, x):  # each neuron by an entry of its own
    h = m.a(x).clone()
    h[h < 0.1] = 0.0
    return m.b(h)


PROGRAMS = {
    "written where a mask says": (dropped_by_a_mask, words, dense),
    "gather, repeated": (masked, words, lambda: dense(c=linear(12, 1))),
    "scatter_reduce, expanded": (merged_positions, words, dense),
    "gather and scatter_add": (some_positions, words, lambda: dense(c=linear(12, 12))),
    "scatter_add into new memory": (of_groups, words, dense),
}


@torch.no_grad()
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_smaller_network_is_the_merged_one(name):
    is_the_merged_one(*built(PROGRAMS[name]))


@torch.no_grad()
@pytest.mark.parametrize("look_up", [lambda h, i: h.gather(1, i), lambda h, i: h.scatter(1, i, 0.5)])
def test_neurons_that_order_others_go_with_them(look_up):
    """Each neuron of "c" says where to look for one of "a", so that both lose the same."""
    case = (lambda m, x: m.b(look_up(m.a(x), m.c(x).argsort(1))), words, lambda: dense(c=nn.Linear(16, 12)))
    model, drawn = built(case)
    assert {writer.name for writer in consumers(model, "a", drawn()).writers} == {"a", "c"}
    smaller = is_the_merged_one(model, drawn)
    assert smaller.a.out_features == smaller.c.out_features == 10


def in_turn(h):
    """Numbers one after the other, wherever a neuron is positive."""
    h[h > 0] = torch.arange(int((h > 0).sum()), dtype=h.dtype)


def by_a_mask_of_a_size(h):
    h[torch.ones(4, 7, 12, dtype=torch.bool)] = 0.0


@torch.no_grad()
@pytest.mark.parametrize(
    ("write", "says"),
    [(in_turn, "some of them are written by their places"), (by_a_mask_of_a_size, "the size 12 written into it")],
)
def test_a_mask_that_does_not_go_with_the_neurons_stands_in_the_way(write, says):
    def forward(m, x):
        h = m.a(x).clone()
        write(h)
        return m.b(h)

    is_refused(*built((forward, words, dense)), says)
