"""Models and losses as users have them: scalars and empty parameters, mixed dtypes, states that a forward leaves, a
loss of another model. Numbers are held against loops over samples in float64."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sdsd
from sdsd import theory

X = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 2


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


def by_loop(model: nn.Module, loss_fn: Callable[..., Tensor], batch: Any) -> Tensor:
    """One gradient a sample; shape: (n, parameters)."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rows = []
    for place in range(len(batch[0])):
        loss = loss_fn(model, tuple(part[place : place + 1] for part in batch))
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        rows.append(torch.cat([part.double().flatten() for part in gradients]))
    return torch.stack(rows)


class Odd(nn.Module):
    """A tied weight, a scalar, an empty parameter, one that lies transposed, one that the forward does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.scale, self.empty = nn.Parameter(torch.tensor(1.5)), nn.Parameter(torch.zeros(0, 4))
        self.turned, self.unused = nn.Parameter(torch.randn(2, 3).t()), nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.second(torch.tanh(self.first(x))) @ self.turned


class OneNumber(nn.Module):
    """Answers of shape (samples,)."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.temperature = nn.Linear(3, 2), nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return self.temperature * self.inside(x).prod(1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells, self.head = nn.LSTM(1, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x[..., None])[0][:, -1])


class Branching(nn.Module):
    """Looks at values, which torch.func refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.one(row) if row[0] > 0 else self.other(row) for row in x])


@pytest.mark.parametrize("kind", [Odd, Recurrent, Branching])
def test_gradients_are_those_of_a_loop(kind):
    model = kind().double()
    expected = by_loop(model, loss_of, (X, Y))
    assert torch.allclose(theory.gradient_rows(model, loss_of, (X, Y), 1), expected, rtol=1e-12, atol=1e-14)
    stats = theory.curvature_gamma(model, loss_of, (X, Y), learning_rate=0.1, batch_size=1)
    assert stats.noise == pytest.approx(expected.var(0).sum().item(), rel=1e-10)


@pytest.mark.parametrize("kind", [Odd, OneNumber, Recurrent, Branching])
def test_the_kernel_is_that_of_a_loop(kind):
    model = kind().double()
    outputs = 1 if kind is OneNumber else 2
    rows = [by_loop(model, lambda m, batch, k=k: m(batch[0]).flatten()[k], (X,)) for k in range(outputs)]
    assert torch.allclose(theory.tangent_kernel(model, X), sum(part @ part.mT for part in rows), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_coarsest_parameters_do_not_round_the_others(dtype):
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(3, 6).to(dtype), nn.Linear(6, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.first(x.to(dtype)).double()))

    model = Mixed()
    rows = theory.gradient_rows(model, loss_of, (X, Y), 1)
    assert rows.dtype == torch.float64
    stats = theory.curvature_gamma(model, loss_of, (X, Y), learning_rate=0.1, batch_size=1)
    assert stats.noise == pytest.approx(rows.var(0).sum().item(), rel=1e-12)
    if dtype != torch.float32:
        assert stats.noise != pytest.approx(rows.to(dtype).double().var(0).sum().item(), rel=1e-8)


class Leaves(nn.Module):
    """A network whose forward leaves something behind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(3, 5), nn.Linear(5, 2)
        self.calls, self.kept = 0, []
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("queue", torch.zeros(0, 3))
        self.register_buffer("total", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.kept.append(self.calls)
        self.steps = self.steps + 1
        self.queue = torch.cat([self.queue, torch.zeros(1, 3)])
        if not hasattr(self, "late"):
            self.register_buffer("late", torch.zeros(1))
        random.random(), np.random.rand(), torch.rand(1)
        return self.head(torch.tanh(self.first(x.float())))


CALLS: dict[str, Callable[[nn.Module, Callable[..., Tensor]], Any]] = {
    "compute_gamma": lambda m, loss: sdsd.compute_gamma(m, [(X[k : k + 4], Y[k : k + 4]) for k in (0, 4, 8)], loss, 3),
    "gradient_rows": lambda m, loss: theory.gradient_rows(m, loss, (X, Y), 1),
    "gradient_rows of four": lambda m, loss: theory.gradient_rows(m, loss, (X, Y), 4),
    "curvature_gamma": lambda m, loss: theory.curvature_gamma(m, loss, (X, Y), learning_rate=0.1, batch_size=2),
    "sharpness": lambda m, loss: theory.sharpness(m, (X, Y), loss, canonicalize=False, tolerance=0.1),
    "description_length": lambda m, loss: theory.description_length(m, (X, Y), loss, canonicalize=False),
    "basin_volume": lambda m, loss: theory.basin_volume(m, (X, Y), loss, canonicalize=False, directions=2),
    "local_learning_coefficient": lambda m, loss: theory.local_learning_coefficient(
        m, (X, Y), loss, canonicalize=False, draws=20, burn_in=100, chains=2
    ),
    "quotient_gamma": lambda m, loss: theory.quotient_gamma(
        m, [(X[k : k + 4], Y[k : k + 4]) for k in (0, 4, 8)], loss, 3, example_input=X
    ),
}


@pytest.mark.parametrize("call", [*CALLS, "tangent_kernel"])
def test_the_model_and_all_random_states_stay_as_they_were(call):
    model = Leaves()
    buffers = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    run = CALLS.get(call, lambda m, loss: theory.tangent_kernel(m, X))
    run(model, loss_of)
    assert (model.calls, model.kept) == (0, [])
    assert dict(model.named_buffers()).keys() == buffers.keys()
    for name, buffer in model.named_buffers():
        assert buffer is buffers[name][0]
        assert torch.equal(buffer, buffers[name][1])
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states[1:]


@pytest.mark.parametrize("call", CALLS)
def test_a_loss_of_another_model_is_refused(call):
    model, other = (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double() for _ in range(2))
    CALLS[call](model, loss_of)
    with pytest.raises(ValueError, match="expected a loss of the model it is given"):
        CALLS[call](model, lambda _, batch: loss_of(other, batch))
    frozen = copy.deepcopy(other).requires_grad_(False)
    with pytest.raises(
        (ValueError, RuntimeError), match="expected a loss of the model it is given|does not require grad"
    ):
        CALLS[call](model, lambda _, batch: loss_of(frozen, batch))
    with pytest.raises(TypeError, match="got torch's CrossEntropyLoss, which takes outputs and targets"):
        CALLS[call](model, nn.CrossEntropyLoss())
    with pytest.raises(TypeError, match="got torch's cross_entropy"):
        CALLS[call](model, cross_entropy)
    with pytest.raises(TypeError, match="model: expected an nn.Module, got the class Linear"):
        CALLS[call](nn.Linear, loss_of)


def test_a_share_of_errors_needs_no_gradient_but_the_model():
    model, other = (nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double() for _ in range(2))

    def errors(model: nn.Module, batch: Any) -> Tensor:
        return (model(batch[0]).argmax(1) != batch[1]).double().mean()

    assert theory.description_length(model, (X, Y), errors).bits > 0
    with pytest.raises(ValueError, match="expected a loss of the model it is given"):
        theory.description_length(model, (X, Y), lambda _, batch: errors(other, batch))


class Spectral(nn.Module):
    """Neurons that can be rescaled, beside a complex weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 5), nn.Linear(5, 4)
        self.waves = nn.Parameter(torch.randn(3, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(self.second(torch.relu(self.first(x)))) * self.waves, n=4)


def test_complex_parameters_stay_as_they_are():
    model, x = Spectral(), X.float()
    for moved in (
        theory.canonicalize(model, example_input=x),
        theory.random_representative(model, example_input=x),
        theory.rescale(model, "first", torch.full((5,), 2.0), example_input=x),
    ):
        assert torch.equal(moved.waves, model.waves)
        assert not torch.equal(moved.first.weight, model.first.weight)
        assert torch.allclose(moved(x), model(x), atol=1e-5)
    gradients = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    structure = theory.symmetries(model, x)
    across, along = theory.horizontal(structure, gradients), theory.vertical(structure, gradients)
    assert torch.equal(across["waves"], gradients["waves"].to(torch.complex128))
    sizes = [sum(part.abs().square().sum() for part in parts.values()) for parts in (across, along)]
    assert theory.vertical_fraction(structure, gradients) == pytest.approx((sizes[1] / sum(sizes)).item())


def test_a_network_of_complex_numbers_is_not_moved():
    model = nn.Sequential(nn.Linear(3, 5, dtype=torch.complex64), nn.Linear(5, 2, dtype=torch.complex64))
    x = torch.randn(4, 3, dtype=torch.complex64)
    assert "0.weight is complex" in str(theory.symmetries(model, x))
    for move in (theory.canonicalize, theory.random_representative):
        with pytest.raises(ValueError, match="no symmetry is known"):
            move(model, example_input=x)


@pytest.mark.parametrize("call", [name for name in CALLS if "gamma" not in name or "curvature" in name])
def test_complex_parameters_that_train_are_refused(call):
    model = Spectral()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return cross_entropy(model(batch[0].float()), batch[1])

    with pytest.raises(ValueError, match=r"expected parameters that are real numbers, got torch.complex64 in 'waves'"):
        CALLS[call](model, loss)
    model.waves.requires_grad_(False)
    assert CALLS[call](model, loss) is not None


def test_a_kernel_of_random_or_other_answers_is_refused():
    dropped = nn.Sequential(nn.Linear(3, 40), nn.Dropout(0.5), nn.Linear(40, 1)).double()
    with pytest.raises(ValueError, match="its answers are random"):
        theory.tangent_kernel(dropped, X)
    assert theory.tangent_kernel(dropped.eval(), X).shape == (12, 12)

    class Pair(nn.Linear):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x), None

    class Mean(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).mean()

    for model, got in ((Pair(3, 2), "tuple"), (Mean(3, 2), r"shape \(\)")):
        with pytest.raises(ValueError, match=f"an answer for each of the 12 samples, got {got}"):
            theory.tangent_kernel(model.double(), X)


def test_sharpness_where_nothing_bends_upwards():
    """The largest eigenvalue is 0, which no part of it can be an error of."""

    class Point(nn.Module):
        def __init__(self, dtype: torch.dtype) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(40).to(dtype))

    for dtype, bound in ((torch.float64, 1e-14), (torch.float32, 1e-5)):
        measured = theory.sharpness(
            Point(dtype), X, lambda model, x: -model.w[:5].square().sum(), canonicalize=False, most_products=20
        )
        assert abs(measured.value) <= bound
        assert measured.error <= bound


def test_copies_of_a_row_are_one_cluster_at_any_angle():
    for seed in range(20):
        row = torch.randn(1, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        rows = torch.cat([row * size for size in (1.0, 3.0, 0.1, 7.0)])
        assert theory.log_orbit_count(rows, 1e-9) == 0
        assert theory.log_orbit_count(torch.cat([rows, -row]), 1e-9) == pytest.approx(math.log(5) / 5)
