"""Measured by kernels that write squares beside gradients: forced here by SDSD_BACKEND, interpreted without a GPU."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sdsd
from sdsd.gamma.uses import Pass
from sdsd_kernels import available_backends

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if "triton" not in available_backends(DEVICE):
    pytest.skip("no Triton here", allow_module_level=True)


@pytest.fixture(autouse=True)
def forced(monkeypatch):
    """Kernels, with all the digits of float32."""
    monkeypatch.setenv("SDSD_BACKEND", "triton")
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def by_loop(model: nn.Module, loss: Callable, x: Tensor, y: Tensor) -> dict[str, float]:
    """Σ‖g_n‖² in float64, one sample after another; g_n the sample's share of the batch's gradient."""
    twin = copy.deepcopy(model).double().cpu()
    found = dict.fromkeys(dict(twin.named_parameters()), 0.0)
    for k in range(len(x)):
        each = x[k : k + 1].cpu()
        (loss(twin(each.double() if each.is_floating_point() else each), y[k : k + 1].cpu()) / len(x)).backward()
        for name, parameter in twin.named_parameters():
            if parameter.grad is not None:
                found[name] += parameter.grad.square().sum().item()
                parameter.grad = None
    return found


def squares(stats: sdsd.GammaStats) -> dict[str, float]:
    n = stats.n
    return {name: ((n - 1) * each.noise + n * each.signal) / n**2 for name, each in stats.parameters.items()}


class Attention(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.tokens, self.norm = nn.Embedding(11, width), nn.LayerNorm(width)
        self.attention, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width, bias=False)
        self.final = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, 11)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        q, k, v = self.attention(self.norm(x)).chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return self.head(self.final(x))


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8)
        self.deep, self.point = nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False), nn.Conv2d(8, 16, 1)
        self.up, self.two = nn.ConvTranspose2d(16, 8, 3, 2, 1, output_padding=1), nn.GroupNorm(2, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(self.stem(x)))
        return self.head(F.relu(self.two(self.up(self.point(self.deep(x))))).mean((2, 3)))


class Columns(nn.Module):
    """One dimension of space, a norm over two dimensions, sequence first, a weight stored transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.group = nn.Conv1d(4, 6, 3, padding=1), nn.GroupNorm(3, 6)
        self.norm = nn.LayerNorm([6, 5])
        self.weight, self.bias = nn.Parameter(torch.randn(6, 7) / 3), nn.Parameter(torch.zeros(7))
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.group(self.conv(x)))
        rows = x.transpose(1, 2)
        y = torch.addmm(self.bias, rows.flatten(0, 1), self.weight).unflatten(0, rows.shape[:2])
        return self.head(y.transpose(0, 1)).mean(0)


class Gated(nn.Module):
    """A norm written by hand, torch's RMS norm, a bias added by itself, a weight that two layers share."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.tokens, self.scale = nn.Embedding(11, width, padding_idx=3), nn.Parameter(torch.ones(width))
        self.gate, self.up = nn.Linear(width, 24, bias=False), nn.Linear(width, 24, bias=False)
        self.down, self.bias = nn.Linear(24, width, bias=False), nn.Parameter(torch.zeros(width))
        self.norm = nn.RMSNorm(width)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids)
        h = self.scale * (x * x.square().mean(-1, keepdim=True).add(1e-5).rsqrt())
        x = x + self.down(F.silu(self.gate(h)) * self.up(h)) + self.bias
        return F.linear(self.norm(x), self.tokens.weight)


def cross_entropy(out: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(out.flatten(0, -2), y.flatten())


MODELS = {
    "attention": (Attention, lambda: torch.randint(0, 11, (3, 7)), lambda: torch.randint(0, 11, (3, 7))),
    "convolutions": (Convolutions, lambda: torch.randn(3, 3, 6, 6), lambda: torch.randint(0, 5, (3,))),
    "channels last": (
        lambda: Convolutions().to(memory_format=torch.channels_last),
        lambda: torch.randn(3, 3, 6, 6).to(memory_format=torch.channels_last),
        lambda: torch.randint(0, 5, (3,)),
    ),
    "gated": (Gated, lambda: torch.randint(0, 11, (3, 7)), lambda: torch.randint(0, 11, (3, 7))),
    "columns": (Columns, lambda: torch.randn(3, 4, 5), lambda: torch.randint(0, 3, (3,))),
}


def make(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    model, x, y = (each() for each in MODELS[name])
    return model.to(DEVICE), x.to(DEVICE), y.to(DEVICE)


def lying(x: Tensor) -> list[int]:
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1]


@pytest.mark.parametrize("name", MODELS)
def test_squares_and_gradients(name):
    model, x, y = make(name)
    twin = copy.deepcopy(model)
    wanted = by_loop(model, cross_entropy, x, y)
    monitor = sdsd.GammaMonitor(model)
    out = model(x)
    cross_entropy(out, y).backward()
    plain = twin(x)
    cross_entropy(plain, y).backward()
    assert torch.equal(out, plain)
    landed_names = {name for ledger in monitor._session.passes for name in ledger.squares if not ledger.squares[name]}
    tied = {"tokens.weight"} if name == "gated" else set()
    assert landed_names == set(wanted) - tied
    found = squares(monitor.step())
    for (key, parameter), own in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert found[key] == pytest.approx(wanted[key], rel=2e-4), key
        torch.testing.assert_close(parameter.grad, own.grad, rtol=1e-4, atol=1e-6)
        assert lying(parameter.grad) == lying(own.grad)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


def assert_alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("name", MODELS)
def test_a_paused_pass_is_the_models_own(name):
    model, x, y = make(name)
    cross_entropy(model(x), y).backward()
    wanted = gradients(model)
    monitor = sdsd.GammaMonitor(model)
    loss = cross_entropy(model(x), y)
    with monitor.paused():
        loss.backward()
    assert_alike(gradients(model), wanted)
    cross_entropy(model(x), y).backward()
    assert monitor.step() is not None


@pytest.mark.parametrize("name", ["attention", "convolutions", "columns"])
def test_a_gradient_that_is_differentiated(name):
    """The penalty's gradient goes through every layer's backward pass, which has to be the layer's own then."""
    model, x, y = make(name)

    def penalty() -> None:
        loss = cross_entropy(model(x), y)
        trained = [p for p in model.parameters() if p.requires_grad]
        sum(g.square().sum() for g in torch.autograd.grad(loss, trained, create_graph=True)).backward()

    penalty()
    wanted = gradients(model)
    monitor = sdsd.GammaMonitor(model)
    with monitor.paused():
        penalty()
    assert_alike(gradients(model), wanted)
    wanted = by_loop(model, cross_entropy, x, y)
    cross_entropy(model(x), y).backward(create_graph=True)
    found = squares(monitor.step())
    for key, value in found.items():
        assert value == pytest.approx(wanted[key], rel=2e-4), key


@pytest.mark.parametrize("name", ["attention", "convolutions", "columns"])
def test_two_passes_of_a_step_add_up(name):
    model, x, y = make(name)
    one, other = (by_loop(model, cross_entropy, x[k], y[k]) for k in (slice(0, 2), slice(2, 3)))
    monitor = sdsd.GammaMonitor(model, loss_reduction="sum")
    for part in (slice(0, 2), slice(2, 3)):
        (cross_entropy(model(x[part]), y[part]) * len(y[part])).backward()
    stats = monitor.step()
    for key, each in stats.parameters.items():
        own = (stats.n - 1) * each.noise + stats.n * each.signal  # Σ‖g_n‖² where .grad is the sum
        assert own == pytest.approx(4 * one[key] + other[key], rel=2e-4), key


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints(reentrant):
    model, x, y = make("attention")
    wanted = by_loop(model, cross_entropy, x, y)
    attend, final = model.attention.forward, model.final.forward
    model.attention.forward = lambda h: checkpoint(attend, h, use_reentrant=reentrant)
    model.final.forward = lambda h: checkpoint(final, h, use_reentrant=reentrant)
    monitor = sdsd.GammaMonitor(model)
    cross_entropy(model(x), y).backward()
    found = squares(monitor.step())
    for key, value in found.items():
        assert value == pytest.approx(wanted[key], rel=2e-4), key


@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_what_does_not_train_has_no_gradient(frozen):
    model, x, y = make("attention")
    for name, parameter in model.named_parameters():
        if name.endswith(frozen) and "tokens" not in name:
            parameter.requires_grad_(False)
    wanted = by_loop(model, cross_entropy, x, y)
    monitor = sdsd.GammaMonitor(model)
    cross_entropy(model(x), y).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    found = squares(monitor.step())
    assert set(found) == {name for name, p in model.named_parameters() if p.requires_grad}
    for key, value in found.items():
        assert value == pytest.approx(wanted[key], rel=2e-4), key


@pytest.mark.parametrize("name", ["attention", "channels last"])
def test_autocast(name):
    """Gradients come in the parameter's dtype, and differ from autocast's own by the rounding that they are spared."""
    model, x, y = make(name)
    twin = copy.deepcopy(model)

    def run(each: nn.Module) -> Tensor:
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            out = each(x)
        cross_entropy(out.float(), y).backward()
        return out

    monitor = sdsd.GammaMonitor(model)
    assert torch.equal(run(model), run(twin))
    exact = copy.deepcopy(twin)
    exact.zero_grad()
    cross_entropy(exact(x), y).backward()
    for (key, own), plain, true in zip(model.named_parameters(), twin.parameters(), exact.parameters(), strict=True):
        assert own.grad.dtype == torch.float32
        size = true.grad.norm()
        assert (own.grad - plain.grad).norm() < 0.02 * size, key
        assert (own.grad - true.grad).norm() < 0.1 * size + 1.05 * (plain.grad - true.grad).norm(), key
    assert monitor.step().noise > 0


def test_a_gradient_that_something_changed_is_found():
    model, x, y = make("attention")
    monitor = sdsd.GammaMonitor(model)
    cross_entropy(model(x), y).backward()
    model.out.weight.grad.add_(0.1)
    model.norm.bias.grad.mul_(3)
    with pytest.raises(
        ValueError, match=r"does not prove itself(.|\n)*(norm.bias(.|\n)*out.weight|out.weight(.|\n)*norm.bias)"
    ):
        monitor.step()


def test_squares_that_were_lost_are_found(monkeypatch):
    """Kernels that write elsewhere leave the gradients right, and noise that would be negative."""
    elsewhere = lambda ledger, device: torch.zeros(len(ledger.rows), 64, dtype=torch.float64, device=device)  # noqa: E731
    model, x, y = make("attention")
    monitor = sdsd.GammaMonitor(model)
    cross_entropy(model(x), y).backward()
    assert monitor.step().noise > 0
    model.zero_grad()
    monkeypatch.setattr(Pass, "norms_on", elsewhere)
    cross_entropy(model(x), y).backward()
    with pytest.raises(ValueError, match="does not prove itself"):
        monitor.step()


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


def test_a_check_between_forward_and_backward_pass():
    """The pass that waits goes on as it was: its uses of one parameter are still known to be several."""
    model, x, y = Twice().to(DEVICE), torch.randn(3, 6, device=DEVICE), torch.randint(0, 5, (3,), device=DEVICE)
    wanted = by_loop(model, cross_entropy, x, y)
    monitor = sdsd.GammaMonitor(model)
    loss = cross_entropy(model(x), y)
    monitor.check(lambda model, batch: cross_entropy(model(batch[0]), batch[1]), (x, y))
    loss.backward()
    found = squares(monitor.step())
    for key, value in found.items():
        assert value == pytest.approx(wanted[key], rel=2e-4), key


def test_one_pass_with_two_backward_passes_is_refused():
    model, x, y = make("convolutions")
    monitor = sdsd.GammaMonitor(model)
    loss = cross_entropy(model(x), y)
    loss.backward(retain_graph=True)
    loss.backward()
    with pytest.raises(ValueError, match="several backward passes"):
        monitor.step()


def test_the_metric_of_an_optimizer(monkeypatch):
    """Squares after a preconditioner take the general way; it has to be found here too."""
    model, x, y = make("attention")
    found = []
    for backend in ("triton", "torch"):
        monkeypatch.setenv("SDSD_BACKEND", backend)
        each = copy.deepcopy(model)
        optimizer = torch.optim.Adam(each.parameters(), lr=1e-3)
        monitor = sdsd.GammaMonitor(each, precondition=optimizer)
        for _ in range(3):
            cross_entropy(each(x), y).backward()
            stats = monitor.step()
            optimizer.step()
            optimizer.zero_grad()
        found.append(stats)
    for name, one in found[0].parameters.items():
        assert one.noise == pytest.approx(found[1].parameters[name].noise, rel=1e-2), name
