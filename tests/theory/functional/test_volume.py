"""The volume of caps, against brute force and by its error bar."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from sdsd.theory.functional import (
    cap_share,
    log_volume,
    realized_volume,
    telling_angle,
)
from sdsd.theory.functional import volume as caps

from .rows import normal


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
