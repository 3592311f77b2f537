"""Learned first states of recurrent layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.zoo.parts import N, numbers, parameter
from tests.zoo.verdict import Program

from .test_kinds_sequences import LONG, Net, named_in, program, right


def first(m, x):
    return m.cells(x, m.state.expand(-1, len(x), -1).contiguous())[0]


def first_not_contiguous(m, x):
    return m.cells(x, m.state[0, 0].expand(1, len(x), 5))[0]


def first_repeated(m, x):
    return m.cells(x, m.state.repeat(1, len(x), 1))[1][-1]


def first_computed(m, x):
    return m.cells(x, torch.tanh(m.state).expand(-1, len(x), -1).contiguous())[0]


def first_looked_up(m, x):
    return m.cells(x, m.table(torch.zeros(len(x), dtype=torch.long))[None, :, :5].contiguous())[0]


def first_and_again(m, x):
    """Two layers with one first state, one of them run twice."""
    state = m.state.expand(-1, len(x), -1).contiguous()
    h = m.cells(x, state)[0]
    return m.more(m.more(h.transpose(0, 1), state)[0], state)[0].transpose(0, 1)


STATES = {
    each.__name__: each
    for each in (first, first_not_contiguous, first_repeated, first_computed, first_looked_up, first_and_again)
}


@pytest.mark.parametrize("long", LONG.values(), ids=LONG)
@pytest.mark.parametrize("name", STATES)
def test_learned_first_states(name, long):
    compute = STATES[name]
    parts = {**named_in(compute), "cells": lambda: nn.GRU(8, 5, batch_first=True)}
    parts.pop("last")
    right(program(compute, numbers(N, long, 8), **parts))


@pytest.mark.parametrize("long", LONG.values(), ids=LONG)
def test_a_first_state_and_cell_of_two_layers_both_ways(long):
    def compute(m, x):
        return m.cells(x.transpose(0, 1), [each.expand(-1, len(x), -1).contiguous() for each in (m.h, m.c)])[0].mean(0)

    right(
        program(
            compute,
            numbers(N, long, 8),
            cells=lambda: nn.LSTM(8, 5, 2, bidirectional=True),
            h=lambda: parameter(4, 1, 5),
            c=lambda: parameter(4, 1, 5),
        )
    )


@pytest.mark.parametrize("long", LONG.values(), ids=LONG)
def test_a_first_state_of_its_own_for_each_place_in_the_batch(long):
    """What a sample contributes is what it contributes in its place."""
    x = numbers(N, long, 8).double()

    def each(m):
        return m(x).square().flatten(1).sum(1)

    right(
        Program(
            lambda: Net(
                lambda m, x: m.cells(x, m.state[:, : len(x)])[0],
                cells=nn.GRU(8, 5, batch_first=True),
                state=parameter(1, N, 5),
            ),
            (x,),
            lambda m, x: each(m).mean(),
            contribution=lambda m, i: each(m)[i] / N,
        )
    )


@pytest.mark.parametrize("layers", [1, 2, N])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_state_that_the_model_is_called_with(kind, layers):
    """Also where there are as many layers as samples."""
    x, state = numbers(N, 4, 8).double(), numbers(layers, N, 5).double()
    states = (state, state.sin()) if kind is nn.LSTM else state

    def mean(m, x, states):
        return m(x, states).square().flatten(1).sum(1).mean()

    def alone(m, i):
        own = tuple(each[:, i : i + 1].contiguous() for each in (state, state.sin()))
        return mean(m, x[i : i + 1], own if kind is nn.LSTM else own[0]) / N

    right(
        Program(
            lambda: Net(lambda m, x, states: m.cells(x, states)[0], cells=kind(8, 5, layers, batch_first=True)),
            (x, states),
            mean,
            contribution=alone,
        )
    )
