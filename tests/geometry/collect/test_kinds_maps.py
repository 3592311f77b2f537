"""What a map of a layer shows is what its readers get, or the map says so."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from sdsd.geometry.collect.activations import collect_activations
from sdsd.geometry.map.neuron_map import NeuronMap

from .readers import cosine


class Net(nn.Module):
    """A layer "a", something between, and a reader "b"."""

    def __init__(self, between) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 4), nn.Linear(16, 16)
        self.norm, self.bias, self.scale = (
            nn.LayerNorm(16),
            nn.Parameter(torch.randn(16)),
            nn.Parameter(torch.randn(16)),
        )
        self.between = between

    def forward(self, x):
        return self.b(self.between(self, x, self.a(x)))


def written_into(h, value):
    h[h < 0] = value
    return h


def written_where(target, places):
    target[places] = 0.0
    return target


def filled(target, h):
    for start in (0, 8):
        target[:, start : start + 8] = h[:, start : start + 8].relu()
    return target


def added_in_place(h, x):
    h += x
    return h


TAKEN = {
    "swish": lambda m, x, h: h * torch.sigmoid(h),
    "swish of a ReLU": lambda m, x, h: (lambda r: r * torch.sigmoid(r))(h.relu()),
    "swish, turned round": lambda m, x, h: torch.sigmoid(h) * h,
    "quick GELU": lambda m, x, h: h * torch.sigmoid(1.702 * h),
    "mish": lambda m, x, h: h * torch.tanh(functional.softplus(h)),
    "squared ReLU": lambda m, x, h: h.relu().square(),
    "power": lambda m, x, h: torch.pow(h.relu(), 2),
    "GELU by tanh": lambda m, x, h: 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3))),
    "GELU by erf": lambda m, x, h: h * 0.5 * (1.0 + torch.erf(h / math.sqrt(2.0))),
    "hard swish": lambda m, x, h: h * functional.relu6(h + 3) / 6,
    "view": lambda m, x, h: h.view(-1, 4, 4).relu().view(-1, 16),
    "reshape and transpose": lambda m, x, h: h.reshape(-1, 2, 8).transpose(1, 2).tanh().transpose(1, 2).flatten(1),
    "transposed": lambda m, x, h: h.T.relu().T,
    "transposed by keywords": lambda m, x, h: torch.transpose(input=h, dim0=0, dim1=1).relu().T,
    "permuted": lambda m, x, h: torch.permute(h.view(-1, 2, 8), dims=(2, 0, -2)).tanh().permute(1, 2, 0).flatten(1),
    "moved": lambda m, x, h: h.view(-1, 2, 8).movedim(-1, 0).tanh().moveaxis((0, 2), (2, 1)).flatten(1),
    "unsqueezed": lambda m, x, h: h.unsqueeze(0).relu().squeeze(0),
    "divided": lambda m, x, h: (h / 3).relu(),
    "divided afterwards": lambda m, x, h: h.relu() / m.scale,
    "bias added": lambda m, x, h: (h + m.bias).relu(),
    "maximum": lambda m, x, h: torch.maximum(h, torch.zeros_like(h)),
    "maximum of a number": lambda m, x, h: torch.maximum(h, torch.tensor(0.0)),
    "max of two": lambda m, x, h: torch.max(h, torch.zeros_like(h)),
    "max of two as a method": lambda m, x, h: h.max(torch.zeros_like(h)),
    "half of it in place": lambda m, x, h: (h[:, :8].relu_(), h)[1],
    "its pieces in place": lambda m, x, h: ([piece.relu_() for piece in h.chunk(2, -1)], h)[1],
    "a part of a copy in place": lambda m, x, h: (lambda c: (c[:, :8].relu_(), c)[1])(h.clone()),
    "pieces put together again": lambda m, x, h: torch.cat(h.relu().chunk(2, -1), -1),
    "filled into a buffer": lambda m, x, h: torch.empty_like(h).copy_(h.relu()),
    "maximum of part": lambda m, x, h: torch.maximum(h, 0.2 * h),
    "where": lambda m, x, h: torch.where(h > 0, h, torch.zeros_like(h)),
    "where, leaky": lambda m, x, h: torch.where(h > 0, h, 0.1 * h),
    "times a comparison": lambda m, x, h: h * (h > 0),
    "masked": lambda m, x, h: h.masked_fill(h < 0, 0.0),
    "clamp by keyword": lambda m, x, h: torch.clamp(input=h, min=0),
    "half of h + |h|": lambda m, x, h: (h + h.abs()) / 2,
    "norm before": lambda m, x, h: m.norm(h).relu(),
    "norm afterwards": lambda m, x, h: m.norm(h.relu()),
    "norm of the residual": lambda m, x, h: m.norm(h.relu() + x),
    "gated": lambda m, x, h: functional.silu(h) * m.c(x),
    "gate by": lambda m, x, h: functional.silu(m.c(x)) * h,
    "residual": lambda m, x, h: (h + x).relu(),
    "residual in place": lambda m, x, h: added_in_place(h, x).relu(),
    "all in place": lambda m, x, h: added_in_place(h, x).relu_(),
    "ReLU in place of a view": lambda m, x, h: (functional.relu(h.view(-1), inplace=True), h)[1],
    "residual behind": lambda m, x, h: x + h.relu(),
    "residual in a product": lambda m, x, h: torch.addmm(h.relu(), x, m.c.weight),
    "exponential": lambda m, x, h: torch.exp(-h.abs()),
    "dropout, cast": lambda m, x, h: functional.dropout(h.double().relu(), 0.5, m.training).float(),
    "clone": lambda m, x, h: h.clone().relu_(),
    "written into": lambda m, x, h: written_into(h, 0.0),
    "steps": lambda m, x, h: (h > 0).float(),
    "steps in the type of another": lambda m, x, h: h.gt(0).type_as(x),
    "up or down": lambda m, x, h: (h > 0).to(h) * 2 - 1,
}

SAID = {
    "residual without a nonlinearity": (lambda m, x, h: h + x, "add"),
    "residual in place without one": (lambda m, x, h: added_in_place(h, x), "add"),
    "norm without one": (lambda m, x, h: m.norm(h), "layer_norm"),
    "scaled by place": (lambda m, x, h: h * m.scale + m.bias, "mul → add"),
    "softmax": (lambda m, x, h: h.softmax(-1), "softmax"),
    "halves": (lambda m, x, h: torch.cat(h.chunk(2, -1), -1).relu(), "chunk"),
    "two signs": (lambda m, x, h: (torch.cat([h.relu(), (-h).relu()], -1))[:, :16], "several ways"),
    "turned round": (lambda m, x, h: h.flip(-1).relu(), "flip"),
    "read as it is and after": (lambda m, x, h: h.relu() + m.c(h), "several ways: as it is; after relu"),
    "scaled by einsum": (lambda m, x, h: torch.einsum("bn,n->bn", h, m.scale).relu(), "einsum"),
    "through NumPy": (lambda m, x, h: torch.from_numpy(h.detach().numpy().clip(0)), "numpy"),
    "through vmap": (lambda m, x, h: torch.vmap(torch.relu)(h), "nothing was seen that reads it"),
    "mean behind a norm": (lambda m, x, h: m.norm(h).view(-1, 1, 16).mean(1), "its readers get that after layer_norm"),
    "larger of two layers": (lambda m, x, h: torch.stack([h, m.c(x)]).amax(0), "stack"),
    "piece by piece into a buffer": (lambda m, x, h: filled(torch.empty_like(h), h), "getitem"),
    "one part of it": (lambda m, x, h: torch.cat([h[:, :4].relu(), h[:, 4:]], 1), "parts of it after 'relu'"),
    "in place by a function of one's own": (
        lambda m, x, h: h.clone().detach().apply_(lambda v: max(v, 0.0)),
        "not seen",
    ),
    "in bins": (lambda m, x, h: torch.bucketize(h, torch.linspace(-1, 1, 5)).to(h), "bucketize"),
    "places to be zero": (lambda m, x, h: written_where(m.c(x), h > 0), "after gt, in no floating-point numbers"),
    "written by what is not known": (
        lambda m, x, h: h.clone().index_fill_(0, torch.tensor([1]), 0.0),
        "not seen writes",
    ),
    "scaled by einsum without an arrow": (
        lambda m, x, h: torch.einsum("bn,n", h, m.scale)[:, None] * h,
        "several ways: as it is; after mul",
    ),
    "two readers": (lambda m, x, h: m.c(h.relu()) + m.c(h.tanh()), "several ways"),
}


def inputs_of(model, x):
    seen = []
    handle = model.b.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach().clone()))
    with torch.no_grad():
        model(x)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("name", TAKEN)
def test_what_the_reader_gets_is_taken(name, keep):
    model, x = Net(TAKEN[name]), torch.randn(300, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = collect_activations(model, [x[:200], x[200:]], "a", keep=keep)["a"]
    wanted = inputs_of(model.eval(), x)
    assert found.taken_after != "output"
    assert found.note == ""
    assert found.samples == 300
    assert (found.cosine_matrix().double() - cosine(wanted)).abs().max() < 1e-5
    if keep:
        torch.testing.assert_close(found.values, wanted, check_dtype=False)


@pytest.mark.parametrize("name", SAID)
def test_where_it_is_not_the_map_says_so(name):
    between, says = SAID[name]
    model, x = Net(between), torch.randn(300, 16)
    with pytest.warns(RuntimeWarning, match=f"map of 'a' is of its own output.*{says}"):
        found = collect_activations(model, [x], "a")["a"]
    assert found.taken_after == "output"
    with torch.no_grad():
        assert (found.cosine_matrix().double() - cosine(model.a(x))).abs().max() < 1e-5
    with pytest.warns(RuntimeWarning):
        drawn = NeuronMap.from_model(model, "a", [x])
    assert found.note in drawn.notes
    with pytest.raises(ValueError, match="saw none behind 'a'"):
        collect_activations(model, [x], "a", after_nonlinearity=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert collect_activations(model, [x], "a", after_nonlinearity=False)["a"].note == ""


WITH_A_WORD = {
    "cumulated": (lambda m, x, h: h.relu().cumsum(-1), "after relu, which 'cumsum' reads"),
    "normalised": (lambda m, x, h: functional.normalize(h.relu(), dim=-1), "after relu, which 'normalize' reads"),
    "gated by itself": (
        lambda m, x, h: h.relu() * m.c(h.relu()).sigmoid(),
        "after relu, as its first readers get it; .* relu → mul",
    ),
    "put together, then bent": (
        lambda m, x, h: torch.cat(h.relu().chunk(2, -1), -1).tanh(),
        "after relu, which 'chunk' reads",
    ),
}


@pytest.mark.parametrize("name", WITH_A_WORD)
def test_an_activation_that_readers_do_not_get_as_it_is_comes_with_a_word(name):
    between, says = WITH_A_WORD[name]
    model, x = Net(between), torch.randn(300, 16)
    with pytest.warns(RuntimeWarning, match=f"map of 'a' is of its output {says}"):
        found = collect_activations(model, [x], "a", keep=True)["a"]
    assert found.taken_after == "relu"
    assert found.note
    with torch.no_grad():
        torch.testing.assert_close(found.values, model.a(x).relu())


def test_a_layer_that_is_the_output_is_silent_and_one_that_nothing_reads_is_not():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.unread = nn.Linear(16, 8), nn.Linear(8, 4), nn.Linear(16, 8)

        def forward(self, x):
            self.unread(x)
            return {"logits": [self.b(self.a(x).relu())]}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collect_activations(Model(), [torch.randn(9, 16)], ["a", "b"])
    with pytest.warns(RuntimeWarning, match="'unread' is of its own output, and nothing was seen that reads it"):
        collect_activations(Model(), [torch.randn(9, 16)], "*")


def test_looking_costs_no_random_number_and_a_forward_that_counts_is_where_it_was():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(16, 8), nn.Linear(8, 4)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            self.seen = x
            return self.b((self.a(x) + torch.randn(8)).relu())

    model, batches = Noisy(), [torch.randn(9, 16) for _ in range(3)]
    values = []
    for after in (None, False):
        torch.manual_seed(3)
        collect_activations(model, batches, "a", after_nonlinearity=after)
        values.append(torch.rand(3))
    torch.testing.assert_close(*values)
    assert int(model.calls) == 0
    assert not hasattr(model, "seen")


def test_a_network_with_nothing_to_say_is_silent():
    model = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = collect_activations(model, [torch.randn(9, 16)], ["0", "3"])
    assert [each.taken_after for each in found.values()] == ["relu", "output"]


def test_the_first_readers_of_a_stream_count():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.last = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)

        def forward(self, x):
            x = (self.one(x) + x).relu()
            return self.last((self.two(x) + x).relu())

    model, x = Block(), torch.randn(200, 16)
    found = collect_activations(model, [x], "one", keep=True)["one"]
    with torch.no_grad():
        torch.testing.assert_close(found.values, (model.one(x) + x).relu())
    assert found.taken_after == "relu"


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(2), nn.Flatten(2)])
def test_poolings_and_layouts_behind_are_left_out_and_those_before_are_not(pool):
    conv, x = nn.Conv2d(3, 5, 3), torch.randn(4, 3, 8, 8)
    behind = collect_activations(nn.Sequential(conv, nn.ReLU(), pool), [x], "0", keep=True)["0"]
    before = collect_activations(nn.Sequential(conv, pool, nn.ReLU()), [x], "0", keep=True)["0"]
    with torch.no_grad():
        rows = conv(x).relu().movedim(1, -1).flatten(0, 2)
        pooled = pool(conv(x)).relu().movedim(1, -1).flatten(0, -2)
    assert torch.equal(behind.values, rows)
    assert torch.equal(before.values, pooled)
