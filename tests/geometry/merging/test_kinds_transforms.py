"""Spectra, complex numbers, patches, updates of weights, norms over samples: followed, or refused by name."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import fft, nn
from torch.nn import functional

from sdsd.geometry import consolidate, merge

from .programs import built, conv, dense, is_refused, is_the_merged_one, linear, pictures, pointwise, rows, words


class Held(nn.Module):
    """A parameter."""

    def __init__(self, *shape):
        super().__init__()
        self.w = nn.Parameter(torch.randn(shape))


class Kernel(nn.Module):
    """A long kernel for each neuron, made of places."""

    def __init__(self):
        super().__init__()
        self.places, self.made = nn.Parameter(torch.randn(7, 3)), linear(3, 12)

    def forward(self):
        return self.made(self.places).T


def long_convolution(m, x):
    h = m.a(x).mT
    return m.b(fft.irfft(fft.rfft(h, n=14) * fft.rfft(m.kernel(), n=14), n=14)[..., :7].mT)


def filtered(m, x):
    return m.b(fft.irfft2(fft.rfft2(m.a(x)) * torch.view_as_complex(m.filter.w), s=(8, 8)))


def spectral_layer(m, x):
    return m.b(fft.irfft(torch.einsum("bix,iox->box", fft.rfft(m.a(x).flatten(2)), torch.view_as_complex(m.k.w)), n=64))


def turned(m, x):
    h = torch.view_as_complex(m.a(x).view(4, 7, -1, 2))
    return m.b(torch.view_as_real(h * torch.polar(torch.ones(7, 1), torch.arange(7.0)[:, None])).flatten(2))


def involution(m, x):
    patches = functional.unfold(m.a(x), 3, padding=1).view(len(x), -1, 9, 64)
    return m.b((patches * m.kernel(x).flatten(2)[:, None]).sum(2))


def standardised(m, x):
    """As `timm` standardises weights: by a batch norm whose channels are the outputs."""
    weight = m.b.weight
    flat = functional.batch_norm(weight.reshape(1, len(weight), -1), None, None, training=True)
    return functional.conv2d(m.a(x).relu(), flat.reshape_as(weight))


class FoldedHeads(nn.Module):
    """Attention whose heads are in the batch, and whose queries, keys and values are cut by a product of numbers."""

    def __init__(self):
        super().__init__()
        self.heads, self.size, self.inner = 3, 4, linear(16, 36)

    def forward(self, x):
        batch, length, _ = x.shape
        parts = self.inner(x).split(self.heads * self.size, -1)
        q, k, v = (
            each.reshape(batch, length, self.heads, -1).transpose(1, 2).reshape(batch * self.heads, length, -1)
            for each in parts
        )
        weights = (q @ k.mT / 2).softmax(-1)
        return (weights @ v).view(batch, self.heads, length, -1).transpose(1, 2).reshape(batch, length, -1)


class CutByProduct(nn.Module):
    """A gate and what it gates, cut by a product of numbers that say nothing else."""

    def __init__(self):
        super().__init__()
        self.m, self.n = 3, 4

    def forward(self, h):
        one, other = h.split(self.m * self.n, -1)
        return one * other.sigmoid()


def updated_by_addmm(before):
    return lambda m, x: functional.linear(m.a(x).relu(), torch.addmm(before(m.b.weight), m.up.weight, m.down.weight))


def update():
    return dense(up=linear(2, 4, bias=False), down=linear(12, 2, bias=False))


def learned_queries(m, x):
    queries = m.queries.w.expand(len(x), -1, -1)
    return m.b(m.a(m.attention(queries, x, x)[0]))


RIGHT = {
    "pieces by a product of numbers": (
        lambda m, x: m.b(m.a(x)),
        words,
        lambda: {"a": FoldedHeads(), "b": linear(12, 4)},
        "a.inner",
    ),
    "update of the reader in one product": (updated_by_addmm(lambda w: w), rows, update),
    "learned queries, given to a module as a view": (
        learned_queries,
        words,
        lambda: dense(queries=Held(5, 16), attention=nn.MultiheadAttention(16, 2, batch_first=True)),
    ),
    "norm of one picture over its pixels": (
        lambda m, x: m.b(m.norm(m.a(x))),
        pictures,
        lambda: pointwise(norm=nn.InstanceNorm2d(12, track_running_stats=True)),
    ),
    "spectrum over time": (lambda m, x: m.b(fft.rfft(m.a(x), dim=1).real), words, dense),
    "there and back": (
        lambda m, x: m.b(fft.irfft(fft.rfft(m.a(x), dim=1) * m.k.w, n=7, dim=1)),
        words,
        lambda: dense(k=Held(4, 1)),
    ),
    "filter of each channel": (filtered, pictures, lambda: pointwise(filter=Held(12, 8, 5, 2))),
    "spectral layer": (spectral_layer, pictures, lambda: pointwise(k=Held(12, 5, 33, 2), b=nn.Conv1d(5, 2, 1))),
    "long convolution": (long_convolution, words, lambda: dense(kernel=Kernel())),
    "two layers as one complex number": (
        lambda m, x: m.b(torch.view_as_complex(torch.stack([m.a(x), m.c(x)], -1)).abs()),
        rows,
        lambda: dense(c=linear(16, 12)),
    ),
    "pairs that are turned": (turned, words, dense),
    "patches": (
        lambda m, x: m.b(functional.unfold(m.a(x), 2, stride=2).mT),
        pictures,
        lambda: pointwise(b=linear(48, 4)),
    ),
    "patches of one picture": (
        lambda m, x: m.b(functional.unfold(m.a(x[0]), 2, stride=2).mT),
        pictures,
        lambda: pointwise(b=linear(48, 4)),
    ),
    "patches by a module": (
        lambda m, x: m.b(m.patches(m.a(x)).mT),
        pictures,
        lambda: pointwise(patches=nn.Unfold((2, 3), padding=1), b=linear(72, 4)),
    ),
    "involution": (involution, pictures, lambda: pointwise(kernel=conv(3, 9, 1), b=nn.Conv1d(12, 2, 1))),
    "a gate by the number of pieces": (
        lambda m, x: m.b((p := torch.tensor_split(m.a(x), 2, -1))[0] * p[1].sigmoid()),
        rows,
        lambda: {"a": linear(16, 24), "b": linear(12, 4)},
    ),
}
REFUSED = {
    "a reader and its transpose": (
        lambda m, x: m.c(functional.linear(m.a(x).relu(), m.b.weight + m.b.weight.T).relu()),
        rows,
        lambda: dense(b=linear(12, 12), c=linear(12, 4)),
        "computed from others, as from 'b.weight'",
    ),
    "a standardised reader": (
        standardised,
        pictures,
        lambda: pointwise(b=conv(12, 4, 3)),
        r"multiplies them by a weight computed from 'b\.weight'",
    ),
    "a standardised reader of single pixels": (
        standardised,
        pictures,
        lambda: pointwise(b=conv(12, 4, 1)),
        r"(?s)^(?!.*repeat).*computed from others takes statistics over them",
    ),
    "update of the squared reader in one product": (
        updated_by_addmm(torch.square),
        rows,
        update,
        "computed from others, as from",
    ),
    "cut by a product of which it is not known what counts": (
        lambda m, x: m.b(m.cut(m.a(x))),
        rows,
        lambda: {"a": linear(16, 24), "cut": CutByProduct(), "b": linear(12, 4)},
        "'m' · 'n' entries, and it is not known which .* Cut by chunk",
    ),
    "batch norm of words": (
        lambda m, x: m.b(m.norm(m.a(x))),
        words,
        lambda: dense(norm=nn.BatchNorm1d(7)),
        "takes its statistics, in training, over all neurons",
    ),
    "batch norm of rows of pictures": (
        lambda m, x: m.b(m.norm(m.a(x))),
        pictures,
        lambda: {"a": linear(8, 12), "norm": nn.BatchNorm2d(3), "b": linear(12, 4)},
        "takes its statistics, in training, over all neurons",
    ),
    "batch norm of pieces that are samples": (
        lambda m, x: m.b(m.norm(m.a(x).view(-1, 4)).view(len(x), 7, -1)),
        words,
        lambda: dense(norm=nn.BatchNorm1d(4)),
        "'view' has the size 4 written into it",
    ),
    "spectrum of the neurons": (
        lambda m, x: m.b(fft.fft(m.a(x), dim=-1).real),
        words,
        dense,
        "'fft_r2c' mixes all neurons",
    ),
    "spectrum of both": (lambda m, x: m.b(fft.fft2(m.a(x)).real), words, dense, "mixes all neurons"),
    "two neurons as one number": (
        lambda m, x: m.b(torch.view_as_complex(m.a(x)[:, None] * torch.ones(3, 1)).abs()),
        rows,
        lambda: {"a": linear(16, 2), "b": linear(3, 4)},
        "makes one number of two neurons",
    ),
    "pieces at a place": (
        lambda m, x: m.b((p := torch.tensor_split(m.a(x), (12,), -1))[0] * p[1].sigmoid()),
        rows,
        lambda: {"a": linear(16, 24), "b": linear(12, 4)},
        "taken by their places",
    ),
    "uneven pieces": (
        lambda m, x: m.b(torch.cat(torch.tensor_split(m.a(x), 5, -1)[::-1], -1)),
        rows,
        dense,
        "taken by their places",
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("name", RIGHT)
def test_the_smaller_network_is_the_merged_one(name):
    is_the_merged_one(*built(RIGHT[name]), *RIGHT[name][3:])


@torch.no_grad()
def test_a_batch_norm_of_words_goes_on_to_see_merged_neurons():
    model, drawn = built(REFUSED["batch norm of words"])
    x = drawn()
    smaller, report = consolidate(model, "a", [(0, 1)], norms="repeat", example_input=x)
    assert report.compared
    for training in (False, True):
        with merge(model.train(training), "a", [(0, 1)], example_input=x):
            wanted = copy.deepcopy(model)(x)
        torch.testing.assert_close(smaller.train(training)(x), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_cut_is_refused_by_name(name):
    is_refused(*built(REFUSED[name]), REFUSED[name][3])
