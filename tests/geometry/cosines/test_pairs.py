"""Pairs of neurons through the public functions; disjoint pairs against a greedy search through all of them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sdsd
from sdsd.geometry.cosines.pairs import (
    NeuronPair,
    NeuronPairs,
    cosine_histogram,
    disjoint_pairs,
    neuron_pairs,
    row_sums,
)
from sdsd_kernels.cosine_pairs import cpu, disjoint
from tests.helpers import assert_within, cosine_error, summation_error

NAN = float("nan")


def exact_cosines(x: Tensor) -> Tensor:
    """In float64, from sums of products; NaN for a neuron without direction."""
    rows = x.double().movedim(1, 0).flatten(1)
    squares = (rows * rows).sum(1)
    return torch.einsum("is,js->ij", rows, rows) / torch.sqrt(squares[:, None] * squares[None, :])


def greedy(cosine: Tensor, pairs: int, farthest: bool = False) -> list[tuple[int, int]]:
    """All pairs in order of cosine, first and second; each is taken if both its neurons are still there."""
    sign = 1 if farthest else -1
    n = len(cosine)
    ranked = sorted(
        (sign * cosine[i, j].item(), i, j) for i in range(n) for j in range(i + 1, n) if not cosine[i, j].isnan()
    )
    taken: set[int] = set()
    chosen = []
    for _, i, j in ranked:
        if len(chosen) < pairs and not {i, j} & taken:
            chosen.append((i, j))
            taken |= {i, j}
    return chosen


def indices(found: NeuronPairs) -> list[tuple[int, int]]:
    return [pair[:2] for pair in found]


@st.composite
def sign_vectors(draw) -> Tensor:
    """Neurons of sixteen ±1 or 0: cosines are multiples of 1/8, exact in every order of summation, with many ties."""
    neurons = draw(st.integers(2, 40))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    kinds = draw(st.integers(1, 40))
    x = torch.randint(0, 2, (16, kinds), generator=generator).float() * 2 - 1
    x = x[:, torch.randint(0, kinds, (neurons,), generator=generator)]
    x[:, torch.rand(neurons, generator=generator) < draw(st.sampled_from([0, 0.2]))] = 0
    x[0, torch.rand(neurons, generator=generator) < draw(st.sampled_from([0, 0.1]))] = NAN
    return x


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sign_vectors(), st.integers(1, 20), st.booleans(), st.sampled_from([1, 2, 5, 32]), st.sampled_from([1, 3, 128]))
def test_disjoint_pairs_are_those_of_the_whole_matrix(x, pairs, farthest, candidates, rows_together):
    cosine = exact_cosines(x)
    live = int((cosine.diagonal() > 0).sum())
    pairs = min(pairs, live // 2)
    if pairs == 0:
        return
    wanted = greedy(cosine, pairs, farthest)
    which = "farthest" if farthest else "nearest"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disjoint, "CANDIDATES", candidates)
        patch.setattr(disjoint, "ROWS_TOGETHER", rows_together)
        patch.setattr(cpu, "BLOCK", (8, 16))
        for found in (disjoint_pairs(x, pairs, which), disjoint_pairs(cosine=cosine, pairs=pairs, which=which)):
            assert indices(found) == wanted
            assert torch.equal(found.cosine.double(), torch.stack([cosine[pair] for pair in wanted]))


def check_greedy_within_rounding(found: NeuronPairs, rows: Tensor, farthest: bool = False, center=False) -> None:
    """Whatever is taken is, but for rounding, the best of what is free; no neuron twice; cosines are right.

    rows: float64 holds the activations.  # shape: (neurons, samples)
    """
    error = cosine_error(rows, center=center)
    cosine = exact_cosines((rows.double() - rows.double().mean(1, keepdim=True) * center).T)
    score = -cosine if farthest else cosine.clone()
    score[~torch.ones_like(score, dtype=torch.bool).triu(1)] = -torch.inf
    for first, second, value in found:
        assert score[first, second] > -torch.inf
        # The pair taken may have come out better than it is, and the best of what is free worse.
        assert score[first, second] + error[first, second] >= (score - error).max()
        assert abs(value - cosine[first, second]) <= error[first, second]
        for neuron in (first, second):
            score[neuron] = score[:, neuron] = -torch.inf


@pytest.mark.parametrize("farthest", [False, True])
@pytest.mark.parametrize("kind", ["spread", "clusters", "duplicates", "centred images", "halves", "all of them"])
def test_disjoint_pairs_of_real_numbers(kind, farthest, monkeypatch):
    monkeypatch.setattr(cpu, "BLOCK", (64, 100))
    monkeypatch.setattr(disjoint, "CANDIDATES", 4)
    x = torch.randn(30, 150)
    if kind in ("clusters", "duplicates"):
        x = x[:, torch.randint(0, 12, (150,))] + (1e-3 if kind == "clusters" else 0) * torch.randn(30, 150)
    if kind == "halves":
        x = x.bfloat16()
    center = kind == "centred images"
    if center:
        x = (x + 3).view(5, 3, 2, 150).movedim(3, 1)
    pairs = 75 if kind == "all of them" else 20
    found = disjoint_pairs(x, pairs, "farthest" if farthest else "nearest", center=center)
    assert len(found) == pairs
    check_greedy_within_rounding(found, x.movedim(1, 0).flatten(1), farthest, center)


def test_float64_and_every_scale():
    x = torch.randn(20, 60, dtype=torch.float64)
    assert indices(disjoint_pairs(x, 30)) == greedy(exact_cosines(x), 30)
    assert disjoint_pairs(x, 5).cosine.dtype == torch.float64
    scaled = (x * 10.0 ** torch.randint(-30, 30, (60,))).float()
    check_greedy_within_rounding(disjoint_pairs(scaled, 30), scaled.T)


@pytest.mark.parametrize("which", ["nearest", "farthest", "random"])
def test_only_living_neurons_are_paired(which):
    x = torch.randn(10, 30)
    x[:, [3, 17]] = 0
    x[4, 5] = torch.inf
    alive = torch.ones(30, dtype=torch.bool)
    alive[[0, 3, 29]] = False
    cosine = sdsd.neuron_cosine_matrix(x)
    for source in ({"activations": x}, {"cosine": cosine}):
        used = [neuron for pair in disjoint_pairs(pairs=13, which=which, **source) for neuron in pair[:2]]
        assert len(set(used)) == 26
        assert not set(used) & {3, 5, 17}
        found = disjoint_pairs(pairs=12, which=which, alive=alive, **source)
        used = [neuron for pair in found for neuron in pair[:2]]
        assert len(set(used)) == 24
        assert not set(used) & {0, 3, 5, 17, 29}
        assert all(first < second for first, second, _ in found)


def test_random_pairs_are_uniform_and_repeatable():
    x = torch.randn(10, 6)
    x[:, 2] = 0
    assert indices(disjoint_pairs(x, 2, "random", seed=5)) == indices(disjoint_pairs(x, 2, "random", seed=5))
    drawn = Counter(indices(disjoint_pairs(x, 2, "random", seed=seed))[0] for seed in range(1000))
    assert len(drawn) == 10
    # Ten pairs, 100 times each, give or take five standard deviations.
    assert all(abs(count - 100) < 5 * 90**0.5 for count in drawn.values())
    cosine = exact_cosines(x)
    for first, second, value in disjoint_pairs(x, 2, "random"):
        assert abs(value - cosine[first, second]) <= cosine_error(x.T)[first, second]
    matrix = sdsd.neuron_cosine_matrix(x)
    assert indices(disjoint_pairs(cosine=matrix, pairs=2, which="random")) == indices(disjoint_pairs(x, 2, "random"))


def test_the_matrix_is_left_alone():
    cosine = sdsd.neuron_cosine_matrix(torch.randn(10, 30))
    before = cosine.clone()
    disjoint_pairs(cosine=cosine, pairs=10, which="farthest")
    assert torch.equal(cosine, before)


def test_numpy_and_default_dimension():
    images = np.random.default_rng(0).standard_normal((4, 9, 3, 2)).astype(np.float32)
    tensor = torch.from_numpy(images)
    cosine = exact_cosines(tensor)
    upper = torch.ones(9, 9, dtype=torch.bool).triu(1)
    found = neuron_pairs(images, above=0.1)
    assert indices(found) == [tuple(pair) for pair in ((cosine >= 0.1) & upper).nonzero().tolist()]
    assert isinstance(next(iter(found)), NeuronPair)
    assert [pair.cosine for pair in found] == found.cosine.tolist()
    assert indices(neuron_pairs(images, below=-0.2)) == [
        tuple(pair) for pair in ((cosine <= -0.2) & upper).nonzero().tolist()
    ]
    assert indices(disjoint_pairs(images, 3)) == greedy(cosine, 3)
    allowed = cosine_error(tensor.movedim(1, 0).flatten(1)).sum(1) + summation_error(9) * cosine.abs().sum(1)
    assert_within(row_sums(images), cosine.sum(1) - 1, allowed)
    assert int(cosine_histogram(images, 7).counts.sum()) == 36
    tokens = images.reshape(4, 9, 6)
    assert len(row_sums(tokens)) == 6
    assert len(row_sums(tokens, neuron_dim=1)) == 9


def test_exported():
    for name in ("neuron_pairs", "disjoint_pairs", "cosine_histogram", "row_sums"):
        assert getattr(sdsd, name) is getattr(sdsd.geometry, name)
        assert name in sdsd.__all__


CALLS = {
    "pairs": lambda x, **options: neuron_pairs(x, above=0.5, **options),
    "disjoint": lambda x, **options: disjoint_pairs(x, 10, **options),
    "histogram": cosine_histogram,
    "row sums": row_sums,
}


@pytest.mark.parametrize("name", CALLS)
def test_progress_and_interruption(name, capsys, monkeypatch):
    monkeypatch.setattr(cpu, "BLOCK", (16, 16))
    x = torch.randn(5, 50)
    CALLS[name](x, progress=True)
    assert capsys.readouterr().err.endswith("\n")
    seen: list[tuple[int, int]] = []
    CALLS[name](x, progress=lambda done, total: seen.append((done, total)))
    assert len(seen) > 5
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]
    for stop in (1, len(seen)):
        calls = iter(range(1, stop + 1))

        def interrupt(done: int, total: int, calls=calls, stop=stop) -> None:
            if next(calls) == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            CALLS[name](x, progress=interrupt)
    CALLS[name](x)
    with pytest.raises(TypeError, match="progress: expected True, False or a function"):
        CALLS[name](x, progress="yes")


@pytest.mark.parametrize("name", CALLS)
def test_max_bytes(name):
    x = torch.randn(5, 50)
    assert str(CALLS[name](x, max_bytes=2**21)) is not None
    with pytest.raises(ValueError, match="max_bytes: expected at least .* got 100"):
        CALLS[name](x, max_bytes=100)
    with pytest.raises(TypeError, match="max_bytes: expected an int"):
        CALLS[name](x, max_bytes="1G")


def test_less_memory_changes_nothing():
    x, limit = torch.randn(2000, 700), 5_500_000
    tight = disjoint._Activations(x.T[:, None], None, False, limit)
    assert tight.rows_together < disjoint.ROWS_TOGETHER
    for which in ("nearest", "farthest", "random"):
        assert indices(disjoint_pairs(x, 20, which, max_bytes=limit)) == indices(disjoint_pairs(x, 20, which))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"pairs": 0}, ValueError, "pairs: expected at least 1, got 0"),
        ({"pairs": 2.0}, TypeError, "pairs: expected an int, got float"),
        ({"pairs": 3}, ValueError, "pairs: expected at most 2, for 5 of 6 neurons may be paired .* Ask for fewer"),
        ({"pairs": 1, "alive": torch.arange(6) == 2}, ValueError, "expected at most 0, for 0 of 6"),
        ({"which": "closest"}, ValueError, "which: expected one of 'nearest', 'farthest', 'random', got 'closest'"),
        ({"seed": 1.5}, TypeError, "seed: expected an int, got float"),
        ({"alive": torch.ones(6)}, ValueError, "alive: expected 6 booleans, one a neuron, got torch.float32"),
        ({"alive": torch.ones(5, dtype=torch.bool)}, ValueError, r"expected 6 booleans.*shape \(5,\)"),
        ({"alive": [True] * 6}, ValueError, "expected 6 booleans, one a neuron, got list"),
        ({"cosine": torch.eye(6)}, ValueError, "activations, cosine: expected exactly one of them, got both"),
        ({"activations": None}, ValueError, "expected exactly one of them, got neither"),
        ({"activations": None, "cosine": torch.ones(3, 4)}, ValueError, r"expected a square .* got shape \(3, 4\)"),
        ({"activations": None, "cosine": torch.ones(3)}, ValueError, r"expected a square .* got shape \(3,\)"),
        ({"activations": None, "cosine": [[1.0]]}, TypeError, "cosine: expected .* or a NumPy array, got list"),
        ({"activations": torch.ones(3)}, ValueError, "at least two dimensions"),
        ({"activations": "x"}, TypeError, "expected a torch.Tensor or a NumPy array, got str"),
        ({"neuron_dim": 4}, ValueError, "neuron_dim: expected -2 to 1"),
    ],
)
def test_bad_input(options, error, match):
    x = torch.randn(4, 6)
    x[:, 2] = 0
    with pytest.raises(error, match=match):
        disjoint_pairs(**{"activations": x, "pairs": 2} | options)


def test_nan_inside_a_matrix():
    cosine = torch.eye(5)
    cosine[1, 3] = NAN
    with pytest.raises(ValueError, match="cosine: expected no NaN between neurons with a positive diagonal"):
        disjoint_pairs(cosine=cosine, pairs=1)
    alive = torch.arange(5) != 3
    assert len(disjoint_pairs(cosine=cosine, pairs=2, alive=alive)) == 2


@pytest.mark.parametrize("options", [{}, {"above": 0.1, "below": 0.2}, {"above": 2}, {"below": NAN}])
def test_bad_thresholds(options):
    with pytest.raises(ValueError, match="expected"):
        neuron_pairs(torch.ones(3, 4), **options)


def test_too_many_pairs_say_what_to_do():
    x = torch.randn(20, 400)
    with pytest.raises(ValueError, match=r"above: [\d,]+ pairs have a cosine of at least -1.*use above="):
        neuron_pairs(x, above=-1, max_bytes=1_300_000)


def test_the_picture_of_a_histogram():
    pytest.importorskip("matplotlib")
    x = torch.randn(10, 6)
    x[:, 2] = 0
    found = cosine_histogram(x, 8)
    figure, axes = found.plot()
    assert axes.get_title(loc="left") == "10 pairs, 5 more without a cosine"
    heights, edges, _ = axes.patches[0].get_data()
    assert heights.tolist() == found.counts.tolist()
    assert edges.tolist() == found.edges.tolist()
    assert found.plot(axes=axes) == (figure, axes)
    counts, _, zero_pairs, _ = found
    assert (int(counts.sum()), int(zero_pairs)) == (10, 5)
