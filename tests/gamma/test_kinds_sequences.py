"""Sequences of different length in one tensor, and samples in another order."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn.utils import rnn

from tests.zoo.parts import N, any_loss, numbers, parameter
from tests.zoo.verdict import Program, judge

LONG = {"T ≠ N": 4, "T = N": N}
LAYERS = {
    "LSTM": (lambda **how: nn.LSTM(8, 5, **how), 5),
    "GRU of two layers": (lambda **how: nn.GRU(8, 5, 2, **how), 5),
    "LSTM both ways": (lambda **how: nn.LSTM(8, 5, 2, bidirectional=True, **how), 10),
    "LSTM with projections": (lambda **how: nn.LSTM(8, 5, proj_size=4, **how), 4),
    "RNN without biases": (lambda **how: nn.RNN(8, 5, bias=False, **how), 5),
}


class Net(nn.Module):
    """`compute(model, *inputs)`, with parts by name."""

    def __init__(self, compute, **parts):
        super().__init__()
        self.compute = compute
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs):
        return self.compute(self, *inputs)


def program(compute, *batch, **parts):
    return Program(lambda: Net(compute, **{name: make() for name, make in parts.items()}), batch, any_loss)


def lengths(longest, in_order=False, of=N):
    """Of `of` sequences, the shortest one long; the longest comes as the second, or first."""
    found = torch.tensor([1 + (3 * k + 1) % longest for k in range(of)])
    found[1] = longest
    return found.sort(descending=True).values if in_order else found


def mean_of(m, packed):
    """Of the outputs of each sequence."""
    padded, sizes = rnn.pad_packed_sequence(packed, batch_first=True)
    return m.last(padded.sum(1) / sizes[:, None])


def right(case, **options):
    verdict = judge(case, **options)
    assert verdict.kind == "right", verdict.why


@pytest.mark.parametrize("long", LONG.values(), ids=LONG)
@pytest.mark.parametrize("kind", LAYERS)
def test_packed_and_padded_again(kind, long):
    make, width = LAYERS[kind]
    for in_order, listed, first, last in itertools.product((True, False), repeat=4):

        def compute(m, x, given, in_order=in_order, listed=listed, first=first, last=last):
            x = x if first else x.transpose(0, 1)
            packed = rnn.pack_padded_sequence(x, given.tolist() if listed else given, first, enforce_sorted=in_order)
            out, state = m.cells(packed)
            if last:
                state = state[0] if isinstance(state, tuple) else state
                return m.last(state[-2:].transpose(0, 1).flatten(1)[:, -width:])
            y, sizes = rnn.pad_packed_sequence(out, batch_first=first, total_length=long)
            return m.last((y if first else y.transpose(0, 1)).sum(1) / sizes[:, None])

        right(
            program(
                compute,
                numbers(N, long, 8),
                lengths(long, in_order),
                cells=lambda first=first: make(batch_first=first),
                last=lambda: nn.Linear(width, 3),
            )
        )


def packed_by(how):
    def pack(x, given):
        return rnn.pack_padded_sequence(x, how(given), batch_first=True, enforce_sorted=False)

    return pack


def sorted_by_hand(m, x, given):
    given, order = given.sort(0, descending=True)
    out = m.cells(rnn.pack_padded_sequence(x[order], given, batch_first=True))[0]
    return mean_of(m, out)[order.argsort()]


def sorted_by_hand_and_indexed(m, x, given):
    given, order = torch.sort(given, descending=True)
    state = m.cells(rnn.pack_padded_sequence(x.index_select(0, order), given.numpy(), batch_first=True))[1][0]
    return m.last(state[-1].index_select(0, torch.argsort(order)))


def sorted_by_a_constant(m, x, given):
    order = torch.tensor(sorted(range(len(x)), key=lambda k: -int(given[k])))
    back = torch.empty_like(order)
    back[order] = torch.arange(len(x))
    packed = rnn.pack_padded_sequence(x[order], given[order].tolist(), batch_first=True)
    return mean_of(m, m.cells(packed)[0])[back]


def layers_on_packed_rows(m, x, given):
    packed = packed_by(torch.Tensor.tolist)(x, given)
    out = m.cells(rnn.PackedSequence(torch.tanh(m.first(packed.data)), *packed[1:]))[0]
    out = rnn.PackedSequence(m.norm(out.data + packed.data[:, :5]), *out[1:])
    return mean_of(m, m.more(out)[0])


def words_of_packed_sequences(m, words, given):
    packed = packed_by(torch.clone)(words, given)
    return mean_of(m, m.cells(rnn.PackedSequence(m.table(packed.data), *packed[1:]))[0])


def two_stacks_of_one_packing(m, x, given):
    packed = packed_by(torch.clone)(x, given)
    return mean_of(m, m.cells(packed)[0]) * m.last(m.other(packed)[1][-1])


def state_and_cell_and_outputs(m, x, given):
    out, (state, cell) = m.cells(packed_by(torch.clone)(x, given))
    return mean_of(m, out) + m.last(state[-1]) * m.last(cell[-1])


def state_to_state(m, x, given):
    """Of one sequence's encoder into its decoder."""
    state = m.cells(packed_by(torch.Tensor.tolist)(x, given))[1]
    return mean_of(m, m.decoder(packed_by(torch.Tensor.tolist)(x.flip(1), given), state)[0])


def learned(m, x, given):
    state = m.state.expand(-1, len(x), -1).contiguous()
    return mean_of(m, m.cells(packed_by(torch.Tensor.tolist)(x, given), (state, state))[0])


def learned_with_lengths_as_samples(m, x, given):
    state = m.state.expand(-1, len(x), -1).contiguous()
    return mean_of(m, m.cells(packed_by(torch.clone)(x, given), (state, state))[0])


def of_the_input(m, x, given):
    state = m.first(x[:, 0])[None, :, :5].contiguous()
    return mean_of(m, m.cells(packed_by(torch.Tensor.tolist)(x, given), (state, state))[0])


def sentences_of_documents(m, x, given):
    """Two sequences a sample."""
    sentences = torch.cat([x, x.flip(1)], 1).unflatten(1, (2, -1)).flatten(0, 1)
    sizes = given.repeat_interleave(2).tolist()
    out = m.cells(packed_by(list)(sentences, sizes))[0]
    return mean_of(m, out).unflatten(0, (-1, 2)).tanh().sum(1)


def all_of_length_one(m, x, given):
    return mean_of(m, m.cells(packed_by(torch.clone)(x, torch.ones_like(given)))[0])


def valid_steps_alone(m, x, given):
    """Of the padded output, chosen by a mask."""
    y, sizes = rnn.pad_packed_sequence(m.cells(packed_by(torch.clone)(x, given))[0], batch_first=True)
    valid = torch.arange(y.shape[1]) < sizes[:, None]
    return m.last(y.masked_fill(~valid[..., None], -torch.inf).amax(1))


PARTS = {
    "cells": lambda: nn.LSTM(8, 5, batch_first=True),
    "last": lambda: nn.Linear(5, 3),
    "first": lambda: nn.Linear(8, 8),
    "norm": lambda: nn.LayerNorm(5),
    "more": lambda: nn.GRU(5, 5),
    "other": lambda: nn.GRU(8, 5),
    "decoder": lambda: nn.LSTM(8, 5, batch_first=True),
    "state": lambda: parameter(1, 1, 5),
    "table": lambda: nn.Embedding(11, 8),
}
COMPUTE = {
    each.__name__: each
    for each in (
        sorted_by_hand,
        sorted_by_hand_and_indexed,
        sorted_by_a_constant,
        layers_on_packed_rows,
        words_of_packed_sequences,
        two_stacks_of_one_packing,
        state_and_cell_and_outputs,
        state_to_state,
        learned,
        learned_with_lengths_as_samples,
        of_the_input,
        sentences_of_documents,
        all_of_length_one,
        valid_steps_alone,
    )
}


def named_in(compute):
    return {name: make for name, make in PARTS.items() if name in {*compute.__code__.co_names, "cells", "last"}}


@pytest.mark.parametrize("long", LONG.values(), ids=LONG)
@pytest.mark.parametrize("name", COMPUTE)
def test_what_is_done_around_packing(name, long):
    compute = COMPUTE[name]
    x = torch.randint(0, 11, (N, long)) if "words" in name else numbers(N, long, 8)
    right(program(compute, x, lengths(long), **named_in(compute)))


@pytest.mark.parametrize("in_order", [True, False], ids=["sorted", "unsorted"])
@pytest.mark.parametrize("long", LONG.values(), ids=LONG)
def test_models_called_with_packed_sequences(long, in_order):
    sizes = lengths(long, in_order)
    for cells, wide in ((lambda: nn.LSTM(8, 5, 2, bidirectional=True), 10), (lambda: nn.GRU(8, 5), 5)):
        for after in (mean_of, lambda m, out: rnn.PackedSequence(m.last(out.data).tanh(), *out[1:])):
            x = numbers(N, long, 8).double()

            def given(which, x=x):
                return rnn.pack_sequence([x[k, : sizes[k]] for k in which], enforce_sorted=in_order)

            def loss(m, which, given=given):
                out = m(given(which))
                return (out.data if isinstance(out, rnn.PackedSequence) else out).square().sum() / N

            case = Program(
                lambda cells=cells, wide=wide, after=after: Net(
                    lambda m, packed: after(m, m.cells(packed)[0]), cells=cells(), last=nn.Linear(wide, 3)
                ),
                (torch.arange(N),),
                lambda m, which, loss=loss: loss(m, which.tolist()),
                contribution=lambda m, i, loss=loss: loss(m, [i]),
            )
            right(case)


def test_two_packed_sequences_a_sample():
    """As many sequences as two for each of the samples that batch_size says."""
    x = numbers(2 * N, 4, 8).double()

    def given(which):
        return rnn.pack_sequence([x[k, : 1 + k % 4] for k in which], enforce_sorted=False)

    def loss(m, samples):
        which = [k for i in samples for k in (2 * i, 2 * i + 1)]
        return (m(given(which)).unflatten(0, (-1, 2)).prod(1)).square().sum() / N

    make = {"cells": lambda: nn.LSTM(8, 5), "last": lambda: nn.Linear(5, 3)}
    right(
        Program(
            lambda: Net(lambda m, packed: mean_of(m, m.cells(packed)[0]), **{k: f() for k, f in make.items()}),
            (torch.arange(N),),
            lambda m, which: loss(m, which.tolist()),
            contribution=lambda m, i: loss(m, [i]),
            options={"batch_size": N},
        )
    )


def test_packed_lengths_of_other_samples_are_refused():
    def compute(m, x, given):
        out = m.cells(rnn.pack_padded_sequence(x, given.flip(0), batch_first=True, enforce_sorted=False))[0]
        return mean_of(m, out)

    case = program(compute, numbers(N, 4, 8), lengths(4), cells=PARTS["cells"], last=PARTS["last"])
    verdict = judge(case)
    assert verdict.kind == "refused", verdict
    assert "cells.weight_ih_l0" in verdict.why


def test_lengths_in_another_order_than_the_sequences_are_refused():
    """All are as long, so that torch does not see it."""

    def compute(m, x, given):
        order = (x[:, 0, 0] * 100).long().argsort()
        return mean_of(m, m.cells(rnn.pack_padded_sequence(x[order], given, batch_first=True))[0])

    same = torch.full((N,), 4)
    verdict = judge(program(compute, numbers(N, 4, 8), same, cells=PARTS["cells"], last=PARTS["last"]), again=False)
    assert verdict.kind == "refused", verdict
    assert "lengths of other samples" in verdict.why


@pytest.mark.parametrize("listed", [True, False])
def test_a_wrong_way_back_is_never_taken_for_the_order_of_the_samples(listed):
    def taken_again(m, x, given):
        sizes, order = (torch.tensor(given.tolist()) if listed else given).sort(descending=True)
        out = m.cells(rnn.pack_padded_sequence(x[order], sizes, batch_first=True))[0]
        return mean_of(m, out)[order]

    def beside_the_samples(m, x, given):
        return taken_again(m, x, given) * m.last(m.first(x)[:, 0, :5])

    for compute, kinds in ((taken_again, ("right", "refused")), (beside_the_samples, ("refused",))):
        parts = {name: PARTS[name] for name in ("cells", "last", "first")}
        verdict = judge(program(compute, numbers(N, 4, 8), lengths(4), **parts))
        assert verdict.kind in kinds, verdict.why


@pytest.mark.parametrize("long", LONG.values(), ids=LONG)
def test_sizes_that_are_computed_with_are_refused(long):
    """They are of all samples together; what runs and pads the sequences may read them."""

    def compute(m, x, given):
        out = m.cells(packed_by(torch.clone)(x, given))[0]
        return mean_of(m, out) / out.batch_sizes.sum()

    verdict = judge(program(compute, numbers(N, long, 8), lengths(long), cells=PARTS["cells"], last=PARTS["last"]))
    assert verdict.kind == "refused", verdict
    assert "batch_sizes" in verdict.why


ORDERS = {
    "and back": lambda m, x, order: m.first(x[order]).tanh()[order.argsort()] * m.first(x),
    "not back": lambda m, x, order: m.first(x.index_select(0, order)).tanh(),
    "of every row": lambda m, x, order: (
        m.first(x.flatten(0, 1)[order]).tanh()[order.argsort()].unflatten(0, x.shape[:2])
    ),
}


@pytest.mark.parametrize("long", LONG.values(), ids=LONG)
@pytest.mark.parametrize("name", ORDERS)
def test_samples_in_another_order(name, long):
    """By a constant; rows of all samples, too."""

    def compute(m, x):
        size = x.shape[0] * (x.shape[1] if name == "of every row" else 1)
        return ORDERS[name](m, x, torch.arange(size).roll(2).flip(0))

    right(program(compute, numbers(N, long, 8), first=PARTS["first"]))
