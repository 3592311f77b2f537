"""Sizes that a forward compares, makes tensors with, keeps, or hands to a library: they follow, or are refused."""

from __future__ import annotations

import functools
import sys
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from sdsd.geometry import consolidate, consumers

from .programs import PAIRS, built, conv, dense, is_refused, is_the_merged_one, linear, pictures, pointwise, rows, words


class Sized(nn.Module):
    """A reader of 12 neurons that looks at their number, and at one of its own."""

    def __init__(self, forward, **held):
        super().__init__()
        self.inner, self.n, self.run = linear(12, 4), 12, forward
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, h):
        return self.run(self, h)


def asserted(m, h):
    assert h.shape[-1] == m.n, h.shape
    return m.inner(h)


def raised(m, h):
    if m.n != h.size(-1):
        raise ValueError(h.shape)
    return m.inner(h)


def asserted_twice(m, h):
    assert h.shape[-1] == m.n == m.inner.weight.shape[1]
    return m.inner(h)


def asserted_and_divided(m, h):
    return asserted(m, h) / m.n


@functools.lru_cache
def kept(*sizes):
    return sizes


FAKE = """
import functools

def halved(shape):
    return (*shape[:-1], 2, shape[-1] // 2)

cached = functools.lru_cache(halved)

def split(x):
    try:
        sizes = cached(tuple(x.shape))
    except TypeError:
        sizes = halved(tuple(x.shape))
    return x.reshape(sizes)
"""


@pytest.fixture
def library(monkeypatch):
    """As einops does: shapes are computed once each, or anew where a size has no hash."""
    made = types.ModuleType("einops.stand_in")
    exec(FAKE, made.__dict__)
    monkeypatch.setitem(sys.modules, made.__name__, made)
    return made


RIGHT = {
    "asserted": (lambda m, x: m.b(m.a(x)), rows, lambda: dense(b=Sized(asserted))),
    "raised": (lambda m, x: m.b(m.a(x)), rows, lambda: dense(b=Sized(raised))),
    "asserted of a weight, too": (lambda m, x: m.b(m.a(x)), rows, lambda: dense(b=Sized(asserted_twice))),
    "asserted by one reader of two layers": (
        lambda m, x: m.b(m.a(x)) + m.b(m.c(x)),
        rows,
        lambda: dense(b=Sized(asserted), c=linear(16, 12)),
    ),
    "two shapes compared": (
        lambda m, x: m.b(h + g if (h := m.a(x)).shape == (g := m.c(x)).shape else h),
        rows,
        lambda: dense(c=linear(16, 12)),
    ),
    "width of a table": (lambda m, x: m.b(m.a(x)) * len({m.b.in_features: 1}), rows, dense),
    "filled": (lambda m, x: m.b((h := m.a(x)) + torch.full((h.shape[-1],), 0.3)), rows, dense),
    "filled by name": (lambda m, x: m.b((h := m.a(x)) + torch.full(fill_value=2, size=(h.shape[-1],))), rows, dense),
    "filled like another": (lambda m, x: m.b((h := m.a(x)) + h.new_full((len(x), h.shape[-1]), 0.3)), rows, dense),
    "filled by an attribute": (
        lambda m, x: m.b(m.a(x) + torch.full((m.b.n,), 0.3)),
        rows,
        lambda: dense(b=Sized(lambda m, h: m.inner(h))),
    ),
    "unflattened by attributes": (
        lambda m, x: m.b(m.a(x)),
        rows,
        lambda: dense(b=Sized(lambda m, h: m.inner(h.unflatten(-1, (m.g, m.d)).softmax(-1).flatten(-2)), g=3, d=4)),
    ),
    "kept from the first call": (lambda m, x: m.b(m.a(x).reshape(kept(*m.a(x).shape))), rows, dense),
    "every channel by itself, transposed": (
        lambda m, x: m.b(m.up(m.a(x)).relu()),
        pictures,
        lambda: pointwise(up=nn.ConvTranspose2d(12, 12, 2, 2, groups=12)),
    ),
    "two of every channel, transposed": (
        lambda m, x: m.b(m.up(m.a(x).flatten(2)).relu()),
        pictures,
        lambda: pointwise(up=nn.ConvTranspose1d(12, 24, 2, 2, groups=12, bias=False), b=nn.Conv1d(24, 2, 1)),
    ),
    "in groups, transposed": (
        lambda m, x: m.b(m.up(m.a(x)).relu()),
        pictures,
        lambda: pointwise(up=nn.ConvTranspose2d(12, 6, 2, 2, groups=3), b=conv(6, 2, 1)),
    ),
    "in groups, transposed, the layer itself": (
        lambda m, x: m.b(m.a(m.up(x))),
        pictures,
        lambda: {"up": conv(3, 12, 1), "a": nn.ConvTranspose2d(12, 12, 2, 2, groups=3), "b": conv(12, 2, 1)},
    ),
}


class Paths(nn.Module):
    """A reader of 12 neurons in as many equal pieces as it has paths."""

    def __init__(self, pieces):
        super().__init__()
        self.one, self.two = linear(6, 4), linear(6, 4)
        self.width, self.paths, self.pieces = 12, 2, pieces

    def forward(self, h):
        one, two = self.pieces(self, h)
        return self.one(one) + self.two(two)


class Blurred(nn.Module):
    """Every channel by itself, by a kernel that is not learned."""

    def __init__(self, convolve):
        super().__init__()
        self.channels, self.convolve = 12, convolve
        self.register_buffer("kernel", torch.rand(12, 1, 3, 3))

    def forward(self, h):
        return self.convolve(h, self.kernel, padding=1, groups=self.channels)


SHARES = {  # what cuts 12 neurons into two pieces, and the width that the smaller network states
    "of an attribute": (lambda m, h: h.split(m.width // m.paths, -1), 8),
    "of the tensor's size": (lambda m, h: h.split(h.shape[-1] // m.paths, -1), 12),
    "in a list": (lambda m, h: h.split([m.width // m.paths] * m.paths, -1), 8),
    "viewed": (lambda m, h: h.view(len(h), m.paths, m.width // m.paths).unbind(1), 8),
    "unflattened": (lambda m, h: h.unflatten(-1, (m.paths, m.width // m.paths)).unbind(1), 8),
}
REFUSED = {
    "asserted and divided": (
        lambda m, x: m.b(m.a(x)),
        rows,
        lambda: dense(b=Sized(asserted_and_divided)),
        "uses 'n' of module 'b' as a number",
    ),
    "asserted as written": (
        lambda m, x: m.b(m.a(x)),
        rows,
        lambda: dense(b=Sized(lambda m, h: m.inner(h) if h.shape[-1] == 12 else 1 / 0)),
        "'==' in module 'b': a comparison says that there are 12 of them",
    ),
    "shape asserted as written": (
        lambda m, x: m.b(h := m.a(x)) * (2 if h.shape == (8, 12) else 1),
        rows,
        dense,
        "a comparison says that there are 12 of them",
    ),
    "asserted of a tuple": (
        lambda m, x: m.b(m.a(x)),
        rows,
        lambda: dense(b=Sized(lambda m, h: m.inner(h) if h.shape[1:] == m.s else 1 / 0, s=(12,))),
        "a comparison says that there are 12 of them",
    ),
    "as many as others": (
        lambda m, x: m.b(m.a(x)) + (m.d(m.c(x)) if m.a.out_features == m.c.out_features else 0),
        rows,
        lambda: dense(c=linear(16, 12), d=linear(12, 4)),
        "as many of them as of other neurons",
    ),
    "filled with the size": (
        lambda m, x: m.b((h := m.a(x)) + torch.full((1,), h.shape[-1])),
        rows,
        dense,
        "'full' uses the number of neurons",
    ),
    "filled as written": (
        lambda m, x: m.b(m.a(x) + torch.full((12,), 0.3).double()),
        rows,
        dense,
        "a tensor is made with the size 12 written into it",
    ),
    "unflattened as written": (
        lambda m, x: m.b(m.a(x).unflatten(-1, (3, 4)).softmax(1).flatten(1)),
        rows,
        dense,
        "'unflatten' has the size 4 written into it",
    ),
    "groups as written": (
        lambda m, x: m.b(nn.functional.conv2d(m.a(x), m.up.weight, groups=12)),
        pictures,
        lambda: pointwise(up=conv(12, 12, 3, groups=12)),
        "'conv2d' has 12 groups written into it",
    ),
    "heads of the function behind attention": (
        lambda m, x: nn.functional.multi_head_attention_forward(
            *[x.transpose(0, 1)] * 3,
            16,
            4,
            None,
            torch.cat([m.a.bias, m.k.bias, m.v.bias]),
            None,
            None,
            False,
            0.0,
            m.b.weight,
            m.b.bias,
            need_weights=False,
            use_separate_proj_weight=True,
            q_proj_weight=m.a.weight,
            k_proj_weight=m.k.weight,
            v_proj_weight=m.v.weight,
        )[0],
        words,
        lambda: {name: linear(16, 16) for name in "akvb"},
        "takes the size of a head from the width and num_heads",
    ),
    "NumPy's square root": (
        lambda m, x: m.b((h := m.a(x)) / np.sqrt(h.shape[-1])),
        rows,
        dense,
        "NumPy's 'sqrt' uses the number of neurons",
    ),
    "length of one sample": (
        lambda m, x: m.b((h := m.a(x)) * (len(h[0]) if m.training else 1)),
        rows,
        dense,
        "in training: 'len' uses the number of neurons",
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("name", SHARES)
def test_of_a_number_that_is_shared_the_shares_stay(name):
    pieces, width = SHARES[name]
    smaller = is_the_merged_one(*built((lambda m, x: m.b(m.a(x)), rows, lambda: dense(b=Paths(pieces)))))
    assert (smaller.b.paths, smaller.b.width, smaller.b.one.in_features) == (2, width, 4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_groups_follow_where_a_module_keeps_their_number(name):
    convolve = getattr(nn.functional, name)
    case = (lambda m, x: m.b(m.up(m.a(x)).relu()), pictures, lambda: pointwise(up=Blurred(convolve)))
    assert is_the_merged_one(*built(case)).up.channels == 10


@torch.no_grad()
@pytest.mark.parametrize("name", RIGHT)
def test_the_smaller_network_is_the_merged_one(name):
    kept.cache_clear()
    is_the_merged_one(*built(RIGHT[name]))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_cut_is_refused_by_name(name):
    is_refused(*built(REFUSED[name]), REFUSED[name][3])


def test_a_product_with_a_number_of_numpys_is_refused():
    model, drawn = built((lambda m, x: m.b((h := m.a(x)) / (np.int64(2) * h.shape[-1])), rows, dense))
    if np.__version__.startswith("1."):  # which takes a size for any whole number, so that only the proof sees it
        with pytest.raises(ValueError, match="computes something else than the merged one"):
            consolidate(model, "a", PAIRS, example_input=drawn())
    else:
        is_refused(model, drawn, "NumPy's 'multiply' uses the number of neurons")


def test_an_attribute_that_is_compared_follows():
    model, drawn = built(RIGHT["asserted"])
    smaller = is_the_merged_one(model, drawn)
    assert (smaller.b.n, model.b.n) == (10, 12)
    assert type(smaller.b.n) is type(model.b.n) is int


def test_groups_of_a_transposed_convolution_follow():
    smaller = is_the_merged_one(*built(RIGHT["two of every channel, transposed"]))
    assert (smaller.up.groups, smaller.up.in_channels, smaller.up.out_channels) == (10, 10, 20)


@torch.no_grad()
def test_a_library_that_keeps_shapes_computes_them_anew(library):
    """What it has kept from a call before has nothing to say about neurons."""
    model, drawn = built((lambda m, x: m.b(library.split(m.a(x)).softmax(-2).flatten(-2)), words, dense))
    model(drawn())
    assert library.cached.cache_info().currsize == 1
    smaller = is_the_merged_one(model, drawn)
    assert smaller.a.out_features == 8


def test_sizes_that_another_model_left_behind_are_as_good_as_written():
    """They are of that model's neurons."""
    kept.cache_clear()
    case = RIGHT["kept from the first call"]
    other, drawn = built((case[0], rows, lambda: dense(z=linear(50, 70))))
    assert consumers(other, "a", drawn()).removable
    model, _ = built(case)
    with pytest.raises(ValueError, match="'reshape' has the size 12 written into it"):
        consolidate(model, "a", [(0, 1)], example_input=drawn())


def filled_up(m, x):
    h = m.a(x)
    return m.b(functional.pad(h, (0, 1)) if h.shape[-1] % 2 else h)


@pytest.mark.parametrize(
    ("check", "says"), [(True, "does not run where the merged one does"), (False, "on example_input")]
)
def test_a_smaller_network_that_does_not_run_is_an_error_in_words(check, says):
    """An odd number of neurons is filled up, and its reader is not made for one more."""
    model, drawn = built((filled_up, rows, dense))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=f"consolidation: .*{says}"):
        consolidate(model, "a", [(0, 1)], example_input=drawn(), check=check, inplace=True)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
