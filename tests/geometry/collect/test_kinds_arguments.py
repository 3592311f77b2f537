"""Arguments of what looks at neurons that are not what they should be: a sentence each, before anything runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sdsd import collect_activations, neuron_cosine_matrix
from sdsd.geometry import GramAccumulator, NeuronMap, consolidate_model, expert_cosine, group_activations

BATCH = torch.randn(12, 5)


def mlp():
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"loader": lambda: BATCH}, TypeError, "loader: expected batches, .* got function"),
        ({"loader": {"input": BATCH}}, TypeError, r"got dict. A single batch goes into a list: \[batch\]"),
        ({"loader": 3}, TypeError, "loader: expected batches, .* got int"),
        ({"loader": "train.pt"}, TypeError, "loader: expected batches, .* got str"),
        ({"layers": nn.ReLU()}, TypeError, r"layers: expected the name of a layer, .* got ReLU\(\)"),
        ({"forward": 3}, TypeError, r"forward: expected a function \(model, batch\) → anything, or None, got int"),
        ({"max_bytes": 1e9}, TypeError, "max_bytes: expected an int, got float"),
        ({"max_bytes": "1GB"}, TypeError, "max_bytes: expected an int, got str"),
        ({"max_bytes": 0}, ValueError, "max_bytes: expected at least 1, got 0"),
        ({"device": "gpu"}, ValueError, "device: expected one that this torch can use, got 'gpu'"),
        ({"device": "xpu:77"}, ValueError, "device: expected one that this torch can use, got 'xpu:77'"),
    ],
)
def test_arguments_of_collect_activations(options, error, match):
    with pytest.raises(error, match=match):
        collect_activations(**{"model": mlp(), "loader": [BATCH], "layers": "0"} | options)


def test_modules_are_told_by_their_names():
    model = mlp()
    with pytest.raises(TypeError, match=r"Their names: '0', '2'\."):
        collect_activations(model, [BATCH], [model[0], model[2]])


@pytest.mark.parametrize("call", [group_activations, expert_cosine])
def test_other_calls_that_take_a_loader(call):
    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList([mlp(), mlp()])

        def forward(self, x):
            return sum(expert(x) for expert in self.experts)

    model, name = (Mixture(), "experts") if call is expert_cosine else (mlp(), "0")
    arguments = (model, name, 3) if call is expert_cosine else (model, 3, name)
    with pytest.raises(TypeError, match="loader: expected batches, .* got int"):
        call(*arguments)
    arguments = (model, name, [BATCH]) if call is expert_cosine else (model, [BATCH], name)
    with pytest.raises(TypeError, match="forward: expected a function"):
        call(*arguments, forward="model")
    for most in (0, 1.5, True):
        with pytest.raises(ValueError, match="max_batches: expected a whole number, at least 1, or None"):
            call(*arguments, max_batches=most)
    for options, total in ({}, 3), ({"max_batches": 2}, 2), ({"max_batches": 7}, 3):
        seen: list[tuple[int, int]] = []
        arguments = (model, name, [BATCH] * 3) if call is expert_cosine else (model, [BATCH] * 3, name)
        call(*arguments, progress=lambda *at, seen=seen: seen.append(at), **options)
        assert seen == [(done, total) for done in range(1, total + 1)]


def test_a_driver_that_is_given_no_batches():
    with pytest.raises(TypeError, match="loader: expected batches, .* got int"):
        consolidate_model(mlp(), 3, budget=0.1)
    with pytest.raises(TypeError, match="forward: expected a function"):
        consolidate_model(mlp(), [BATCH], budget=0.1, forward=3)
    with pytest.raises(ValueError, match="max_batches: expected a whole number, at least 1, or None, got 0"):
        consolidate_model(mlp(), [BATCH], budget=0.1, max_batches=0)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"seed": -1}, ValueError, "seed: expected 0 to 4294967295, got -1"),
        ({"seed": 1.5}, TypeError, "seed: expected an int, got float"),
        ({"pairs": -1}, ValueError, "pairs: expected at least 0, got -1"),
        ({"clusters": 0}, ValueError, "clusters: expected a whole number of groups, at least 2, or None, got 0"),
        ({"method": "tsne"}, ValueError, "method: expected one of 'smacof', 'umap', got 'tsne'"),
    ],
)
def test_a_map_is_refused_before_the_model_runs(options, error, match):
    def forward(model, batch):
        raise AssertionError("the model ran")

    with pytest.raises(error, match=match):
        NeuronMap.from_model(mlp(), "0", [BATCH], forward=forward, **options)
    with pytest.raises(error, match=match):
        NeuronMap.from_activations(BATCH, **options)


def test_progress_of_a_loader_that_does_not_know_its_length():
    class Longer:
        def __iter__(self):
            return iter(BATCH.split(3))

        def __len__(self):
            return 2

    seen = []
    collect_activations(mlp(), Longer(), "0", progress=lambda *at: seen.append(at))
    assert seen == [(1, 2), (2, 2), (3, 3), (4, 4)]


@pytest.mark.parametrize("device", ["gpu", "xpu:77", 1.5])
def test_devices_that_torch_cannot_use(device):
    with pytest.raises(ValueError, match=f"device: expected one that this torch can use, got {device!r}"):
        GramAccumulator(3, device=device)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_refused_by_name(layout):
    nested = torch.nested.nested_tensor([torch.randn(3, 4), torch.randn(2, 4)], layout=layout)
    for call in (neuron_cosine_matrix, NeuronMap.from_activations, GramAccumulator(4).update):
        with pytest.raises(TypeError, match="activations: expected a dense tensor, got a nested one"):
            call(nested)


class Frame:
    """As in pandas."""

    def to_numpy(self, dtype=None):
        return np.zeros((5, 3), dtype)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (Frame(), r"got Frame\. Pass activations\.to_numpy\(dtype='float32'\)"),
        ("a.npy", r"got str\. Read the file first"),
        (Path("a.npy"), r"got \w*Path\. Read the file first"),
        ([[1.0]], r"got list\. Convert it first"),
    ],
)
def test_what_is_no_array_is_told_how_to_become_one(given, says):
    with pytest.raises(TypeError, match=says):
        NeuronMap.from_activations(given)


def test_a_map_of_a_tensor_without_values_is_refused():
    with pytest.raises(ValueError, match="a tensor on the meta device has none. Use another"):
        NeuronMap.from_activations(torch.empty(5, 3, device="meta"))


def test_whole_numbers_are_left_out_by_name_and_only_once():
    class Choosing(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.choice, self.b = nn.Linear(5, 8), nn.Identity(), nn.Linear(8, 3)

        def forward(self, x):
            h = self.a(x)
            self.choice(h.argmax(-1))
            return self.b(h.relu())

    model, batches = Choosing(), [BATCH] * 3
    with pytest.warns(RuntimeWarning) as said:
        answers = collect_activations(model, batches, "*")
    assert sorted(answers) == ["a", "b"]
    wanted = (
        r"layer 'choice': expected a tensor of floating-point numbers as its output, got torch.int64 of shape \(12,\)"
    )
    assert [bool(re.match(wanted, str(each.message))) for each in said] == [True]
    with pytest.raises(TypeError, match=wanted):
        collect_activations(model, batches, "choice")


def test_shapes_of_a_batch_that_is_a_dict_are_named():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(5, 8)

        def forward(self, x, y):
            return self.a(x) + y

    with pytest.raises(ValueError, match=r"batch 0: .* got shape x \(12, 4\), y \(12, 8\), and the model raised"):
        collect_activations(Two(), [{"x": BATCH[:, :4], "y": torch.ones(12, 8)}], "a")


def test_a_reader_whose_weight_is_made_anew_is_said_to_be_one():
    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(3, 2))
            self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x):
            return nn.functional.linear(self.a(x).relu(), self.b.weight + self.up @ self.down)

    with pytest.raises(ValueError, match="or with a weight that is computed anew each time"):
        group_activations(Adapted(), [torch.randn(4, 5)], "a")
