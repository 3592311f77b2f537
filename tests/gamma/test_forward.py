"""GammaMonitor.forward: models that are called by other methods, in parts, or more than once."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import distributions, nn

import sdsd
from sdsd.gamma.layers import UnsupportedError
from tests.zoo.parts import N, numbers
from tests.zoo.verdict import compare, float64_default, per_sample


@pytest.fixture(autouse=True)
def double():
    with float64_default():
        yield


class Agent(nn.Module):
    """An actor and a critic as in CleanRL: nobody calls `forward`."""

    def __init__(self):
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 1))
        self.actor_mean = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))
        self.actor_logstd = nn.Parameter(torch.zeros(1, 3))

    def get_action_and_value(self, x, action):
        mean = self.actor_mean(x)
        policy = distributions.Normal(mean, self.actor_logstd.expand_as(mean).exp())
        return policy.log_prob(action).sum(1), policy.entropy().sum(1), self.critic(x)


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(8, 6), nn.Linear(3, 8)
        self.log_beta = nn.Parameter(torch.zeros(()))

    def encode(self, x):
        return self.encoder(x).chunk(2, 1)

    def decode(self, z):
        return self.decoder(z)


def network():
    return nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))


def policy_loss(run, agent, x, action, returns):
    log_prob, entropy, value = run(agent.get_action_and_value, x, action=action)
    return (-log_prob * returns - 0.01 * entropy + (value.flatten() - returns) ** 2).mean()


def in_parts(run, model, x):
    """As diffusers trains autoencoders: `encode`, then `decode`, a weight of the loss learned with them."""

    def loss(x):
        mean, log_variance = model.encode(x)
        kl = (mean**2 + log_variance.exp() - log_variance).sum(1)
        return ((model.decode(mean) - x).square().sum(1) + model.log_beta.exp() * kl).mean()

    return run(loss, x)


def triplet(run, model, a, b, c):
    a, b, c = run(lambda *sets: [model(each) for each in sets], a, b, c)
    return F.relu((a - b).norm(dim=1) - (a - c).norm(dim=1) + 5).mean()


def pairs_in_one_batch(run, model, a, b):
    a, b = run(lambda a, b: model(torch.cat([a, b])), a, b).chunk(2)
    return F.mse_loss(a, b)


X, WHOLE = numbers(N, 8), torch.arange(N)
CASES = {
    "a method": (Agent, policy_loss, (X, numbers(N, 3), numbers(N))),
    "in parts": (Autoencoder, in_parts, (X,)),
    "three times": (network, triplet, (X, numbers(N, 8, seed=1), numbers(N, 8, seed=2))),
    "pairs in one batch": (network, pairs_in_one_batch, (X, numbers(N, 8, seed=1))),
}


def plainly(function, *args, **kwargs):
    return function(*args, **kwargs)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("options", [{}, {"every": 2}], ids=str)
def test_is_right_and_changes_nothing(name, options):
    make, loss, batch = CASES[name]
    torch.manual_seed(0)
    model = make()
    twin = copy.deepcopy(model)
    monitor = sdsd.GammaMonitor(model, **options)
    for step in range(4):
        model.zero_grad()
        twin.zero_grad()
        loss(monitor.forward, model, *batch).backward()
        loss(plainly, twin, *batch).backward()
        for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-12, msg=name)
        stats = monitor.step()
        if step % options.get("every", 1):
            assert stats is None
            continue
        rows = per_sample(twin, lambda m, i: loss(plainly, m, *(x[i : i + 1] for x in batch)) / N, N)
        verdict = compare(stats, rows)
        assert verdict.kind == "right", verdict.why


def test_without_it_the_error_says_so():
    model = Agent()
    monitor = sdsd.GammaMonitor(model)
    policy_loss(plainly, model, *CASES["a method"][2]).backward()
    with pytest.raises(RuntimeError, match=r"actor_logstd.*monitor\.forward\("):
        monitor.step()
    model = network()
    monitor = sdsd.GammaMonitor(model)
    triplet(plainly, model, *CASES["three times"][2]).backward()
    with pytest.raises(UnsupportedError, match=r"ran forward 3 times.*monitor\.forward\("):
        monitor.step()


def test_samples_that_the_loss_mixes_inside_are_refused():
    def contrast(x):
        return F.cross_entropy(model(x) @ model(x).T, WHOLE)

    model = network()
    monitor = sdsd.GammaMonitor(model)
    monitor.forward(contrast, X).backward()
    with pytest.raises(UnsupportedError, match=r"0\.weight.*carry the samples along different dimensions"):
        monitor.step()


def test_a_table_of_the_models_own_has_no_samples():
    """What the function takes from elsewhere is a constant, whatever its size."""
    table = numbers(N, 8, seed=4)
    model = network()
    twin = copy.deepcopy(model)
    monitor = sdsd.GammaMonitor(model)

    def loss(run, model, x):
        return run(lambda x: (model(x) - model(table).mean(0)).square().sum(1).mean(), x)

    loss(monitor.forward, model, X).backward()
    rows = per_sample(twin, lambda m, i: loss(plainly, m, X[i : i + 1]) / N, N)
    verdict = compare(monitor.step(), rows)
    assert verdict.kind == "right", verdict.why


@pytest.mark.parametrize("whole", [True, False], ids=["the model", "a part"])
def test_compiled_code_runs_as_it_is(whole):
    torch._dynamo.reset()
    model = network()
    twin = copy.deepcopy(model)
    called = torch.compile(model, backend="aot_eager") if whole else model
    if not whole:
        model[1].compile(backend="aot_eager")
    monitor = sdsd.GammaMonitor(called)
    called(X).sum().backward()  # something was compiled before
    monitor.step()
    model.zero_grad()
    batch = CASES["three times"][2]
    triplet(monitor.forward, called, *batch).backward()
    verdict = compare(
        monitor.step(), per_sample(twin, lambda m, i: triplet(plainly, m, *(x[i : i + 1] for x in batch)) / N, N)
    )
    assert verdict.kind == "right", verdict.why

    def compiled(x):
        return monitor.forward(model, x)

    with pytest.raises(RuntimeError, match="cannot be called inside compiled code"):
        torch.compile(compiled, backend="eager", fullgraph=False)(X)
    torch._dynamo.reset()


def test_micro_batches_have_the_samples_of_the_function():
    model = network()
    monitor = sdsd.GammaMonitor(model, mode="micro")
    for part in (X[:4], X[4:]):
        (monitor.forward(lambda x: model(x) * model(-x), part).square().mean() * len(part) / N).backward()
    stats = monitor.step()
    assert stats is not None
    assert stats.samples_per_gradient == N / 2


def test_it_is_a_call_where_nothing_is_measured():
    model = network()
    monitor = sdsd.GammaMonitor(model)
    calls = []
    with monitor.paused():
        assert monitor.forward(lambda *args, **kwargs: calls.append((args, kwargs)) or "given", 1, two=2) == "given"
    assert calls == [((1,), {"two": 2})]
    with torch.no_grad():
        assert torch.equal(monitor.forward(model, X), model(X))


def test_after_an_exception_the_next_batch_is_measured():
    model = network()
    monitor = sdsd.GammaMonitor(model)

    def fails(x):
        model(x)
        raise KeyError("a batch without labels")

    with pytest.raises(KeyError, match="without labels"):
        monitor.forward(fails, X)
    twin = copy.deepcopy(model)
    monitor.forward(model, X).square().mean(1).mean().backward()
    rows = per_sample(twin, lambda m, i: m(X[i : i + 1]).square().mean() / N, N)
    assert compare(monitor.step(), rows).kind == "right"


def test_check_takes_it():
    model = Agent()
    monitor = sdsd.GammaMonitor(model)
    report = monitor.check(lambda m, batch: policy_loss(monitor.forward, m, *batch), CASES["a method"][2])
    assert report.difference < 1e-9


@pytest.mark.parametrize("length", [N, N + 1], ids=["as long as the batch", "longer"])
def test_positions_from_elsewhere_are_constants_whatever_their_length(length):
    table, layer = nn.Embedding(9, 8), nn.Linear(8, 3)
    model = nn.ModuleDict({"table": table, "layer": layer})
    twin = copy.deepcopy(model)
    positions, x = torch.arange(length), numbers(N, length, 8)

    def loss(run, model, x):
        return run(lambda x: model["layer"](x + model["table"](positions)).tanh().square().sum((1, 2)).mean(), x)

    monitor = sdsd.GammaMonitor(model)
    loss(monitor.forward, model, x).backward()
    verdict = compare(monitor.step(), per_sample(twin, lambda m, i: loss(plainly, m, x[i : i + 1]) / N, N))
    assert verdict.kind == "right", verdict.why
