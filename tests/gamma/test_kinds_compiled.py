"""Samples under torch.compile are followed through the traced graph and never read off a size.

Every program is a function of a length T: with T = N and T ≠ N it gets the same verdict, in one graph right or refused
by name, in several graphs measured as eager code is. The oracle is a float64 loop over samples.
"""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import sdsd
from tests.zoo.parts import N, Net, any_loss, numbers, parameter
from tests.zoo.verdict import compare, float64_default, names_it, per_sample


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    with float64_default():
        yield
    torch._dynamo.reset()


def layer(inputs=8, outputs=8):
    return lambda t: nn.Linear(inputs, outputs)


def table(t):
    return parameter(t, 8).requires_grad_(False)


def distances(t):
    return torch.arange(t)[:, None] - torch.arange(t) + t


def standardised(h):
    return (h - h.mean(0)) / (h.var(0) + 1).sqrt()


PROGRAMS = {
    "a table through a layer": (
        lambda m, x: m.last(torch.tanh(x + m.layer(m.table))).mean(1),
        {"table": table, "layer": layer(), "last": layer()},
    ),
    "a table through a norm": (
        lambda m, x: m.last(torch.tanh(x + m.norm(m.table))).mean(1),
        {"table": table, "norm": lambda t: nn.LayerNorm(8), "last": layer()},
    ),
    "a router over a table's rows": (
        lambda m, x: m.last(((x @ m.router(m.table).T).softmax(-1) @ m.table).mean(1)),
        {"table": table, "router": layer(), "last": layer()},
    ),
    "constant queries": (
        lambda m, x: m.last(((m.query(m.table) @ x.transpose(1, 2)).softmax(-1) @ x).mean(1)),
        {"table": table, "query": layer(), "last": layer()},
    ),
    "learned positions": (
        lambda m, x: m.last(torch.tanh(x + m.positions)).mean(1),
        {"positions": lambda t: parameter(t, 8), "last": layer()},
    ),
    "positions looked up": (
        lambda m, x: m.last(torch.tanh(x + m.positions(torch.arange(x.shape[1])))).mean(1),
        {"positions": lambda t: nn.Embedding(t + 2, 8), "last": layer()},
    ),
    "positions looked up, unsqueezed": (
        lambda m, x: m.last(torch.tanh(x + m.positions(torch.arange(x.shape[1])).unsqueeze(0))).mean(1),
        {"positions": lambda t: nn.Embedding(t + 2, 8), "last": layer()},
    ),
    "positions looked up, (1, T)": (
        lambda m, x: m.last(torch.tanh(x + m.positions(torch.arange(x.shape[1])[None]))).mean(1),
        {"positions": lambda t: nn.Embedding(t + 2, 8), "last": layer()},
    ),
    "positions looked up, (N, T)": (
        lambda m, x: m.last(torch.tanh(x + m.positions(torch.arange(x.shape[1])[None].expand(len(x), -1)))).mean(1),
        {"positions": lambda t: nn.Embedding(t + 2, 8), "last": layer()},
    ),
    "a relative bias looked up": (
        lambda m, x: m.last(
            ((x @ x.transpose(1, 2) + m.relative(distances(x.shape[1])).squeeze(-1)).softmax(-1) @ x).mean(1)
        ),
        {"relative": lambda t: nn.Embedding(2 * t + 2, 1), "last": layer()},
    ),
    "sequence first": (lambda m, x: m.first(x.transpose(0, 1)).tanh().sum(0), {"first": layer()}),
    "sequence first, normalised": (
        lambda m, x: m.norm(m.first(x.transpose(0, 1))).tanh().sum(0),
        {"first": layer(), "norm": lambda t: nn.RMSNorm(8)},
    ),
    "frames folded into the batch": (
        lambda m, x: m.first(x.reshape(-1, 8)).view(len(x), x.shape[1], 8).tanh().sum(1),
        {"first": layer()},
    ),
    "frames folded before the batch": (
        lambda m, x: m.first(x.transpose(0, 1).reshape(-1, 8)).view(x.shape[1], len(x), 8).tanh().sum(0),
        {"first": layer()},
    ),
    "frames through a convolution": (
        lambda m, x: m.conv(x.reshape(-1, 2, 4)).flatten(1).view(len(x), -1).tanh(),
        {"conv": lambda t: nn.Conv1d(2, 3, 3)},
    ),
    "attention, sequence first": (
        lambda m, x: m.attention(*[x.transpose(0, 1)] * 3)[0].sum(0),
        {"attention": lambda t: nn.MultiheadAttention(8, 2)},
    ),
    "attention over the batch": (
        lambda m, x: m.attention(*[x.transpose(0, 1)] * 3)[0].sum(0),
        {"attention": lambda t: nn.MultiheadAttention(8, 2, batch_first=True)},
    ),
    "attention of constant keys": (
        lambda m, x: m.attention(x, *[m.table[None].expand(len(x), -1, -1)] * 2)[0].sum(1),
        {"attention": lambda t: nn.MultiheadAttention(8, 2, batch_first=True), "table": table},
    ),
    "one slope, sequence first": (
        lambda m, x: m.slope(x.transpose(0, 1)).tanh().sum(0),
        {"slope": lambda t: nn.PReLU()},
    ),
    "features of positions as samples": (
        lambda m, x: m.norm(x.transpose(0, 1)).tanh().sum(0),
        {"norm": lambda t: nn.GroupNorm(1, N)},
    ),
    "the batch's mean taken away": (
        lambda m, x: m.last(m.first(x) - m.first(x.mean(0, keepdim=True))).mean(1),
        {"first": layer(), "last": layer()},
    ),
    "standardised over the batch": (
        lambda m, x: m.last(standardised(m.first(x))).mean(1),
        {"first": layer(), "last": layer()},
    ),
    "standardised over the batch after the last layer": (
        lambda m, x: standardised(m.first(x)).tanh().mean(1),
        {"first": layer()},
    ),
    "a weight read outside its layer": (
        lambda m, x: F.linear(torch.tanh(m.first(x)), m.first.weight).mean(1),
        {"first": layer()},
    ),
    "a batch statistic that is only looked at": (
        lambda m, x: m.last(m.first(x) / m.first(x).detach().abs().max().clamp(1e9)).mean(1) * 1e9,
        {"first": layer(), "last": layer()},
    ),
    "layers in a checkpoint": (
        lambda m, x: m.last(
            torch.utils.checkpoint.checkpoint(
                lambda z: m.first(z.transpose(0, 1)).transpose(0, 1).tanh(), x, use_reentrant=False
            )
        ).sum(1),
        {"first": layer(), "last": layer()},
    ),
}
RIGHT = {
    "positions looked up",
    "positions looked up, (1, T)",
    "positions looked up, (N, T)",
    "sequence first",
    "sequence first, normalised",
    "frames folded into the batch",
    "frames folded before the batch",
    "attention, sequence first",
    "one slope, sequence first",
    "layers in a checkpoint",
}
"""What is measured in one graph; the others are refused there."""
LENGTHS = {"T = N": N, "T ≠ N": N + 1}


def make(name, t):
    compute, parts = PROGRAMS[name]
    torch.manual_seed(0)
    return Net(compute, **{part: of(t) for part, of in parts.items()}).double()


def broken(compute):
    def forward(m, x):
        x = m.before(x)
        torch._dynamo.graph_break()
        return compute(m, x)

    return forward


def verdict(model, x, *, backend="aot_eager", run=None, **options):
    """("right", warnings) or ("refused", the refusal), of a step of the compiled model."""
    compiled = torch.compile(model, backend=backend, **options) if run is None else run
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with sdsd.GammaMonitor(model, mode="exact") as monitor:
            model.zero_grad()
            try:
                any_loss(compiled, x).backward()
                stats = monitor.step()
            except Exception as error:
                text = str(error)
                assert names_it(
                    text, [type(model).__name__, *dict(model.named_modules()), *dict(model.named_parameters())]
                ), text
                return "refused", text
    model.zero_grad()
    with torch.compiler.set_stance("force_eager"):
        rows = per_sample(model, lambda m, i: any_loss(m, x[i : i + 1]) / N, N)
    found = compare(stats, rows)
    assert found.kind == "right", found.why
    return "right", " ".join(str(each.message) for each in caught)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_in_one_graph(name, length):
    t = LENGTHS[length]
    kind, said = verdict(make(name, t), numbers(N, t, 8), fullgraph=True)
    assert kind == ("right" if name in RIGHT else "refused"), said
    assert "uncompiled" not in said or kind == "refused"


EAGER_REFUSES = {
    "attention over the batch",
    "features of positions as samples",
    "the batch's mean taken away",
    "standardised over the batch",
    "standardised over the batch after the last layer",
    "a batch statistic that is only looked at",
}


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in RIGHT])
def test_what_cannot_be_followed_runs_uncompiled(name):
    model, x = make(name, N), numbers(N, N, 8)
    kind, said = verdict(model, x)
    if name in EAGER_REFUSES:
        assert kind == "refused", said
    else:
        assert kind == "right", said
        assert "measured steps run uncompiled" in said


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", ["sequence first", "a table through a layer", "positions looked up"])
def test_a_graph_that_breaks(name, length):
    t = LENGTHS[length]
    model = make(name, t)
    model.compute, model.before = broken(model.compute), nn.Linear(8, 8).double()
    kind, said = verdict(model, numbers(N, t, 8))
    assert kind == "right", said
    assert "breaks its graph" in said


@pytest.mark.parametrize("name", ["sequence first", "positions looked up", "frames folded before the batch"])
def test_with_inductor(name):
    assert verdict(make(name, N), numbers(N, N, 8), backend="inductor", fullgraph=True)[0] == "right"


class Block(nn.Module):
    def __init__(self, compute):
        super().__init__()
        self.layer, self.compute = nn.Linear(8, 8), compute

    def forward(self, x):
        return self.compute(self.layer(x))


PARTS = {
    "as its input lies": (lambda m, x: m.last(m.block(x)).sum(1), torch.tanh, True),
    "sequence first": (lambda m, x: m.last(m.block(x.transpose(0, 1))).sum(0), torch.tanh, True),
    "transposes": (lambda m, x: m.last(m.block(x)).sum(0), lambda h: h.transpose(0, 1).tanh(), True),
    "of a table": (lambda m, x: m.last(x + m.block(m.table)).tanh().sum(1), torch.tanh, False),
    "mixes samples": (lambda m, x: m.last(m.block(x)).sum(1), lambda h: h - h.mean(0), None),
}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_is_compiled(name, length):
    """Right at once, or refused and from the next batch on right, uncompiled; or refused for good."""
    compute, inner, at_once = PARTS[name]
    t = LENGTHS[length]
    model = Net(compute, block=Block(inner), last=nn.Linear(8, 3), table=table(t)).double()
    model.block.compile(backend="aot_eager")
    x = numbers(N, t, 8)
    with sdsd.GammaMonitor(model) as monitor:
        found = []
        for _ in range(2):
            model.zero_grad()
            any_loss(model, x).backward()
            try:
                found.append(monitor.step())
            except ValueError as error:
                assert "block" in str(error) or "last" in str(error)  # noqa: PT017
                found.append(None)
    assert [stats is not None for stats in found] == {True: [True] * 2, False: [False, True], None: [False] * 2}[
        at_once
    ]
    if found[-1] is not None:
        model.zero_grad()
        with torch.compiler.set_stance("force_eager"):
            rows = per_sample(model, lambda m, i: any_loss(m, x[i : i + 1]) / N, N)
        assert compare(found[-1], rows).kind == "right"


def test_a_weight_used_in_a_compiled_part_and_outside_of_it():
    model = Net(lambda m, x: F.linear(m.block(x), m.block.layer.weight).sum(1), block=Block(torch.tanh)).double()
    model.block.compile(backend="aot_eager")
    with sdsd.GammaMonitor(model) as monitor:
        any_loss(model, numbers(N, 4, 8)).backward()
        with pytest.raises(ValueError, match=r"block\.layer\.weight: it is used in compiled code and outside of it"):
            monitor.step()


PROVED = {
    "linear": lambda: nn.Sequential(nn.Linear(8, 5), nn.LayerNorm(5), nn.Linear(5, 3)),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (2, 4)), nn.Conv1d(2, 3, 2), nn.GroupNorm(1, 3)),
    "attention": lambda: nn.Sequential(nn.Unflatten(1, (1, 8)), Net(attend, attention=nn.MultiheadAttention(8, 2))),
}


def attend(m, x):
    x = torch.cat([x, 2 * x], 1).transpose(0, 1)
    return m.attention(x, 1.5 * x, x.cos())[0].transpose(0, 1)


@pytest.mark.parametrize("name", PROVED)
def test_a_step_of_compiled_code_proves_itself(name):
    """A penalty outside of the model, on each parameter in turn, is found; and nothing is where there is none."""
    model = PROVED[name]().double()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = numbers(N, 8)
    with sdsd.GammaMonitor(model) as monitor:
        for parameter_name, p in [(None, None), *model.named_parameters()]:
            model.zero_grad()
            penalty = 0.0 if p is None else 0.1 * (p * torch.arange(1.0, p.numel() + 1).view_as(p)).sum()
            (any_loss(compiled, x) + penalty).backward()
            if p is None:
                monitor.step()
            else:
                with pytest.raises(ValueError, match=f"does not prove itself(.|\n)*{parameter_name} "):
                    monitor.step()
