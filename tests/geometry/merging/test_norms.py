"""Residual streams behind norms over all neurons: cut with norms that go on to see every merged neuron."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from sdsd.geometry import RepeatedNorm, consolidate, consumers, evaluating, fit_config, merge
from tests.geometry.networks import scrambled

PAIRS = [(0, 3), (7, 5)]


class HandWritten(nn.Module):
    """As in Llama: a mean of squares, without a mean."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class ChannelsFirst(nn.LayerNorm):
    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


NORMS = {
    "LayerNorm": nn.LayerNorm,
    "without parameters": lambda width: nn.LayerNorm(width, elementwise_affine=False),
    "RMSNorm": nn.RMSNorm,
    "written by hand": HandWritten,
}
PICTURE_NORMS = {"GroupNorm": lambda width: nn.GroupNorm(2, width), "channels first": ChannelsFirst}


class Stream(nn.Module):
    """A residual stream of 8 neurons, read behind norms."""

    def __init__(self, norm, dense=nn.Linear, *more: int) -> None:
        super().__init__()
        self.embed, self.first, self.last = dense(5, 8, *more), norm(8), norm(8)
        self.up, self.down, self.head = dense(8, 6, *more), dense(6, 8, *more), dense(8, 3, *more)
        scrambled(self).double()

    def forward(self, x):
        x = self.embed(x)
        x = x + self.down(torch.relu(self.up(self.first(x))))
        return self.head(self.last(x))


def stream(name: str) -> tuple[Stream, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    if name in PICTURE_NORMS:
        picture = torch.randn(2, 5, 3, 3, generator=generator, dtype=torch.float64)
        return Stream(PICTURE_NORMS[name], nn.Conv2d, 1), picture
    return Stream(NORMS[name]), torch.randn(4, 7, 5, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
@pytest.mark.parametrize("name", [*NORMS, *PICTURE_NORMS])
def test_a_stream_behind_norms_is_cut_and_computes_what_the_merged_one_does(name, inplace):
    model, x = stream(name)
    with merge(model, "down", PAIRS, example_input=x), torch.no_grad():
        merged = model(x)
    with pytest.raises(ValueError, match="norms='repeat'"):
        consolidate(model, "down", PAIRS, example_input=x)
    before = copy.deepcopy(model)
    smaller, report = consolidate(model, "down", PAIRS, norms="repeat", inplace=inplace, example_input=x)
    assert (smaller is model) == inplace
    assert report.compared
    assert report.neurons == (8, 6)
    assert smaller.embed.weight.shape[0] == smaller.down.weight.shape[0] == 6
    assert smaller.up.weight.shape[1] == smaller.head.weight.shape[1] == 6
    for norm in (smaller.first, smaller.last):
        assert isinstance(norm, RepeatedNorm)
        assert type(norm.norm) is type(before.first)
    with torch.no_grad():
        torch.testing.assert_close(smaller(x), merged, rtol=1e-12, atol=1e-12)
        assert (before(x) - merged).abs().max() > 1e-3
    if not inplace:
        torch.testing.assert_close(model(x), before(x), rtol=0, atol=0)
    again, _ = consolidate(smaller, "up", [(0, 2)], example_input=x)
    assert again.up.weight.shape == (5, 6, *smaller.up.weight.shape[2:])


def test_the_smaller_network_is_saved_exported_and_trained():
    model, x = stream("RMSNorm")
    smaller, _ = consolidate(model, "embed", PAIRS, norms="repeat", example_input=x)
    file = io.BytesIO()
    torch.save(smaller, file)
    loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    loaded.load_state_dict(smaller.state_dict())
    exported = torch.export.export(smaller, (x,), strict=False).module()
    with torch.no_grad():
        for other in (loaded, exported):
            torch.testing.assert_close(other(x), smaller(x), rtol=1e-12, atol=1e-12)
    smaller(x).sum().backward()
    assert all(bool(each.grad.isfinite().all()) for each in smaller.parameters())


def test_what_the_norm_sees_is_what_it_saw():
    """By hand: the mean counts the merged neuron twice."""
    model, x = stream("without parameters")
    smaller, _ = consolidate(model, "embed", [(2, 6)], norms="repeat", example_input=x)
    with evaluating(smaller):
        values = smaller.embed(x)
        given = smaller.first(values)
    counts = torch.tensor([1, 1, 2, 1, 1, 1, 1], dtype=torch.float64)
    mean = (values * counts).sum(-1, keepdim=True) / 8
    variance = ((values - mean) ** 2 * counts).sum(-1, keepdim=True) / 8
    torch.testing.assert_close(given, (values - mean) / (variance + 1e-5).sqrt(), rtol=1e-12, atol=1e-12)


class AsksForDtype(Stream):
    """As Mamba does."""

    def forward(self, x):
        x = self.embed(x)
        x = x + self.down(torch.relu(self.up(self.first(x.to(self.first.weight.dtype)))))
        return self.head(self.last(x))


def test_what_the_model_asks_of_a_norm_is_answered():
    _, x = stream("RMSNorm")
    smaller, report = consolidate(AsksForDtype(HandWritten), "down", PAIRS, norms="repeat", example_input=x)
    assert report.compared
    assert smaller.first.weight is smaller.first.norm.weight
    assert not hasattr(smaller.first, "widths")
    again, _ = consolidate(smaller, "up", [(0, 2)], example_input=x)
    assert again.up.out_features == 5


def test_no_configuration_builds_it():
    model, x = stream("LayerNorm")
    smaller, _ = consolidate(model, "embed", PAIRS, norms="repeat", example_input=x)
    smaller.config = object()
    assert "'first' is a RepeatedNorm" in fit_config(smaller).why


class Inside(Stream):
    """One of its norms is no module."""

    def forward(self, x):
        x = self.embed(x)
        x = x + self.down(torch.relu(self.up(nn.functional.layer_norm(x, (8,)))))
        return self.head(self.last(x))


@pytest.mark.parametrize(
    ("build", "options", "says"),
    [
        (lambda: stream("RMSNorm")[0], {"norms": "repeat", "how": "absorb", "gram": torch.eye(8)}, "needs how='mean'"),
        (lambda: stream("LayerNorm")[0], {"norms": "weighted"}, "norms"),
        (lambda: Inside(nn.LayerNorm), {"norms": "repeat"}, "modules of their own"),
    ],
    ids=["absorb", "unknown", "no module"],
)
def test_refused(build, options, says):
    model, (_, x) = build(), stream("LayerNorm")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=says):
        consolidate(model, "down", PAIRS, example_input=x, inplace=True, **options)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_neurons_of_two_groups_of_a_norm_are_no_pair():
    model, x = stream("GroupNorm")
    with pytest.raises(ValueError, match=r"neurons 5 and 1 .* 'first' normalises in different groups"):
        consolidate(model, "down", [(0, 3), (5, 1)], norms="repeat", example_input=x)


def test_the_group_names_its_norms():
    model, x = stream("LayerNorm")
    assert [norm.module for norm in consumers(model, "down", x).statistics] == ["first", "last"]
    assert not consumers(model, "up", x).statistics
