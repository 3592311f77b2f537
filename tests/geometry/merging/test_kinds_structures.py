"""Structures between a layer and its readers: the smaller network is the merged one, or it is refused with the place.

Each is run in eval mode and in training on other inputs than the example, and a call leaves the model as it was.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from sdsd.geometry.merging.consolidate import consolidate
from sdsd.geometry.merging.cost import outgoing_weights
from sdsd.geometry.merging.merge import merge

from ..networks import Forward

PAIRS = [(0, 1), (2, 3)]


def rows() -> torch.Tensor:
    return torch.randn(8, 16)


def words() -> torch.Tensor:
    return torch.randn(4, 7, 16)


def pictures() -> torch.Tensor:
    return torch.randn(4, 3, 8, 8)


def tokens() -> torch.Tensor:
    return torch.randint(20, (4, 7))


def steps(m, x):
    state = None
    for t in range(x.shape[1]):
        state = m.cell(m.a(x[:, t]).relu(), state)
    return m.b(state[0] if isinstance(state, tuple) else state)


def unrolled(m, x):
    hidden = x.new_zeros(len(x), m.w.out_features)
    for t in range(x.shape[1]):
        hidden = torch.tanh(m.a(x[:, t]) + m.w(hidden))
    return m.b(hidden)


def shuffled(m, x, groups=3):
    return m.b(functional.channel_shuffle(m.a(x).relu(), groups))


def dense(*sizes):
    return {"a": nn.Linear(16, sizes[0]), "b": nn.Linear(sizes[-1], 4)}


RIGHT = {
    "LSTM": (
        lambda m, x: m.b(m.cell(m.a(x).relu())[0]),
        words,
        lambda: {**dense(12, 8), "cell": nn.LSTM(12, 8, batch_first=True)},
    ),
    "LSTM of two layers, both ways": (
        lambda m, x: m.b(m.cell(m.a(x).relu())[0]),
        words,
        lambda: {**dense(12, 16), "cell": nn.LSTM(12, 8, 2, batch_first=True, bidirectional=True)},
    ),
    "GRU": (
        lambda m, x: m.b(m.cell(m.a(x).relu())[0]),
        words,
        lambda: {**dense(12, 8), "cell": nn.GRU(12, 8, batch_first=True)},
    ),
    "RNN": (
        lambda m, x: m.b(m.cell(m.a(x).relu())[0]),
        words,
        lambda: {**dense(12, 8), "cell": nn.RNN(12, 8, batch_first=True)},
    ),
    "LSTMCell": (steps, words, lambda: {**dense(12, 8), "cell": nn.LSTMCell(12, 8)}),
    "GRUCell": (steps, words, lambda: {**dense(12, 8), "cell": nn.GRUCell(12, 8)}),
    "recurrent by hand": (unrolled, words, lambda: {**dense(12, 12), "w": nn.Linear(12, 12)}),
    "gate and value by turns": (
        lambda m, x: m.b(m.a(x)[..., ::2] * m.a(x)[..., 1::2].sigmoid()),
        rows,
        lambda: dense(24, 12),
    ),
    "gate and value, the last axis of a view": (
        lambda m, x: m.b(functional.glu(m.a(x).view(len(x), -1, 2)).flatten(1)),
        rows,
        lambda: dense(24, 12),
    ),
    "gate and value in halves of a view": (
        lambda m, x: m.b(m.a(x).view(len(x), 2, -1)[:, 0] * m.a(x).view(len(x), 2, -1)[:, 1].sigmoid()),
        rows,
        lambda: dense(24, 12),
    ),
    "maxout": (lambda m, x: m.b(m.a(x).view(len(x), -1, 2).amax(-1)), rows, lambda: dense(24, 12)),
    "channel shuffle": (shuffled, pictures, lambda: {"a": nn.Conv2d(3, 12, 1), "b": nn.Conv2d(12, 4, 1)}),
    "channel shuffle of more groups than channels in each": (
        lambda m, x: shuffled(m, x, 6),
        pictures,
        lambda: {"a": nn.Conv2d(3, 24, 1), "b": nn.Conv2d(24, 4, 1)},
    ),
    "pixel shuffle": (
        lambda m, x: m.b(functional.pixel_shuffle(m.a(x).relu(), 2)),
        pictures,
        lambda: {"a": nn.Conv2d(3, 16, 3), "b": nn.Conv2d(4, 2, 1)},
    ),
    "pixel unshuffle": (
        lambda m, x: m.b(functional.pixel_unshuffle(m.a(x).relu(), 2)),
        pictures,
        lambda: {"a": nn.Conv2d(3, 12, 1), "b": nn.Conv2d(48, 2, 1)},
    ),
    "transposed convolution": (
        lambda m, x: m.b(m.a(x).relu()),
        pictures,
        lambda: {"a": nn.Conv2d(3, 12, 1), "b": nn.ConvTranspose2d(12, 4, 2, 2)},
    ),
    "four pixels one behind the other": (
        lambda m, x: m.b(torch.cat([m.a(x)[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)),
        pictures,
        lambda: {"a": nn.Conv2d(3, 12, 1), "b": nn.Conv2d(48, 4, 1)},
    ),
    "depthwise, then over width": (
        lambda m, x: m.c(m.b(m.d(m.a(x)).relu())),
        pictures,
        lambda: {
            "a": nn.Conv2d(3, 12, 1),
            "d": nn.Conv2d(12, 12, 3, padding=1, groups=12),
            "b": nn.Linear(8, 5),
            "c": nn.Conv2d(12, 2, 1),
        },
    ),
    "embedding": (lambda m, x: m.b(m.a(x).tanh()), tokens, lambda: {"a": nn.Embedding(20, 12), "b": nn.Linear(12, 4)}),
    "bag of embeddings": (
        lambda m, x: m.b(m.a(x).tanh()),
        tokens,
        lambda: {"a": nn.EmbeddingBag(20, 12), "b": nn.Linear(12, 4)},
    ),
    "largest of a bag": (
        lambda m, x: m.b(m.a(x)),
        tokens,
        lambda: {"a": nn.EmbeddingBag(20, 12, mode="max"), "b": nn.Linear(12, 4)},
    ),
    "both orders of a concatenation": (
        lambda m, x: m.b(torch.cat([m.a(x), m.c(x)], 1)) + m.b(torch.cat([m.c(x), m.a(x)], 1)),
        rows,
        lambda: {**dense(12, 24), "c": nn.Linear(16, 12)},
    ),
    "complex weights": (
        lambda m, x: m.b(torch.tanh(m.a(x.to(torch.cfloat)))).abs(),
        rows,
        lambda: {"a": nn.Linear(16, 12, dtype=torch.cfloat), "b": nn.Linear(12, 4, dtype=torch.cfloat)},
    ),
}


def clamped(m, x):
    with torch.no_grad():
        m.b.weight.clamp_(min=0)
    return m.b(m.a(x).relu())


def masked(name):
    def forward(m, x):
        weight = getattr(m, name).weight
        weight.data *= torch.ones_like(weight).tril(3)
        return m.b(m.a(x).relu())

    return forward


def replaced(m, x):
    m.b.weight.data = m.b.weight.data / m.b.weight.data.norm(dim=1, keepdim=True)
    return m.b(m.a(x).relu())


REFUSED = {
    "reader clamped in place": (clamped, rows, lambda: dense(12), "the forward writes into 'b.weight'"),
    "reader masked through data": (masked("b"), rows, lambda: dense(12), "the forward writes into 'b.weight'"),
    "layer masked through data": (masked("a"), rows, lambda: dense(12), "the forward writes into 'a.weight'"),
    "data of the reader replaced": (replaced, rows, lambda: dense(12), "the forward writes into 'b.weight'"),
    "embedding of bounded norm": (
        lambda m, x: m.b(m.a(x).tanh()),
        tokens,
        lambda: {"a": nn.Embedding(20, 12, max_norm=1.0), "b": nn.Linear(12, 4)},
        "the forward writes into 'a.weight'",
    ),
    "one in two, the others elsewhere": (
        lambda m, x: m.b(m.a(x)[:, ::2] + m.a(x)[:, 1::2].flip(-1)),
        rows,
        lambda: dense(24, 12),
        "one in 2 of them",
    ),
    "one in two alone": (lambda m, x: m.b(m.a(x)[:, ::2]), rows, lambda: dense(24, 12), "one in 2 of them"),
}


def built(case):
    torch.manual_seed(0)
    model = Forward(case[0], **case[2]())
    return model.eval(), case[1]


@pytest.mark.parametrize("name", RIGHT)
def test_the_smaller_network_is_the_merged_one(name):
    model, drawn = built(RIGHT[name])
    before = copy.deepcopy(model.state_dict())
    smaller, report = consolidate(model, "a", PAIRS, example_input=drawn())
    assert report.compared
    assert report.parameters[1] < report.parameters[0]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    x = drawn()
    for training in (False, True):
        model.train(training)
        smaller.train(training)
        with torch.no_grad(), merge(model, "a", PAIRS, example_input=x):
            wanted = model(x)
        torch.testing.assert_close(smaller(x), wanted, rtol=1e-4, atol=1e-5)
    smaller(x).abs().sum().backward()
    rebuilt = copy.deepcopy(smaller)
    rebuilt.load_state_dict(smaller.state_dict())


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_cut_is_refused_and_left_alone(name, inplace):
    model, drawn = built(REFUSED[name])
    before, addresses = copy.deepcopy(model.state_dict()), [each.data_ptr() for each in model.parameters()]
    with pytest.raises(ValueError, match=REFUSED[name][3]):
        consolidate(model, "a", PAIRS, inplace=inplace, example_input=drawn())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert addresses == [each.data_ptr() for each in model.parameters()]


def test_without_an_example_a_forward_that_writes_leaves_the_model_alone():
    model, _ = built(REFUSED["reader masked through data"])
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"the forward writes into 'b\.weight'"):
        consolidate(model, "a", PAIRS)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_smaller_recurrent_layer_says_its_size(kind):
    torch.manual_seed(0)
    model = Forward(RIGHT["LSTM"][0], **{**dense(12, 8), "cell": kind(12, 8, batch_first=True)})
    smaller, _ = consolidate(model, "a", PAIRS, example_input=words())
    assert smaller.cell.input_size == smaller.a.out_features == 10


def test_complex_averages_keep_their_imaginary_parts():
    model, drawn = built(RIGHT["complex weights"])
    wanted = (model.a.weight[0] + model.a.weight[1]) / 2
    with merge(model, "a", [(0, 1)], example_input=drawn()):
        torch.testing.assert_close(model.a.weight[0], wanted)
    with pytest.raises(TypeError, match=r"expected readers with real weights, got 'b\.weight'"):
        outgoing_weights(model, "a", drawn())


def test_masks_that_differ_have_no_average():
    class Masked(nn.Linear):
        def __init__(self) -> None:
            super().__init__(16, 12)
            self.register_buffer("mask", torch.arange(16) < torch.arange(12)[:, None])

        def forward(self, x):
            return functional.linear(x, self.weight.masked_fill(self.mask, 0.0), self.bias)

    model = nn.Sequential(Masked(), nn.ReLU(), nn.Linear(12, 4))
    with pytest.raises(ValueError, match=r"the entries of '0\.mask' are torch\.bool, which has no averages"):
        consolidate(model, "0", [(0, 1)], example_input=rows())
    model[0].mask[1] = model[0].mask[0]
    assert consolidate(model, "0", [(0, 1)], example_input=rows())[0][0].mask.shape == (11, 16)
