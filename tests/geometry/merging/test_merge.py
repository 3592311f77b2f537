"""Merging inside a block: what it computes, and that nothing is left of it."""

from __future__ import annotations

import copy
import doctest
import importlib

import numpy as np
import pytest
import torch
from torch import nn

from sdsd.geometry.merging.consumers import consumers
from sdsd.geometry.merging.edits import applied
from sdsd.geometry.merging.merge import merge
from sdsd.geometry.merging.merger import Merger
from tests.geometry.networks import CASES, Residual, cnn, mlp, scrambled

PAIRS = [(0, 3), (5, 1)]


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype
        and torch.equal(a[name].reshape(-1).view(torch.uint8), b[name].reshape(-1).view(torch.uint8))
        for name in a
    )


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


# ---- mean ------------------------------------------------------------------------------------------------------------


def by_hand(rows: torch.Tensor, pairs: list[tuple[int, int]]) -> torch.Tensor:
    wanted = rows.clone().double()
    for i, j in pairs:
        for entry in np.ndindex(*rows.shape[1:]):
            wanted[(i, *entry)] = wanted[(j, *entry)] = (rows[(i, *entry)].item() + rows[(j, *entry)].item()) / 2
    return wanted


@pytest.mark.parametrize("pairs", [[(1, 4), (0, 2)], torch.tensor([[1, 4], [0, 2]]), [[4, 1, 0.9], (2, 0, 0.5)]])
def test_mean_by_hand(pairs):
    model = cnn()
    before = state(model)
    with merge(model, "0", pairs) as inside:
        assert inside is model
        after = state(model)
    changed = {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "2.weight"}
    for name, value in before.items():
        if name in changed:
            assert torch.allclose(after[name].double(), by_hand(value, [(1, 4), (0, 2)]), rtol=1e-7, atol=0), name
        else:
            assert torch.equal(after[name], value), name
    assert same_bits(state(model), before)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_mean_makes_both_neurons_of_a_pair_compute_the_same(case):
    model, x = case.build().double(), case.input()
    with merge(model, case.layer, [(0, 3), (4, 1)]):
        rows = case.rows(model[: case.place](x))
    torch.testing.assert_close(rows[0], rows[3], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rows[4], rows[1], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(rows[0], rows[1])


def test_mean_of_entries_of_a_flattened_norm():
    model = scrambled(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 2)))
    before = state(model)
    with merge(model, "0", [(0, 2)], example_input=torch.rand(1, 1, 4, 4)):
        wanted = by_hand(before["2.running_var"].reshape(4, 4), [(0, 2)]).flatten()
        assert torch.allclose(model[2].running_var.double(), wanted, rtol=1e-7, atol=0)


def test_mean_in_a_residual_network_is_of_every_writer():
    model = Residual()
    before = state(model)
    with merge(model, "second", [(0, 1)]):
        after = state(model)
    for name in ("stem.weight", "stem.bias", "second.weight", "norm.weight", "norm.running_var"):
        assert torch.allclose(after[name].double(), by_hand(before[name], [(0, 1)]), rtol=1e-6, atol=0), name
    for name in ("first.weight", "first.bias", "head.weight"):
        assert torch.equal(after[name], before[name])


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv3d, nn.ConvTranspose2d])
def test_other_convolutions(kind):
    dims = int(kind.__name__[-2])
    model = scrambled(nn.Sequential(kind(2, 5, 2), nn.ReLU(), kind(5, 3, 2)))
    x = torch.rand(3, 2, *[4] * dims)
    with merge(model, "0", [(1, 3)]):
        hidden = model[0](x)
        torch.testing.assert_close(hidden[:, 1], hidden[:, 3])
    hidden = model[:2](x)
    hidden[:, [1, 3]] = (hidden[:, [1]] + hidden[:, [3]]) / 2
    wanted = model[2](hidden)
    with merge(model, "0", [(1, 3)], "act"):
        torch.testing.assert_close(model(x), wanted)


# ---- act, absorb -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_act_is_the_network_with_averaged_activations(case):
    model, x = case.build().double(), case.input()
    inside = model[: case.place](x)
    averaged = inside.clone()
    rows = case.rows(averaged)
    for i, j in PAIRS:
        rows[i] = rows[j] = (rows[i] + rows[j]) / 2
    wanted = model[case.place :](averaged)
    with merge(model, case.layer, PAIRS, "act"):
        torch.testing.assert_close(model(x), wanted, rtol=1e-12, atol=1e-12)
        assert torch.equal(model[: case.place](x), inside)


@pytest.mark.parametrize("source", ["activations", "gram"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_absorb_replaces_j_by_its_least_squares_fit(case, source):
    model, x = case.build().double(), case.input()
    fitted = model[: case.place](x)
    rows = case.rows(fitted)
    activations, samples = rows.movedim(0, case.dim).clone(), rows.reshape(6, -1).clone().numpy()
    for i, j in PAIRS:
        rows[j] = rows[i] * np.linalg.lstsq(samples[i][:, None], samples[j], rcond=None)[0][0]
    wanted = model[case.place :](fitted)
    given = {"activations": activations} if source == "activations" else {"gram": samples @ samples.T}
    with merge(model, case.layer, PAIRS, "absorb", **given):
        torch.testing.assert_close(model(x), wanted, rtol=1e-12, atol=1e-12)
        for reader in consumers(model, case.layer).readers:
            dropped = model.get_submodule(reader.name).weight[:, (reader.neurons == 3) | (reader.neurons == 1)]
            assert not dropped.any()


@pytest.mark.parametrize("how", ["mean", "act", "absorb"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_two_neurons_that_are_one_merge_without_a_trace(case, how):
    model, x = case.build(), case.input()
    for module in model[int(case.layer) : case.place]:
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.ndim:
                tensor[4] = tensor[1]
    exact = copy.deepcopy(model).double()(x)
    own_error = (model(x.float()) - exact).abs().max().item()
    given = {"activations": case.rows(model[: case.place](x.float())), "neuron_dim": 0} if how == "absorb" else {}
    with merge(model, case.layer, [(1, 4)], how, **given):
        error = (model(x.float()) - exact).abs().max().item()
    assert error <= 4 * own_error


def test_absorbing_a_dead_neuron_costs_nothing_and_needs_no_partner():
    activations = torch.rand(10, 6)
    activations[:, [1, 2, 5]] = 0
    model = mlp()
    with merge(model, "0", [(0, 1), (2, 5)], "absorb", activations=activations):
        assert not model[2].weight[:, [1, 5]].any()
    with (
        pytest.raises(ValueError, match=r"neuron 1 is zero on every sample.*\(0, 1\)"),
        merge(model, "0", [(1, 0)], "absorb", activations=activations),
    ):
        pass
    activations[3, 4] = torch.nan
    with (
        pytest.raises(ValueError, match="3 and 4 are not finite"),
        merge(model, "0", [(3, 4)], "absorb", activations=activations),
    ):
        pass


# ---- restoring -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["mean", "act", "absorb"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_restored_bit_for_bit_whatever_happens_inside(dtype, how):
    model = cnn().to(dtype)
    model[4].eval()
    for weight in (model[0].weight, model[6].weight):
        weight.view(-1)[0] = torch.nan
        weight.view(-1)[1] = -0.0
        weight.view(-1)[2:4] = torch.finfo(dtype).max
        weight.view(-1)[4] = torch.finfo(dtype).tiny / 2
    model[0].bias.requires_grad_(False)
    before, modes = state(model), [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    gram = torch.rand(6, 6) + 1
    with merge(model, "0", [(2, 3)], how, gram=gram):
        assert not same_bits(state(model), before)
    assert same_bits(state(model), before)

    def spoil():
        model.train()
        model.requires_grad_(False)
        for parameter in model.parameters():
            parameter.data.normal_()
        model[1].running_mean += 1
        model.to(torch.float64)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), merge(model, "0", [(0, 1), (2, 5)], how, gram=gram):
        spoil()
    assert same_bits(state(model), before)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags


def test_applied_puts_back_what_it_touched():
    model = cnn()
    before = state(model)
    merger = Merger(model, consumers(model, "0"), "mean")

    def interrupted():
        assert torch.equal(model[0].weight[0], model[0].weight[5])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), applied(merger.edits(merger.checked([(0, 5), (2, 1)]))):
        interrupted()
    assert same_bits(state(model), before)


def test_parameters_stay_the_same_objects_and_keep_their_gradients():
    model = mlp()
    with torch.enable_grad():
        model(torch.randn(2, 5)).sum().backward()
    parameters, gradients = list(model.parameters()), [p.grad for p in model.parameters()]
    with merge(model, "0", [(0, 1)]):
        pass
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(a is b.grad for a, b in zip(gradients, model.parameters(), strict=True))


def test_nothing_happens_before_the_block_is_entered_and_without_pairs():
    model = mlp()
    before = state(model)
    block = merge(model, "0", [(0, 1)])
    assert same_bits(state(model), before)
    model[0].weight += 1
    with block:
        wanted = (before["0.weight"][0].double() + before["0.weight"][1].double() + 2) / 2
        assert torch.allclose(model[0].weight[0].double(), wanted, rtol=1e-6)
    for how in ("mean", "act", "absorb"):
        before = state(model)
        with merge(model, "0", [], how, gram=torch.ones(6, 6)):
            assert same_bits(state(model), before)


def test_layers_without_bias_and_norms_without_parameters():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2)).eval()
    model[1].running_mean[1] = 3
    with merge(model, "0", [(1, 2)]):
        assert model[1].running_mean[1] == model[1].running_mean[2] == 1.5


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "pairs", "how", "error", "says"),
    [
        ("0", [(0, 1)], "median", ValueError, "expected one of 'mean', 'act', 'absorb', got 'median'"),
        ("1", [(0, 1)], "mean", TypeError, "ReLU"),
        ("00", [(0, 1)], "mean", ValueError, "Did you mean '0'"),
        ("0", [(0, 6)], "mean", ValueError, r"0 to 5, got 6 in \(0, 6\)"),
        ("0", [(-1, 2)], "mean", ValueError, "0 to 5, got -1"),
        ("0", [(0, 1), (1, 2)], "mean", ValueError, "neuron 1 is in two pairs"),
        ("0", [(3, 3)], "mean", ValueError, r"two different neurons in a pair, got \(3, 3\)"),
        ("0", [(0.5, 1)], "mean", TypeError, "whole numbers"),
        ("0", [3], "mean", TypeError, "whole numbers"),
        ("0", [(3,)], "mean", TypeError, "whole numbers"),
        ("4", [(0, 1)], "act", ValueError, "the model's output"),
        ("0", [(0, 1)], "absorb", ValueError, "needs activations= or gram="),
    ],
)
def test_bad_input_changes_nothing(layer, pairs, how, error, says):
    model = mlp()
    before = state(model)
    with pytest.raises(error, match=says):
        merge(model, layer, pairs, how)
    assert same_bits(state(model), before)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"activations": torch.rand(5, 7)}, "samples of 6 neurons, got 7"),
        ({"activations": torch.rand(6, 5), "neuron_dim": 1}, "got 5 neurons along dimension 1"),
        ({"activations": torch.rand(0, 6)}, "0 samples"),
        ({"gram": torch.rand(6, 5)}, r"shape \(6, 6\), got torch.float32 of shape \(6, 5\)"),
        ({"gram": torch.ones(6, 6, dtype=torch.long)}, "floating point"),
    ],
)
def test_bad_activations(given, says):
    with pytest.raises(ValueError, match=says):
        merge(mlp(), "0", [(0, 1)], "absorb", **given)


def test_a_layer_whose_output_nothing_uses():
    model = mlp()
    model.spare = nn.Identity()

    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(3, 4), nn.Linear(3, 2)

        def forward(self, x):
            self.first(x)
            return self.head(x)

    with pytest.raises(ValueError, match="needs a layer that reads 'first', and none does"):
        merge(Unused(), "first", [(0, 1)], "act")


def test_groups_and_shared_weights():
    model = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 2, 1))
    before = state(model)
    with merge(model, "0", [(0, 1)]):  # neurons 0 and 2 go together, for every group has to keep as many
        after = state(model)
    assert torch.allclose(after["0.weight"].double(), by_hand(before["0.weight"], [(0, 1), (2, 3)]), rtol=1e-6)
    with pytest.raises(ValueError, match="expected neurons from 0 to 1, got 2"):
        merge(model, "0", [(1, 2)])
    alone = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1))
    with pytest.raises(ValueError, match="each reads an input of its own"):
        merge(alone, "0", [(1, 2)], example_input=torch.rand(2, 4, 5, 5))


def test_example_in_the_docstring():
    assert doctest.testmod(importlib.import_module("sdsd.geometry.merging.merge")).failed == 0
