"""What would compute something else is refused before anything is cut, and what computes the same is not."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from sdsd.geometry.merging.consolidate import consolidate, remove_neurons
from sdsd.geometry.merging.consumers import consumers
from sdsd.geometry.merging.merge import merge

from .refused import PAIRS, Net, built, smaller_is_merged

REFUSED, RIGHT = "refused", "right"


class Looking(Net):
    """The same with a look at its input, which symbolic tracing cannot follow."""

    def forward(self, x):
        assert len(x)
        return super().forward(x)


SIZES_AS_NUMBERS = {
    "square root of the width": lambda m, x, h: m.b(h) / h.shape[-1] ** 0.5,
    "math.sqrt": lambda m, x, h: m.b(h) / math.sqrt(h.shape[-1]),
    "size": lambda m, x, h: m.b(h) / h.size(-1),
    "shape[1]": lambda m, x, h: m.b(h) / h.shape[1],
    "out_features": lambda m, x, h: m.b(h) / m.a.out_features,
    "muP": lambda m, x, h: m.b(h / (m.b.in_features / 64)),
    "both widths": lambda m, x, h: m.b(h) * (m.a.in_features * m.b.in_features) ** -0.5,
    "numel of the bias": lambda m, x, h: m.b(h) / m.a.bias.numel(),
    "length of the bias": lambda m, x, h: m.b(h) / len(m.a.bias),
    "shape of the reader's weight": lambda m, x, h: m.b(h) / m.b.weight.shape[1],
    "mean over neurons": lambda m, x, h: m.b(h) + h.mean(-1, keepdim=True),
    "sum over neurons": lambda m, x, h: m.b(h) + h.sum(-1, keepdim=True) / h.shape[-1],
    "normalised": lambda m, x, h: m.b(functional.normalize(h, dim=-1)),
    "root mean square": lambda m, x, h: m.b(h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)),
    "a tensor of the size": lambda m, x, h: m.b(h) / torch.full((1,), h.shape[-1]),
    "arange": lambda m, x, h: m.b(h) + torch.arange(h.shape[-1]).float().mean(),
    "ones": lambda m, x, h: m.b(h) / torch.ones_like(h).sum(-1, keepdim=True),
    "a branch": lambda m, x, h: m.b(h) * (2 if h.shape[-1] > 11 else 1),
    "columns of the input": lambda m, x, h: m.b(h) + x[:, : h.shape[-1]].sum(-1, keepdim=True),
    "given back": lambda m, x, h: (m.b(h), h.shape[-1]),
    "penalty of the layer's weight": lambda m, x, h: (m.b(h), m.a.weight.square().sum()),
    "norm of the reader's weight": lambda m, x, h: m.b(h) + m.b.weight.norm(),
    "norm of each of its rows": lambda m, x, h: m.b(h) / m.b.weight.norm(dim=1),
    "num_features": lambda m, x, h: m.b(m.norm(h)) / m.norm.num_features,
    "mean of a buffer": lambda m, x, h: m.b(m.norm(h)) + m.norm.running_mean.mean(),
    "sum of the scales": lambda m, x, h: m.b(m.norm(h)) + m.norm.weight.abs().sum() / 100,
    "in training only": lambda m, x, h: m.b(h) * (h.shape[-1] if m.training else 1),
    "penalty in training": lambda m, x, h: (m.b(h), m.a.weight.norm()) if m.training else m.b(h),
    "neurons given in training": lambda m, x, h: (m.b(h), h) if m.training else m.b(h),
}

COMPUTED_WEIGHTS = {
    "standardised": lambda m, x, h: functional.linear(
        h, (m.b.weight - m.b.weight.mean(1, keepdim=True)) / m.b.weight.std(1, keepdim=True), m.b.bias
    ),
    "standardised, no bias": lambda m, x, h: functional.linear(h, m.b.weight - m.b.weight.mean(1, keepdim=True)),
    "normalised": lambda m, x, h: functional.linear(h, functional.normalize(m.b.weight), m.b.bias),
    "equalised": lambda m, x, h: functional.linear(h, m.b.weight * m.b.in_features**-0.5, m.b.bias),
    "quantised": lambda m, x, h: functional.linear(h, (m.b.weight * 10).round() / 10, m.b.bias),
    "masked": lambda m, x, h: functional.linear(h, m.b.weight * torch.ones(4, 12).tril(), m.b.bias),
    "bias from the weight": lambda m, x, h: functional.linear(h, m.b.weight, m.b.bias - m.b.weight.mean(1)),
    "layer normalised": lambda m, x, h: m.b(functional.linear(x, m.a.weight / m.a.weight.norm(), m.a.bias).relu()),
}

RIGHT_AS_THEY_ARE = {
    "layer with an update": lambda m, x, h: m.b((m.a(x) + m.wide(x)).relu()),
    "low-rank update merged": lambda m, x, h: functional.linear(h, m.b.weight + m.up.weight @ m.down.weight, m.b.bias),
    "by keyword": lambda m, x, h: functional.linear(input=h, weight=m.b.weight * 0.3, bias=m.b.bias),
    "number kept at construction": lambda m, x, h: m.b(h) / m.width,
    "bias computed": lambda m, x, h: functional.linear(h, m.b.weight, m.b.bias * 2),
    "low-rank update of the reader": lambda m, x, h: m.b(h) + m.up(m.down(h)),
    "head in training": lambda m, x, h: (m.b(h), m.aux(h)) if m.training else m.b(h),
    "noise in training": lambda m, x, h: m.b(h + 0.1 * torch.randn_like(h) if m.training else h),
    "dropout": lambda m, x, h: m.b(functional.dropout(h, 0.3, m.training)),
    "size of the input": lambda m, x, h: m.b(h) / x.shape[-1],
    "ones of its shape": lambda m, x, h: m.b(h * torch.ones_like(h)),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", [Net, Looking])
@pytest.mark.parametrize("name", {**SIZES_AS_NUMBERS, **COMPUTED_WEIGHTS})
def test_what_would_compute_something_else_is_refused(name, kind, training):
    model = built(kind, {**SIZES_AS_NUMBERS, **COMPUTED_WEIGHTS}[name]).train(training)
    x = torch.randn(8, 16)
    before = copy.deepcopy(model.state_dict())
    for example in (x, None) if kind is Net else (x,):
        for inplace in (False, True):
            says = r"Removing neurons is not|consolidation: .*the smaller network|never called as a layer"
            with pytest.raises(ValueError, match=says):
                consolidate(model, "a", PAIRS, inplace=inplace, example_input=example)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert (model.a.out_features, model.b.in_features) == (12, 12)
    assert all(module.training == training for module in model.modules())
    model(x)


@pytest.mark.parametrize("name", {**SIZES_AS_NUMBERS, **COMPUTED_WEIGHTS})
def test_it_is_refused_before_anything_is_cut(name):
    model = built(Net, {**SIZES_AS_NUMBERS, **COMPUTED_WEIGHTS}[name])
    for example in (None, torch.randn(8, 16)):
        found = consumers(model, "a", example)
        assert not found.removable
        assert all(obstacle.where and obstacle.reason and obstacle.advice for obstacle in found.obstacles)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", [Net, Looking])
@pytest.mark.parametrize("name", RIGHT_AS_THEY_ARE)
def test_what_computes_the_same_is_not(name, kind, training):
    model, x = built(kind, RIGHT_AS_THEY_ARE[name]).train(training), torch.randn(8, 16)
    for example in (x, None) if kind is Net else (x,):
        smaller_is_merged(copy.deepcopy(model), "a", x, example)


UNSEEN = {
    "stride": lambda m, x, h: m.b(h) / h.stride(0),
    "memory": lambda m, x, h: m.b(h) * (h.untyped_storage().nbytes() / 1000),
    "text": lambda m, x, h: m.b(h) / float(str(tuple(h.shape)).split(", ")[1][:-1]),
}
"""Sizes that no one can follow: the proof finds them."""


def test_a_head_that_runs_in_training_shrinks():
    for kind in (Net, Looking):
        model, x = built(kind, RIGHT_AS_THEY_ARE["head in training"]), torch.randn(8, 16)
        assert consolidate(model, "a", PAIRS, example_input=x)[0].aux.in_features == 10


@pytest.mark.parametrize("name", UNSEEN)
def test_check_false_is_for_those_who_know_better(name):
    model, x = built(Looking, UNSEEN[name]), torch.randn(8, 16)
    with pytest.raises(ValueError, match="differ by up to .* They part first in the model's own forward"):
        consolidate(model, "a", PAIRS, example_input=x)
    smaller, report = consolidate(model, "a", PAIRS, example_input=x, check=False)
    assert smaller.b.in_features == 10
    assert not report.compared
    assert "outputs    equal" not in str(report)
    assert "outputs    not compared" in str(report)
    with pytest.raises(ValueError, match="They part first"):
        remove_neurons(model, "a", [1, 4], example_input=x)
    assert remove_neurons(model, "a", [1, 4], example_input=x, check=False)[0].a.out_features == 10


def test_the_first_module_where_they_part_is_named():
    class Scaled(nn.Linear):
        def forward(self, x):
            assert len(x)
            return super().forward(x) / x.stride(0)

    model = nn.Sequential(nn.Linear(16, 12), nn.Sequential(nn.ReLU(), Scaled(12, 8)), nn.Tanh(), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"They part first in module '1\.1'"):
        consolidate(model, "0", PAIRS, example_input=torch.randn(8, 16))
    hooked = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4), nn.Tanh())
    hooked[2].register_forward_pre_hook(lambda module, inputs: (inputs[0] / inputs[0].stride(0),))
    for example in (torch.randn(8, 16), None):
        with pytest.raises(ValueError, match="They part first in module '2'"):
            consolidate(hooked, "0", PAIRS, example_input=example)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_one_pair_of_a_wide_layer_is_told_from_rounding(dtype):
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 1024), nn.Linear(1024, 4)

        def forward(self, x):
            assert len(x)
            hidden = self.a(x).relu()
            return self.b(hidden) * (hidden.stride(0) / self.scale)

    torch.manual_seed(0)
    model, x = Wide().to(dtype), torch.randn(16, 8, dtype=dtype)
    model.scale = 32
    if dtype != torch.bfloat16:  # 1 in 1024 is below bfloat16's rounding
        with pytest.raises(ValueError, match="computes something else"):
            consolidate(model, "a", [(0, 1)], example_input=x)
    Wide.forward = lambda self, x: self.b(self.a(x).relu()) if len(x) else x
    assert consolidate(model, "a", [(0, 1)], example_input=x)[1].compared


PRUNED = {
    "reader": lambda m: prune.random_unstructured(m.b, "weight", 0.3),
    "layer": lambda m: prune.random_unstructured(m.a, "weight", 0.3),
    "bias of the layer": lambda m: prune.random_unstructured(m.a, "bias", 0.3),
    "norm": lambda m: prune.random_unstructured(m.norm, "weight", 0.3),
    "bias of the norm": lambda m: prune.random_unstructured(m.norm, "bias", 0.3),
    "weight norm": lambda m: parametrizations.weight_norm(m.b),
    "weight norm by a hook": lambda m: weight_norm(m.b),
    "spectral norm": lambda m: parametrizations.spectral_norm(m.b),
    "spectral norm by a hook": lambda m: spectral_norm(m.b),
}


@pytest.mark.parametrize("name", PRUNED)
def test_masks_and_parametrisations_are_refused(name):
    model, x = built(Net, lambda m, x, h: m.b(m.norm(h))), torch.randn(8, 16)
    PRUNED[name](model)
    for example in (None, x):
        with pytest.raises(ValueError, match=r"computed from other|no rule for 'b'"):
            consolidate(model, "a", PAIRS, example_input=example)
    if name != "layer":
        return
    prune.remove(model.a, "weight")
    smaller_is_merged(model, "a", x, x)


def test_averaging_pruned_norms_is_refused_too():
    model = built(Net, lambda m, x, h: m.b(m.norm(h)))
    prune.random_unstructured(model.norm, "weight", 0.3)
    with pytest.raises(ValueError, match="the weight of 'norm', behind 'a', is computed"):
        merge(model, "a", PAIRS)


@pytest.mark.parametrize("change", ["prune", "parametrise"])
def test_a_computed_bias_of_the_reader_does_not_matter(change):
    class Double(nn.Module):
        def forward(self, x):
            return 2 * x

    model, x = built(Net, lambda m, x, h: m.b(h)), torch.randn(8, 16)
    if change == "prune":
        prune.random_unstructured(model.b, "bias", 0.3)
    else:
        parametrize.register_parametrization(model.b, "bias", Double())
    smaller_is_merged(model, "a", x, None)
