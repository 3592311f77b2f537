"""Smaller networks: equal to the merged ones, and whole in every other respect."""

from __future__ import annotations

import copy
import doctest
import importlib
import random

import pytest
import torch
from torch import nn

from sdsd.geometry.merging.consolidate import consolidate, remove_neurons
from sdsd.geometry.merging.merge import merge
from sdsd.graphs import row_dim
from tests.geometry.networks import CASES, cnn, mlp, scrambled

PAIRS = [(0, 3), (5, 1)]


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def given(case, model, x, how):
    return {"activations": case.rows(model[: case.place](x)), "neuron_dim": 0} if how == "absorb" else {}


@pytest.mark.parametrize("how", ["mean", "absorb"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_smaller_network_is_the_merged_one(case, how):
    model, x = case.build().double(), case.input()
    before = copy.deepcopy(model.state_dict())
    options = given(case, model, x, how)
    untouched = model(x)
    with merge(model, case.layer, PAIRS, how, **options):
        wanted = model(x)
    smaller, report = consolidate(model, case.layer, PAIRS, how, example_input=x, **options)
    assert (smaller(x) - wanted).abs().max() <= 8 * torch.finfo(torch.float64).eps * wanted.abs().max()
    assert (untouched - wanted).abs().max() > 1e-4
    assert smaller.get_submodule(case.layer).weight.shape[0] == 4
    assert report.neurons == (6, 4)
    assert report.removed == (3, 1)
    assert report.pairs == tuple(PAIRS)
    assert report.parameters[1] == sum(parameter.numel() for parameter in smaller.parameters()) < report.parameters[0]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    rebuilt = case.build().double()
    with pytest.raises(RuntimeError, match="size mismatch"):
        rebuilt.load_state_dict(smaller.state_dict())
    rebuilt, _ = remove_neurons(rebuilt, case.layer, [2, 4])
    rebuilt.load_state_dict(smaller.state_dict())
    assert torch.equal(rebuilt(x), smaller(x))


def random_network(draw: random.Random) -> tuple[nn.Sequential, torch.Tensor]:
    """Convolutions, then Linear layers, with norms, nonlinearities and poolings anywhere between."""
    between = [
        nn.BatchNorm2d,
        nn.PReLU,
        lambda width: nn.ReLU(),
        lambda width: nn.Tanh(),
        lambda width: nn.AvgPool2d(2, 1),
        lambda width: nn.InstanceNorm2d(width, affine=True),
        lambda width: nn.Conv2d(width, width, 2, groups=width),
        lambda width: nn.Dropout(),
        lambda width: nn.ZeroPad2d(1),
    ]
    modules: list[nn.Module] = []
    width = start = draw.randint(1, 3)
    for _ in range(draw.randint(1, 2)):
        wider = draw.randint(4, 7)
        modules.append(
            draw.choice([nn.Conv2d, nn.ConvTranspose2d])(width, wider, draw.randint(1, 2), bias=draw.random() < 0.5)
        )
        width = wider
        modules += [make(width) for make in draw.choices(between, k=draw.randint(0, 4))]
    modules.append(nn.Flatten())
    x = torch.rand(6, start, 9, 9, dtype=torch.float64)
    width = nn.Sequential(*modules)(x.float()).shape[1]
    for wider in (draw.randint(4, 7), 3):
        modules += [nn.BatchNorm1d(width)] * (draw.random() < 0.5)
        modules.append(nn.Linear(width, wider))
        width = wider
    return scrambled(nn.Sequential(*modules)).double(), x


@pytest.mark.parametrize("seed", range(20))
def test_random_networks(seed):
    draw = random.Random(seed)
    model, x = random_network(draw)
    layers = [
        name
        for name, module in model.named_children()
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))
    ]
    for layer in layers[:-1]:
        if getattr(model[int(layer)], "groups", 1) > 1:
            continue
        width = model[int(layer)].weight.shape[row_dim(model[int(layer)])]
        neurons = draw.sample(range(width), 4)
        pairs = [tuple(neurons[:2]), tuple(neurons[2:])]
        gram = torch.rand(width, width) + 1
        for how in ("mean", "absorb"):
            with merge(model, layer, pairs, how, gram=gram, example_input=x):
                wanted = model(x)
            smaller, _ = consolidate(model, layer, pairs, how, gram=gram, example_input=x)
            assert (smaller(x) - wanted).abs().max() <= 1e-13 * wanted.abs().max()


def test_equal_to_the_merged_network_bit_for_bit_where_only_exact_sums_differ():
    """With weights and inputs of few bits every sum is exact, in whatever order it is taken."""
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    for parameter in model.parameters():
        parameter.copy_(torch.randint(-8, 8, parameter.shape))
    x = torch.randint(-8, 8, (20, 5)).float()
    with merge(model, "0", PAIRS):
        wanted = model(x)
    assert torch.equal(consolidate(model, "0", PAIRS)[0](x), wanted)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_attributes_fit_a_network_built_small(case):
    smaller, _ = consolidate(case.build(), case.layer, PAIRS)
    built_small = copy.deepcopy(smaller)
    for module in built_small.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # uses the attributes and the shapes
    assert built_small.train()(case.input().float()).shape == smaller(case.input().float()).shape
    for module in smaller.modules():
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == tuple(module.weight.shape)
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.running_mean) == len(module.weight)
        if isinstance(module, nn.Conv2d):
            assert (module.out_channels, module.in_channels // module.groups) == tuple(module.weight.shape[:2])
        if isinstance(module, nn.PReLU):
            assert module.num_parameters == len(module.weight)


def test_torch_export_and_training_of_the_result():
    case = CASES["cnn"]
    smaller, _ = consolidate(case.build(), case.layer, PAIRS)
    x = case.input().float()
    exported = torch.export.export(smaller, (x,), strict=False).module()
    torch.testing.assert_close(exported(x), smaller(x))
    smaller.train()
    optimizer = torch.optim.SGD(smaller.parameters(), lr=0.1)
    with torch.enable_grad():
        smaller(x).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in smaller.parameters())
    before = copy.deepcopy(smaller.state_dict())
    optimizer.step()
    assert not torch.equal(before["0.weight"], smaller[0].weight)


def test_flops_by_hand():
    x = torch.rand(7, 5)
    _, report = consolidate(mlp(), "2", PAIRS, example_input=x)
    assert report.flops == (2 * 7 * (5 * 6 + 6 * 6 + 6 * 3), 2 * 7 * (5 * 6 + 6 * 4 + 4 * 3))
    assert report.parameters == (6 * 6 + 6 * 7 + 3 * 7, 6 * 6 + 4 * 7 + 3 * 5)
    image = torch.rand(3, 2, 8, 8)
    _, report = consolidate(cnn(), "0", PAIRS, example_input=(image,))
    assert report.flops == (2 * 3 * (36 * 6 * 18 + 54 * 3), 2 * 3 * (36 * 4 * 18 + 36 * 3))
    assert consolidate(mlp(), "2", PAIRS)[1].flops is None
    assert "pass example_input" in str(consolidate(mlp(), "2", PAIRS)[1])


@pytest.mark.parametrize("how", ["mean", "act", "absorb"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_without_removal_the_merge_stays(case, how):
    model, x = case.build(), case.input().float()
    options = given(case, model, x, how)
    with merge(model, case.layer, PAIRS, how, **options):
        wanted = copy.deepcopy(model.state_dict())
    changed, report = consolidate(model, case.layer, PAIRS, how, remove=False, **options)
    assert all(torch.equal(value, wanted[name]) for name, value in changed.state_dict().items())
    assert report.removed == ()
    assert report.parameters[0] == report.parameters[1]


def test_in_place_and_what_is_kept():
    model = cnn().to(torch.float16)
    model[0].weight.requires_grad_(False)
    model[6].train()
    modules = list(model.modules())
    same, _ = consolidate(model, "0", PAIRS, inplace=True)
    assert same is model
    assert list(model.modules()) == modules
    assert all(tensor.dtype == torch.float16 for tensor in model.state_dict().values() if tensor.is_floating_point())
    assert [parameter.requires_grad for parameter in model.parameters()] == [False] + 6 * [True]
    assert [module.training for module in model] == 6 * [False] + [True]
    assert isinstance(model[0].weight, nn.Parameter)
    assert "running_mean" in dict(model[1].named_buffers())


def test_pruning_equals_a_network_without_the_readers_columns():
    case = CASES["cnn"]
    model, x = case.build().double(), case.input()
    smaller, report = remove_neurons(model, "0", [4, 0])
    hidden = model[:6](x)
    rows = case.rows(hidden)
    rows[0] = rows[4] = 0
    torch.testing.assert_close(smaller(x), model[6](hidden), rtol=1e-12, atol=1e-12)
    assert report.removed == (4, 0)
    assert "neurons removed" in str(report)


@pytest.mark.parametrize(
    ("layer", "pairs", "options", "error", "says"),
    [
        ("0", PAIRS, {"how": "act"}, ValueError, "'act' averages two activations .* remove=False"),
        ("0", PAIRS, {"how": "median"}, ValueError, "how: expected one of"),
        ("4", PAIRS, {}, ValueError, "the model's output"),
        ("hidden", PAIRS, {}, ValueError, "no layer 'hidden'"),
        ("0", [(2, 2)], {}, ValueError, "two different neurons"),
        ("0", [(2, 9)], {}, ValueError, "0 to 5, got 9"),
        ("0", [(2, 1), (1, 3)], {}, ValueError, "neuron 1 is in two pairs"),
        ("0", PAIRS, {"how": "absorb"}, ValueError, "needs activations= or gram="),
        ("0", PAIRS, {"example_input": torch.rand(2, 3)}, ValueError, "does not run on it"),
    ],
)
def test_bad_input_changes_nothing(layer, pairs, options, error, says):
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=says):
        consolidate(model, layer, pairs, inplace=True, **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_norms_over_neurons_and_shared_weights_cannot_be_cut():
    model = scrambled(nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3)))
    with pytest.raises(ValueError, match="statistics over all neurons.*remove=False"):
        consolidate(model, "0", PAIRS)
    consolidate(model, "0", PAIRS, remove=False)
    tied = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 9, bias=False), nn.Softmax(-1))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="writes the neurons of '0' and reads them, as one tensor.*removal would"):
        consolidate(tied, "0", PAIRS)
    words = torch.randint(9, (3, 4))
    smaller, _ = remove_neurons(tied, "0", [2, 4], example_input=words)
    assert smaller[0].weight is smaller[1].weight
    assert (smaller[0].embedding_dim, smaller[1].in_features) == (4, 4)
    kept = tied[0].weight[:, [0, 1, 3, 5]]
    torch.testing.assert_close(smaller(words), (kept[words] @ kept.T).softmax(-1))


@pytest.mark.parametrize("neurons", [[6], [-1], [0, 0], range(6)])
def test_neurons_that_cannot_be_removed(neurons):
    with pytest.raises(ValueError, match="expected different indices from 0 to 5"):
        remove_neurons(mlp(), "0", neurons)


def test_example_in_the_docstring():
    assert doctest.testmod(importlib.import_module("sdsd.geometry.merging.consolidate")).failed == 0
