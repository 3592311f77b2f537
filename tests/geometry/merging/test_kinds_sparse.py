"""Graphs with sparse matrices between their nodes, sequences of several lengths, and a merge that is entered again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune, rnn, spectral_norm, weight_norm

from sdsd.geometry import biopsy, collect_activations, merge, merge_experts, remove_neurons

NODES = torch.tensor([[0, 1, 2, 3, 4, 0, 2], [1, 2, 3, 4, 0, 3, 0]])
ADJACENT = torch.sparse_coo_tensor(
    NODES, torch.rand(7, generator=torch.Generator().manual_seed(1)), (5, 5), check_invariants=True
)
ADJACENT = ADJACENT.coalesce()


class Nodes(nn.Module):
    def __init__(self, spread, held=None):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.spread = nn.Linear(6, 10), nn.Linear(10, 3), spread
        if held is not None:
            self.register_buffer("adjacent", held)

    def forward(self, x, adjacent=None):
        return self.b(self.spread(self.a(x).relu(), getattr(self, "adjacent", adjacent)))


def blind(model, *given, neurons, weight="b.weight"):
    """What the model gives where its reader does not see these neurons."""
    whole = copy.deepcopy(model) if not any(each.layout == torch.sparse_csr for each in model.buffers()) else model
    before = whole.get_parameter(weight).detach().clone()
    with torch.no_grad():
        whole.get_parameter(weight)[:, neurons] = 0
        try:
            return whole(*given)
        finally:
            whole.get_parameter(weight).copy_(before)


SPREADS = {
    "sparse.mm": lambda h, a: torch.sparse.mm(a, h),
    "matmul": lambda h, a: a @ h,
    "csr": lambda h, a: torch.sparse.mm(a.to_sparse_csr(), h),
    "added": lambda h, a: torch.sparse.addmm(h, a, h),
    "again": lambda h, a: torch.sparse.mm(a, torch.sparse.mm(a, h) + 0.5 * h),
    "divided": lambda h, a: torch.sparse.mm(a, h) / (1 + torch.sparse.sum(a, 1).to_dense()[:, None]),
    "made": lambda h, a: torch.sparse.mm(torch.sparse_coo_tensor(NODES, torch.ones(7), (len(h),) * 2), h),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("spread", SPREADS.values(), ids=SPREADS)
def test_neurons_go_from_what_a_sparse_matrix_spreads(spread):
    model, x = Nodes(spread), torch.randn(5, 6)
    smaller, report = remove_neurons(model, "a", [1, 7], example_input=(x, ADJACENT))
    assert report.compared
    torch.testing.assert_close(smaller(x, ADJACENT), blind(model, x, ADJACENT, neurons=[1, 7]), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_a_sparse_buffer_does_not_stand_in_the_way(layout):
    held = ADJACENT if layout == "coo" else ADJACENT.to_sparse_csr()
    model, x = Nodes(SPREADS["matmul"], held), torch.randn(5, 6)
    smaller, _ = remove_neurons(model, "a", [1, 7], example_input=x)
    torch.testing.assert_close(smaller(x), blind(model, x, neurons=[1, 7]), rtol=1e-5, atol=1e-6)
    assert collect_activations(model, [x], "a")["a"].samples == 5
    square = lambda network, batch: network(batch).square().mean()  # noqa: E731
    measured = biopsy(model, "a", ([x], square), pairs=2, activations=model.a(x).relu(), example_input=x)
    other = Nodes(SPREADS["matmul"], 2 * held)
    again = biopsy(other, "a", ([x], square), pairs=2, activations=model.a(x).relu(), example_input=x)
    assert measured.measurements.fingerprint != again.measurements.fingerprint
    assert torch.equal(model.adjacent.to_dense(), ADJACENT.to_dense())


class Sentences(nn.Module):
    def __init__(self, kind, how):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.a, self.r = nn.Embedding(20, 8), nn.Linear(8, 7), kind(7, 6, batch_first=True)
        self.b, self.direct, self.how = nn.Linear(6, 2), nn.Linear(7, 2), how

    def forward(self, words, lengths):
        h = self.a(self.embed(words)).relu()
        if self.how == "list":
            packed = rnn.pack_sequence([h[k, :n] for k, n in enumerate(lengths.tolist())], enforce_sorted=False)
        else:
            packed = rnn.pack_padded_sequence(h, lengths, batch_first=True, enforce_sorted=False)
        if self.how == "unpacked":
            return self.direct(rnn.pad_packed_sequence(packed, batch_first=True)[0])
        out, last = self.r(packed)
        if self.how == "padded":
            return self.b(rnn.pad_packed_sequence(out, batch_first=True)[0])
        return self.b((last[0] if isinstance(last, tuple) else last)[-1])


@pytest.mark.parametrize("how", ["last", "padded", "list", "unpacked"])
@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_neurons_go_from_packed_sequences(kind, how):
    model = Sentences(kind, how)
    given = torch.randint(0, 20, (3, 6)), torch.tensor([6, 2, 4])
    smaller, report = remove_neurons(model, "a", [2, 5], example_input=given)
    assert report.compared
    weight = "direct.weight" if how == "unpacked" else "r.weight_ih_l0"
    other = torch.randint(0, 20, (2, 5)), torch.tensor([3, 5])
    for each in (given, other):
        expected = blind(model, *each, neurons=[2, 5], weight=weight)
        torch.testing.assert_close(smaller(*each), expected, rtol=1e-5, atol=1e-6)


def test_a_merge_is_entered_again_with_the_weights_as_they_are_then():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    merged = merge(model, "0", [(0, 2)])
    for _ in range(2):
        with torch.no_grad():
            model[0].weight.mul_(2)
        before = model[0].weight.detach().clone()
        with merged, merged:
            assert torch.equal(model[0].weight[0], model[0].weight[2])
            torch.testing.assert_close(model[0].weight[0], (before[0] + before[2]) / 2)
        assert torch.equal(model[0].weight, before)


def test_experts_are_merged_with_the_weights_as_they_are_then():
    model = nn.Sequential(nn.ModuleList(nn.Linear(3, 3) for _ in range(3)))
    merged = merge_experts(model, "0", iter([(0, 2)]))
    with torch.no_grad():
        model[0][0].weight.mul_(2)
    mean = (model[0][0].weight + model[0][2].weight).detach() / 2
    for _ in range(2):
        with merged:
            torch.testing.assert_close(model[0][2].weight, mean)
    assert not torch.equal(model[0][2].weight, mean)


MADE = {
    "prune.remove": lambda layer: prune.l1_unstructured(layer, "weight", 0.3),
    "remove_weight_norm": weight_norm,
    "remove_spectral_norm": spectral_norm,
    "remove_parametrizations": nn.utils.parametrizations.weight_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("way", MADE)
def test_what_makes_a_weight_permanent_is_named(way):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    MADE[way](model[0])
    with pytest.raises(ValueError, match=way):
        merge(model, "0", [(0, 2)])


class Wrapped(nn.Module):
    """As adapters wrap a layer."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer

    def forward(self, x):
        return self.base_layer(x)


def test_of_a_module_around_a_layer_the_layer_is_named():
    model = nn.Sequential(Wrapped(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(TypeError, match=r"which is Wrapped of tests.* Name one inside it \('0.base_layer'\)\."):
        merge(model, "0", [(0, 2)])
    with pytest.raises(TypeError, match="Name what writes the neurons, not what follows it"):
        merge(model, "1", [(0, 2)])
