"""Operations without a rule of their own under autocast, whose backward pass runs after it, as torch advises."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sdsd
from tests.zoo.parts import Net, parameter


def written(m, x):
    out = torch.zeros(len(x), 8, dtype=m.first(x).dtype)
    for i in range(len(x)):
        out[i] = m.first(x[i]).mean(0)
        out[i] *= m.gain
    return out


MODELS = {
    "einsum": lambda: Net(lambda m, x: torch.einsum("ntd,hde->nhte", m.first(x), m.weight), weight=parameter(3, 8, 4)),
    "a product in batches": lambda: Net(lambda m, x: m.first(x)[:, None] @ m.weight, weight=parameter(3, 8, 4)),
    "LSTM": lambda: Net(lambda m, x: m.last(m.first(x))[0], last=nn.LSTM(8, 8, batch_first=True)),
    "layers on each sample": lambda: Net(
        lambda m, x: torch.stack([m.last(m.first(row).tanh()) for row in x]), last=nn.Linear(8, 3)
    ),
    "a GRU on each sample": lambda: Net(
        lambda m, x: torch.stack([m.last(m.first(row))[0] for row in x]), last=nn.GRU(8, 8, batch_first=True)
    ),
    "written and scaled in place": lambda: Net(written, gain=parameter(8)),
}


@pytest.mark.parametrize("inside", [False, True], ids=["after", "inside"])
@pytest.mark.parametrize("name", MODELS)
def test_measured_as_without_it_but_for_rounding(name, inside):
    x, noise = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(2)), {}
    for half in (False, True):
        torch.manual_seed(0)
        model = MODELS[name]()
        model.first = nn.Linear(8, 8)
        monitor = sdsd.GammaMonitor(model)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model(x).flatten(1).float().square().sum(1).mean()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        noise[half] = {key: each.noise for key, each in monitor.step().parameters.items()}
    assert noise[True] == pytest.approx(noise[False], rel=0.1, abs=0.02 * max(noise[False].values()))


LAYERS = {
    "linear": lambda: nn.Linear(8, 4),
    "convolution": lambda: nn.Conv1d(5, 3, 3),
    "attention": lambda: Net(lambda m, x: m.attend(x, x, x)[0], attend=nn.MultiheadAttention(8, 2, batch_first=True)),
}


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", LAYERS)
def test_float64_is_left_alone_as_torch_leaves_it(name, compiled):
    x, outputs = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64), []
    for watched in (False, True):
        torch.manual_seed(0)
        model = LAYERS[name]().double()
        monitor = sdsd.GammaMonitor(model) if watched else None
        run = torch.compile(model, backend="eager") if compiled else model
        for _ in range(2):  # the second one by the plan of the first
            with torch.autocast("cpu", torch.bfloat16):
                outputs.append(run(x))
            outputs[-1].square().sum(dim=(1, 2)).mean().backward()
            if monitor is not None:
                assert monitor.step() is not None
            model.zero_grad()
    assert {y.dtype for y in outputs} == {torch.float64}
    for y in outputs:  # bfloat16 has two digits
        torch.testing.assert_close(y, outputs[0], rtol=1e-12, atol=1e-12)


IN_ONE_GRAPH = {
    "linear": lambda: nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4)),
    "convolution": lambda: nn.Sequential(nn.Conv1d(5, 6, 3), nn.GroupNorm(2, 6), nn.ReLU(), nn.Conv1d(6, 3, 1)),
    "norms": lambda: nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU(), nn.RMSNorm(8), nn.Linear(8, 4)),
    "attention": lambda: Net(
        lambda m, x: m.last(m.attend(x, x, x)[0]),
        attend=nn.MultiheadAttention(8, 2, batch_first=True),
        last=nn.Linear(8, 3),
    ),
    "embedding": lambda: Net(
        lambda m, x: m.head(m.table((4 * x[..., 0]).abs().long().clamp(max=10))),
        table=nn.Embedding(11, 8),
        head=nn.Linear(8, 11),
    ),
}


SUMS = {
    **{name: IN_ONE_GRAPH[name] for name in ("embedding", "norms")},
    "tied": lambda: Net(
        lambda m, x: nn.functional.linear(m.table((4 * x[..., 0]).abs().long().clamp(max=10)), m.table.weight),
        table=nn.Embedding(11, 8),
    ),
    "einsum": lambda: Net(lambda m, x: torch.einsum("ntd,hde->nhte", x, m.weight), weight=parameter(3, 8, 4)),
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 4))),
}


@pytest.mark.parametrize("name", SUMS)
def test_a_backward_pass_inside_gives_the_same_numbers(name):
    """The model runs in bfloat16 both ways; the sums over samples do not."""
    x, parts = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(2)), {}
    for inside in (False, True):
        torch.manual_seed(0)
        model = SUMS[name]()
        with sdsd.GammaMonitor(model, mode="exact") as monitor:
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(x).flatten(1).float().sub(1).square().sum(1).mean()
                if inside:
                    loss.backward()
                    parts[inside] = monitor.step().parameters
            if not inside:
                loss.backward()
                parts[inside] = monitor.step().parameters
    for key, part in parts[False].items():
        assert parts[True][key].signal == pytest.approx(part.signal, rel=1e-6)
        assert parts[True][key].noise == pytest.approx(part.noise, rel=1e-5, abs=1e-6 * part.signal)


@pytest.mark.parametrize("inside", [False, True], ids=["after", "inside"])
@pytest.mark.parametrize("name", IN_ONE_GRAPH)
def test_compiled_as_uncompiled(name, inside):
    """Dynamo traces the backward pass under the autocast of the forward pass; every step here proves itself."""
    x, parts = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(2)), {}
    for compiled in (False, True):
        torch.manual_seed(0)
        torch.compiler.reset()
        model = IN_ONE_GRAPH[name]()
        run = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model
        with sdsd.GammaMonitor(run, mode="exact") as monitor:
            for _ in range(2):
                model.zero_grad()
                with torch.autocast("cpu", torch.bfloat16):
                    loss = run(x).flatten(1).float().sub(1).square().sum(1).mean()
                    if inside:
                        loss.backward()
                if not inside:
                    loss.backward()
                parts[compiled] = monitor.step().parameters
    assert set(parts[True]) == set(parts[False])
    for key, part in parts[False].items():
        # Compiled gradients are rounded to bfloat16, the mean's by 2⁻⁹, and noise is what the mean's square leaves.
        rounding = 6 / 5 * 4 * 2**-9 * part.signal
        assert parts[True][key].noise == pytest.approx(part.noise, rel=0.02, abs=rounding)
        assert parts[True][key].signal == pytest.approx(part.signal, rel=0.02)
