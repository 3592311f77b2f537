"""GammaMonitor.paused: what runs inside leaves no trace in the statistics, and what it leaves in .grad is noticed."""

from __future__ import annotations

import gc
import weakref
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import sdsd
from sdsd.theory import curvature_gamma
from tests.gamma.models import Bare, CrossAttention, Gpt, Residual, Reused, mean_of_squares, token_loss

N = 6


def tokens(count=N):
    return torch.randint(0, 13, (count, 5))


MODELS = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(inplace=True), nn.LayerNorm(7), nn.Linear(7, 2)), (5,)),
    "cnn": (Residual, (3, 8, 8)),
    "attention": (CrossAttention, (3, 8)),
    "tied gpt": (Gpt, None),
    "gpt": (lambda: Gpt(tied=False), None),
    "reused": (Reused, (3, 5)),
    "bare parameters": (Bare, (3, 5)),
    "batch norm": (lambda: nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 2)), (5,)),
}
EAGER = [(name, mode) for name in MODELS for mode in ("exact", "micro") if (name, mode) != ("batch norm", "exact")]
COMPILED = [("mlp", "exact"), ("bare parameters", "micro")]
WHERE = ("before the forward pass", "before the backward pass", "after both")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    with torch._functorch.config.patch(donated_buffer=False):  # or no compiled graph may be run backward twice
        yield
    torch._dynamo.reset()


@contextmanager
def grad_put_back(model):
    held = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    yield
    for parameter, gradient in zip(model.parameters(), held, strict=True):
        parameter.grad = gradient


@pytest.mark.parametrize(
    ("name", "mode", "compiled"), [*((*each, False) for each in EAGER), *((*each, True) for each in COMPILED)]
)
def test_a_paused_pass_changes_nothing(name, mode, compiled):
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make().double()
    run_model = torch.compile(model, fullgraph=True, backend="aot_eager") if compiled else model

    def batch(count=N):
        return (
            (tokens(count), tokens(count))
            if shape is None
            else (
                torch.randn(count, *shape).double(),
                torch.randn(count).double(),
            )
        )

    loss_fn = token_loss if shape is None else mean_of_squares
    batches, other = [batch() for _ in range(4)], batch(N + 3)
    state = {key: value.clone() for key, value in model.state_dict().items()}

    def aside(monitor, output, target):
        """SAM's second pass, another batch size, a gradient asked for, and the measured graph run backward."""
        with grad_put_back(model), monitor.paused():
            loss_fn(run_model(other[0]), other[1]).backward()
            with monitor.paused():
                torch.autograd.grad(loss_fn(run_model(batches[0][0]), batches[0][1]), next(model.parameters()))
            loss_fn(run_model(batches[0][0]), batches[0][1]).backward()
            if output is not None:
                loss_fn(output, target).backward(retain_graph=True)

    def run(where=None):
        found = []
        model.load_state_dict(state)
        with sdsd.GammaMonitor(model, mode=mode, ema=0.5) as monitor:
            for first, second in (batches[:2], batches[2:]):
                model.zero_grad()
                for x, y in (first, second):
                    if where == "before the forward pass":
                        aside(monitor, None, None)
                    output = run_model(x)
                    if where == "before the backward pass":
                        aside(monitor, output, y)
                    (loss_fn(output, y) / 2).backward()
                    if where == "after both":
                        aside(monitor, None, None)
                found.append(monitor.step().to_dict())
                model.load_state_dict(state)  # batch statistics
        return found

    wanted = run()
    for where in WHERE:
        assert run(where) == wanted, where


def test_of_bare_hooks_only_what_is_outside_counts():
    """Micro mode counts what reaches parameters; a pass in the block is no micro-batch."""
    model = nn.Linear(3, 1)
    with sdsd.GammaMonitor(model, mode="micro") as monitor:
        for _ in range(3):
            model(torch.randn(4, 3)).square().mean().backward()
            with grad_put_back(model), monitor.paused():
                model(torch.randn(4, 3)).square().mean().backward()
        assert monitor.step().n == 3


def test_auto_does_not_switch_for_paused_passes():
    model = nn.Linear(3, 1)
    with sdsd.GammaMonitor(model) as monitor:
        model(torch.randn(4, 3)).square().mean().backward()
        with grad_put_back(model), monitor.paused():
            for _ in range(6):
                model(torch.randn(4, 3)).square().mean().backward()
        assert monitor.step().n == 4
        assert monitor.mode == "exact"


def test_curvature_on_the_optimizer_s_own_model():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    x, y = torch.randn(8, 3).double(), torch.randn(8).double()
    optimizer = torch.optim.Adam(model.parameters())

    def loss_fn(model, batch):
        return mean_of_squares(model(batch[0]), batch[1])

    options = {"learning_rate": 0.1, "batch_size": 4, "precondition": optimizer, "population": 8}
    with sdsd.GammaMonitor(model) as monitor:
        for _ in range(2):
            optimizer.zero_grad()
            loss_fn(model, (x, y)).backward()
            wanted = monitor.step().to_dict()
            optimizer.step()
        with monitor.paused():
            inside = curvature_gamma(model, loss_fn, (x, y), **options)
    assert inside == curvature_gamma(model, loss_fn, (x, y), **options)
    assert wanted["n"] == 8


def test_an_error_inside_ends_it():
    model, x = nn.Linear(3, 1), torch.randn(4, 3)
    with sdsd.GammaMonitor(model) as monitor:
        with pytest.raises(ZeroDivisionError), monitor.paused(), monitor.paused():
            raise ZeroDivisionError
        model(x).square().mean().backward()
        assert monitor.step().n == 4
        assert not model.weight._post_accumulate_grad_hooks


def test_leaving_an_inner_block_does_not_end_the_outer():
    model, x = nn.Linear(3, 1), torch.randn(4, 3)
    with sdsd.GammaMonitor(model, mode="exact") as monitor:
        model(x).square().mean().backward()
        with grad_put_back(model), monitor.paused():
            with monitor.paused():
                pass
            monitor.load_state_dict(monitor.state_dict())  # begins the step anew, still paused
            model(x).square().mean().backward()
        model.zero_grad()
        model(x).square().mean().backward()
        assert monitor.step().n == 4


def test_a_step_that_is_not_measured():
    model, x = nn.Linear(3, 1), torch.randn(4, 3)
    with sdsd.GammaMonitor(model, every=2) as monitor:
        found = []
        for _ in range(4):
            model.zero_grad()
            with grad_put_back(model), monitor.paused():
                model(2 * x).square().mean().backward()
            model(x).square().mean().backward()
            with monitor.paused():
                pass
            found.append(monitor.step())
    assert [stats is not None for stats in found] == [True, False, True, False]
    assert found[0].to_dict()["noise"] == found[2].to_dict()["noise"]


def test_after_detaching_it_does_no_harm():
    model = nn.Linear(3, 1)
    monitor = sdsd.GammaMonitor(model)
    monitor.detach()
    with monitor.paused():
        model(torch.randn(4, 3)).sum().backward()
    assert type(model) is nn.Linear


def test_step_inside_is_refused_and_does_no_harm():
    model, x = nn.Linear(3, 1), torch.randn(4, 3)
    with sdsd.GammaMonitor(model) as monitor:
        model(x).square().mean().backward()
        with monitor.paused(), pytest.raises(RuntimeError, match=r"step\(\) inside paused\(\).*before the with block"):
            monitor.step()
        assert monitor.step().n == 4


def test_inside_compiled_code_it_is_refused():
    model = nn.Linear(3, 1)
    with sdsd.GammaMonitor(model) as monitor:

        def inside(x):
            with monitor.paused():
                return model(x)

        for fullgraph in (True, False):
            torch._dynamo.reset()
            # With fullgraph torch reports an error of its own, which quotes ours, or (torch 2.9) the line that raised.
            expected = torch._dynamo.exc.Unsupported if fullgraph else RuntimeError
            says = r"cannot be entered inside compiled code" + (r"|with monitor\.paused\(\):" if fullgraph else "")
            with pytest.raises(expected, match=says) as caught:
                torch.compile(inside, fullgraph=fullgraph, backend="aot_eager")(torch.randn(4, 3))
            assert type(caught.value) is expected
        model(torch.randn(4, 3)).sum().backward()
        assert monitor.step().n == 4


class TestLeftInGrad:
    """`step` raises where .grad holds what a paused pass left, and never where it does not."""

    def setup_method(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
        self.x = torch.randn(5, 3)

    def backward(self):
        self.model(self.x).square().mean().backward()

    def aside(self, monitor):
        with monitor.paused():
            self.model(2 * self.x).sum().backward()

    @pytest.mark.parametrize("mode", ["exact", "micro"])
    @pytest.mark.parametrize("order", ["mp", "pm", "mpm", "pmm", "p"])
    def test_left(self, mode, order):
        """m: a measured pass, p: one in the block."""
        with sdsd.GammaMonitor(self.model, mode=mode) as monitor:
            for each in order:
                self.backward() if each == "m" else self.aside(monitor)
            with pytest.raises(RuntimeError, match=r"inside paused\(\) left.*(0.weight|1.bias).*Call step\(\) before"):
                monitor.step()

    def test_of_some_parameters(self):
        with sdsd.GammaMonitor(self.model) as monitor:
            self.backward()
            with monitor.paused():
                self.model[1](torch.randn(2, 4)).sum().backward()
            with pytest.raises(RuntimeError, match=r"alone: 1\.\w+, 1\.\w+\. "):
                monitor.step()

    def test_of_parameters_that_are_not_measured(self):
        with sdsd.GammaMonitor(self.model, parameters=["0.*"]) as monitor:
            self.backward()
            with monitor.paused():
                self.model[1](torch.randn(2, 4)).sum().backward()
            assert monitor.step().n == 5

    def test_of_an_earlier_step(self):
        with sdsd.GammaMonitor(self.model) as monitor:
            self.backward()
            monitor.step()
            self.aside(monitor)
            self.backward()
            with pytest.raises(RuntimeError, match="left"):
                monitor.step()

    @pytest.mark.parametrize(
        "clear",
        [
            lambda model: model.zero_grad(),
            lambda model: model.zero_grad(set_to_none=False),
            lambda model: [p.grad.detach().mul_(0) for p in model.parameters()],
            lambda model: torch.optim.SGD(model.parameters()).zero_grad(set_to_none=False),
        ],
    )
    @pytest.mark.parametrize("inside", [True, False])
    def test_cleared(self, clear, inside):
        with sdsd.GammaMonitor(self.model) as monitor:
            self.backward()
            wanted = monitor.step()
            with monitor.paused():
                self.model(2 * self.x).sum().backward()
                if inside:
                    clear(self.model)
            if not inside:
                clear(self.model)
            self.backward()
            assert monitor.step().signal == wanted.signal

    @pytest.mark.parametrize(
        "put_back",
        [
            lambda model, held: [p.grad.copy_(g) for p, g in zip(model.parameters(), held, strict=True)],
            lambda model, held: [setattr(p, "grad", g) for p, g in zip(model.parameters(), held, strict=True)],
            lambda model, held: torch._foreach_copy_([p.grad for p in model.parameters()], held),
        ],
    )
    @pytest.mark.parametrize("inside", [True, False])
    def test_put_back(self, put_back, inside):
        with sdsd.GammaMonitor(self.model) as monitor:
            self.backward()
            held = [parameter.grad.clone() for parameter in self.model.parameters()]
            with monitor.paused():
                self.model(2 * self.x).sum().backward()
                if inside:
                    put_back(self.model, held)
            if not inside:
                put_back(self.model, held)
            stats = monitor.step()
        assert stats.signal == pytest.approx(sum(gradient.square().sum().item() for gradient in held), rel=1e-5)

    def test_no_gradient_is_kept_alive(self):
        with sdsd.GammaMonitor(self.model) as monitor:
            self.aside(monitor)
            left = weakref.ref(self.model[0].weight.grad.untyped_storage())
            self.model.zero_grad()
            gc.collect()
            assert left() is None
            self.backward()
            assert monitor.step().n == 5
