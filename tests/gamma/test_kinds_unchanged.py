"""Training is what it would be without a monitor, bit for bit."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import sdsd
from tests.zoo.parts import N, Net, numbers, parameter, perceptron
from tests.zoo.programs.passes import Fails
from tests.zoo.twins import unchanged

from .unchanged import IDS, SEQUENCES, SIGNALS, X, Y, chain, classify, linear


def net(compute, **parts):
    return lambda: Net(compute, **{name: part() for name, part in parts.items()})


def two_names(own):
    def make():
        layer = nn.Linear(8, 8)
        extra = {"scale": nn.Parameter(torch.ones(8))} if own else {}
        return Net(
            lambda m, x: m.head(m.target(torch.tanh(m.encoder(x)) * getattr(m, "scale", 1.0))),
            encoder=layer,
            target=layer,
            head=nn.Linear(8, 3),
            **extra,
        )

    return make


class Counting(nn.Module):
    """Side effects of a forward pass: a number, a buffer, a list, a running mean."""

    def __init__(self, own: bool):
        super().__init__()
        self.layer, self.calls, self.seen = nn.Linear(8, 8), 0, []
        if own:
            self.gain = nn.Parameter(torch.ones(8))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        self.calls += 1
        self.count += 1
        self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        self.seen.append(tuple(x.shape))
        return self.layer(x) * getattr(self, "gain", 1.0) + 0.01 * self.calls


def counted(own):
    def run(model, k):
        out, loss = classify(X)(model, k)
        return out, loss, model[0].calls, list(model[0].seen)

    return lambda: nn.Sequential(Counting(own), nn.Tanh(), nn.Linear(8, 3)), run


def host_random(m, x):
    noise = torch.from_numpy(np.random.randn(*x.shape)).to(x) + random.random() + torch.rand(x.shape).to(x)
    return m.layer(x + 0.1 * noise) * m.gain


def in_place_after(m, x):
    h = m.first(x)
    h += 1
    h.mul_(m.gain)
    h = F.leaky_relu(m.second(h), inplace=True)
    h = h + 1
    h[:, 0] = 0
    return m.last(h).add_(0.5)


def in_place_on_embedding(m, ids):
    h = m.emb(ids)
    h += m.pos(torch.arange(ids.shape[1]))
    return m.last(h.tanh_().mean(1))


def failing(model, k):
    Fails.failing = k != 1
    if k != 1:
        with pytest.raises(MemoryError):
            F.cross_entropy(model(X), Y).backward()
        model.zero_grad()
        Fails.failing = False
    return classify(X)(model, k)


def interrupted_forward(model, k):
    with pytest.raises(RuntimeError):
        model(numbers(N, 7))
    model.zero_grad()
    return classify(X)(model, k)


def input_gradients(model, k):
    x = X.clone().requires_grad_()
    out = model(x)
    loss = F.cross_entropy(out, Y)
    loss.backward()
    return out.detach(), loss.item(), x.grad


def hooked(model, k):
    """Hooks of the user's, on modules and on activations."""
    log: list = []
    handles = [
        model[0].register_forward_hook(lambda m, i, o: log.append(o.shape)),
        model[0].register_forward_pre_hook(lambda m, i: (i[0] * 1.5,)),
        model[1].register_forward_hook(lambda m, i, o: (o.retain_grad(), log.append(o))[0]),
        model[2].register_full_backward_hook(lambda m, i, o: log.append((i[0].detach(), o[0].detach()))),
    ]
    out = model(X)
    out.register_hook(lambda g: 0.5 * g)
    loss = F.cross_entropy(out, Y)
    loss.backward()
    for handle in handles:
        handle.remove()
    hidden = next(each for each in log if isinstance(each, torch.Tensor))
    return out.detach(), loss.item(), hidden.grad, [each for each in log if each is not hidden]


def evaluated(model, k):
    model.eval()
    with torch.no_grad():
        before = model(X)
    model.train()
    out, loss = classify(X)(model, k)
    with torch.inference_mode():
        after = model(X).clone()
    return before, out, loss, after.detach().clone()


def copied(model, k):
    teacher = copy.deepcopy(model)
    with torch.no_grad():
        target = teacher(X)
    out, loss = classify(X)(model, k)
    return target, out, loss, sorted(model.state_dict())


def outputs_of(model, k):
    """A model that gives out several things, some of them without samples."""
    out, rows, number = model(X)
    loss = F.cross_entropy(out, Y) + 0.1 * rows.square().sum()
    loss.backward()
    return out.detach().clone(), rows.detach().clone(), number, loss.item()


def scalar_loss(model, k):
    loss = model(X, Y)
    loss.backward()
    return loss.detach(), loss.shape


def checkpointed(reentrant):
    return net(
        lambda m, x: m.head(checkpoint(m.body, x.clone().requires_grad_(), use_reentrant=reentrant)),
        body=chain(lambda: nn.Linear(8, 8), lambda: nn.Dropout(0.3), nn.Tanh),
        head=linear(),
    )


def stochastic_depth(m, x):
    for block in m.blocks:
        keep = (torch.rand(len(x), 1) < 0.7).to(x)
        x = x + block(x) * keep * m.gain
    return m.head(x)


def attention(m, x):
    return m.last(m.attention(x, x, x, need_weights=False)[0].mean(1))


def cached(m, x):
    if not hasattr(m, "table"):
        m.table = torch.arange(8.0).to(x)
        m.register_buffer("late", torch.zeros(3), persistent=False)
    m.late += 1
    return m.last(x * m.table * m.gain)


def gain():
    return nn.Parameter(torch.ones(8))


CASES = {
    "a perceptron": (perceptron, classify(X)),
    "one module under two names": (two_names(False), classify(X)),
    "one module under two names beside an own parameter": (two_names(True), classify(X)),
    "counters and buffers in forward": counted(False),
    "counters and buffers beside an own parameter": counted(True),
    "spectral_norm by hooks": (chain(lambda: nn.utils.spectral_norm(nn.Linear(8, 5)), nn.Tanh, linear(5)), classify(X)),
    "spectral_norm": (chain(lambda: parametrizations.spectral_norm(nn.Linear(8, 5)), nn.Tanh, linear(5)), classify(X)),
    "spectral_norm of a convolution": (
        chain(lambda: parametrizations.spectral_norm(nn.Conv1d(3, 4, 3)), nn.Flatten, linear(28)),
        classify(SIGNALS),
    ),
    "weight_norm by hooks": (chain(lambda: nn.utils.weight_norm(nn.Linear(8, 5)), nn.Tanh, linear(5)), classify(X)),
    "weight_norm": (chain(lambda: parametrizations.weight_norm(nn.Linear(8, 5)), nn.Tanh, linear(5)), classify(X)),
    "orthogonal": (chain(lambda: parametrizations.orthogonal(nn.Linear(8, 8)), nn.Tanh, linear()), classify(X)),
    "random numbers of NumPy and Python": (net(host_random, layer=linear(), gain=lambda: parameter(3)), classify(X)),
    "dropout": (chain(linear(8, 8), lambda: nn.Dropout(0.5), nn.Tanh, linear()), classify(X)),
    "dropout beside an own parameter": (
        net(lambda m, x: m.last(F.dropout(m.first(x) * m.gain, 0.5)), first=linear(8, 8), gain=gain, last=linear()),
        classify(X),
    ),
    "stochastic depth": (
        net(stochastic_depth, blocks=lambda: nn.ModuleList([nn.Linear(8, 8), nn.Tanh()]), gain=gain, head=linear()),
        classify(X),
    ),
    "in-place operations after layers": (
        net(in_place_after, first=linear(8, 8), second=linear(8, 8), gain=gain, last=linear()),
        classify(X),
    ),
    "in-place operations on an embedding": (
        net(in_place_on_embedding, emb=lambda: nn.Embedding(11, 8), pos=lambda: nn.Embedding(5, 8), last=linear()),
        classify(IDS),
    ),
    "an embedding with a largest norm": (
        chain(lambda: nn.Embedding(11, 8, max_norm=1.0), nn.Flatten, linear(40)),
        classify(IDS),
    ),
    "attention with dropout": (
        net(attention, attention=lambda: nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True), last=linear()),
        classify(SEQUENCES),
    ),
    "attention with dropout and its weights": (
        net(
            lambda m, x: m.last(torch.cat([part.mean(1) for part in m.attention(x, x, x)], 1)),
            attention=lambda: nn.MultiheadAttention(8, 2, dropout=0.3, batch_first=True),
            last=linear(12),
        ),
        classify(SEQUENCES),
    ),
    "an encoder with dropout": (
        net(
            lambda m, x: m.last(m.body(x).mean(1)),
            last=linear(),
            body=lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, 0.2, batch_first=True), 2),
        ),
        classify(SEQUENCES),
    ),
    "an error inside the backward pass": (
        net(lambda m, x: m.last(Fails.apply(m.first(x) * m.gain)), first=linear(8, 8), gain=gain, last=linear()),
        failing,
    ),
    "an error inside the forward pass": (
        net(lambda m, x: m.last(m.first(x * m.gain[: x.shape[1]])), first=linear(8, 8), gain=gain, last=linear()),
        interrupted_forward,
    ),
    "gradients of the input": (perceptron, input_gradients),
    "gradients of the input beside an own parameter": (
        net(lambda m, x: m.last(torch.tanh(x * m.gain)), gain=gain, last=linear()),
        input_gradients,
    ),
    "hooks": (perceptron, hooked),
    "evaluation before and after": (chain(linear(8, 8), lambda: nn.Dropout(0.5), linear()), evaluated),
    "BatchNorm in eval mode": (
        chain(lambda: nn.Conv1d(3, 4, 3), lambda: nn.BatchNorm1d(4).eval(), nn.ReLU, nn.Flatten, linear(28)),
        classify(SIGNALS),
    ),
    "BatchNorm in train mode": (
        chain(lambda: nn.Conv1d(3, 4, 3), lambda: nn.BatchNorm1d(4), nn.ReLU, nn.Flatten, linear(28)),
        classify(SIGNALS),
    ),
    "running statistics of an instance norm": (
        chain(lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True), nn.Flatten, linear(27)),
        classify(SIGNALS),
    ),
    "a copy of the monitored model": (perceptron, copied),
    "outputs without samples": (
        net(lambda m, x: (m.head(x), m.table(torch.arange(4)), 3.5), head=linear(), table=lambda: nn.Embedding(4, 8)),
        outputs_of,
    ),
    "outputs without samples, a parameter itself": (
        net(lambda m, x: (m.head(x), m.table, "text"), head=linear(), table=lambda: parameter(4, 8)),
        outputs_of,
    ),
    "a scalar loss from a root with a parameter": (
        net(
            lambda m, x, y: F.cross_entropy(m.net(x), y) * torch.exp(-m.log_var) + m.log_var,
            net=linear(),
            log_var=lambda: nn.Parameter(torch.zeros(())),
        ),
        scalar_loss,
    ),
    "reentrant checkpoints with dropout": (checkpointed(True), classify(X)),
    "checkpoints with dropout": (checkpointed(False), classify(X)),
    "tensors cached by the first forward pass": (net(cached, gain=gain, last=linear()), classify(X)),
    "an LSTM with dropout": (
        net(
            lambda m, x: m.last(m.cells(x)[0][:, -1]),
            last=linear(5),
            cells=lambda: nn.LSTM(8, 5, 2, dropout=0.3, batch_first=True),
        ),
        classify(SEQUENCES),
    ),
}

MUST_BE_MEASURED = set(CASES) - {
    "BatchNorm in train mode",
    "an LSTM with dropout",
    "an embedding with a largest norm",
    "outputs without samples",
    "outputs without samples, a parameter itself",
    "a scalar loss from a root with a parameter",
    "hooks",
    "reentrant checkpoints with dropout",
    "an error inside the forward pass",
    "an error inside the backward pass",
}


@pytest.mark.parametrize("name", CASES)
def test_training_is_unchanged(name):
    verdict, why = unchanged(*CASES[name])
    assert verdict == "same" or (verdict == "refused" and name not in MUST_BE_MEASURED), (verdict, why)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_training_is_unchanged_with_strict_false(name):
    verdict, why = unchanged(*CASES[name], strict=False)
    assert verdict in ("same", "refused"), why


@pytest.mark.parametrize("name", ["a perceptron", "dropout beside an own parameter", "attention with dropout"])
def test_a_step_that_is_not_measured_is_the_plain_one_bit_for_bit(name):
    make, run = CASES[name]

    def second_pass(measured):
        torch.manual_seed(0)
        model = make().double()
        monitor = sdsd.GammaMonitor(model, every=2) if measured else None
        for k in range(2):
            torch.manual_seed(k)
            model.zero_grad()
            seen = run(model, k)
            if monitor is not None:
                assert (monitor.step() is None) == (k == 1)
        return [*seen, *(p.grad for p in model.parameters())]

    for plain, watched in zip(second_pass(False), second_pass(True), strict=True):
        assert torch.equal(torch.as_tensor(plain), torch.as_tensor(watched))


@pytest.mark.parametrize("name", ["a perceptron", "dropout", "counters and buffers beside an own parameter"])
def test_micro_mode_is_the_plain_training_bit_for_bit(name):
    make, run = CASES[name]

    def twice(model, k):
        return run(model, k), run(model, k + 1)

    assert unchanged(make, twice, tolerance=0.0, mode="micro") == ("same", "")
