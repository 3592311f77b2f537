"""Approximate search beside exact search: what it finds, and whether it knows how much that is."""

from __future__ import annotations

import doctest
import sys
import warnings

import pytest
import torch

from sdsd._extras import MissingExtraError
from sdsd.geometry import approximate_neighbors, neuron_neighbors
from sdsd.geometry.cosines import approximate as module

pytest.importorskip("faiss")


def share_found(found, exact):
    return (found.indices[:, :, None] == exact.indices[:, None]).any(2).float().mean().item()


@pytest.mark.parametrize(("farthest", "center"), [(False, False), (True, False), (False, True)])
def test_few_neurons_are_searched_as_well_as_exactly(farthest, center):
    x = torch.randn(20, 120) + 0.5
    found = approximate_neighbors(x, 5, farthest, center=center, effort=120)
    exact = neuron_neighbors(x, 5, farthest, center=center)
    assert torch.equal(found.indices, exact.indices)
    assert torch.allclose(found.values, exact.values, atol=1e-6)
    assert (found.recall, found.checked) == (1.0, 120)
    assert 0.95 < found.recall_interval[0] < found.recall_interval[1] <= 1


def test_the_recall_is_that_of_all_neurons():
    x = torch.randn(48, 3000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        found = approximate_neighbors(x, 10, effort=11, check=1000)
    true = share_found(found, neuron_neighbors(x, 10))
    assert 0.1 < true < 0.99
    assert abs(found.recall - true) < 0.03
    assert found.recall_interval[0] < true < found.recall_interval[1]
    assert approximate_neighbors(x, 10, effort=400).recall > found.recall


def test_a_low_recall_is_warned_of(capsys):
    x = torch.randn(200, 3000)
    with pytest.warns(RuntimeWarning, match="of the true neighbours of 50 neurons were found. A larger effort than 1"):
        found = approximate_neighbors(x, 1, farthest=True, effort=1, check=50, progress=True)
    assert f"recall {found.recall:.4f}" in capsys.readouterr().out
    assert "1 neighbours of 3,000 neurons by approximate search" in str(found)


def test_equal_neurons_and_neurons_without_direction():
    x = torch.randn(12, 40)
    x[:, 20:] = x[:, :20] * 2
    x[:, 3] = 0
    x[2, 7] = torch.nan
    found = approximate_neighbors(x, 2, effort=40)
    none = [3, 7]
    assert (found.indices[none] == -1).all()
    assert found.values[none].isnan().all()
    assert not torch.isin(found.indices, torch.tensor(none)).any()
    assert found.recall == 1
    others = [i for i in range(40) if i not in (3, 7, 23, 27)]
    assert all((i + 20) % 40 in found.indices[i].tolist() for i in others)
    assert torch.allclose(found.values[others, 0], torch.ones(len(others)), atol=1e-6)


def test_fewer_live_neurons_than_neighbours():
    x = torch.zeros(6, 10)
    x[:, :3] = torch.randn(6, 3)
    found = approximate_neighbors(x, 5)
    assert (found.indices[:3] >= 0).sum(1).tolist() == [2, 2, 2]
    assert (found.indices[3:] == -1).all()
    exact = neuron_neighbors(x, 5)
    assert torch.equal(found.indices, exact.indices)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_no_live_neuron(value):
    found = approximate_neighbors(torch.full((6, 10), value), 3)
    assert found.values.isnan().all()
    assert (found.indices == -1).all()
    assert found.recall_interval == (0.0, 1.0)


def test_scales_do_not_matter():
    x = torch.randn(20, 60)
    scaled = x.double() * 10.0 ** torch.randint(-30, 30, (60,))
    assert torch.equal(approximate_neighbors(scaled, 3, effort=60).indices, neuron_neighbors(x, 3).indices)


def test_refusals(monkeypatch):
    x = torch.randn(5, 8)
    with pytest.raises(ValueError, match="k: expected at most 7 neighbours for 8 neurons, got 8"):
        approximate_neighbors(x, 8)
    with pytest.raises(ValueError, match="effort"):
        approximate_neighbors(x, 2, effort=0)
    with pytest.raises(ValueError, match="at least one sample"):
        approximate_neighbors(x[:0], 2)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingExtraError, match=r"approximate search needs faiss-cpu.*'\.\[neighbours\]'"):
        approximate_neighbors(x, 2)


def test_examples():
    assert doctest.testmod(module).failed == 0
