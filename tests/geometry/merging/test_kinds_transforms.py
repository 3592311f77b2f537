"""Fourier transforms, complex numbers, patches, and pieces by number: followed along neurons, or refused by name."""

from __future__ import annotations

import pytest
import torch
from torch import fft, nn
from torch.nn import functional

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


RIGHT = {
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
    is_the_merged_one(*built(RIGHT[name]))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_cut_is_refused_by_name(name):
    is_refused(*built(REFUSED[name]), REFUSED[name][3])
