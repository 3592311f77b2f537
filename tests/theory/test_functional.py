"""H_G, V and L_geom against NumPy, SciPy, brute force on the sphere, and sets whose value is known exactly."""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sdsd.theory import canonicalize, random_representative, symmetries
from sdsd.theory.functional import (
    cap_share,
    geometric_functional,
    hidden_layers,
    log_orbit_count,
    log_volume,
    orbit_entropy,
    participation_ratio,
    realized_volume,
    telling_angle,
)
from sdsd.theory.functional import volume as caps

SHAPES = [(1, 1), (1, 5), (5, 1), (4, 7), (6, 6), (9, 4), (30, 8)]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mass_of(n: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.1


def mixture(rows: torch.Tensor, mass: torch.Tensor) -> np.ndarray:
    """M by its definition, entry by entry in NumPy."""
    r, p = rows.double().numpy(), mass.double().numpy() / mass.double().numpy().sum()
    norms = np.sqrt((r * r).sum(1))
    return np.sqrt(np.outer(p, p)) * (r @ r.T) / np.outer(norms, norms)


@pytest.mark.parametrize("shape", SHAPES)
def test_entropy_is_that_of_the_matrix_it_is_defined_by(shape):
    rows, mass = normal(*shape), mass_of(shape[0])
    eigenvalues = np.linalg.eigvalsh(mixture(rows, mass)).clip(1e-300)
    wanted = -(eigenvalues * np.log(eigenvalues)).sum()
    assert orbit_entropy(rows, mass).item() == pytest.approx(wanted, abs=1e-12)
    assert orbit_entropy(rows.float(), mass.float()).item() == pytest.approx(wanted, abs=3e-6 * math.sqrt(max(shape)))
    assert participation_ratio(rows, mass).item() == pytest.approx(1 / (mixture(rows, mass) ** 2).sum(), rel=1e-12)


@pytest.mark.parametrize("n", [2, 5, 12])
def test_entropy_of_sets_that_need_no_computing(n):
    square = torch.eye(n, dtype=torch.float64)
    assert orbit_entropy(square).item() == pytest.approx(math.log(n), abs=1e-12)
    assert participation_ratio(square).item() == pytest.approx(n)
    one_way = normal(1, 7) * torch.linspace(-2, 3, n, dtype=torch.float64)[:, None]
    assert orbit_entropy(one_way).item() == pytest.approx(0, abs=1e-12)
    assert participation_ratio(one_way).item() == pytest.approx(1)


@pytest.mark.parametrize(("n", "d"), [(3, 9), (12, 5)])
def test_splitting_a_neuron_changes_nothing(n, d):
    rows, mass = normal(n, d), mass_of(n)
    split = torch.cat((rows, 4 * rows[:1]))
    shared = torch.cat((mass, 0.75 * mass[:1]))
    shared[0] *= 0.25
    assert orbit_entropy(split, shared).item() == pytest.approx(orbit_entropy(rows, mass).item(), abs=1e-12)


def test_neurons_without_mass_or_direction_do_not_count():
    rows, mass = normal(6, 4), mass_of(6)
    more = torch.cat((rows, torch.zeros(1, 4), normal(1, 4, seed=5)))
    with_absent = torch.cat((mass, torch.tensor([3.0, 0.0])))
    for measure in (orbit_entropy, participation_ratio):
        assert measure(more, with_absent).item() == pytest.approx(measure(rows, mass).item(), abs=1e-13)
    assert log_volume(more[:7]).item() == pytest.approx(log_volume(rows).item())
    assert realized_volume(more[:7], 0.5) == realized_volume(rows, 0.5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6), st.floats(-30, 30))
def test_bounds_and_independence_of_scale(n, d, seed, exponent):
    rows, mass = normal(n, d, seed=seed), mass_of(n, seed=seed)
    entropy = orbit_entropy(rows, mass).item()
    ratio = participation_ratio(rows, mass).item()
    assert -1e-12 <= entropy <= math.log(min(n, d)) + 1e-12
    assert 1 - 1e-12 <= ratio <= math.exp(entropy) * (1 + 1e-12)  # Rényi's entropies fall with their order
    scaled = rows * 10.0**exponent * (1 + torch.arange(n, dtype=torch.float64))[:, None]
    assert orbit_entropy(scaled, 7 * mass).item() == pytest.approx(entropy, abs=1e-11)
    assert log_volume(scaled).item() == pytest.approx(log_volume(rows).item(), abs=1e-11)


@pytest.mark.parametrize("shape", [(3, 5), (4, 4), (6, 3)])
def test_gradients(shape):
    rows, mass = normal(*shape).requires_grad_(), mass_of(shape[0]).requires_grad_()
    assert torch.autograd.gradcheck(orbit_entropy, (rows, mass))
    assert torch.autograd.gradcheck(participation_ratio, (rows, mass))
    assert torch.autograd.gradcheck(log_volume, (rows,))


def test_gradients_stay_finite_where_eigenvalues_vanish_or_coincide():
    for rows in (torch.eye(4), torch.ones(3, 6), torch.cat((torch.eye(3), torch.eye(3))), torch.ones(1, 1)):
        rows = rows.double().requires_grad_()
        mass = torch.ones(len(rows), dtype=torch.float64, requires_grad=True)
        (orbit_entropy(rows, mass) + log_volume(rows)).backward()
        assert rows.grad.isfinite().all()
        assert mass.grad.isfinite().all()


@pytest.mark.parametrize(("n", "d"), [(5, 12), (12, 5)])
def test_log_volume_is_its_determinant(n, d):
    rows, epsilon = normal(n, d), 0.3
    unit = rows.numpy() / np.linalg.norm(rows.numpy(), axis=1, keepdims=True)
    wanted = 0.5 * np.linalg.slogdet(np.eye(n) + d / (n * epsilon**2) * unit @ unit.T)[1]
    assert log_volume(rows, epsilon).item() == pytest.approx(wanted, rel=1e-12)
    assert log_volume(torch.ones(n, d)).item() < log_volume(rows).item()


# --- the orbit counted to the letter


def test_orbit_count_of_clusters():
    rows = torch.eye(3, dtype=torch.float64).repeat_interleave(torch.tensor([1, 2, 4]), 0)
    rows += 1e-3 * normal(7, 3)
    wanted = math.log(math.factorial(7) / (math.factorial(2) * math.factorial(4))) / 7
    assert log_orbit_count(rows[torch.randperm(7)], 0.1) == pytest.approx(wanted)
    assert log_orbit_count(rows, 1e-6) == pytest.approx(math.log(math.factorial(7)) / 7)
    assert log_orbit_count(rows, math.pi / 2) == pytest.approx(0, abs=1e-12)


def test_orbit_count_joins_chains():
    angles = torch.arange(0, 1.5, 0.1, dtype=torch.float64)
    chain = torch.stack((angles.cos(), angles.sin()), 1)[torch.randperm(15)]
    assert log_orbit_count(chain, 0.1001) == pytest.approx(0, abs=1e-12)
    assert log_orbit_count(chain, 0.0999) == pytest.approx(math.lgamma(16) / 15)


# --- the volume of caps


@pytest.mark.parametrize("angle", [0.01, 0.4, math.pi / 4, 1.2, math.pi / 2])
@pytest.mark.parametrize("d", [2, 3, 40])
def test_volume_is_exact_on_identical_and_antipodal_rows(angle, d):
    direction = normal(1, d)
    one = realized_volume(direction.repeat(5, 1) * torch.arange(1, 6)[:, None], angle, 2000)
    two = realized_volume(torch.cat((direction.repeat(3, 1), -direction.repeat(2, 1))), angle, 2000)
    assert one.value == pytest.approx(1, abs=1e-14)
    assert two.value == pytest.approx(2, abs=1e-14)
    assert max(one.standard_error, two.standard_error) < 1e-14


@pytest.mark.parametrize("angle", [0.01, 0.4, math.pi / 4])
@pytest.mark.parametrize("d", [2, 7, 60])
def test_volume_is_exact_on_orthogonal_rows_up_to_45_degrees(angle, d):
    found = realized_volume(torch.eye(d), angle, 2000)
    assert found.value == d
    assert found.standard_error == 0


def test_volume_of_orthogonal_rows_is_less_beyond_45_degrees():
    assert realized_volume(torch.eye(7), 1.0).value < 6.5


@pytest.mark.parametrize("seed", range(5))
def test_volume_agrees_with_brute_force_in_three_dimensions(seed):
    angle, rows = (0.25, 0.35, 0.5, 0.8, 1.3)[seed], normal(30, 3, seed=seed)
    found = realized_volume(rows, angle, 60_000, seed)
    unit = rows.numpy() / np.linalg.norm(rows.numpy(), axis=1, keepdims=True)
    points = np.random.default_rng(seed).normal(size=(400_000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    covered = ((points @ unit.T).max(1) >= math.cos(angle)).mean()
    one_cap = (1 - math.cos(angle)) / 2  # Archimedes
    error = math.hypot(found.standard_error, math.sqrt(covered * (1 - covered) / len(points)) / one_cap)
    assert abs(found.value - covered / one_cap) < 3 * error
    assert error < 0.01 * found.value
    assert 1 <= found.value <= found.most


def test_volume_of_two_overlapping_caps_in_the_plane():
    rows = torch.tensor([[1.0, 0.0], [math.cos(0.3), math.sin(0.3)]], dtype=torch.float64)
    found = realized_volume(rows, 0.5, 100_000)
    assert abs(found.value - (1.0 + 0.3) / 1.0) < 3 * found.standard_error < 0.01


def test_standard_error_is_the_spread_over_seeds():
    rows = normal(20, 4)
    runs = [realized_volume(rows, 0.7, 1000, seed) for seed in range(200)]
    spread = np.std([run.value for run in runs], ddof=1)
    assert np.mean([run.standard_error for run in runs]) == pytest.approx(spread, rel=0.15)


@pytest.mark.parametrize("d", [2, 3, 10, 65, 500])
@pytest.mark.parametrize("angle", [0.3, 0.8, 1.2, 1.5, math.pi / 2])
def test_points_are_uniform_in_their_cap(d, angle):
    from scipy.special import betainc
    from scipy.stats import kstest

    centre = torch.nn.functional.normalize(normal(1, d))
    generator = torch.Generator().manual_seed(d)
    points = caps._uniform_in_caps(centre.expand(1500, -1), angle, generator)
    assert torch.allclose(points.norm(dim=1), torch.ones(1500, dtype=torch.float64), atol=1e-14)
    angles = torch.linalg.vector_norm(points - (points @ centre.T) * centre, dim=1).arcsin().numpy()
    inside = betainc((d - 1) / 2, 0.5, np.sin(angles) ** 2) / betainc((d - 1) / 2, 0.5, math.sin(angle) ** 2)
    assert kstest(inside, "uniform").pvalue > 1e-3
    across = torch.nn.functional.normalize(points - (points @ centre.T) * centre)
    assert across.mean(0).norm() < 4 / math.sqrt(1500)


def test_cap_share():
    from scipy.special import betainc

    for d in (2, 3, 10, 65, 1000, 100_000):
        for angle in (0.1, 0.7, 1.2, 1.5, math.pi / 2):
            assert cap_share(d, angle) == pytest.approx(0.5 * betainc((d - 1) / 2, 0.5, math.sin(angle) ** 2), rel=1e-9)
    assert realized_volume(torch.eye(3), math.pi / 2).most == 2
    assert realized_volume(torch.eye(3), 0.1).most == 3


# --- of a model


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def test_layers_of_a_network():
    model = network()
    (layer,) = hidden_layers(model)
    assert layer.name == "0"
    for neuron in range(8):
        row = [*model[0].weight[neuron].tolist(), model[0].bias[neuron].item()]
        out = model[2].weight[:, neuron].tolist()
        assert layer.rows[neuron].tolist() == row
        assert layer.mass[neuron].item() == pytest.approx(math.hypot(*row) * math.hypot(*out))


def test_layers_of_a_convolutional_network():
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Conv2d(4, 6, 2, bias=False),
        nn.LeakyReLU(),
        nn.Flatten(),
        nn.Linear(24, 10),
    )
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    first, second = hidden_layers(model)
    assert (first.name, second.name) == ("0.0", "1")
    assert first.rows.shape == (4, 10)
    assert second.rows.shape == (6, 16)
    out = model[4].weight.view(10, 6, 2, 2)[:, 2].flatten()  # Flatten keeps channels together
    assert second.mass[2].item() == pytest.approx((second.rows[2].norm() * out.norm()).item())
    out = model[1].weight[:, 3].flatten()
    assert first.mass[3].item() == pytest.approx((first.rows[3].norm() * out.norm()).item())


@pytest.mark.parametrize("volume", ["log", "union"])
def test_functional_is_entropy_plus_volume(volume):
    model = network()
    (layer,) = hidden_layers(model)
    found = geometric_functional(model, 0.3, volume=volume, angle=0.8, epsilon=0.4, samples=500, seed=2)
    union = realized_volume(layer.rows, 0.8, 500, 2)
    wanted = log_volume(layer.rows, 0.4).item() if volume == "log" else union.value
    assert found.volume.item() == wanted
    assert found.entropy.item() == pytest.approx(orbit_entropy(layer.rows, layer.mass).item(), rel=1e-12)
    assert found.value.item() == pytest.approx(found.entropy.item() + 0.3 * wanted)
    assert found.layers == {"0": (found.entropy.item(), wanted)}
    assert found.value.requires_grad == (volume == "log")
    assert found.volume_error == (union.standard_error if volume == "union" else 0)


def test_functional_sums_over_layers():
    deep = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
    found = geometric_functional(deep, 0.5)
    parts = [geometric_functional(deep, 0.5, layers=[pair]).value.item() for pair in (("0", "2"), ("2", "4"))]
    assert list(found.layers) == ["0", "2"]
    assert found.value.item() == pytest.approx(sum(parts))


def test_functional_of_one_hidden_layer_ignores_rescaling_and_order():
    model = network()
    moved = copy.deepcopy(model)
    factor, order = mass_of(8) * 10, torch.randperm(8)
    with torch.no_grad():
        moved[0].weight.copy_((model[0].weight * factor[:, None])[order])
        moved[0].bias.copy_((model[0].bias * factor)[order])
        moved[2].weight.copy_((model[2].weight / factor)[:, order])
    x = normal(20, 5)
    assert torch.allclose(model(x), moved(x), atol=1e-13)
    before, after = geometric_functional(model, 0.2), geometric_functional(moved, 0.2)
    assert after.value.item() == pytest.approx(before.value.item(), abs=1e-12)
    unbalanced = orbit_entropy(hidden_layers(moved)[0].rows, hidden_layers(moved)[0].rows.norm(dim=1))
    assert abs(unbalanced.item() - before.entropy.item()) > 1e-2  # the mass is what makes it so


def test_functional_reaches_every_weight_it_depends_on():
    model = network()
    geometric_functional(model, 0.3).value.backward()
    assert model[2].bias.grad is None
    step = 1e-6
    for parameter in (model[0].weight, model[0].bias, model[2].weight):
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter += step * direction
            above = geometric_functional(model, 0.3).value
            parameter -= 2 * step * direction
            below = geometric_functional(model, 0.3).value
            parameter += step * direction
        slope = ((above - below) / (2 * step)).item()
        assert (parameter.grad * direction).sum().item() == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_minimising_it_alone_collapses_the_layer():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    start = geometric_functional(model, 0.1)
    for _ in range(300):
        optimizer.zero_grad()
        geometric_functional(model, 0.1).value.backward()
        optimizer.step()
    end = geometric_functional(model, 0.1)
    assert start.entropy > 1.2
    assert end.entropy < 0.05
    assert end.volume < start.volume / 2


def test_a_dead_neuron_is_no_obstacle():
    model = network()
    with torch.no_grad():
        model[2].weight[:, 1] = 0
        model[0].weight[4], model[0].bias[4] = 0, 0
    found = geometric_functional(model, 0.3)
    found.value.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# --- what it refuses


@pytest.mark.parametrize("lam", [-0.1, math.nan, math.inf])
def test_negative_lambda(lam):
    with pytest.raises(ValueError, match=r"lam: expected λ ≥ 0, got"):
        geometric_functional(network(), lam)


@pytest.mark.parametrize("angle", [0, -0.1, 1.6, 45, math.nan])
def test_angles(angle):
    for measure in (log_orbit_count, realized_volume):
        with pytest.raises(ValueError, match=r"angle: expected radians in \(0, π/2\]"):
            measure(torch.eye(3), angle)
    with pytest.raises(ValueError, match=r"angle: expected radians"):
        geometric_functional(network(), 0.1, volume="union", angle=angle)


@pytest.mark.parametrize(
    ("rows", "mass", "error", "match"),
    [
        ([[1.0]], None, TypeError, "rows: expected a floating-point torch.Tensor, got list"),
        (torch.ones(2, 2, dtype=torch.int64), None, TypeError, "got torch.int64"),
        (torch.ones(2), None, ValueError, r"expected shape \(neurons, dimensions\)"),
        (torch.ones(0, 2), None, ValueError, "neither 0"),
        (torch.tensor([[1.0, math.nan]]), None, ValueError, "expected finite numbers, got 1 that are not"),
        (torch.zeros(2, 2), None, ValueError, "at least one neuron with mass and a direction"),
        (torch.eye(2), torch.zeros(2), ValueError, "at least one neuron with mass and a direction"),
        (torch.eye(2), torch.ones(3), ValueError, r"one number a row, 2, got shape \(3,\)"),
        (torch.eye(2), torch.tensor([1.0, -1.0]), ValueError, "mass: expected finite numbers ≥ 0"),
        (torch.eye(2), torch.tensor([1, 1]), TypeError, "mass: expected a floating-point"),
    ],
)
def test_rows_and_masses(rows, mass, error, match):
    for measure in (orbit_entropy, participation_ratio):
        with pytest.raises(error, match=match):
            measure(rows, mass)
    if mass is None:
        for measure in (log_volume, lambda r: realized_volume(r, 0.5), lambda r: log_orbit_count(r, 0.5)):
            with pytest.raises(error, match=match):
                measure(rows)


def test_other_numbers_out_of_range():
    with pytest.raises(ValueError, match="samples: expected at least 1, got 0"):
        realized_volume(torch.eye(2), 0.5, samples=0)
    with pytest.raises(ValueError, match="at least two dimensions a row"):
        realized_volume(torch.ones(3, 1), 0.5)
    with pytest.raises(ValueError, match="epsilon: expected a number above 0, got 0"):
        log_volume(torch.eye(2), 0)
    with pytest.raises(ValueError, match="volume: expected one of 'log', 'union', got 'sum'"):
        geometric_functional(network(), 0.1, volume="sum")


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))


NORMED = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
GROUPED = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2))


@pytest.mark.parametrize(
    ("model", "layers", "error", "match"),
    [
        (nn.Sequential(nn.Linear(3, 2)), None, ValueError, "no hidden layer whose neurons can be rescaled"),
        (Named(), None, ValueError, r"layers=\[\('fc1', 'fc2'\)\].*Tanh"),
        (NORMED, None, ValueError, "a norm stands between the weights and the activation of '1'"),
        (Named(), [], ValueError, "layers: expected at least one pair"),
        (Named(), [("fc1", "fc3")], ValueError, "has no layer 'fc3'. It has: fc1, fc2"),
        (Named(), [("fc1", "act")], TypeError, "got 'act', which is none"),
        (Named(), [("fc2", "fc1")], ValueError, "expected 'fc1' to read the 2 neurons of 'fc2', got 3 inputs"),
        (GROUPED, [("0", "2")], ValueError, "convolution of groups"),
    ],
)
def test_models(model, layers, error, match):
    with pytest.raises(error, match=match):
        geometric_functional(model, 0.1, layers=layers)


def test_named_pairs_are_measured_whatever_stands_between():
    model = network()
    named = hidden_layers(model, [("0", "2")])
    found = hidden_layers(model)
    assert torch.equal(named[0].rows, found[0].rows)
    assert torch.allclose(named[0].mass, found[0].mass)
    assert geometric_functional(Named(), 0.1, layers=[("fc1", "fc2")]).value.requires_grad
    assert [layer.name for layer in hidden_layers(NORMED, [("0", "3")])] == ["0"]


def test_symmetries_found_once_serve_many_calls():
    model = network()
    found = symmetries(model)
    before = geometric_functional(found, 0.1).value.item()
    with torch.no_grad():
        model[0].weight[0] *= -1
    after = geometric_functional(found, 0.1).value.item()
    assert after == geometric_functional(model, 0.1).value.item() != before
    assert geometric_functional(found, 0.1, layers=[("0", "2")]).value.item() == pytest.approx(after)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 5), nn.Linear(5, 5, bias=False), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        return self.head(x + self.second(x).relu())


def test_neurons_that_a_residual_add_joins_are_one_layer():
    model = Residual()
    (layer,) = hidden_layers(model)
    assert layer.rows.shape == (5, 3 + 1 + 5)
    out = torch.cat((model.second.weight[:, 2], model.head.weight[:, 2]))
    assert layer.mass[2].item() == pytest.approx((layer.rows[2].norm() * out.norm()).item())


def test_deep_networks_need_the_canonical_form():
    torch.manual_seed(0)
    deep = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 2)).double()
    moved = random_representative(deep, seed=1)
    raw = [geometric_functional(model, 0.2).value.item() for model in (deep, moved)]
    canonical = [geometric_functional(canonicalize(model), 0.2).value.item() for model in (deep, moved)]
    assert abs(raw[0] - raw[1]) > 1e-3
    assert canonical[0] == pytest.approx(canonical[1], abs=1e-9)


def test_log_volume_is_a_number_for_each_direction():
    """It says how spread out directions are, not how many; all n take n + d times it."""
    torch.manual_seed(0)
    few, many = (log_volume(torch.randn(count, 16).double()).item() for count in (1000, 10_000))
    assert many == pytest.approx(few, rel=0.02)
    rows = torch.nn.functional.normalize(torch.randn(6, 4).double(), dim=1)
    whole = (6 + 4) / 2 * torch.logdet(torch.eye(4).double() + 4 / (6 * 0.25) * rows.T @ rows)
    assert 10 * log_volume(rows).item() == pytest.approx(whole.item())


@pytest.mark.parametrize(("count", "dim"), [(128, 65), (512, 785), (20, 3)])
def test_at_the_telling_angle_random_directions_fill_half(count, dim):
    torch.manual_seed(0)
    angle = telling_angle(count, dim)
    found = realized_volume(torch.randn(count, dim), angle)
    assert 0 < angle < math.pi / 2
    assert found.value / count == pytest.approx(0.5, abs=0.1)
    copies = torch.randn(count // 4, dim).repeat(4, 1)
    assert realized_volume(copies, angle).value < 0.8 * found.value
    assert realized_volume(torch.randn(count, dim)).angle == angle


def test_caps_that_cannot_tell_are_warned_of():
    torch.manual_seed(0)
    rows = torch.randn(64, 200)
    with pytest.warns(UserWarning, match=r"caps of 60° round 64 directions in 200 dimensions .* angle=None takes 8\d°"):
        blind = realized_volume(rows, math.pi / 3, samples=640)
    assert (blind.value, blind.standard_error) == (64, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        realized_volume(rows)
        realized_volume(rows[:4].repeat(16, 1), math.pi / 3, samples=640)  # copies tell even so
        realized_volume(torch.eye(4), math.pi / 4)  # in few dimensions a cap is a good part of the sphere
