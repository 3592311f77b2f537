"""Forwards that decide by what they are given, lists of which an example reaches some, and what models hand out."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from torch import nn

from sdsd.geometry import consolidate, consumers, merge, remove_neurons
from sdsd.graphs import look, outputs, recorder

from .programs import built, conv, dense, is_refused, is_the_merged_one, linear, pictures, rows, words

OTHER_SIZES = {
    "one sample": (lambda m, x: (m.b if len(x) > 1 else m.c)(m.a(x)), rows, lambda x: x[:1]),
    "one sample, by shape": (lambda m, x: (m.c if x.shape[0] == 1 else m.b)(m.a(x)), rows, lambda x: x[:1]),
    "many samples": (lambda m, x: (m.b if x.size(0) < 12 else m.c)(m.a(x)), rows, lambda x: torch.cat([x, x])),
    "few words": (lambda m, x: (m.b if x.shape[1] > 4 else m.c)(m.a(x)), words, lambda x: x[:, :3]),
    "many words": (lambda m, x: (m.b if x.shape[1] <= 8 else m.c)(m.a(x)), words, lambda x: x.repeat(1, 2, 1)),
    "the sum": (lambda m, x: (m.b if x[0].sum() * x[0, 0].sum() < 0 else m.c)(m.a(x)), rows, lambda x: x * 0),
    "a number taken out": (lambda m, x: (m.b if x[0, 0].item() > 0 else m.c)(m.a(x)), rows, lambda x: -x),
    "a list": (lambda m, x: (m.b if x[0].tolist()[0] > 0 else m.c)(m.a(x)), rows, lambda x: -x),
}


@torch.no_grad()
@pytest.mark.parametrize("name", OTHER_SIZES)
def test_the_other_way_is_followed_too(name):
    forward, drawn, other = OTHER_SIZES[name]
    model, _ = built((forward, drawn, lambda: dense(c=linear(12, 4))))
    x = drawn()
    x = torch.where(x[..., :1] > 0, x, -x)  # the first of each is positive
    assert {reader.name for reader in consumers(model, "a", x).readers} == {"b", "c"}
    smaller, report = remove_neurons(model, "a", [11], example_input=x)
    assert report.compared
    model.b.weight[:, 11] = 0
    model.c.weight[:, 11] = 0
    for each in (x, other(x)):
        torch.testing.assert_close(smaller(each), model(each), rtol=1e-10, atol=1e-10)


def with_positions(then):
    """The words have places in a table, so that there are as many entries of a parameter as words."""
    model, drawn = built(
        (
            lambda m, x: then(m, m.a(x) + m.places[:, : x.shape[1]]),
            words,
            lambda: dense(c=linear(12, 4)),
        )
    )
    model.places = nn.Parameter(torch.randn(1, 24, 12).double())
    return model, drawn


POSITIONS = {
    "more than": (lambda m, h: h.shape[1] > 9, 14),
    "half": (lambda m, h: h.size(1) // 2 >= 5, 14),
    "the other way round": (lambda m, h: not h.shape[1] <= 9, 14),
    "a list of sizes": (lambda m, h: [*h.shape][1] == 5, 5),
}


@torch.no_grad()
@pytest.mark.parametrize("name", POSITIONS)
def test_a_length_is_compared_behind_positions(name):
    decides, length = POSITIONS[name]
    model, drawn = with_positions(lambda m, h: (m.c if decides(m, h) else m.b)(h))
    x = drawn()
    assert {reader.name for reader in consumers(model, "a", x).readers} == {"b", "c"}
    smaller, _ = remove_neurons(model, "a", [11], example_input=x)
    model.b.weight[:, 11] = model.c.weight[:, 11] = 0
    for each in (x, x.repeat(1, 2, 1)[:, :length]):
        torch.testing.assert_close(smaller(each), model(each), rtol=1e-10, atol=1e-10)


def test_a_length_that_may_be_the_number_of_neurons_is_refused():
    """12 neurons and 7 words: for 12 words the forward goes another way, and with 10 neurons for 10."""
    is_refused(*with_positions(lambda m, h: m.b(h) * (2 if h.shape[1] == h.shape[2] else 1)), "as many of them as of")


def test_a_width_that_is_read_for_few_samples_is_refused():
    def forward(m, x):
        h = m.a(x)
        return m.b(h) / (1 if len(x) > 5 else h.shape[1])

    is_refused(*built((forward, rows, dense)), "uses the number of neurons")


class Window(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = 20


FAR_SIZES = {
    "a number of samples": (lambda m, x: x.shape[0] >= 100, rows, lambda x: x.repeat(13, 1)),
    "the other way round": (lambda m, x: not x.size(0) <= 99, rows, lambda x: x.repeat(13, 1)),
    "exactly so many": (lambda m, x: x.shape[0] == 101, rows, lambda x: x.repeat(13, 1)[:101]),
    "a setting": (lambda m, x: x.shape[1] > m.window.words, words, lambda x: x.repeat(1, 3, 1)),
    "a setting, before": (lambda m, x: m.window.words < x.shape[1], words, lambda x: x.repeat(1, 3, 1)),
    "the lesser of two": (
        lambda m, x: min(x.shape[1], m.window.words) == m.window.words,
        words,
        lambda x: x.repeat(1, 3, 1),
    ),
    "words of all samples": (lambda m, x: x.shape[0] * x.shape[1] > 300.5, words, lambda x: x.repeat(11, 1, 1)),
    "numbers": (lambda m, x: x.numel() > 4000, rows, lambda x: x.repeat(32, 1)),
    "half a length": (lambda m, x: x.shape[1] // 2 >= 15, words, lambda x: x.repeat(1, 5, 1)),
}


@torch.no_grad()
@pytest.mark.parametrize("name", FAR_SIZES)
def test_sizes_that_a_forward_compares_are_tried_from_the_other_side(name):
    """Readers that only much larger inputs reach, and a width that is read there."""
    far, drawn, other = FAR_SIZES[name]
    forward = lambda m, x: (m.c if far(m, x) else m.b)(m.a(x))  # noqa: E731
    model, _ = built((forward, drawn, lambda: dense(c=linear(12, 4), window=Window())))
    x = drawn()
    assert not far(model, x)
    assert far(model, other(x))
    assert {reader.name for reader in consumers(model, "a", x).readers} == {"b", "c"}
    smaller, _ = remove_neurons(model, "a", [11], example_input=x)
    model.c.weight[:, 11] = 0
    torch.testing.assert_close(smaller(other(x)), model(other(x)), rtol=1e-10, atol=1e-10)

    def scaled(m, x):
        h = m.a(x)
        return m.b(h) / (h.shape[-1] if far(m, x) else 1)

    is_refused(*built((scaled, drawn, lambda: dense(window=Window()))), "uses the number of neurons")


def test_sizes_of_pictures_are_compared_along_both_sides():
    def forward(m, x):
        return (m.c if max(x.shape[-2:]) > 20 else m.b)(m.a(x).mean((2, 3)))

    model, drawn = built((forward, pictures, lambda: dense(a=conv(3, 12, 3), c=linear(12, 4))))
    assert {reader.name for reader in consumers(model, "a", drawn()).readers} == {"b", "c"}


def test_what_would_take_too_long_is_not_tried(monkeypatch):
    case = (lambda m, x: (m.b if x.shape[0] < 1000 else m.c)(m.a(x)), rows, lambda: dense(c=linear(12, 4)))
    for most, readers in ((2**34, {"b", "c"}), (100_000, {"b"})):
        monkeypatch.setattr(recorder, "PRODUCTS", most)
        model, drawn = built(case)
        assert {reader.name for reader in consumers(model, "a", drawn()).readers} == readers


def test_the_proof_runs_where_the_forward_decides_otherwise(monkeypatch):
    """Nothing that is followed says so here: the width is read by what no count can see."""
    model, _ = built((lambda m, x: m.b(m.a(x)) * (1 if len(x) > 5 else float(f"{m.a(x).shape[1]}")), rows, dense))
    with pytest.raises(ValueError, match="consolidation: the smaller network computes something else"):
        remove_neurons(model, "a", [11], example_input=rows())


def test_a_forward_that_decides_by_nothing_is_recorded_once_a_mode():
    model, drawn = built((lambda m, x: m.b(m.a(x)), rows, dense))
    (found,) = look(model, drawn())
    assert not found.recording.others
    assert len(found.recording.walks) == 2


def test_what_a_failed_run_said_is_taken_back():
    """Of half as many words there is no product with m.mix, after m.c has had its say."""

    def forward(m, x):
        h = m.a(x)
        if x.shape[1] < 5:
            return m.mix((m.c(x) + h).mT)
        return m.b(h)

    model, drawn = built((forward, words, lambda: dense(c=linear(16, 12), mix=linear(7, 2))))
    x = drawn()
    assert {part.name for part in consumers(model, "a", x).parts} == {"a.weight", "a.bias", "b.weight"}
    is_the_merged_one(model, drawn)


class Mixture(nn.Module):
    """Experts by the sign of the first number, or heads by a number that is given."""

    def __init__(self, kind):
        super().__init__()
        experts = [nn.Sequential(linear(12, 6), nn.ReLU(), linear(6, 12)) for _ in range(3)]
        if kind == "parameters":
            self.experts = nn.ParameterList([nn.Parameter(torch.randn(12, 12)) for _ in range(3)])
        else:
            named = {f"e{k}": expert for k, expert in enumerate(experts)}
            self.experts = nn.ModuleDict(named) if kind == "dictionary" else nn.ModuleList(experts)
        self.kind = kind

    def forward(self, h):
        if self.kind == "parameters":
            return h @ self.experts[1]
        return self.experts["e1" if self.kind == "dictionary" else 1](h)


@pytest.mark.parametrize("kind", ["list", "dictionary", "parameters"])
def test_what_stands_beside_an_expert_and_does_not_run_is_named(kind):
    model, drawn = built((lambda m, x: m.b(m.mixed(m.a(x))), rows, lambda: dense(mixed=Mixture(kind))))
    first = "e0" if kind == "dictionary" else "0"
    says = f"'mixed.experts.{first}' beside it did not run. Pass an example_input that reaches all"
    is_refused(model, drawn, says)
    if kind == "list":
        is_the_merged_one(model, drawn, "mixed.experts.1.0")  # what only this expert knows of


class Slotted:
    __slots__ = ("first", "second")

    def __init__(self, *given):
        self.first, self.second = given


HANDED_OUT = {
    "slots": lambda y, h: Slotted(y, h),
    "a set": lambda y, h: {y, h},
    "a deque": lambda y, h: deque([y, h]),
    "values of a dictionary": lambda y, h: {"y": y, "h": h}.values(),
    "a generator": lambda y, h: (each for each in (y, h)),
    "deep inside": lambda y, h: (y, [[[[[[[[h]]]]]]]]),
}


@pytest.mark.parametrize("name", HANDED_OUT)
def test_neurons_that_are_handed_out_in_anything_are_outputs(name):
    model, drawn = built((lambda m, x: HANDED_OUT[name](m.b(h := m.a(x)), h), rows, dense))
    assert len(list(outputs(model(drawn())))) == 2
    assert consumers(model, "a", drawn()).is_output


class First(nn.Module):
    """Gives on the first output of a model alone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)[0]


def test_a_stream_that_is_given_out_is_cut_where_a_module_around_the_model_gives_on_less():
    model, drawn = built((lambda m, x: (m.b(m.norm(h := m.a(x))), h), words, lambda: dense(norm=nn.LayerNorm(12))))
    is_refused(model, drawn, "model's output. Choose a layer before it, or, if .* a module around the model")
    x, around = drawn(), First(model)
    with torch.no_grad(), merge(around, "model.a", [(0, 1)], example_input=x):
        wanted = around(x)
    _, report = consolidate(around, "model.a", [(0, 1)], norms="repeat", inplace=True, example_input=x)
    assert report.compared
    assert model.a.out_features == 11
    torch.testing.assert_close(model(x)[0], wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("how", ["numpy", "tolist"])
def test_neurons_that_others_than_torch_get_are_refused(how):
    model, drawn = built((lambda m, x: (m.b(h := m.a(x)), getattr(h.detach(), how)()), rows, dense))
    is_refused(model, drawn, f"'{how}' hands them to others than torch")
