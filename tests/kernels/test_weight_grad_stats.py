"""weight_grad_stats by every method on every backend, against NumPy in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdsd_kernels import weight_grad_stats
from sdsd_kernels.per_sample.method import METHODS
from tests.helpers import relative_error

from .weight_grads import WAYS, assert_close, assert_right, oracle, pair, serves

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=WAYS, ids=lambda way: "-".join(way))
def way(request) -> dict[str, str]:
    return {"backend": request.param[0], "method": request.param[1]}


SHAPES = [
    (1, 1, 1, 1),
    (1, 7, 5, 3),
    (3, 5, 1, 9),
    (4, 6, 8, 1),
    (2, 20, 150, 90),  # long enough for "gram" to add up sums of features
    (6, 1, 13, 21),
    (2, 33, 40, 18),
    (5, 16, 33, 17),
    (5, 3, 20, 35),
    (3, 70, 10, 12),
]

# Dtypes differ in how a tile is loaded and multiplied, whatever surrounds it.
SHAPES_AND_DTYPES = [(shape, torch.float32) for shape in SHAPES] + [
    (shape, dtype)
    for shape in ((1, 7, 5, 3), (6, 1, 13, 21), (5, 16, 33, 17))
    for dtype in (torch.float64, torch.bfloat16, torch.float16)
]


@pytest.mark.parametrize(("shape", "dtype"), SHAPES_AND_DTYPES, ids=str)
def test_shapes_and_dtypes(shape, dtype, way):
    inputs, output_grads = pair(*shape, dtype)
    for scale in (None, torch.rand(shape[3], shape[2], device=inputs.device) * 3):
        if serves(way, shape[1], dtype, scale is not None):
            assert_right(inputs, output_grads, scale, **way)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 1, 6, 4), (5, 3, 40, 60), (5, 40, 6, 4)], ids=str)
def test_the_choice_is_left_to_the_table(dtype, shape):
    assert_right(*pair(*shape, dtype))


def test_rows_without_positions(way):
    inputs, output_grads = (x.squeeze(1) for x in pair(7, 1, 5, 4))
    assert_right(inputs, output_grads, **way)
    with_positions = weight_grad_stats(inputs.unsqueeze(1), output_grads.unsqueeze(1), **way)
    assert torch.equal(weight_grad_stats(inputs, output_grads, **way).weight_grad, with_positions.weight_grad)


VIEWS = {
    "every second feature": lambda x: x[..., ::2],
    "every second sample": lambda x: x[::2],
    "every second position": lambda x: x[:, ::2],
    "offset": lambda x: x[1:, 1:, 1:],
    "positions first": lambda x: x.transpose(0, 1),
    "features first": lambda x: x.permute(1, 2, 0),
    "one sample, expanded": lambda x: x[:1].expand(6, -1, -1),
    "one position, expanded": lambda x: x[:, :1].expand(-1, 6, -1),
    "one feature, expanded": lambda x: x[..., :1].expand(-1, -1, 6),
}


@pytest.mark.parametrize("view", VIEWS)
def test_strides(view, way):
    inputs, output_grads = (VIEWS[view](x) for x in pair(6, 8, 10, 10))
    if serves(way, inputs.shape[1], inputs.dtype, False):
        assert_right(inputs, output_grads, **way)
        assert_right(inputs, output_grads.clone(), **way)


@pytest.mark.parametrize("way", [way for way in WAYS if way[1] != "gram"], indirect=True)
def test_strided_scale(way):
    inputs, output_grads = pair(4, 1, 9, 7)
    scale = torch.rand(9, 14, dtype=torch.float64, device=inputs.device).T[::2]
    assert_right(inputs, output_grads, scale, **way)
    assert_right(inputs, output_grads, scale[:, :1].expand(-1, 9), **way)


@pytest.mark.parametrize("positions", [1, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_tiny_gradients_do_not_vanish(dtype, positions, way):
    if not serves(way, positions, dtype, False):
        positions = 1
    inputs, output_grads = pair(4, positions, 12, 10, torch.float64)
    inputs, output_grads = inputs.to(dtype), (output_grads * 1e-6).to(dtype)
    assert output_grads.float().square().to(torch.float16).count_nonzero() == 0, "the test is too easy"
    stats = weight_grad_stats(inputs, output_grads, weight_grad=False, **way)
    assert_close(stats, inputs, output_grads)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("size", [1e-25, 1e-17, 1e20])
def test_squares_beyond_float32_on_the_cpu(name, size):
    inputs, output_grads = (x.cpu() for x in pair(4, 1, 12, 10))
    output_grads = output_grads * size
    for scale in (None, torch.rand(10, 12)) if name != "gram" else (None,):
        assert_close(weight_grad_stats(inputs, output_grads, scale=scale, method=name), inputs, output_grads, scale)


def test_large_half_inputs_do_not_overflow(way):
    inputs, output_grads = (x * 300 for x in pair(3, 1, 8, 8, torch.float16))
    stats = weight_grad_stats(inputs, output_grads / 300, weight_grad=False, **way)
    assert_close(stats, inputs, output_grads / 300)


def test_many_samples_keep_their_digits(way):
    inputs, output_grads = pair(60 if way["backend"] == "triton" else 3000, 1, 3, 2)
    assert_right(inputs + 5, output_grads + 5, **way)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_bad_value_shows(bad, dtype, way):
    for place in (0, 1):
        tensors = pair(4, 1, 6, 5, dtype)
        tensors[place][2, 0, 3] = bad
        stats = weight_grad_stats(*tensors, **way)
        assert not stats.square_norm.isfinite()
        spoilt = stats.weight_grad[:, 3] if place == 0 else stats.weight_grad[3]
        clean = stats.weight_grad[:, :3] if place == 0 else stats.weight_grad[:3]
        assert not spoilt.isfinite().any()
        assert clean.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_weight_gradient_takes_the_dtype_asked_for(dtype, way):
    """From the accumulator: a float32 gradient of halves was not rounded to a half on the way."""
    inputs, output_grads = pair(3, 1, 9, 7, torch.float16)
    stats = weight_grad_stats(inputs, output_grads, dtype=dtype, **way)
    assert stats.weight_grad.dtype == dtype
    exact = torch.from_numpy(oracle(inputs, output_grads)[0])
    rounds_first = way["method"] != "fused"  # torch's own product of halves gives a half
    coarsest = torch.float16 if rounds_first or dtype == torch.float16 else dtype
    bound = {torch.float16: 1e-3, torch.bfloat16: 1.6e-2, torch.float32: 1e-6, torch.float64: 1e-6}
    assert relative_error(stats.weight_grad, exact) <= max(bound[coarsest], bound[dtype])


def test_zeros_give_zero(way):
    inputs, output_grads = pair(3, 1, 5, 4)
    stats = weight_grad_stats(inputs, output_grads * 0, **way)
    assert stats.square_norm.item() == 0
    assert not stats.weight_grad.any()


def test_deterministic(way):
    inputs, output_grads = pair(9, 1, 40, 33)
    first, second = (weight_grad_stats(inputs, output_grads, **way) for _ in range(2))
    assert torch.equal(first.weight_grad, second.weight_grad)
    assert torch.equal(first.square_norm, second.square_norm)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", ["gram", "rank1"])
def test_plain_weight_gradient_bit_for_bit(name, bias, device):
    positions = 1 if name == "rank1" else 5
    inputs, output_grads = pair(6, positions, 37, 29)
    layer = torch.nn.Linear(37, 29, bias=bias, device=device)
    layer(inputs).backward(output_grads)
    stats = weight_grad_stats(inputs, output_grads, method=name)
    assert torch.equal(stats.weight_grad, layer.weight.grad)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    samples=st.integers(1, 6),
    positions=st.integers(1, 20),
    d=st.integers(1, 36),
    p=st.integers(1, 36),
    max_bytes=st.integers(1, 2**14),
    scaled=st.booleans(),
    half=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_random_inputs(way, samples, positions, d, p, max_bytes, scaled, half, seed):
    positions = 1 if way["method"] == "rank1" else positions
    scaled = scaled and way["method"] != "gram"
    torch.manual_seed(seed)
    inputs, output_grads = pair(samples, positions, d, p, torch.float16 if half else torch.float32)
    scale = torch.rand(p, d, device=inputs.device) if scaled else None
    stats = weight_grad_stats(inputs, output_grads, scale=scale, max_bytes=max_bytes, **way)
    assert_close(stats, inputs, output_grads, scale)
