"""Bags of embeddings: matrices of indices, and bags that offsets cut, one a sample or several."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from tests.zoo.parts import N, any_loss, numbers, parameter
from tests.zoo.verdict import Program, judge

from .test_kinds_sequences import Net, lengths, program, right

WORDS = 11
MODES = ["sum", "mean", "max"]
SIZES = {
    "T ≠ N": [2, 4, 1, 3, 4, 2],
    "N indices in all": [1] * N,
    "N indices in all, some bags empty": [2, 0, 1, 0, 3, 0],
    "as many as the table has": [WORDS] * N,
    "the first and the last empty": [0, 3, 2, 1, 2, 0],
    "all of one bag": [0, 0, N, 0, 0, 0],
}


def words(*shape):
    return torch.randint(0, WORDS, shape, generator=torch.Generator().manual_seed(3))


class Bags(nn.Module):
    """A model that is called with the offsets first: as many samples as offsets."""

    def __init__(self, last=False, weights=False, **how):
        super().__init__()
        self.bag, self.head, self.last = (
            nn.EmbeddingBag(WORDS, 5, include_last_offset=last, **how),
            nn.Linear(5, 3),
            last,
        )
        self.weights = parameter(WORDS) if weights else None
        nn.init.normal_(self.bag.weight)  # what stands at the padding, too

    def forward(self, offsets, indices, scales=None):
        if self.weights is not None:
            scales = self.weights[indices] * 2
        return self.head(torch.tanh(self.bag(indices, offsets, scales)))


def called_with_offsets(sizes, scaled=False, **how):
    starts = torch.tensor([sum(sizes[:k]) for k in range(len(sizes))])
    indices, scales = words(sum(sizes)), numbers(sum(sizes), seed=7).double()

    def loss(m, starts, indices, scales):
        return m(starts, indices, scales if scaled else None).square().sum() / N

    def one(m, i):
        own = slice(int(starts[i]), int(starts[i]) + sizes[i])
        return loss(m, torch.zeros(1, dtype=torch.long), indices[own], scales[own])

    return Program(
        lambda: Bags(**how),
        (starts,),
        lambda m, starts: loss(m, starts, indices, scales),
        contribution=one,
        step=lambda m: loss(m, starts, indices, scales).backward(),
    )


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("mode", MODES)
def test_bags_that_offsets_cut(mode, sizes):
    for padding in (None, 2, -3):
        right(called_with_offsets(sizes, mode=mode, padding_idx=padding), again=False)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_weights_of_the_indices(sizes):
    """Constants, or read off a table of parameters; with sparse gradients, too."""
    for padding in (None, 2):
        right(called_with_offsets(sizes, scaled=True, mode="sum", padding_idx=padding), again=False)
        read = called_with_offsets(sizes, weights=True, mode="sum", padding_idx=padding)
        if sum(sizes) == N and sizes != [1] * N:
            # As many indices as samples, of which each reads a weight before bags are spoken of.
            assert judge(read, again=False).kind == "refused"
        else:
            right(read, again=False)
    right(called_with_offsets(sizes, scaled=True, mode="sum", sparse=True), again=False)


PARTS = {
    "table": lambda: parameter(WORDS, 5),
    "scale": lambda: nn.Embedding(WORDS, 1),
    "last": lambda: nn.Linear(5, 3),
    "bag": lambda: nn.EmbeddingBag(WORDS, 5),
}


def rows(m, ids, given):
    return m.last(m.bag(ids))


def flattened(m, ids, given):
    return m.last(m.bag(ids.flatten(), torch.arange(len(ids)) * ids.shape[1]))


def by_function(m, ids, given):
    return m.last(F.embedding_bag(ids.flatten(), m.table, torch.arange(len(ids)) * ids.shape[1], mode="sum"))


def computed_table(m, ids, given):
    return m.last(F.embedding_bag(ids, m.table.tanh(), mode="sum"))


def tied(m, ids, given):
    return m.last(m.bag(ids) + F.embedding(ids, m.bag.weight)[:, 0]) @ m.last(m.bag.weight).T


def valid_ones_alone(m, ids, given):
    """Chosen by a mask, cut where their counts say."""
    valid = torch.arange(ids.shape[1]) < given[:, None]
    ends = given.cumsum(0)
    return m.last(m.bag(ids[valid], F.pad(ends, (1, 0))[:-1]))


def with_the_last_offset(m, ids, given):
    valid = torch.arange(ids.shape[1]) < given[:, None]
    ends = F.pad(given.cumsum(0), (1, 0))
    return m.last(F.embedding_bag(ids[valid], m.table, ends, mode="max", include_last_offset=True))


def weighted_rows(m, ids, given):
    return m.last(F.embedding_bag(ids, m.table, mode="sum", per_sample_weights=m.scale(ids).squeeze(-1).softmax(-1)))


def two_bags_a_sample(m, ids, given):
    both = torch.cat([ids, ids.flip(1)[:, :3]], 1)
    starts = (torch.arange(len(ids))[:, None] * both.shape[1] + torch.tensor([0, ids.shape[1]])).flatten()
    return m.last(m.bag(both.flatten(), starts)).unflatten(0, (-1, 2)).tanh().prod(1)


COMPUTE = [
    rows,
    flattened,
    by_function,
    computed_table,
    tied,
    valid_ones_alone,
    with_the_last_offset,
    weighted_rows,
    two_bags_a_sample,
]


@pytest.mark.parametrize("long", [4, N, WORDS], ids=["T ≠ N", "T = N", "T as long as the table"])
@pytest.mark.parametrize("compute", COMPUTE, ids=lambda each: each.__name__)
def test_what_is_done_around_bags(compute, long):
    parts = {name: make for name, make in PARTS.items() if name in compute.__code__.co_names}
    right(program(compute, words(N, long), lengths(long), **parts))


@pytest.mark.parametrize("mode", MODES)
def test_rows_of_indices(mode):
    for padding, sparse in ((None, False), (2, False), (None, True)):
        if sparse and mode == "max":
            continue
        for long in (1, 4, N):
            bag = {"bag": lambda p=padding, s=sparse: nn.EmbeddingBag(WORDS, 5, mode=mode, padding_idx=p, sparse=s)}
            right(program(rows, words(N, long), lengths(long), **bag, last=PARTS["last"]))


@pytest.mark.parametrize("mode", MODES)
def test_the_last_word_is_no_padding(mode):
    """Torch takes a padding of -1 for the last row, and Python's functions None for no padding."""
    last = torch.where(words(N, 4) > 5, WORDS - 1, words(N, 4))
    bag = {"bag": lambda: nn.EmbeddingBag(WORDS, 5, mode=mode)}
    right(program(rows, last, lengths(4), **bag, last=PARTS["last"]))


REFUSED = {
    "scaled by frequency": {"mode": "sum", "scale_grad_by_freq": True},
    "with a largest norm": {"mode": "sum", "max_norm": 1.0},
}


@pytest.mark.parametrize("how", REFUSED.values(), ids=REFUSED)
def test_what_mixes_or_rewrites_is_refused(how):
    verdict = judge(called_with_offsets(SIZES["T ≠ N"], **how), again=False)
    assert verdict.kind == "refused", verdict
    assert "bag.weight" in verdict.why


@pytest.mark.parametrize("sizes", [SIZES["T ≠ N"], SIZES["all of one bag"]])
def test_a_model_called_with_the_indices_first_is_told_to_turn_them_round(sizes):
    """As many samples as indices, the first tensor says."""
    starts = torch.tensor([sum(sizes[:k]) for k in range(N)])
    verdict = judge(
        Program(
            lambda: Net(lambda m, indices, starts: m.head(starts, indices), head=Bags(mode="sum")),
            (words(sum(sizes)), starts),
            any_loss,
            situation="offsets first",
        ),
        again=False,
    )
    assert verdict.kind == "refused", verdict
    assert "call the model with the offsets first" in verdict.why


@pytest.mark.parametrize("long", [4, N])
def test_bags_that_begin_one_index_too_early_are_refused(long):
    def compute(m, ids, given):
        starts = torch.arange(len(ids)) * ids.shape[1]
        return m.last(m.bag(ids.flatten(), starts - (starts > 0).long()))

    verdict = judge(program(compute, words(N, long), lengths(long), bag=PARTS["bag"], last=PARTS["last"]))
    assert verdict.kind == "refused", verdict
    assert "bag.weight" in verdict.why
