"""Accumulators merged, kept in files, restored, copied."""

from __future__ import annotations

import copy
import io

import pytest
import torch

from sdsd.geometry.gram.accumulator import GramAccumulator
from tests.helpers import assert_within, summation_error

from .streams import NAN, bits, check_promises, check_values, least_bytes, products, streamed


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("sizes", [(50, 50), (1, 99), (99, 1), (0, 100), (100, 0)])
def test_merge_is_seeing_both(center, sizes):
    x = torch.randn(100, 300) + torch.linspace(0, 20, 100)[:, None]
    x[: sizes[0], 5] *= 1e-25
    x[sizes[0] :, 6] *= 1e25
    x[:, 7] = 0.1
    parts = x.split(list(sizes))
    one, two = (streamed(part, 30, center=center, max_bytes=40 * least_bytes(300)) for part in parts)
    before = bits(two)
    one.merge(two)
    assert one.samples == 100
    assert bits(two) == before
    cosine = one.cosine_matrix()
    dead = (x == x[0]).all(0) & torch.tensor(center)
    check_promises(cosine, dead)
    assert (cosine[dead] == 0).all()
    alive = ~dead
    check_values(cosine[alive][:, alive], x[:, alive], center)


def test_merge_with_itself_counts_twice():
    x = torch.randn(40, 12)
    gram = streamed(x, 15, center=True)
    wanted = 2 * gram.gram()
    gram.merge(gram)
    assert gram.samples == 80
    assert torch.equal(gram.gram(), wanted)


def test_merge_keeps_nan():
    x = torch.randn(40, 12)
    one, two = GramAccumulator(12), GramAccumulator(12)
    one.update(x)
    x[3, 4] = NAN
    with pytest.warns(RuntimeWarning):
        two.update(x)
    one.merge(two)
    assert one.cosine_matrix().isnan().any(1).nonzero().flatten().tolist() != []
    assert one.cosine_matrix()[4].isnan().all()
    assert one.nonfinite.nonzero().flatten().tolist() == [4]


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("n", [1, 30, 300])
def test_state_goes_through_a_file(center, n):
    x = torch.randn(60, n) + 1
    x[:, 0] *= 1e25
    gram = streamed(x[:40], 15, center=center)
    file = io.BytesIO()
    torch.save(gram.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert state["gram"].shape == (n * (n + 1) // 2,)
    other = GramAccumulator(n, center=center, max_bytes=3 * least_bytes(n))
    other.update(torch.full((5, n), NAN).nan_to_num(4.0))
    other.load_state_dict(state)
    assert bits(other) == bits(gram)
    assert torch.equal(other.cosine_matrix(), gram.cosine_matrix())
    state["gram"].zero_()
    state["exponent"].zero_()
    other.update(x[40:])
    assert other.samples == 60
    check_values(other.cosine_matrix(), x, center)


def test_gram_in_the_state_is_the_upper_triangle_row_by_row():
    x = torch.randn(20, 300)
    state = streamed(x, 20).state_dict()
    assert (state["exponent"] == 0).all()
    rows, columns = torch.triu_indices(300, 300)
    magnitude = products(x.abs())[rows, columns]
    assert_within(state["gram"], products(x)[rows, columns], summation_error(20) * magnitude)
    kept = state["gram"].clone()
    gram = GramAccumulator(300)
    gram.load_state_dict(state)
    gram.update(x)
    gram.cosine_matrix()
    gram.update(x)
    gram.cosine_matrix()
    assert torch.equal(state["gram"], kept)


def test_state_of_an_empty_one():
    gram, other = GramAccumulator(3, center=True), streamed(torch.randn(5, 3), 5, center=True)
    other.load_state_dict(gram.state_dict())
    assert bits(other) == bits(gram)
    assert other.samples == 0


@pytest.mark.parametrize("updates", [1, 500])  # samples that wait, and sums in both buffers
def test_a_shallow_copy_has_buffers_of_its_own(updates):
    x, one, two = torch.randn(40 * updates, 9), torch.randn(3, 9), torch.randn(10, 9)
    gram = GramAccumulator(9)
    for batch in x.split(40):
        gram.update(batch)
    other = copy.copy(gram)
    other.update(one)
    gram.update(two)
    for each, more in ((other, one), (gram, two)):
        seen = torch.cat([x, more]).double()
        assert_within(each.gram(), seen.T @ seen, summation_error(len(seen)) * (seen.T.abs() @ seen.abs()))


def test_copies_part_ways():
    x = torch.randn(40, 9)
    gram = streamed(x[:20], 7, max_bytes=7 * least_bytes(9))
    other = copy.deepcopy(gram)
    other.update(x[20:])
    assert torch.equal(gram.cosine_matrix(), streamed(x[:20], 7, max_bytes=7 * least_bytes(9)).cosine_matrix())
    gram.update(x[20:])
    assert bits(gram) == bits(other)


def test_reset_forgets():
    x = torch.randn(40, 9)
    gram = streamed(x * 1e20 + 3, 40, center=True)
    gram.update(x[:5])
    gram.reset()
    assert gram.samples == 0
    gram.update(x)
    assert bits(gram) == bits(streamed(x, 40, center=True))
