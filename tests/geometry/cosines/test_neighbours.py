"""Neighbours in what layers give, cosines between layers, and who counts as alive."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sdsd
from sdsd.geometry.arithmetic import norms_of
from sdsd.geometry.cosines.neighbours import alive_from_norms
from tests.helpers import assert_within, cosine_error


def cosines(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of rows, in float64, one pair at a time."""
    rows = [[torch.dot(a, b) / (a.norm() * b.norm()) for b in y.double()] for a in x.double()]
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("farthest", [False, True])
@pytest.mark.parametrize(
    ("shape", "neuron_dim", "default"),
    [((9, 12), 1, True), ((3, 4, 12), 2, True), ((3, 12, 4), 1, False), ((3, 12, 2, 2), 1, True), ((12, 9), 0, False)],
)
def test_neighbors_of_what_layers_give(shape, neuron_dim, default, farthest):
    activations = torch.randn(shape)
    found = sdsd.neuron_neighbors(activations, 3, farthest, neuron_dim=None if default else neuron_dim)
    rows = activations.movedim(neuron_dim, 0).flatten(1)
    wanted = cosines(rows, rows).fill_diagonal_(torch.inf if farthest else -torch.inf)
    best = wanted.topk(3, dim=1, largest=not farthest)
    assert torch.equal(found.indices, best.indices)
    assert_within(found.values, best.values, cosine_error(rows).gather(1, best.indices))


def test_ten_neighbors_unless_told():
    values, indices = sdsd.neuron_neighbors(torch.randn(5, 12))
    assert values.shape == indices.shape == (12, 10)


@pytest.mark.parametrize("name", ["float64", "float32", "float16"])
def test_neighbors_in_arrays(name):
    array = np.random.default_rng(0).normal(size=(20, 12)).astype(name)
    array.flags.writeable = False
    found = sdsd.neuron_neighbors(array, 3)
    assert torch.equal(found.indices, sdsd.neuron_neighbors(torch.tensor(array), 3).indices)
    assert found.values.dtype == (torch.float64 if name == "float64" else torch.float32)
    assert torch.equal(found.indices, sdsd.neuron_neighbors(array[:, ::-1][:, ::-1], 3).indices)


def test_neighbors_in_another_model():
    x = torch.randn(6, 8, 3, 3)
    shuffled = torch.randperm(8)
    back = shuffled.argsort()
    found = sdsd.neuron_neighbors(x, 1, other=x[:, shuffled])
    assert torch.equal(found.indices[:, 0], back)
    # Another layer may lay its samples out as rows: (batch · height · width, neurons).
    rows = x.movedim(1, -1).flatten(0, 2)[:, shuffled]
    assert torch.equal(sdsd.neuron_neighbors(x, 1, other=rows).indices[:, 0], back)
    assert torch.equal(sdsd.neuron_neighbors(rows.numpy(), 1, other=x).indices[:, 0], shuffled)


def test_centred_neighbors_are_correlations():
    x = torch.randn(30, 9) + 5
    found = sdsd.neuron_neighbors(x, 8, center=True)
    wanted = torch.from_numpy(np.corrcoef(x.double().numpy().T))
    allowed = cosine_error(x.T, center=True)
    assert_within(found.values, wanted.gather(1, found.indices), allowed.gather(1, found.indices))


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: sdsd.neuron_neighbors([1.0]), TypeError, "activations: expected a torch.Tensor or a NumPy array"),
        (lambda: sdsd.neuron_neighbors(torch.ones(2, 4), 1, other=[1.0]), TypeError, r"other: .*as_tensor\(other\)"),
        (lambda: sdsd.neuron_neighbors(torch.ones(2, 4)), ValueError, "k: expected 1 to 3 for 4 neurons, got 10"),
        (lambda: sdsd.neuron_neighbors(torch.ones(2, 1), 1), ValueError, "at least two neurons"),
        (lambda: sdsd.neuron_neighbors(torch.ones(2, 4), 1, progress=1), TypeError, "progress: expected True, False"),
        (lambda: sdsd.neuron_neighbors(torch.ones(2, 4), 1, max_bytes=10), ValueError, "max_bytes: expected at least"),
        (lambda: sdsd.neuron_neighbors(torch.ones(2, 4, 3, 3), 1, other=torch.tensor(1.0)), ValueError, "two dimens"),
        (lambda: sdsd.cosine_between(torch.ones(2, 4), "y"), TypeError, "y: expected a torch.Tensor or a NumPy array"),
        (lambda: sdsd.cosine_between(torch.ones(2, 4), np.ones((2, 4), int)), TypeError, "y: expected float64"),
    ],
)
def test_bad_input_to_neighbors(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_progress_is_shown_or_told(capsys):
    steps = []
    sdsd.neuron_neighbors(torch.randn(5, 12), 3, progress=lambda done, total: steps.append((done, total)))
    assert steps[-1] == (1, 1)
    assert capsys.readouterr().err == ""
    sdsd.neuron_neighbors(torch.randn(5, 12), 3, progress=True)
    assert "neuron_neighbors: 1/1" in capsys.readouterr().err
    sdsd.cosine_between(torch.randn(5, 12), torch.randn(5, 3), progress=True)
    assert "cosine_between: 1/1" in capsys.readouterr().err


@pytest.mark.parametrize("center", [False, True])
def test_cosines_between_layers_of_any_layout(center):
    x, y = torch.randn(4, 5, 2, 3), torch.randn(4, 7, 2, 3)
    rows = [part.movedim(1, 0).flatten(1) for part in (x, y)]
    allowed = cosine_error(*rows, center=center)
    if center:
        rows = [part.double() - part.double().mean(1, keepdim=True) for part in rows]
    wanted = cosines(*rows)
    for one, two in ((x, y), (x.movedim(1, -1).flatten(0, 2), y), (x, y.movedim(1, -1).flatten(0, 2).numpy())):
        assert_within(sdsd.cosine_between(one, two, center=center), wanted, allowed)


def alive(activations, neuron_dim):
    return alive_from_norms(norms_of(activations.movedim(neuron_dim, 0)))


def test_alive_is_relative_and_per_neuron():
    activations = torch.zeros(5, 4)
    activations[0] = torch.tensor([1.0, 0.0, 2e-3, 0.5e-3])
    assert alive(activations, -1).tolist() == [True, False, True, False]
    assert alive(activations * 1e-20, 1).tolist() == [True, False, True, False]
    assert alive(activations.T, 0).tolist() == [True, False, True, False]
    images = activations.reshape(5, 4, 1, 1).expand(5, 4, 2, 3)
    assert alive(images, 1).tolist() == [True, False, True, False]
    assert not alive(torch.zeros(3, 2), -1).any()
    activations[1, 0] = torch.nan
    assert alive(activations, -1).tolist() == [False, False, True, True]
    assert alive_from_norms(torch.tensor([0.0, 1.0, torch.inf, 0.2, 0.1]), 0.2).tolist() == [0, 1, 0, 1, 0]
