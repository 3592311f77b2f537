"""What a model is called with: batches in objects, samples of different length, what hooks make of it, no tensor."""

from __future__ import annotations

import collections
import copy
import types
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import rnn

import sdsd
from tests.zoo.parts import N, any_loss, numbers
from tests.zoo.twins import unchanged
from tests.zoo.verdict import Program, compare, judge, per_sample

X, SEQUENCES = numbers(N, 8).double(), numbers(N, 4, 8).double()
LENGTHS = [4, 4, 3, 2, 2, 1]


class Net(nn.Module):
    def __init__(self, read=lambda batch: batch):
        super().__init__()
        self.first, self.last, self.scale = nn.Linear(8, 8), nn.Linear(8, 3), nn.Parameter(torch.rand(8) + 0.5)
        self.read = read

    def forward(self, batch):
        return self.last(torch.tanh(self.first(self.read(batch))) * self.scale)


@dataclass
class Batch:
    x: Tensor
    note: str = "of the user's"


class Loaded:
    def __init__(self, x):
        self.x, self.ids = x, list(range(len(x)))


OBJECTS = {
    "a dataclass": (Batch, lambda batch: batch.x),
    "an object": (Loaded, lambda batch: batch.x),
    "a namespace": (lambda x: types.SimpleNamespace(x=x), lambda batch: batch.x),
    "a UserDict, as of tokenizers": (lambda x: collections.UserDict(x=x), lambda batch: batch["x"]),
    "an object in a list": (lambda x: [Loaded(x)], lambda batch: batch[0].x),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_batches_in_objects_are_measured(name):
    make, read = OBJECTS[name]
    program = Program(
        lambda: Net(read),
        (X,),
        any_loss,
        step=lambda m: any_loss(m, make(X)).backward(),
        contribution=lambda m, i: any_loss(m, make(X[i : i + 1])) / N,
    )
    verdict = judge(program, again=False)
    assert verdict.kind == "right", verdict.why


def packed(which=range(N)):
    return rnn.pack_sequence([SEQUENCES[i, : LENGTHS[i]] for i in which])


def jagged(which=range(N)):
    return torch.nested.nested_tensor([SEQUENCES[i, : LENGTHS[i]] for i in which], layout=torch.jagged)


def of_jagged(model):
    model(jagged()).values().square().sum().backward()


DIFFERENT_LENGTHS = {
    "jagged": (lambda batch: batch, of_jagged, "nested tensor.*to_padded_tensor"),
    "jagged inside": (
        lambda x: torch.nested.as_nested_tensor(list(x), layout=torch.jagged),
        lambda model: model(SEQUENCES).values().square().sum().backward(),
        "nested_view_from_jagged, which makes a nested tensor; pad it",
    ),
    "no tensor": (lambda n: X[:n], lambda model: model(N).square().sum().backward(), "called without a tensor"),
}


@pytest.mark.parametrize("name", DIFFERENT_LENGTHS)
def test_samples_that_cannot_be_told_apart_are_refused_by_step_alone(name):
    """Not by the forward or the backward pass; the next batch is measured."""
    read, backward, message = DIFFERENT_LENGTHS[name]
    torch.manual_seed(0)
    net = Net(read).double()
    monitor = sdsd.GammaMonitor(net)
    for _ in range(2):
        net.zero_grad()
        backward(net)
        with pytest.raises(ValueError, match=message):
            monitor.step()
    net.read = lambda batch: batch
    net.zero_grad()
    any_loss(net, X).backward()
    stats = monitor.step()
    rows = per_sample(copy.deepcopy(net), lambda m, i: any_loss(m, X[i : i + 1]) / N, N)
    assert compare(stats, rows).kind == "right"


def test_a_pass_that_is_not_known_and_trains_nothing_is_no_matter():
    """A summary of the model, say, or another look at it."""
    net = Net(lambda batch: batch if isinstance(batch, Tensor) else X[:batch]).double()
    monitor = sdsd.GammaMonitor(net)
    net(3)
    any_loss(net, X).backward()
    net(3)
    assert monitor.step().n == N
    out = net(3)
    with monitor.paused():
        (out + net(3)).sum().backward()
    net.zero_grad()
    any_loss(net, X).backward()
    assert monitor.step().n == N


def test_gradients_of_a_pass_that_is_not_known_beside_those_of_a_batch():
    net = Net(lambda batch: batch if isinstance(batch, Tensor) else X[:batch]).double()
    monitor = sdsd.GammaMonitor(net)
    any_loss(net, X).backward()
    net(3).sum().backward()
    with pytest.raises(ValueError, match="called without a tensor"):
        monitor.step()


def test_micro_batches_of_packed_sequences_and_of_none():
    torch.manual_seed(0)
    net = Net(lambda batch: batch.data).double()
    monitor = sdsd.GammaMonitor(net, mode="micro")
    for which in (range(4), range(4, N)):
        net(packed(which)).square().sum().backward()
    assert monitor.step().samples_per_gradient == N / 2
    monitor.detach()
    net.read, monitor = (lambda n: X[:n]), sdsd.GammaMonitor(net, mode="micro")
    for _ in range(2):
        net(N).square().sum().backward()
    with pytest.raises(ValueError, match="Pass batch_size, the samples of a micro-batch"):
        monitor.step()


def scaled(net):
    net.register_forward_pre_hook(lambda module, args: (args[0] * module.scale,))


def flattened(net):
    """Rows are no samples behind such a hook."""
    net.register_forward_pre_hook(lambda module, args: (args[0].flatten(0, 1),))
    net.register_forward_hook(lambda module, args, out: out.unflatten(0, (-1, 4)).mean(1))


def turned(net):
    net.register_forward_pre_hook(lambda module, args: (args[0].transpose(0, 1),))
    net.register_forward_hook(lambda module, args, out: out.mean(0) * module.scale[:3])


def by_keyword(net):
    net.register_forward_pre_hook(lambda module, args, kwargs: ((), {"batch": kwargs["batch"] + 1}), with_kwargs=True)


def made_tensors(net):
    net.register_forward_pre_hook(lambda module, args: (torch.from_numpy(args[0]),))


def with_backward_hooks(net):
    net.register_forward_hook(lambda module, args, out: None)
    net.register_full_backward_hook(lambda module, before, after: None)


HOOKS = {
    hook.__name__: (hook, call)
    for hook, call in {
        scaled: lambda m, x: m(x),
        flattened: lambda m, x: m(x),
        turned: lambda m, x: m(x),
        by_keyword: lambda m, x: m(batch=x),
        made_tensors: lambda m, x: m(x.numpy()),
        with_backward_hooks: lambda m, x: m(x.clone().requires_grad_()),
    }.items()
}


def hooked(hook):
    net = Net()
    hook(net)
    return net


@pytest.mark.parametrize("x", [SEQUENCES, numbers(N, N, 8).double()], ids=["T ≠ N", "T = N"])
@pytest.mark.parametrize("name", HOOKS)
def test_forward_hooks_of_the_model_itself(name, x):
    """They belong to what the model computes, and the batch is what it was called with."""
    hook, call = HOOKS[name]
    if name == "flattened" and x.shape[1] != 4:
        x = x[:, :4]

    def loss(m, x):
        return any_loss(lambda x: call(m, x), x)

    program = Program(lambda: hooked(hook), (x,), loss)
    verdict = judge(program)
    assert verdict.kind == "right", verdict.why
    assert unchanged(program.model, lambda m, k: loss(m, x).backward()) == ("same", "")


def test_micro_batches_are_what_a_hooked_model_was_called_with():
    net = hooked(flattened).double()
    monitor = sdsd.GammaMonitor(net, mode="micro")
    for part in SEQUENCES.split(3):
        net(part).square().sum().backward()
    assert monitor.step().samples_per_gradient == 3


def test_tracing_a_watched_model():
    """torch.jit.trace, torch.fx and torch.export see the model as it is."""
    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    plain = [type(node).__name__ for node in torch.fx.symbolic_trace(net).graph.nodes]
    monitor = sdsd.GammaMonitor(net)
    assert torch.allclose(torch.jit.trace(net, X)(X), net(X))
    assert [type(node).__name__ for node in torch.fx.symbolic_trace(net).graph.nodes] == plain
    assert torch.allclose(torch.export.export(net, (X,)).module()(X), net(X))
    any_loss(net, X).backward()
    assert monitor.step().n == N


class Given(nn.Module):
    """A second input that is no samples: a table of relations (V, V), or of classes (V, 8)."""

    def __init__(self, compute):
        super().__init__()
        self.compute, self.first, self.last = compute, nn.Linear(8, 8), nn.Linear(8, 3)
        self.mixing = nn.Parameter(torch.randn(8, 8))

    def forward(self, x, table):
        return self.compute(self, x, table)


def related(m, h):
    return m.last(h.relu().mean(1))


def attended(h, mask, hidden):
    """As nn.TransformerEncoderLayer with a mask of booleans, in float64 as it is given one."""
    mask = mask.masked_fill_(hidden, -9.0).unsqueeze(0).unsqueeze(0)
    q = h.unsqueeze(1)
    return nn.functional.scaled_dot_product_attention(q, q, q, attn_mask=mask).squeeze(1)


RELATIONS = {
    "einsum": lambda m, x, a: related(m, torch.einsum("vw,nwf->nvf", a, m.first(x))),
    "einsum with a parameter": lambda m, x, a: related(m, torch.einsum("vw,nwf,fg->nvg", a, x, m.mixing)),
    "matmul": lambda m, x, a: related(m, a @ m.first(x)),
    "normalised": lambda m, x, a: related(m, (a / (a.sum(1, keepdim=True) + 1)) @ m.first(x)),
    "twice": lambda m, x, a: related(m, a @ torch.tanh(a @ m.first(x))),
    "linear": lambda m, x, a: related(m, nn.functional.linear(m.first(x).mT, a).mT),
    "baddbmm": lambda m, x, a: related(m, torch.baddbmm(m.first(x), a.expand(len(x), -1, -1), m.first(x))),
    "tensordot": lambda m, x, a: related(m, torch.tensordot(m.first(x), a, ([1], [1])).mT),
    "rows of other constants behind it (rotary positions of text and picture)": lambda m, x, a: related(
        m, torch.cat([a, torch.ones(2, a.shape[1])]).mean(0)[:, None] * m.first(x)
    ),
    "a mask that is written": lambda m, x, a: related(m, attended(m.first(x), torch.zeros_like(a), a < 0.5)),
    "a mask that is written, a layer after the other": lambda m, x, a: related(
        m, attended(attended(m.first(x), torch.zeros_like(a), a < 0.5), torch.zeros_like(a), a > 0.5)
    ),
}
CLASSES = {
    "linear": lambda m, x, c: nn.functional.linear(m.first(x), c),
    "matmul": lambda m, x, c: m.first(x) @ c.T,
    "inner": lambda m, x, c: torch.inner(m.first(x), c),
    "distances": lambda m, x, c: torch.cdist(m.first(x), c),
    "cosines": lambda m, x, c: nn.functional.cosine_similarity(m.first(x)[:, None], c, dim=-1),
    "attention": lambda m, x, c: m.last(torch.softmax(m.first(x) @ c.T, -1) @ c),
    "joined": lambda m, x, c: related(m, torch.cat([m.first(x)[:, None], c.expand(len(x), -1, -1)], 1)),
    "stacked": lambda m, x, c: related(
        m, torch.stack([m.first(x)[:, None].expand(-1, len(c), -1), c.expand(len(x), -1, -1)], 1).mean(1)
    ),
}


@pytest.mark.parametrize("size", [N, N + 1], ids=["as long as the batch", "longer"])
@pytest.mark.parametrize("kind", [*RELATIONS, *CLASSES])
def test_a_second_input_that_is_no_samples(kind, size):
    """The verdict does not hang on its length."""
    for compute, x, table in (
        (RELATIONS.get(kind), numbers(N, size, 8).double(), (numbers(size, size, seed=3) > 0).double()),
        (CLASSES.get(kind), X, numbers(size, 8, seed=5).double()),
    ):
        if compute is not None:
            program = Program(
                lambda compute=compute: Given(compute),
                (x, table),
                any_loss,
                step=lambda m, x=x, table=table: any_loss(m, x, table).backward(),
                contribution=lambda m, i, x=x, table=table: any_loss(m, x[i : i + 1], table) / N,
            )
            verdict = judge(program, again=False)
            assert verdict.kind == "right", (kind, verdict.why)


def test_a_second_input_of_samples_that_meets_the_first_across_the_batch():
    """Not what trains: samples mixed by it are refused."""
    net = Given(lambda m, x, z: m.first(x) @ m.first(z).T).double()
    monitor = sdsd.GammaMonitor(net, parameters=["first.*"])
    any_loss(net, X, X.flip(0)).backward()
    with pytest.raises(ValueError, match=r"first\.weight, first\.bias: samples are mixed"):
        monitor.step()


SQUARE = {
    "weights of places": (lambda m, x, z: (x + m.gain * z) * z.cos(), numbers(N)),
    "weights of places, turned": (lambda m, x, z: x * m.gain + m.gain * z.view(1, -1), numbers(N)),
    "a number of their own": (lambda m, x, z: m.first(x).tanh() + z * m.gain, numbers(3)[:1]),
    "a table": (lambda m, x, z: (m.first(x) @ z.T).tanh(), numbers(3, N)),
}


@pytest.mark.parametrize("kind", SQUARE)
def test_a_batch_of_as_many_samples_as_features_is_no_mask(kind):
    """Though masks come before other inputs, and are square."""
    compute, given = SQUARE[kind]
    x, given = numbers(N, N).double(), given.double()

    def made():
        net = Given(compute)
        net.first, net.gain = nn.Linear(N, N), nn.Parameter(torch.rand(()) + 0.5)
        return net

    program = Program(
        made,
        (x, given),
        any_loss,
        step=lambda m: any_loss(m, x, given).backward(),
        contribution=lambda m, i: any_loss(m, x[i : i + 1], given) / N,
        samples=N,
        situation="batch",
    )
    verdict = judge(program, again=False)
    assert verdict.sound, verdict.why
    assert len(given) == N or kind == "a table" or verdict.kind == "right", verdict.why
