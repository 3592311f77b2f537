"""Models in wrappers, compiled, scripted, of other dtypes, and calls under contexts of torch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sdsd.geometry import collect_activations, consolidate, merge

X = torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
PAIRS = [(0, 1), (2, 5)]


def perceptron():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))


WRAPPED = {
    "compiled": (lambda m: torch.compile(m, backend="eager"), "_orig_mod.0"),
    "with a compiled part": (lambda m: nn.Sequential(m[0], torch.compile(m[1], backend="eager"), m[2]), "0"),
    "DataParallel": (nn.DataParallel, "module.0"),
    "traced by torch.fx": (torch.fx.symbolic_trace, "0"),
    "averaged": (torch.optim.swa_utils.AveragedModel, "module.0"),
    "frozen": (lambda m: m.requires_grad_(False), "0"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_models(name):
    wrap, layer = WRAPPED[name]
    model = wrap(perceptron()).eval()
    assert collect_activations(model, [X], layer)[layer].taken_after == "relu"
    smaller, report = consolidate(model, layer, PAIRS, example_input=X[:2])
    with torch.no_grad(), merge(model, layer, PAIRS, example_input=X[:2]):
        torch.testing.assert_close(smaller(X), model(X))
    assert report.compared


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("compiled", [torch.jit.script, lambda m: torch.jit.trace(m, X)])
def test_scripted_models_are_refused_by_name(compiled):
    model = compiled(perceptron())
    for call in (lambda: collect_activations(model, [X], "0"), lambda: consolidate(model, "0", PAIRS)):
        with pytest.raises(TypeError, match=r"in Python, got \w+, whose layers cannot be watched"):
            call()


def test_under_inference_mode_the_smaller_model_trains():
    model = perceptron()
    with torch.inference_mode():
        smaller, report = consolidate(model, "0", PAIRS, example_input=X[:2])
        collect_activations(model, [X], "0")
        made_inside = copy.deepcopy(model)
    smaller(X).sum().backward()
    assert report.compared
    assert not any(each.is_inference() for each in smaller.parameters())
    with pytest.raises(ValueError, match=r"'0\.weight' was made under torch\.inference_mode"):
        consolidate(made_inside, "0", PAIRS, example_input=X[:2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_under_autocast_and_in_other_dtypes(dtype):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert consolidate(perceptron(), "0", PAIRS, example_input=X[:2])[1].compared
    model, x = perceptron().to(dtype), X.to(dtype)
    assert consolidate(model, "0", PAIRS, example_input=x)[1].compared
    assert collect_activations(model, [x], "0", keep=True)["0"].values.dtype == dtype
