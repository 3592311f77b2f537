"""cosine_topk on every backend against float64: layouts, dtypes, ties, dead neurons, others."""

from __future__ import annotations

import mmap

import pytest
import torch

from sdsd_kernels._checks import PRECISIONS
from sdsd_kernels.cosine_topk.op import cosine_topk
from sdsd_kernels.cosine_topk.reference import cosine_topk_reference

from .nearest import INF, NAN, check, check_call, exact_scores, near, signs

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton", "ignore::RuntimeWarning:numpy")


@pytest.mark.parametrize(
    ("shape", "neuron_dim", "k", "farthest"),
    [
        ((24, 50), -1, 7, False),
        ((24, 50), -1, 7, True),
        ((1, 9), 1, 3, True),  # one sample: every cosine is ±1
        ((2, 5), 0, 1, False),  # two neurons
        ((35, 40), 0, 4, False),  # samples adjacent
        ((32, 64), 1, 5, True),  # nothing overruns
        ((3, 4, 20), -1, 2, False),  # (batch, tokens, neurons)
        ((2, 19, 2, 3), 1, 3, True),  # Conv2d
    ],
)
def test_matches_the_definition(shape, neuron_dim, k, farthest, backend, device):
    x = torch.randn(shape, device=device) + 0.2
    check_call(x, k, backend, neuron_dim=neuron_dim, farthest=farthest)


@pytest.mark.parametrize("k", [1, 20])
def test_first_and_all_neighbours(k, backend, device):
    check_call(torch.randn(9, 21, device=device), k, backend)


@pytest.mark.parametrize(
    ("view", "neuron_dim"),
    [
        (lambda x: x[:, ::2], 1),
        (lambda x: x.T[5:30], 0),
        (lambda x: x[:, :1].expand(-1, 9), 1),  # a neuron nine times
        (lambda x: x.view(3, 8, 40)[:, ::2], 2),  # two sample strides
        (lambda x: x.view(4, 3, 2, 40).movedim(3, 1), 1),  # channels last
        (lambda x: x.view(4, 3, 2, 40)[:, :2, ::2], 3),  # three sample strides
    ],
)
def test_any_strides(view, neuron_dim, backend, device):
    check_call(view(torch.randn(24, 40, device=device)), 3, backend, neuron_dim=neuron_dim)


@pytest.mark.parametrize("neuron_dim", [0, 1])
def test_offsets_beyond_32_bits(neuron_dim, backend, device):
    """Two neurons, or two samples, 2³¹ elements apart in memory that is never touched in between."""
    if device.type == "cuda":
        pytest.skip("needs memory that is not there until it is touched")
    apart = 2**31
    memory = torch.frombuffer(mmap.mmap(-1, 2 * (apart + 40)), dtype=torch.float16)
    x = memory.as_strided((2, 40), (apart, 1))
    x.copy_(torch.randn(2, 40))
    check_call(x, 1 if neuron_dim == 0 else 2, backend, neuron_dim=neuron_dim)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("center", [False, True])
def test_halves_have_float32_norms_and_sums(dtype, center, backend, device):
    x = (torch.randn(30, 35, device=device) + 0.5).to(dtype)
    values, indices = cosine_topk(x, 4, center=center, backend=backend)
    assert values.dtype == torch.float32
    check((values, indices), exact_scores(x, center=center), 4, False, near(x, center=center))


def test_float64(device):
    x = torch.randn(30, 40, device=device, dtype=torch.float64)
    wanted, error = exact_scores(x), near(x)
    x[:, 3] *= 2.0**-700
    x[:, 4] *= 2.0**700
    values, indices = cosine_topk(x, 5)
    assert values.dtype == torch.float64
    check((values, indices), wanted, 5, False, error)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precisions(precision, backend, device):
    x = torch.randn(40, 40, device=device)
    rounded = x if precision == "float32" else x.half().float()
    error = (exact_scores(rounded) - exact_scores(x)).abs().nan_to_num(0).max().item()
    check(cosine_topk(x, 4, precision=precision, backend=backend), exact_scores(x), 4, False, 3 * error + near(x))


def test_any_scale(backend, device):
    x = torch.randn(30, 40, device=device)
    wanted = cosine_topk(x, 5, backend=backend)
    scales = 10.0 ** torch.linspace(-30, 30, 40, device=device)
    found = cosine_topk(x * scales, 5, backend=backend)
    check(found, exact_scores(x * scales), 5, False, near(x))
    # Both are within rounding of what is right, and scaling rounds each value once more.
    assert (found[0] - wanted[0]).abs().max() <= 3 * near(x)


def test_centring_does_not_cancel(backend, device):
    x = torch.randn(40, 36, device=device) + 1e4
    check_call(x, 4, backend, center=True)
    x[:, 3] = 0.1
    values, indices = cosine_topk(x, 4, center=True, backend=backend)
    assert values[3].isnan().all()
    assert not (indices == 3).any()


@pytest.mark.parametrize("farthest", [False, True])
@pytest.mark.parametrize(("neurons", "k"), [(36, 1), (36, 6), (33, 32)])
def test_ties_come_out_by_index(farthest, neurons, k, backend, device):
    x = signs(neurons, 12, seed=k)
    x[:, 31:33] = x[:, 2:4]  # duplicates beyond a tile
    check(cosine_topk(x.to(device), k, farthest=farthest, backend=backend), exact_scores(x), k, farthest, 0)


@pytest.mark.parametrize("neurons", [2, 30, 33, 34, 70, 1100])
def test_all_neighbours_with_the_backend_left_open(neurons, device):
    """k = n − 1: on a GPU the kernel serves up to 32 neighbours and torch beyond, on a CPU torch serves all."""
    x = signs(neurons, 12, seed=neurons)
    check(cosine_topk(x.to(device), neurons - 1), exact_scores(x), neurons - 1, False, 0)


@pytest.mark.parametrize("neurons", [2, 17, 30])
def test_all_neighbours_in_a_list_that_is_not_full(neurons, backend, device):
    """k = n − 1 below the lanes of a list: 1 of 4, 16 of 16, 29 of 32."""
    x = signs(neurons, 12, seed=neurons)
    check(cosine_topk(x.to(device), neurons - 1, backend=backend), exact_scores(x), neurons - 1, False, 0)


def test_all_equal(backend, device):
    values, indices = cosine_topk(torch.ones(4, 40, device=device), 5, backend=backend)
    assert (values == 1).all()
    assert indices[0].tolist() == [1, 2, 3, 4, 5]
    assert indices[3].tolist() == [0, 1, 2, 4, 5]
    assert (indices[6:] == torch.arange(5, device=device)).all()


@pytest.mark.parametrize(("bad", "farthest"), [(0.0, False), (0.0, True), (NAN, False), (INF, True), (-INF, False)])
def test_neurons_without_direction_have_no_neighbours_and_are_none(bad, farthest, backend, device):
    x = torch.randn(20, 40, device=device).relu()
    others = [neuron for neuron in range(40) if neuron not in (0, 35)]
    clean = cosine_topk(x[:, others], 6, farthest=farthest, backend=backend)
    x[:, [0, 35]] = bad
    x[1:, 35] = 0.0
    values, indices = cosine_topk(x, 6, farthest=farthest, backend=backend)
    for dead in (0, 35):
        assert values[dead].isnan().all()
        assert (indices[dead] == -1).all()
        assert not (indices == dead).any()
    assert torch.equal(indices[others], torch.tensor(others, device=device)[clean[1]])
    assert (values[others] - clean[0]).abs().max() <= 2 * near(x[:, others])


def test_fewer_neighbours_than_wanted(backend, device):
    x = torch.zeros(6, 10, device=device)
    x[:, [2, 5, 6]] = torch.randn(6, 3, device=device)
    values, indices = cosine_topk(x, 4, backend=backend)
    check((values, indices), exact_scores(x), 4, False, near(x))
    assert (indices[2, :2].sort().values == torch.tensor([5, 6], device=device)).all()
    assert indices[2, 2:].tolist() == [-1, -1]
    nothing = cosine_topk(torch.zeros(3, 4, device=device), 2, backend=backend)
    assert nothing[0].isnan().all()
    assert (nothing[1] == -1).all()


@pytest.mark.parametrize("farthest", [False, True])
def test_neighbours_among_others(farthest, backend, device):
    x, other = torch.randn(12, 20, device=device), torch.randn(12, 37, device=device)
    other[:, 36] = x[:, 7]
    check_call(x, 5, backend, other=other, farthest=farthest)
    values, indices = cosine_topk(x, 37, other=other, backend="torch")
    check((values, indices), exact_scores(x, other), 37, False, near(x, other))
    assert cosine_topk(x, 1, other=other, backend=backend)[1][7].item() == 36
    # Nobody is left out: a neuron finds itself.
    assert (cosine_topk(x, 1, other=x, backend=backend)[1][:, 0] == torch.arange(20, device=device)).all()


@pytest.mark.parametrize(
    "shapes", [((6, 20, 2, 3), (6, 9, 6)), ((6, 20, 6), (6, 9, 2, 3)), ((6, 20, 2, 3), (2, 9, 3, 6))]
)
def test_others_whose_samples_are_cut_differently(shapes, backend, device):
    x, other = (torch.randn(shape, device=device) for shape in shapes)
    found = cosine_topk(x, 3, neuron_dim=1, other=other, backend=backend)
    check(found, exact_scores(x, other, 1), 3, False, near(x, other, 1))


def test_same_bits_twice(backend, device):
    x = torch.randn(15, 40, device=device)
    first, second = (cosine_topk(x, 5, backend=backend) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("farthest", [False, True])
def test_reference_is_the_definition(center, farthest):
    x = torch.randn(3, 9, 8) + 0.5
    x[:, 2] = 0
    x[:, 3] *= 1e-30
    x[0, 4, 0] = NAN
    found = cosine_topk_reference(x, 7, neuron_dim=1, center=center, farthest=farthest)
    check(found, exact_scores(x, neuron_dim=1, center=center), 7, farthest, 1e-12)
    other = torch.randn(3, 4, 8)
    found = cosine_topk_reference(x, 4, neuron_dim=1, other=other, center=center, farthest=farthest)
    check(found, exact_scores(x, other, 1, center), 4, farthest, 1e-12)
