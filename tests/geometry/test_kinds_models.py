"""Models in every wrapping and context: what is asked of them is as of the plain model, or refused by one sentence."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy

from sdsd.geometry import (
    NeuronMap,
    biopsy,
    collect_activations,
    consolidate,
    consolidate_model,
    consumers,
    group_activations,
    outgoing_weights,
    remove_neurons,
)

X = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
DATA = [(X, torch.arange(16) % 3)]
ANSWERS = torch.rand(30, 12, generator=torch.Generator().manual_seed(1))


def loss(model, batch):
    return cross_entropy(model(batch[0]).float(), batch[1])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 3))
    return nn.Sequential(*layers).train()


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([each.detach().flatten().double() for each in model.parameters()])


CALLS = {
    "collect_activations": lambda model, layer: collect_activations(model, DATA, layer)[layer].gram(),
    "NeuronMap": lambda model, layer: NeuronMap.from_model(model, layer, DATA).cosine,
    "group_activations": lambda model, layer: group_activations(model, DATA, layer)[layer].gram(),
    "consumers": lambda model, layer: consumers(model, layer, X).readers[0].neurons,
    "outgoing_weights": lambda model, layer: outgoing_weights(model, layer, X, loss=(DATA, loss)),
    "consolidate": lambda model, layer: flat(consolidate(model, layer, [(0, 1)], example_input=X)[0]),
    "remove_neurons": lambda model, layer: flat(remove_neurons(model, layer, [1], example_input=X)[0]),
    "consolidate_model": lambda model, layer: flat(consolidate_model(model, DATA, budget=0.2)[0]),
    "biopsy": lambda model, layer: torch.tensor(
        biopsy(model, layer, (DATA, loss), pairs=2, activations=ANSWERS, example_input=X).near.loss_changes
    ),
}
ONLY_RUNNING = ("collect_activations", "NeuronMap")


def exported() -> nn.Module:
    return torch.export.export(network().eval(), (X,)).module()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (
            exported,
            TypeError,
            "of an exported program, whose layers are operations of a graph. Pass the model that was",
        ),
        (
            lambda: torch.export.export(network().eval(), (X,)),
            TypeError,
            "ExportedProgram. Pass the model that was exp",
        ),
        (
            lambda: torch.jit.script(network()),
            TypeError,
            "cannot be watched. Pass the model that was scripted or traced",
        ),
        (lambda: torch.jit.trace(network().eval(), X), TypeError, "Pass the model that was scripted or traced"),
        (
            lambda: network().to("meta"),
            ValueError,
            "'0.weight' is on the meta device and has no values. Load its weights first",
        ),
        (lambda: network().state_dict(), TypeError, "OrderedDict of tensors. Load it into a model"),
        (lambda: nn.Sequential, TypeError, "got the class Sequential. Make a model of it first"),
        (lambda: "model.pt", TypeError, "expected an nn.Module, got str"),
    ],
    ids=["exported", "program", "scripted", "traced", "meta", "state_dict", "class", "str"],
)
def test_what_is_no_model_in_python_with_values_is_refused(call, make, error, says):
    with pytest.raises(error, match=says) as raised:
        CALLS[call](make(), "0")
    assert str(raised.value).count("\n") == 0


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("wrap", "inside"),
    [
        (nn.DataParallel, "module."),
        (lambda model: torch.compile(model, backend="eager"), "_orig_mod."),
        (torch.fx.symbolic_trace, ""),
        (lambda model: model.requires_grad_(False), ""),
    ],
    ids=["DataParallel", "compiled", "fx", "frozen"],
)
def test_wrappers_change_nothing(call, wrap, inside):
    wanted = CALLS[call](network(), "0")
    assert torch.equal(CALLS[call](wrap(network()), f"{inside}0"), wanted)


@pytest.mark.parametrize("call", CALLS)
def test_what_distributed_training_holds_on_to_is_not_cut_under_it(call):
    wanted = CALLS[call](network(), "0")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = nn.parallel.DistributedDataParallel(network())
        if call in ONLY_RUNNING:
            assert torch.equal(CALLS[call](model, "module.0"), wanted)
        else:
            with pytest.raises(ValueError, match="Pass the module inside it .model.module., and wrap the smaller one"):
                CALLS[call](model, "module.0")
    finally:
        dist.destroy_process_group()


@contextlib.contextmanager
def default_float64():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


CONTEXTS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "enable_grad": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default float64": default_float64,
}
AS_ASKED = ("collect_activations", "NeuronMap", "biopsy")
"""Calls that run the model as the caller runs it, and so with autocast's values."""


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("context", CONTEXTS)
def test_what_surrounds_a_call_changes_neither_its_result_nor_the_model(call, context):
    model, wanted = network(), CALLS[call](network(), "0")
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    with CONTEXTS[context]():
        result = CALLS[call](model, "0")
    if context == "autocast" and call in AS_ASKED:
        torch.testing.assert_close(result, wanted, rtol=0.1, atol=0.05)
    else:
        assert torch.equal(result, wanted)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("inplace", [False, True])
def test_what_is_made_in_inference_mode_trains(inplace):
    model = network()
    with torch.inference_mode():
        smaller, _ = consolidate_model(model, DATA, budget=0.2, inplace=inplace)
    loss(smaller, DATA[0]).backward()
    assert all(each.grad is not None and not each.is_inference() for each in smaller.parameters())


@pytest.mark.parametrize("call", CALLS)
def test_new_tensors_on_the_meta_device_are_refused(call, monkeypatch):
    says = "new tensors go to the meta device here and have no values. Call this outside of torch.device"
    model = network()
    with torch.device("meta"), pytest.raises(ValueError, match=says):
        CALLS[call](model, "0")
    own = nn.Module.register_parameter

    def empty(module, name, parameter):  # as init_empty_weights does it
        own(module, name, parameter)
        if parameter is not None:
            module._parameters[name] = nn.Parameter(parameter.to("meta"))

    monkeypatch.setattr(nn.Module, "register_parameter", empty)
    with pytest.raises(ValueError, match=says):
        CALLS[call](model, "0")


class Offloaded(nn.Linear):
    """Its weights lie elsewhere until it is called, as with accelerate's hooks."""

    _hf_hook = True

    def __init__(self):
        super().__init__(6, 12)
        torch.nn.init.normal_(self.weight)
        self.values = [self.weight.detach(), self.bias.detach()]
        self.weight, self.bias = (nn.Parameter(each.to("meta")) for each in self.values)

    def forward(self, x):
        return nn.functional.linear(x, *self.values)


def test_offloaded_layers_can_be_looked_at_and_not_merged():
    model = nn.Sequential(Offloaded(), nn.ReLU(), nn.Linear(12, 3))
    gram = collect_activations(model, DATA, "0")["0"].gram()
    answers = model[:2](X).detach().double()
    torch.testing.assert_close(gram, answers.T @ answers, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="is on the meta device and has no values"):
        consolidate(model, "0", [(0, 1)], example_input=X)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_layers_are_looked_at_and_not_merged():
    model = torch.ao.quantization.quantize_dynamic(network().eval(), {nn.Linear}, dtype=torch.qint8)
    assert collect_activations(model, DATA, "0")["0"].samples == 16
    for call in ("consolidate", "remove_neurons", "consumers", "biopsy", "group_activations"):
        with pytest.raises(TypeError, match="packed into whole numbers. Pass the model as it was before quantisation"):
            CALLS[call](model, "0")
    with pytest.raises(ValueError, match="Its weights are packed: pass the model as it was before quantisation"):
        consolidate_model(model, DATA, budget=0.2)


def test_a_scripted_part_is_merged_and_its_inside_is_not_watched():
    plain = nn.Sequential(nn.Sequential(nn.Linear(6, 12), nn.ReLU()), nn.Linear(12, 3))
    model = nn.Sequential(torch.jit.script(plain[0]), plain[1])
    smaller, report = consolidate(model, "0.0", [(0, 1)], example_input=X)
    wanted, _ = consolidate(plain, "0.0", [(0, 1)], example_input=X)
    assert report.compared
    assert torch.equal(smaller(X), wanted(X))
    with pytest.raises(
        TypeError, match="'0.0' is RecursiveScriptModule, whose values cannot be watched. Put the module"
    ):
        collect_activations(model, DATA, "0.0")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("call", ["consolidate", "group_activations", "outgoing_weights"])
def test_weights_of_other_dtypes(call, dtype):
    """Against the same weights, rounded to the dtype and then widened."""
    model = network().to(dtype)
    wide = copy.deepcopy(model).double()

    def inputs(to):
        return [(X.to(dtype).to(to), DATA[0][1])]

    calls = {
        "consolidate": lambda net, to: flat(consolidate(net, "0", [(0, 1)], example_input=X.to(dtype).to(to))[0]),
        "group_activations": lambda net, to: group_activations(net, inputs(to), "0")["0"].gram(),
        "outgoing_weights": lambda net, to: outgoing_weights(net, "0", X.to(dtype).to(to)),
    }
    result, wanted = calls[call](model, dtype), calls[call](wide, torch.float64)
    size = wanted.abs().max().item()
    torch.testing.assert_close(result, wanted, rtol=0, atol=16 * torch.finfo(dtype).eps * max(size, 1e-300))
