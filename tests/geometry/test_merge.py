"""Merging inside a block: what it computes, and that nothing is left of it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sdsd.geometry.merge import merged


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3, bias=False))


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8)) for name in a)


def test_mean_merge_by_hand(model):
    before = state(model)
    weight, bias = before["0.weight"], before["0.bias"]
    with merged(model, "0", [(1, 4), (0, 2)]) as inside:
        assert inside is model
        for first, second in ((1, 4), (0, 2)):
            for row in (first, second):
                wanted = [(a + b) / 2 for a, b in zip(weight[first].tolist(), weight[second].tolist(), strict=True)]
                assert model[0].weight[row].tolist() == pytest.approx(wanted, rel=1e-6, abs=1e-8)
                assert model[0].bias[row].item() == pytest.approx((bias[first] + bias[second]).item() / 2, rel=1e-6)
        for row in (3, 5):
            assert torch.equal(model[0].weight[row], weight[row])
        assert torch.equal(model[2].weight, before["2.weight"])
        hidden = model[:2](torch.randn(7, 5))
        torch.testing.assert_close(hidden[:, 1], hidden[:, 4])
    assert same_bits(state(model), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_restored_bit_for_bit_whatever_happens_inside(model, dtype):
    model.to(dtype)
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan
        model[0].weight[1, 1] = -0.0
        model[0].weight[2, 2] = torch.finfo(dtype).max
        model[0].weight[3, 2] = torch.finfo(dtype).max
    before = state(model)
    with merged(model, "0", [(2, 3)]):
        assert model[0].weight[2, 2] == torch.finfo(dtype).max
    assert same_bits(state(model), before)
    with pytest.raises(KeyboardInterrupt), merged(model, "0", [(0, 1), (2, 5)]):
        raise KeyboardInterrupt
    assert same_bits(state(model), before)


def test_parameters_stay_the_same_objects_and_keep_their_gradients(model):
    model(torch.randn(2, 5)).sum().backward()
    parameters, gradients = list(model.parameters()), [p.grad for p in model.parameters()]
    with merged(model, "0", [(0, 1)]):
        pass
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert all(a is b.grad for a, b in zip(gradients, model.parameters(), strict=True))


def test_layer_without_bias_and_no_pairs(model):
    before = state(model)
    with merged(model, "2", [(0, 2)]):
        assert torch.equal(model[2].weight[0], model[2].weight[2])
    with merged(model, "2", []):
        assert same_bits(state(model), before)
    assert same_bits(state(model), before)


@pytest.mark.parametrize(
    ("layer", "pairs", "how", "error", "says"),
    [
        ("0", [(0, 1)], "median", ValueError, "'mean'"),
        ("1", [(0, 1)], "mean", TypeError, "ReLU"),
        ("00", [(0, 1)], "mean", ValueError, "Did you mean '0'"),
        ("0", [(0, 6)], "mean", ValueError, "0 to 5"),
        ("0", [(-1, 2)], "mean", ValueError, "0 to 5"),
        ("0", [(0, 1), (1, 2)], "mean", ValueError, "twice"),
        ("0", [(3, 3)], "mean", ValueError, "twice"),
    ],
)
def test_bad_input_changes_nothing(model, layer, pairs, how, error, says):
    before = state(model)
    with pytest.raises(error, match=says), merged(model, layer, pairs, how):
        pass
    assert same_bits(state(model), before)
