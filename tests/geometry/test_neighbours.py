"""Greedy disjoint pairs against a search that tries every pair."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from sdsd.geometry.neighbours import alive_neurons, extreme_pairs


def symmetric(n: int, seed: int) -> torch.Tensor:
    values = torch.rand(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    return (values + values.T) / 2


def by_search(cosine: torch.Tensor, count: int, farthest: bool, alive: set[int]) -> list[tuple[int, int]]:
    free, found = set(alive), []
    while len(found) < count and len(free) > 1:
        sign = -1 if farthest else 1
        best = max(combinations(sorted(free), 2), key=lambda pair: sign * cosine[pair].item())
        found.append(best)
        free -= set(best)
    return found


@pytest.mark.parametrize("n", [2, 3, 7, 12])
@pytest.mark.parametrize("farthest", [False, True])
def test_pairs_are_those_of_an_exhaustive_search(n, farthest):
    cosine = symmetric(n, seed=n)
    alive = torch.ones(n, dtype=torch.bool)
    alive[1:2] = n < 5
    pairs = extreme_pairs(cosine, 4, farthest, alive)
    wanted = by_search(cosine, 4, farthest, set(alive.nonzero().flatten().tolist()))
    assert [pair[:2] for pair in pairs] == wanted
    assert [pair.cosine for pair in pairs] == [cosine[pair].item() for pair in wanted]


def test_equal_cosines_go_to_the_lower_indices():
    assert [pair[:2] for pair in extreme_pairs(torch.ones(5, 5), 9)] == [(0, 1), (2, 3)]
    assert [pair[:2] for pair in extreme_pairs(torch.zeros(4, 4), 9, farthest=True)] == [(0, 1), (2, 3)]


def test_nan_is_never_chosen_and_the_input_stays():
    cosine = symmetric(4, seed=0)
    cosine[1] = cosine[:, 1] = torch.nan
    before = cosine.clone()
    for farthest in (False, True):
        pairs = extreme_pairs(cosine, 2, farthest)
        assert len(pairs) == 1
        assert 1 not in pairs[0][:2]
    assert torch.equal(cosine.nan_to_num(9), before.nan_to_num(9))


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_neurons(n):
    assert extreme_pairs(torch.ones(n, n), 3) == []


@pytest.mark.parametrize(
    ("cosine", "count", "alive"),
    [
        (torch.zeros(2, 3), 1, None),
        (torch.zeros(3), 1, None),
        (torch.zeros(3, 3), -1, None),
        (torch.zeros(3, 3), 1.5, None),
        (torch.zeros(3, 3), 1, torch.ones(2, dtype=torch.bool)),
        (torch.zeros(3, 3), 1, torch.ones(3)),
    ],
)
def test_bad_input(cosine, count, alive):
    with pytest.raises(ValueError, match="expected"):
        extreme_pairs(cosine, count, alive=alive)


def test_alive_is_relative_and_per_neuron():
    activations = torch.zeros(5, 4)
    activations[0] = torch.tensor([1.0, 0.0, 2e-3, 0.5e-3])
    assert alive_neurons(activations, -1).tolist() == [True, False, True, False]
    assert alive_neurons(activations * 1e-20, 1).tolist() == [True, False, True, False]
    assert alive_neurons(activations.T, 0).tolist() == [True, False, True, False]
    images = activations.reshape(5, 4, 1, 1).expand(5, 4, 2, 3)
    assert alive_neurons(images, 1).tolist() == [True, False, True, False]
    assert not alive_neurons(torch.zeros(3, 2), -1).any()
    activations[1, 0] = torch.nan
    assert alive_neurons(activations, -1).tolist() == [False, False, True, True]
