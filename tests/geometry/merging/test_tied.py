"""Residual streams that one tensor writes and reads, as an embedding and a head with one weight."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sdsd.geometry import (
    RepeatedNorm,
    consolidate,
    consolidate_model,
    consumers,
    group_activations,
    merge,
    remove_neurons,
)
from tests.geometry.networks import scrambled

PAIRS = [(0, 3), (7, 5)]
WORDS = torch.randint(20, (4, 7), generator=torch.Generator().manual_seed(0))


class Words(nn.Module):
    """A language model of one block, whose head is its embedding."""

    def __init__(self, norm=nn.LayerNorm) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(20, 8), nn.Parameter(torch.zeros(7, 8))
        self.first, self.last = norm(8), norm(8)
        self.up, self.down, self.head = nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight
        scrambled(self).double()

    def stream(self, x):
        x = self.embed(x) + self.places
        return x + self.down(torch.relu(self.up(self.first(x))))

    def forward(self, x):
        return self.head(self.last(self.stream(x)))


class Tail(Words):
    """Only the last words have an answer, and it has a temperature."""

    def forward(self, x):
        return self.head(self.last(self.stream(x))[:, -3:, :].contiguous() * 0.5)


class Another(Words):
    """A second reader of the last norm."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Linear(8, 1).double()

    def forward(self, x):
        x = self.last(self.stream(x))
        return self.head(x) + self.value(x)


class Bent(Words):
    def forward(self, x):
        return self.head(self.last(self.stream(x)).tanh())


class BentInPlace(Words):
    def forward(self, x):
        return self.head(self.last(self.stream(x)).transpose(0, 1).mul_(2).transpose(0, 1))


class Doubled(Words):
    def forward(self, x):
        x = self.last(self.stream(x))
        return self.head(x + x)


class Mixed(Words):
    """Positions are mixed between the norm and the head."""

    def forward(self, x):
        x = self.last(self.stream(x))
        return self.head(torch.softmax(torch.ones(7, 7).double().tril(), -1) @ x)


class MixedBeside(Another):
    """Beside the head, another layer reads positions that are mixed."""

    def forward(self, x):
        x = self.last(self.stream(x))
        return self.head(x) + self.value(torch.softmax(torch.ones(7, 7).double().tril(), -1) @ x)


class Twice(Words):
    """The head reads the stream without a norm as well."""

    def forward(self, x):
        x = self.stream(x)
        return self.head(self.last(x)) + self.head(x)


class Kept(Words):
    """What the norm gives is given, too, in training."""

    def forward(self, x):
        x = self.last(self.stream(x))
        return (self.head(x), x.sum()) if self.training else self.head(x)


@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
@pytest.mark.parametrize("build", [Words, lambda: Words(nn.RMSNorm), Tail], ids=["LayerNorm", "RMSNorm", "tail"])
def test_a_tied_stream_is_cut_and_computes_what_the_merged_one_does(build, inplace):
    model = build()
    with merge(model, "down", PAIRS, example_input=WORDS), torch.no_grad():
        merged = model(WORDS)
        assert all(torch.equal(model.embed.weight[:, i], model.embed.weight[:, j]) for i, j in PAIRS)
    with torch.no_grad():
        assert (model(WORDS) - merged).abs().max() > 1e-3
    smaller, report = consolidate(model, "down", PAIRS, norms="repeat", inplace=inplace, example_input=WORDS)
    assert (smaller is model) == inplace
    assert report.compared
    assert report.neurons == (8, 6)
    assert smaller.head.weight is smaller.embed.weight
    assert smaller.head.weight.shape == (20, 6)
    with torch.no_grad():
        torch.testing.assert_close(smaller(WORDS), merged, rtol=1e-12, atol=1e-12)
    assert "summed" in str(smaller.last)
    assert "summed" not in str(smaller.first)


def test_the_norm_before_a_tied_head_gives_sums():
    """By hand: the merged neuron counts twice in what it gives, and once in what it takes."""
    smaller, _ = consolidate(Words(), "down", [(2, 6)], norms="repeat", example_input=WORDS)
    x = torch.randn(3, 7, dtype=torch.float64)
    wide = torch.cat([x[:, :6], x[:, 2:3], x[:, 6:]], 1)
    counts = torch.tensor([1, 1, 2, 1, 1, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(smaller.last(x), smaller.last.norm(wide)[:, [0, 1, 2, 3, 4, 5, 7]] * counts)


def test_it_is_saved_exported_and_trained():
    smaller, _ = consolidate(Words(), "embed", PAIRS, norms="repeat", example_input=WORDS)
    loaded = copy.deepcopy(smaller)
    loaded.load_state_dict(smaller.state_dict())
    exported = torch.export.export(smaller, (WORDS,), strict=False).module()
    with torch.no_grad():
        for other in (loaded, exported):
            torch.testing.assert_close(other(WORDS), smaller(WORDS), rtol=1e-12, atol=1e-12)
    smaller(WORDS).square().sum().backward()
    assert all(bool(each.grad.isfinite().all()) for each in smaller.parameters())


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (Another, "'last' has other readers"),
        (Bent, "it reads them from elsewhere"),
        (BentInPlace, "it reads them from elsewhere"),
        (Doubled, "it reads them from elsewhere"),
        (MixedBeside, "'last' has other readers"),
        (Mixed, "it reads them from elsewhere"),
        (Twice, "it reads them from elsewhere"),
        (Kept, "'last' has other readers"),
    ],
)
def test_a_tied_stream_whose_norm_cannot_give_sums_is_refused(build, says):
    model = build()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"'embed.weight' writes the neurons of 'down' and reads them.*{says}"):
        consolidate(model, "down", PAIRS, norms="repeat", inplace=True, example_input=WORDS)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    merged, _ = consolidate(model, "down", PAIRS, remove=False, example_input=WORDS)
    with merge(model, "down", PAIRS, example_input=WORDS), torch.no_grad():
        torch.testing.assert_close(merged(WORDS), model(WORDS), rtol=0, atol=0)


def test_the_readers_alone_of_a_tied_stream_cannot_be_changed():
    model = Words()
    with pytest.raises(ValueError, match="as one tensor in two places.*how='absorb' would"):
        merge(model, "down", PAIRS, "absorb", gram=torch.eye(8), example_input=WORDS)
    with pytest.raises(ValueError, match="statistics over all neurons"):
        remove_neurons(model, "down", [0], example_input=WORDS)


def test_a_whole_model_with_a_tied_head():
    model = Words()
    assert "written and read by 'embed' (Embedding)" in str(consumers(model, "down", WORDS))
    smaller, report = consolidate_model(model, [WORDS], "*", budget=0.3, norms="repeat", example_input=WORDS)
    by_layer = {row.layer: row for row in report.layers}
    assert by_layer["down"].refused == ""
    assert smaller.embed.embedding_dim < 8
    assert isinstance(smaller.last, RepeatedNorm)
    assert group_activations(model, [WORDS], "down", example_input=WORDS)["down"].samples == 28


def test_the_foretold_change_counts_the_tied_head():
    """What the readers get is foretold with the head among them: without it, only `up` reads the stream."""
    model = Words()
    gram = group_activations(model, [WORDS], "down", example_input=WORDS)["down"].gram()
    _, report = consolidate(model, "down", PAIRS, remove=False, gram=gram, example_input=WORDS)
    columns = torch.cat([model.up.weight.T, model.head.weight.T], 1).detach().double()
    change = torch.zeros_like(columns)
    for i, j in PAIRS:
        change[i], change[j] = (columns[j] - columns[i]) / 2, (columns[i] - columns[j]) / 2
    gram = gram.double()
    wanted = (((gram @ change) * change).sum() / ((gram @ columns) * columns).sum()).sqrt()
    assert report.foretold == pytest.approx(float(wanted), rel=1e-9)
