"""Memory that weight_grad_stats takes, the choice of a method, torch.compile, what it refuses."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from sdsd_kernels import weight_grad_stats
from sdsd_kernels.per_sample import cpu, method
from sdsd_kernels.per_sample.method import METHODS, choose_method
from sdsd_kernels.weight_grad_stats.reference import weight_grad_stats_reference
from tests.helpers import assert_within, relative_error

from .weight_grads import WAYS, allowed, assert_right, oracle, pair, serves

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")


@pytest.fixture(params=WAYS, ids=lambda way: "-".join(way))
def way(request) -> dict[str, str]:
    return {"backend": request.param[0], "method": request.param[1]}


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
