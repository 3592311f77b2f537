"""The volume of a basin: ellipsoids, shares of a Gaussian, and the bound."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sdsd.theory import basin_volume, random_representative

NOTHING = torch.zeros(1)


class Point(nn.Module):
    def __init__(self, *at: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(at, dtype=torch.float64))


def bowl(*stiffness: float, centre: float = 0.0):
    h = torch.tensor(stiffness, dtype=torch.float64)
    return lambda model, x: (h * (model.w - centre).square()).sum() / 2


def log_ellipsoid(stiffness: tuple[float, ...], threshold: float) -> float:
    d = len(stiffness)
    axes = sum(math.log(math.sqrt(2 * threshold / h)) for h in stiffness)
    return d / 2 * math.log(math.pi) - math.lgamma(d / 2 + 1) + axes


def test_an_ellipsoid():
    stiffness = tuple(10 ** (k / 8 - 1.5) for k in range(25))
    found = basin_volume(
        Point(*[0.0] * 25), NOTHING, bowl(*stiffness), threshold=0.3, canonicalize=False, directions=20
    )
    # The floor of A (a thousandth of the mean curvature) keeps the rounded basin from being a sphere exactly.
    assert found.log_volume == pytest.approx(log_ellipsoid(stiffness, 0.3), abs=0.1)
    assert found.effective_directions > 15
    assert found.lower_bound(0.9) == pytest.approx(found.log_volume + math.log(0.1))


def test_rays_as_they_come_have_the_same_mean_and_are_worth_less():
    stiffness = (1.0, 9.0, 25.0)
    plain = basin_volume(Point(0, 0, 0), NOTHING, bowl(*stiffness), canonicalize=False, directions=1000, probes=0)
    assert plain.log_volume == pytest.approx(log_ellipsoid(stiffness, 0.1), abs=0.2)
    assert 100 < plain.effective_directions < 1000


def test_a_rotated_basin():
    """Not diagonal, so that A rounds it only in part; the mean stays."""
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    h = turn @ torch.diag(torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)) @ turn.mT
    found = basin_volume(Point(0, 0, 0, 0), NOTHING, lambda m, x: m.w @ h @ m.w / 2, canonicalize=False, directions=600)
    assert found.log_volume == pytest.approx(log_ellipsoid((1, 2, 4, 8), 0.1), abs=0.15)


@pytest.mark.parametrize("dim", [2, 6, 40])
def test_a_share_of_a_gaussian(dim):
    """P(‖w‖² ≤ 2t/h) of a normal w is a regularised gamma function."""
    found = basin_volume(
        Point(*[0.0] * dim),
        NOTHING,
        bowl(*[2.0] * dim),
        threshold=0.5,
        prior_scale=0.3,
        canonicalize=False,
        directions=10,
    )
    exact = torch.special.gammainc(torch.tensor(dim / 2.0).double(), torch.tensor(0.5 / (2 * 0.3**2)).double())
    assert found.log_volume == pytest.approx(exact.log().item(), abs=0.02)


def test_a_share_of_a_gaussian_off_centre():
    """Against a plain count of normal points."""
    found = basin_volume(
        Point(0.5, 0.5, 0.5),
        NOTHING,
        bowl(1.0, 3.0, 9.0, centre=0.5),
        threshold=0.5,
        prior_scale=0.7,
        canonicalize=False,
        directions=600,
    )
    points = 0.7 * torch.randn(2_000_000, 3, dtype=torch.float64) - 0.5
    inside = ((points.square() * torch.tensor([1.0, 3.0, 9.0])).sum(1) / 2 <= 0.5).double().mean().item()
    assert found.log_volume == pytest.approx(math.log(inside), abs=0.1)


def test_a_ray_without_end():
    endless = Point(0.0, 0.0)

    def half(model: nn.Module, x: Tensor) -> Tensor:
        return torch.relu(model.w[0]) * 0 + torch.relu(model.w[1])

    with pytest.raises(
        ValueError,
        match="a ray is still in the basin 1,000,000 times as far out.*volume is infinite.*Give prior_scale",
    ):
        basin_volume(endless, NOTHING, half, canonicalize=False, probes=0)
    found = basin_volume(endless, NOTHING, half, canonicalize=False, probes=0, prior_scale=1.0, directions=400)
    share = 0.5 * (1 + math.erf(0.1 / math.sqrt(2)))  # P(w₁ ≤ 0.1)
    assert math.exp(found.log_volume) == pytest.approx(share, abs=0.07)


def test_the_first_way_out_counts():
    """A ring beyond a wall belongs to another basin."""

    def walled(model: nn.Module, x: Tensor) -> Tensor:
        r = model.w.norm()
        return torch.where((r > 1) & (r < 2), 1.0, torch.where(r < 3, 0.0, 1.0)) + 0 * r

    found = basin_volume(Point(1e-9, 0.0), NOTHING, walled, canonicalize=False, probes=0, directions=20, threshold=0.5)
    assert math.exp(found.log_volume) == pytest.approx(math.pi, rel=0.01)


def test_one_number_for_the_orbit():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    batch = (torch.randn(50, 4).double(), torch.randint(2, (50,)))
    moved = random_representative(model, spread=1.0, seed=1)

    def loss(m: nn.Module, b) -> Tensor:
        return cross_entropy(m(b[0]), b[1])

    arguments = {"directions": 30, "prior_scale": 1.0}
    here, there = (basin_volume(each, batch, loss, **arguments) for each in (model, moved))
    assert here.log_volume == pytest.approx(there.log_volume, abs=1e-3)
    raw = [basin_volume(each, batch, loss, canonicalize=False, **arguments).log_volume for each in (model, moved)]
    assert abs(raw[0] - raw[1]) > 1
    assert "37 parameters, 30 rays" in str(here)


def test_arguments():
    for name, value in (("threshold", 0.0), ("prior_scale", -1.0), ("directions", 1), ("probes", -1)):
        with pytest.raises(ValueError, match=f"{name}: expected"):
            basin_volume(Point(0.0), NOTHING, bowl(1.0), canonicalize=False, **{name: value})


@pytest.mark.parametrize("stiffness", [1e-8, 1e8, 1e16, 1e24])
@pytest.mark.parametrize("probes", [0, 4])
def test_a_basin_of_any_size(stiffness, probes):
    """With probes=0 rays are looked at as if the curvature were 1."""
    found = basin_volume(
        Point(0.0, 0.0), NOTHING, bowl(stiffness, stiffness), canonicalize=False, directions=3, probes=probes
    )
    assert found.log_volume == pytest.approx(log_ellipsoid((stiffness, stiffness), 0.1), abs=1e-3)
