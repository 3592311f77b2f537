"""What a loop does at some of its steps only: such steps are right or named, and the others are not lost for it."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import sdsd
from tests.zoo.parts import N, class_loss, classes
from tests.zoo.verdict import compare, per_sample

from .test_kinds_later import Loop, X, Y, plain

EVERY = 7
STEPS = 60


def penalty(model):
    (class_loss(model, X.double(), Y) + 0.1 * model[2].weight.square().sum()).backward()


def half(model):
    handle = model[2].weight.register_hook(lambda gradient: gradient / 2)
    plain(model, 0)
    handle.remove()


def look(model):
    handle = model[2].weight.register_hook(lambda gradient: None)
    plain(model, 0)
    handle.remove()


def interrupted(model):
    def interrupt(gradient):
        raise KeyboardInterrupt

    out = model(X.double())
    handle = model[0].weight.register_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        nn.functional.cross_entropy(out, Y).backward()
    handle.remove()
    model.zero_grad(set_to_none=False)
    plain(model, 0)


def by_turns(sometimes):
    return Loop(lambda model, k: sometimes(model) if k % EVERY == EVERY - 1 else plain(model, k))


@pytest.mark.parametrize("foreign", [penalty, half])
def test_what_is_not_of_the_samples_never_counts(foreign):
    """Steps that prove themselves go on until it comes again, so that it is named, each time."""
    loop = by_turns(foreign)
    for k in range(STEPS):
        if k % EVERY < EVERY - 1:
            assert loop.right(loop.step()), k
        elif k < EVERY:
            with pytest.warns(UserWarning, match=r"step skipped: \.grad of 2\.weight did not come as"):
                assert loop.step() is None
        else:
            with pytest.raises(ValueError, match=r"does not prove itself.*\n  2\.weight \("):
                loop.step()


def test_a_hook_that_only_looks_costs_one_step():
    loop = by_turns(look)
    for k in range(STEPS):
        if k == EVERY - 1:
            with pytest.warns(UserWarning, match=r"step skipped: \.grad of 2\.weight did not come as"):
                assert loop.step() is None
        else:
            assert loop.right(loop.step()), k


def test_a_pass_that_was_interrupted_and_cleared_to_zeros_costs_no_step():
    loop = by_turns(interrupted)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(loop.right(loop.step()) for _ in range(3 * EVERY))


@pytest.mark.parametrize("to_none_first", [True, False])
def test_gradients_cleared_to_none_and_to_zeros_cost_no_step(to_none_first):
    loop = Loop(plain)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k in range(3 * EVERY):
            none = (k % EVERY < EVERY - 1) == to_none_first
            loop.model.zero_grad = lambda none=none: nn.Module.zero_grad(loop.model, set_to_none=none)
            assert loop.right(loop.step()), k


class Sentences(nn.Module):
    """A class of each sentence, whose length changes from batch to batch."""

    def __init__(self, kind):
        super().__init__()
        self.table, self.head = nn.Embedding(11, 8), nn.Linear(8, 3)
        self.body = (
            nn.LSTM(8, 8, batch_first=True)
            if kind == "recurrent"
            else nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        )

    def forward(self, words):
        out = self.body(self.table(words))
        return self.head((out[0] if isinstance(out, tuple) else out).mean(1))


@pytest.mark.parametrize(
    ("kind", "lengths"),
    [("attention", lambda k: 2 + k % (N + 2)), ("recurrent", lambda k: 2 + k)],
    ids=["attention", "recurrent"],
)
def test_sentences_of_changing_length(kind, lengths):
    """As long as the batch is wide, too; a recurrent layer of torch adds up over the words."""
    torch.manual_seed(0)
    model = Sentences(kind).double()
    monitor, generator = sdsd.GammaMonitor(model), torch.Generator().manual_seed(1)
    for k in range(30):
        words, y = torch.randint(0, 11, (N, lengths(k)), generator=generator), classes()
        model.zero_grad()
        class_loss(model, words, y).backward()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            stats = monitor.step()
        with monitor.paused():
            rows = per_sample(
                model, lambda m, i, words=words, y=y: class_loss(m, words[i : i + 1], y[i : i + 1]) / N, N
            )
        assert compare(stats, rows).kind == "right", k
