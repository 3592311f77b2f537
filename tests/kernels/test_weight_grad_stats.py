"""weight_grad_stats by every method on every backend, against NumPy in float64."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdsd_kernels import available_backends, weight_grad_stats
from sdsd_kernels.per_sample import cpu, method
from sdsd_kernels.per_sample.method import METHODS, choose_method
from sdsd_kernels.weight_grad_stats.reference import weight_grad_stats_reference
from tests.helpers import assert_within, relative_error, summation_error, unit_roundoff

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
WAYS = [("torch", name) for name in METHODS]
if "triton" in available_backends("cuda" if torch.cuda.is_available() else "cpu"):
    WAYS += [("triton", name) for name in METHODS]
TRUNCATED = 2.0
"""The interpreter converts float32 to bfloat16 by truncation, which errs twice as much as rounding."""


@pytest.fixture(params=WAYS, ids=lambda way: "-".join(way))
def way(request) -> dict[str, str]:
    return {"backend": request.param[0], "method": request.param[1]}


def serves(way: dict[str, str], positions: int, dtype: torch.dtype, scaled: bool) -> bool:
    if way["backend"] == "triton" and dtype == torch.float64:
        return False
    return {"fused": True, "gram": not scaled, "rank1": positions == 1}[way["method"]]


def oracle(inputs: Tensor, output_grads: Tensor, scale: Tensor | None = None) -> tuple[np.ndarray, float]:
    """Weight gradient and square norm by loops over samples, NumPy float64."""
    a, b = (x.detach().cpu().double().numpy() for x in (inputs, output_grads))
    d = 1.0 if scale is None else scale.detach().cpu().double().numpy()
    total, squares = np.zeros((b.shape[-1], a.shape[-1])), 0.0
    for one, two in zip(a, b, strict=True):
        gradient = np.atleast_2d(two).T @ np.atleast_2d(one)
        total += gradient
        squares += float(((d * gradient) ** 2).sum())
    return total, squares


def allowed(inputs: Tensor, output_grads: Tensor, scale: Tensor | None = None) -> tuple[Tensor, float]:
    """Bounds on the errors of both before a result is rounded to a half.

    With m_n = |b_n|ᵀ|a_n|, the weight gradient sums N·T products. The square norm is at most Σ‖D ∘ m_n‖². Every method
    gets it from sums of T products that are squared ("fused"), of d and of p products that are multiplied and summed
    over T² ("gram", "rank1"), and last of what a block of samples holds.
    """
    samples, d, p = inputs.shape[0], inputs.shape[-1], output_grads.shape[-1]
    positions = inputs.shape[1] if inputs.ndim == 3 else 1
    magnitude, squares = oracle(inputs.abs(), output_grads.abs(), scale)
    gradient_error = square_error = 0.0
    for dtype in (torch.promote_types(inputs.dtype, torch.float32), torch.float64):  # the oracle rounds as well
        rounded = 8 * unit_roundoff(dtype)
        gradient_error += summation_error(samples * positions, dtype) + rounded
        inner = max(2 * summation_error(positions, dtype), summation_error(d, dtype) + summation_error(p, dtype))
        square_error += inner + summation_error(samples * max(p * d, positions**2), dtype) + rounded
    return gradient_error * torch.from_numpy(magnitude), square_error * squares


def assert_close(stats, inputs: Tensor, output_grads: Tensor, scale: Tensor | None = None, truncates=False) -> None:
    """`truncates`: whether the interpreter makes bfloat16 of float32."""
    total, squares = oracle(inputs, output_grads, scale)
    gradient_error, square_error = allowed(inputs, output_grads, scale)
    if stats.weight_grad is not None:
        wanted = torch.from_numpy(total)
        if inputs.dtype.itemsize == 2:
            rounding = unit_roundoff(inputs.dtype) * (TRUNCATED if truncates else 1.0)
            least = torch.finfo(inputs.dtype).smallest_normal * torch.finfo(inputs.dtype).eps
            # What is rounded is the sum as it was found.
            gradient_error = gradient_error * (1 + rounding) + rounding * wanted.abs() + least
        assert_within(stats.weight_grad, wanted, gradient_error)
    assert_within(stats.square_norm, torch.tensor(squares, dtype=torch.float64), square_error)


def assert_right(inputs: Tensor, output_grads: Tensor, scale: Tensor | None = None, **options) -> None:
    before = [x.clone() for x in (inputs, output_grads)]
    stats = weight_grad_stats(inputs, output_grads, scale=scale, **options)
    assert all(torch.equal(x, y) for x, y in zip((inputs, output_grads), before, strict=True)), "an input was changed"
    assert stats.weight_grad is not None
    assert (stats.weight_grad.dtype, stats.weight_grad.device) == (inputs.dtype, inputs.device)
    assert (stats.square_norm.dtype, stats.square_norm.shape) == (torch.float64, ())
    truncates = options.get("backend") == "triton" and inputs.dtype == torch.bfloat16
    assert_close(stats, inputs, output_grads, scale, truncates)
    brief = weight_grad_stats(inputs, output_grads, scale=scale, weight_grad=False, **options)
    assert brief.weight_grad is None
    assert_close(brief, inputs, output_grads, scale)


def pair(samples: int, positions: int, d: int, p: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    make = lambda last: torch.randn(samples, positions, last).to(device, dtype)  # noqa: E731
    return make(d), make(p)


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


class TestScratch:
    """Every block boundary, and the bound on what is allocated."""

    @pytest.mark.parametrize("max_bytes", [1, 500, 1500, 20_000])
    @pytest.mark.parametrize(("positions", "dtype"), [(1, torch.float32), (4, torch.bfloat16)], ids=str)
    def test_any_bound_gives_the_result(self, max_bytes, positions, dtype, way):
        for scaled in (False, True):
            if serves(way, positions, dtype, scaled):
                inputs, output_grads = pair(7, positions, 11, 13, dtype)
                scale = torch.rand(13, 11, device=inputs.device) if scaled else None
                assert_right(inputs, output_grads, scale, max_bytes=max_bytes, **way)

    @pytest.mark.parametrize(("name", "scaled"), [("fused", False), ("fused", True), ("gram", False), ("rank1", True)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    def test_the_bound_is_kept(self, name, scaled, dtype):
        positions = 1 if name == "rank1" else 8
        inputs, output_grads = (x.cpu() for x in pair(64, positions, 32, 48, dtype))
        scale = torch.rand(48, 32) if scaled else None
        least = 4 * 32 * 48
        for max_bytes in (least * 3, least * 10):
            # A few scalars and norms, one a sample, are not counted.
            assert least < peak_scratch(inputs, output_grads, scale, name, max_bytes) <= max_bytes + 2048

    def test_a_gradient_larger_than_the_bound_is_formed_by_rows(self):
        inputs, output_grads = (x.cpu() for x in pair(3, 8, 32, 480))
        bound = 4 * 32 * 100
        assert bound // 2 < peak_scratch(inputs, output_grads, None, "fused", bound) <= bound + 2048

    def test_small_gradients_are_grouped(self):
        inputs, output_grads = (x.cpu() for x in pair(64, 4, 8, 8))
        assert cpu._fused_blocks(inputs, output_grads, None, 2**26) == (64, 8)
        assert cpu._fused_blocks(inputs, output_grads, None, 3 * 4 * 64) == (3, 8)
        assert cpu._fused_blocks(inputs, output_grads, None, 4 * 24) == (1, 3)


class _Scratch(torch.utils._python_dispatch.TorchDispatchMode):
    """The most bytes alive at once in memory that operations allocated while the mode was on."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self.given: set[int] = set()
        self.made: list[tuple[weakref.ref, int, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = {address for _, address, _ in self.living()}
        for value in (*args, *(kwargs or {}).values()):
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in made:
                self.given.add(value.untyped_storage().data_ptr())
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple) else (result,):
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in self.given:
                storage = value.untyped_storage()
                self.made.append((weakref.ref(value), storage.data_ptr(), storage.nbytes()))
        self.peak = max(self.peak, sum({address: size for _, address, size in self.living()}.values()))
        return result

    def living(self) -> list[tuple[weakref.ref, int, int]]:
        self.made = [entry for entry in self.made if entry[0]() is not None]
        return self.made


def peak_scratch(inputs: Tensor, output_grads: Tensor, scale: Tensor | None, name: str, max_bytes: int) -> int:
    with _Scratch() as mode:
        cpu.weight_grad_stats(inputs, output_grads, scale, False, inputs.dtype, name, max_bytes)
    return mode.peak


class TestChoice:
    def test_one_position_is_rank1(self):
        assert choose_method(*pair(4, 1, 8, 8), False, True) == "rank1"
        assert choose_method(*pair(4, 1, 8, 8), True, True) == "rank1"

    def test_gram_for_few_positions_and_fused_for_many(self):
        few = [choose_method(*(x.cpu() for x in pair(1, t, 256, 256)), False, True) for t in (2, 8, 32)]
        many = [choose_method(*(x.cpu() for x in pair(1, t, 256, 256)), False, True) for t in (128, 256)]
        assert (few, many) == (["gram"] * 3, ["fused"] * 2)

    def test_a_scale_rules_gram_out(self):
        assert choose_method(*pair(1, 2, 256, 256), True, True) == "fused"

    def test_without_weight_gradient_gram_serves_longer(self):
        assert choose_method(*(x.cpu() for x in pair(1, 80, 256, 256)), False, True) == "fused"
        assert choose_method(*(x.cpu() for x in pair(1, 80, 256, 256)), False, False) == "gram"

    def test_costs_cross_once(self):
        for d, p in ((64, 64), (256, 1024), (4096, 4096)):
            cheaper = [method.CPU.gram(t, d, p) < method.CPU.fused(t, d, p) for t in range(2, 4096)]
            assert cheaper == sorted(cheaper, reverse=True)
            assert not cheaper[-1]


def test_reference_against_the_oracle():
    inputs, output_grads = pair(5, 4, 7, 6)
    for scale in (None, torch.rand(6, 7, device=inputs.device)):
        found = weight_grad_stats_reference(inputs, output_grads, scale=scale)
        total, squares = oracle(inputs, output_grads, scale)
        assert relative_error(found.weight_grad, torch.from_numpy(total)) <= 1e-13
        assert found.square_norm.item() == pytest.approx(squares, rel=1e-13)


class TestCompile:
    @pytest.mark.parametrize("name", [None, "fused", "gram"])
    def test_in_the_backward_of_a_function(self, name, device):
        class Layer(torch.autograd.Function):
            @staticmethod
            def forward(ctx, inputs, weight, probe):
                ctx.save_for_backward(inputs, weight)
                return inputs @ weight.T

            @staticmethod
            def backward(ctx, grad):
                inputs, weight = ctx.saved_tensors
                stats = weight_grad_stats(inputs, grad, method=name)
                return grad @ weight, stats.weight_grad, stats.square_norm

        inputs, grads = pair(4, 5, 7, 6)

        def run(wrap):
            weight = torch.ones(6, 7, device=device, requires_grad=True)
            probe = torch.zeros((), dtype=torch.float64, device=device, requires_grad=True)
            wrap(lambda: (Layer.apply(inputs, weight, probe) * grads).sum())().backward()
            return weight.grad, probe.grad

        eager = run(lambda function: function)
        compiled = run(lambda function: torch.compile(function, backend="aot_eager", fullgraph=True))
        assert all(torch.equal(one, two) for one, two in zip(eager, compiled, strict=True))
        assert_within(eager[1], torch.tensor(oracle(inputs, grads)[1]), allowed(inputs, grads)[1])

    def test_operator_registration(self, way):
        inputs, output_grads = pair(3, 1, 5, 4)
        scale = torch.rand(4, 5, device=inputs.device)
        op = torch.ops.sdsd.weight_grad_stats.default
        for weight_grad in (True, False):
            torch.library.opcheck(
                op, (inputs, output_grads, None, weight_grad, torch.float32, way["method"], 1000, way["backend"])
            )
            if way["method"] != "gram":
                torch.library.opcheck(
                    op, (inputs, output_grads, scale, weight_grad, torch.bfloat16, way["method"], 1000, way["backend"])
                )

    def test_bad_input_is_found_while_tracing(self):
        inputs, output_grads = pair(3, 2, 5, 4)
        compiled = torch.compile(weight_grad_stats, backend="aot_eager", fullgraph=True)
        with pytest.raises(Exception, match="expected 3 samples like inputs, got 2"):
            compiled(inputs, output_grads[:2])

    def test_results_carry_no_gradient(self):
        inputs, output_grads = (x.requires_grad_() for x in pair(3, 2, 5, 4))
        stats = weight_grad_stats(inputs, output_grads)
        assert not stats.weight_grad.requires_grad
        assert not stats.square_norm.requires_grad


class TestBadInput:
    @pytest.mark.parametrize(
        ("inputs", "output_grads", "error", "message"),
        [
            ((3, 2, 5), (4, 2, 6), ValueError, "output_grads: expected 3 samples like inputs, got 4"),
            ((3, 2, 5), (3, 1, 6), ValueError, "output_grads: expected 2 positions like inputs, got 1"),
            ((3, 2, 5), (3, 6), ValueError, r"expected 3 dimensions like inputs, got shape \(3, 6\)"),
            ((5,), (6,), ValueError, r"inputs: expected shape \(N, T, d\) or \(N, d\), got shape \(5,\)"),
            ((2, 2, 2, 5), (2, 2, 2, 6), ValueError, r"inputs.flatten\(1, -2\)"),
            ((3, 5), (3, 2, 2, 6), ValueError, r"output_grads: expected shape \(N, T, p\)"),
            ((0, 2, 5), (0, 2, 6), ValueError, "inputs: expected at least one element"),
            ((3, 0, 5), (3, 0, 6), ValueError, "inputs: expected at least one element"),
            ((3, 2, 5), (3, 2, 0), ValueError, "output_grads: expected at least one element"),
        ],
    )
    def test_shapes(self, inputs, output_grads, error, message):
        with pytest.raises(error, match=message):
            weight_grad_stats(torch.randn(inputs), torch.randn(output_grads))

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (lambda x: x.half(), TypeError, "output_grads: expected torch.float32 like inputs, got torch.float16"),
            (lambda x: x.long(), TypeError, "output_grads: expected float64.*got torch.int64"),
            (lambda x: x.to("meta"), ValueError, "output_grads: expected device cpu like inputs, got meta"),
            (lambda x: x.tolist(), TypeError, "output_grads: expected a torch.Tensor, got list"),
            (lambda x: x.to_sparse(), TypeError, "to_dense"),
        ],
    )
    def test_kinds(self, change, error, message):
        with pytest.raises(error, match=message):
            weight_grad_stats(torch.randn(3, 2, 5), change(torch.randn(3, 2, 6)))

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"scale": torch.rand(5, 6)}, ValueError, r"scale: expected shape \(6, 5\).*got \(5, 6\)"),
            ({"scale": 2.0}, TypeError, "scale: expected a torch.Tensor, got float"),
            ({"scale": torch.ones(6, 5, dtype=torch.long)}, TypeError, "scale: expected float64"),
            ({"scale": torch.ones(6, 5, device="meta")}, ValueError, "scale: expected device cpu.*got meta"),
            ({"scale": torch.rand(6, 5), "method": "gram"}, ValueError, "expected 'fused' with a scale, got 'gram'"),
            ({"method": "rank1"}, ValueError, "expected 'fused' or 'gram' for 2 positions a sample, got 'rank1'"),
            ({"method": "direct"}, ValueError, "method: expected one of 'fused', 'gram', 'rank1', got 'direct'"),
            ({"max_bytes": 0}, ValueError, "max_bytes: expected at least 1, got 0"),
            ({"max_bytes": -5}, ValueError, "max_bytes: expected at least 1, got -5"),
            ({"max_bytes": 1e6}, TypeError, "max_bytes: expected an int, got float"),
            ({"max_bytes": True}, TypeError, "max_bytes: expected an int, got bool"),
            ({"backend": "numpy"}, ValueError, "backend: expected one of"),
            ({"dtype": torch.int32}, TypeError, "dtype: expected one of.*got torch.int32"),
            ({"dtype": [1]}, TypeError, "dtype: expected one of"),
        ],
    )
    def test_options(self, options, error, message):
        with pytest.raises(error, match=message):
            weight_grad_stats(torch.randn(3, 2, 5), torch.randn(3, 2, 6), **options)

    def test_the_kernel_has_no_float64(self):
        if len(WAYS) == len(METHODS):
            pytest.skip("no Triton here")
        with pytest.raises(ValueError, match="the kernel has no float64"):
            weight_grad_stats(*pair(3, 2, 5, 6, torch.float64), backend="triton")
