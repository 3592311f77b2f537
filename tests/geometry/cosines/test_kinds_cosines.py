"""Matrices of cosines as NumPy users pass them, and what is no such matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sdsd import neuron_cosine_matrix
from sdsd.geometry import NeuronMap, mass_consolidation
from sdsd.geometry.merging import biopsy

X = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
COSINE = neuron_cosine_matrix(X)


def loss(model):
    return model(X[:, :3]).square().mean()


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_arrays_are_taken(dtype):
    array, alive = COSINE.numpy().astype(dtype), np.arange(8) < 6
    drawn = NeuronMap.from_cosine(array, alive=alive, norms=np.ones(8), correlation=array)
    assert sorted(drawn.order) == [0, 1, 2, 3, 4, 5]
    tensor = biopsy(model(), "0", loss, 2, cosine=torch.from_numpy(array), alive=torch.from_numpy(alive))
    given = biopsy(model(), "0", loss, 2, cosine=array, alive=alive)
    assert given.near == tensor.near
    assert mass_consolidation(model(), "0", loss, 2, cosine=array).pairs


DISTANCES = 1 - COSINE
ASYMMETRIC = COSINE.clone()
ASYMMETRIC[1, 2] += 0.1


@pytest.mark.parametrize(
    ("matrix", "error", "says"),
    [
        (DISTANCES, ValueError, "0 on the whole diagonal, as distances have it. Pass 1 - cosine"),
        (DISTANCES.numpy(), ValueError, "0 on the whole diagonal"),
        (ASYMMETRIC, ValueError, "expected a symmetric matrix"),
        (X.T @ X, ValueError, "expected 1 on the diagonal"),
        (COSINE * 1.5, ValueError, "expected 1 on the diagonal"),
        ((COSINE * 30).fill_diagonal_(1), ValueError, "-1 to 1, got entries up to"),
        (COSINE[:, :5], ValueError, "square"),
        (torch.eye(8).long(), TypeError, "floating-point numbers, got torch.int64"),
        (COSINE.tolist(), TypeError, "Tensor or a NumPy array, got list"),
    ],
)
def test_what_is_no_matrix_of_cosines_is_refused(matrix, error, says):
    with pytest.raises(error, match=says):
        NeuronMap.from_cosine(matrix)
    with pytest.raises(error, match=says):
        biopsy(model(), "0", loss, 2, cosine=matrix)


def test_dead_neurons_and_nan_are_part_of_such_a_matrix():
    cosine = COSINE.clone()
    cosine[3], cosine[:, 3] = 0, 0
    cosine[5], cosine[:, 5] = torch.nan, torch.nan
    assert sorted(NeuronMap.from_cosine(cosine).order) == [0, 1, 2, 4, 6, 7]
    assert NeuronMap.from_cosine(torch.zeros(4, 4)).order == ()
