"""What a monitored model shows to libraries that look at its `forward`, or have put one there."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import re
import types

import pytest
import torch
from torch import nn

import sdsd
from sdsd.models import is_attached
from tests.gamma.models import mean_of_squares, per_sample_gradients

N = 6


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(5, 7)
        self.head = nn.Linear(7, 3)

    def forward(self, inputs, scale=1.0):
        """Two layers."""
        return self.head(torch.relu(self.hidden(inputs))) * scale


def doubled(forward):
    """What a library does that runs `forward` inside something of its own."""

    @functools.wraps(forward)
    def run(self, *args, **kwargs):
        return 2 * forward(self, *args, **kwargs)

    return run


def with_own_forward(module):
    module.forward = types.MethodType(doubled(type(module).forward), module)


def test_the_signature_of_forward_stays():
    model = Net()
    before = inspect.signature(model.forward)
    with sdsd.GammaMonitor(model):
        assert inspect.signature(model.forward) == before
        assert model.forward.__doc__ == "Two layers."
        assert list(inspect.signature(model.head.forward).parameters) == ["input"]


@pytest.mark.parametrize("where", ["", "head"], ids=["root", "layer"])
def test_a_forward_in_the_instance_is_watched_and_put_back(where):
    model = Net().double()
    module = model.get_submodule(where)
    with_own_forward(module)
    own = module.__dict__["forward"]
    x, y = torch.randn(N, 5, dtype=torch.float64), torch.randn(N, dtype=torch.float64)
    wanted = per_sample_gradients(model, x, y, mean_of_squares)
    with sdsd.GammaMonitor(model, mode="exact") as monitor:
        mean_of_squares(model(x), y).backward()
        stats = monitor.step()
        twin = copy.deepcopy(model)
        assert type(twin) is Net
        assert torch.equal(twin(x), model(x))
        assert not any(name.startswith("_sdsd") for name in twin.get_submodule(where).__dict__)
        assert type(pickle.loads(pickle.dumps(model))) is Net
    for name, rows in wanted.items():
        rows = rows.reshape(N, -1)
        noise = (rows - rows.mean(0)).square().sum() / (N - 1)
        assert stats.parameters[name].noise == pytest.approx(noise.item(), rel=1e-10)
    assert module.__dict__["forward"] is own
    assert not any(name.startswith("_sdsd") for name in module.__dict__)


def test_a_bound_forward_kept_beyond_detach_still_works():
    model = Net()
    x = torch.randn(N, 5)
    plain = model(x)
    monitor = sdsd.GammaMonitor(model, mode="exact")
    model.forward = model.forward  # what some libraries do to a model they wrap
    mean_of_squares(model(x), torch.ones(N)).backward()
    assert monitor.step().n == N
    monitor.detach()
    assert torch.equal(model(x), plain)
    with sdsd.GammaMonitor(model, mode="exact") as again:
        model.zero_grad()
        mean_of_squares(model(x), torch.ones(N)).backward()
        assert again.step().n == N


class OfArrays(Net):
    def forward(self, inputs):
        return super().forward(torch.as_tensor(inputs))


def test_a_model_called_with_an_array_is_told_so():
    model = OfArrays()
    monitor = sdsd.GammaMonitor(model, batch_size=N)
    model(torch.randn(N, 5).numpy()).square().mean().backward()
    with pytest.raises(RuntimeError, match=r"hidden\.weight.* without a tensor that carries samples: pass the batch"):
        monitor.step()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("mode", ["exact", "micro"])
def test_a_scripted_model_is_refused_with_what_to_do(mode):
    net = nn.Sequential(nn.Linear(5, 3))
    for scripted in (torch.jit.script(net), torch.jit.trace(net, torch.randn(2, 5))):
        with pytest.raises(ValueError, match=r"nn\.Module in Python, got .*Attach to the module that was"):
            sdsd.GammaMonitor(scripted, mode=mode)


def test_parameters_are_names():
    net = Net()
    for given, kind in (
        (net.head.parameters(), "Parameter"),
        (re.compile("head"), "Pattern"),
        ([("head.bias",)], "tuple"),
    ):
        with pytest.raises(TypeError, match=f"parameters: expected names or patterns of names, got {kind}"):
            sdsd.GammaMonitor(net, parameters=given)
    assert not is_attached(net)


def test_a_layer_without_a_size_is_refused_by_name():
    net = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
    for wanted in (None, ["1.weight"]):
        with pytest.raises(ValueError, match=r"model: '0\.weight' has no size yet\. Run the model once, then attach"):
            sdsd.GammaMonitor(net, parameters=wanted)
    net(torch.randn(2, 3))
    sdsd.GammaMonitor(net).detach()
