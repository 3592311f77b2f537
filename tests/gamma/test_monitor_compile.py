"""GammaMonitor under torch.compile(fullgraph=True), attached before or after compiling."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import sdsd
from tests.gamma.models import Bare, CrossAttention, Gpt, Residual, Reused, mean_of_squares, token_loss

N = 6


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def tokens():
    return torch.randint(0, 13, (N, 5)), torch.randint(0, 13, (N, 5))


class OwnNorm(nn.Module):
    """As Llama's (w ∘ f), Gemma's (1 + w) ∘ f, or with a weight that enters otherwise."""

    def __init__(self, size, how):
        super().__init__()
        self.weight, self.eps, self.how = nn.Parameter(torch.linspace(0.5, 1.5, size)), 1e-5, how

    def forward(self, x):
        weight = {"w": self.weight, "1 + w": 1 + self.weight, "w²": self.weight.square()}[self.how]
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * weight


class TwoTables(nn.Module):
    """Features, and positions looked up for all samples together."""

    def __init__(self):
        super().__init__()
        self.first, self.positions, self.last = nn.Linear(5, 4), nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x) + self.positions(torch.arange(x.shape[1]))))


def own_norms(*how):
    return lambda: nn.Sequential(nn.Linear(5, 7), *(OwnNorm(7, each) for each in how), nn.Linear(7, 2))


def padded():
    model = Gpt(tied=True)
    model.tokens.padding_idx = 3
    return model


def one_weight():
    model = nn.Sequential(nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 5))
    model[2].weight = model[0].weight
    return model


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(inplace=True), nn.LayerNorm(7), nn.Linear(7, 2)), (5,)),
    "mlp on sequences": (lambda: nn.Sequential(nn.Linear(5, 7), nn.RMSNorm(7), nn.PReLU(), nn.Linear(7, 2)), (4, 5)),
    "cnn": (Residual, (3, 8, 8)),
    "attention": (CrossAttention, (3, 8)),
    "gpt": (lambda: Gpt(tied=False), None),
    "gpt, tied": (lambda: Gpt(tied=True), None),
    "gpt, tied, with padding": (padded, None),
    "norms of one's own": (own_norms("w", "1 + w"), (4, 5)),
    "positions of all samples": (TwoTables, (3, 5)),
}


@pytest.mark.parametrize(
    ("name", "order"),
    [
        *(("mlp", order) for order in ("attached, then compiled", "compiled, then attached", "wrapper attached")),
        *((name, "compiled, then attached") for name in MODELS if name != "mlp"),
    ],
)
def test_same_numbers_as_eager(name, order):
    make, shape = MODELS[name]
    model = make().double()
    loss_fn = token_loss if shape is None else mean_of_squares
    batches = [
        tokens() if shape is None else (torch.randn(n, *shape).double(), torch.randn(n).double()) for n in (N, N, 4)
    ]

    def run(watched, run_model):
        found = []
        with sdsd.GammaMonitor(watched, mode="exact", every=1) as monitor:
            for x, y in batches:
                model.zero_grad()
                loss_fn(run_model(x), y).backward()
                found.append(monitor.step().to_dict())
        return found

    wanted = run(model, model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    if order != "attached, then compiled":
        loss_fn(compiled(batches[0][0]), batches[0][1]).backward()
    found = run(compiled if order == "wrapper attached" else model, compiled)
    for one, two in zip(found, wanted, strict=True):
        assert one["n"] == two["n"]
        assert list(one["parameters"]) == list(two["parameters"])
        for parameter, values in two["parameters"].items():
            assert one["parameters"][parameter]["noise"] == pytest.approx(values["noise"], rel=1e-9, abs=1e-20)
            assert one["parameters"][parameter]["signal"] == pytest.approx(values["signal"], rel=1e-9, abs=1e-20)


def test_tied_in_the_metric_of_adam():
    found = []
    for backend in (None, "aot_eager"):
        torch.manual_seed(0)
        model = Gpt(tied=True).double()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        run = model if backend is None else torch.compile(model, fullgraph=True, backend=backend)
        with sdsd.GammaMonitor(model, precondition=optimizer) as monitor:
            for x, y in (tokens() for _ in range(3)):
                optimizer.zero_grad()
                token_loss(run(x), y).backward()
                stats = monitor.step()
                optimizer.step()
        found.append([each.noise for each in stats.parameters.values()])
    assert found[1] == pytest.approx(found[0], rel=1e-9)


def test_every_other_step():
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with sdsd.GammaMonitor(model, every=2) as monitor:
        measured = []
        for _ in range(4):
            model.zero_grad()
            compiled(torch.randn(N, 5)).square().mean().backward()
            measured.append(monitor.step() is not None)
    assert measured == [True, False, True, False]


def test_a_layer_used_twice_is_refused_in_one_graph_and_measured_uncompiled():
    model = Reused().double()
    x, y = torch.randn(N, 3, 5).double(), torch.randn(N).double()
    with sdsd.GammaMonitor(model, mode="exact") as monitor:
        with pytest.raises(Exception, match="shared: runs more than once in one compiled forward pass"):
            torch.compile(model, fullgraph=True, backend="aot_eager")(x)
        mean_of_squares(model(x), y).backward()
        wanted = monitor.step().noise
        model.zero_grad()
        with pytest.warns(UserWarning, match="measured steps run uncompiled: shared: runs more than once"):
            mean_of_squares(torch.compile(model, backend="aot_eager")(x), y).backward()
        assert monitor.step().noise == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(
    ("make", "batch", "message"),
    [
        (one_weight, lambda: torch.randn(N, 5), "shares a parameter with another layer"),
        (own_norms("w²"), lambda: torch.randn(N, 5), "has no rule that torch.compile can trace"),
        (Bare, lambda: torch.randn(N, 3, 5), "has no rule that torch.compile can trace"),
    ],
)
def test_what_cannot_be_traced_is_refused(make, batch, message):
    model = make()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with sdsd.GammaMonitor(model), pytest.raises(Exception, match=message):
        compiled(batch())


def test_micro_batches():
    model = Gpt(tied=True)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    batches = [tokens() for _ in range(3)]
    found = []
    for run_model in (model, compiled):
        with sdsd.GammaMonitor(model, mode="micro") as monitor:
            model.zero_grad()
            for x, y in batches:
                token_loss(run_model(x), y).backward()
            found.append(monitor.step())
    assert found[1].noise == pytest.approx(found[0].noise, rel=1e-4)
    assert found[1].n == 3


def wrapped(model):
    model[1] = torch.compile(model[1], backend="aot_eager")


def in_place(model):
    model[1].compile(backend="aot_eager")


@pytest.mark.parametrize("compiled", [wrapped, in_place])
@pytest.mark.parametrize("first", ["monitor", "compiler"])
def test_parts_that_are_compiled(compiled, first):
    def make():
        torch.manual_seed(0)
        inner = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.LayerNorm(8))
        return nn.Sequential(nn.Linear(5, 8), inner, nn.Linear(8, 2)).double()

    x, found = torch.randn(N, 3, 5).double(), []
    for compile_it in (None, compiled):
        model = make()
        if compile_it and first == "compiler":
            compile_it(model)
        with sdsd.GammaMonitor(model) as monitor:
            if compile_it and first == "monitor":
                compile_it(model)
            for _ in range(2):
                model.zero_grad()
                model(x).square().mean().backward()
                stats = monitor.step()
        assert stats.n == N
        found.append([each.noise for each in stats.parameters.values()])
    assert found[1] == pytest.approx(found[0], rel=1e-9)


def test_dynamo_leaves_the_monitor_alone(caplog):
    """A compiled function inside a model that is not: what measures it is not compiled beside it, with a warning."""

    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.scale, self.last = nn.Linear(5, 4), nn.Parameter(torch.ones(4)), nn.Linear(4, 2)
            self.norm = torch.compile(lambda x, scale: nn.functional.rms_norm(x, (4,), scale), backend="aot_eager")

        def forward(self, x):
            return self.last(self.norm(self.first(x), self.scale))

    model = Inside()
    with sdsd.GammaMonitor(model) as monitor, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for n in range(4, 14):
            model.zero_grad()
            mean_of_squares(model(torch.randn(n, 3, 5)), torch.zeros(n)).backward()
            assert monitor.step().n == n
    said = [str(each.message) for each in caught if "Dynamo" in str(each.message)]
    assert not [each for each in said if "sdsd" in each or "plans.py" in each or "use.py" in each], said
    assert "recompile_limit" not in caplog.text


class ByIndex(nn.Module):
    """A mask read by positions, as the masks of Hugging Face's models are."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x, mask):
        chosen = mask[torch.arange(len(x))[:, None], torch.arange(x.shape[1])]
        return self.last(self.first(x) * chosen[..., None])


def test_a_refusal_for_values_that_are_not_there_yet_is_ours():
    """And not an error inside of Dynamo; without fullgraph=True the model is measured."""
    x, mask = torch.randn(4, 6, 8), torch.ones(4, 6)
    for fullgraph in (True, False):
        torch._dynamo.reset()
        model = ByIndex()
        monitor = sdsd.GammaMonitor(model)
        compiled = torch.compile(model, fullgraph=fullgraph, backend="aot_eager")
        if fullgraph:
            with pytest.raises(torch._dynamo.exc.Unsupported, match=r"last: samples cannot.*values are not there yet"):
                compiled(x, mask)
        else:
            with pytest.warns(UserWarning, match="measured steps run uncompiled: last: samples cannot be told apart"):
                compiled(x, mask).square().mean().backward()
            assert monitor.step().n == 4
        monitor.detach()
