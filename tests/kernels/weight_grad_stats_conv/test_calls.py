"""Its float32, ranges of samples, ways on the CPU, torch.compile, what it refuses."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from sdsd_kernels import conv_weight_grad_stats, weight_grad_stats
from sdsd_kernels._device import device_record
from sdsd_kernels.per_sample import convolution_cpu, cpu
from sdsd_kernels.per_sample.convolution import Convolution
from sdsd_kernels.weight_grad_stats.reference import conv_weight_grad_stats_reference
from tests.helpers import relative_error

from .convolutions import DEVICE, LAYERS, Layer, assert_right, oracle

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")


class TestFloat32:
    """What goes to the matrix unit as float16 keeps float32's digits, whatever its size."""

    @pytest.fixture(autouse=True)
    def full_precision(self, launch, monkeypatch):
        if not device_record(DEVICE).copy_engine:
            pytest.skip("this GPU has no copy engine")
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)

    @pytest.mark.parametrize("size", [1e-30, 1e-12, 1.0, 1e15])
    def test_any_size(self, size):
        layer = LAYERS["3 × 3, padded"]
        inputs, output_grads = layer.batch()
        assert_right(layer, inputs * size, output_grads / size**0.5, backend="triton")

    def test_channels_of_different_size(self):
        """Every channel has a factor of its own."""
        layer = LAYERS["3 × 3, padded"]
        inputs, output_grads = layer.batch()
        inputs = inputs * torch.logspace(-9, 9, 33, device=DEVICE)[:, None, None]
        output_grads = output_grads * torch.logspace(6, -6, 17, device=DEVICE)[:, None, None]
        assert_right(layer, inputs, output_grads, backend="triton")

    def test_a_channel_of_zeros(self):
        layer = LAYERS["1 × 1"]
        inputs, output_grads = layer.batch()
        inputs[:, 4] = 0
        output_grads[:, 7] = 0
        assert_right(layer, inputs, output_grads, backend="triton")

    def test_rounding_where_the_user_allows_it(self, monkeypatch):
        """One float16 term: eleven bits, as tf32; and not before it is allowed."""
        layer = Layer(2, 32, 16, (6, 6), 3, padding=1)
        batch = layer.batch()
        exact = torch.from_numpy(oracle(layer, *batch)[0])

        def error() -> float:
            return relative_error(layer.stats(*batch, backend="triton").weight_grad.cpu(), exact)

        assert error() <= 5e-7
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
        assert 5e-5 <= error() <= 2**-10

    def test_layers_have_the_setting_of_matrix_products(self, monkeypatch, allow_tf32):
        inputs, output_grads = (torch.randn(3, 9, last, device=DEVICE) for last in (33, 17))
        exact = torch.einsum("ntp,ntd->pd", output_grads.double(), inputs.double())

        def error() -> float:
            found = weight_grad_stats(inputs, output_grads, method="fused", backend="triton").weight_grad
            return relative_error(found, exact)

        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
        allow_tf32(False)
        assert error() <= 5e-7
        allow_tf32(True)
        assert 5e-5 <= error() <= 2**-10


@pytest.mark.parametrize(("bad", "dtype"), [(float("nan"), torch.float32), (float("inf"), torch.bfloat16)], ids=str)
@pytest.mark.parametrize("name", ["3 × 3, padded", "three channels", "depthwise"])
def test_a_bad_value_shows_in_its_channel(bad, dtype, name, backend):
    layer = LAYERS[name]
    inputs, output_grads = layer.batch(dtype)
    inputs[1, 2, 2, 2] = bad
    stats = layer.stats(inputs, output_grads, backend=backend)
    assert not stats.square_norm.isfinite()
    spoilt = stats.weight_grad[2] if name == "depthwise" else stats.weight_grad[:, 2]
    assert not spoilt[..., 1, 1].isfinite().any()
    clean = stats.weight_grad[:2] if name == "depthwise" else stats.weight_grad[:, :2]
    assert clean.isfinite().all()
    inputs, output_grads = layer.batch(dtype)
    output_grads[1, 2, 1, 1] = bad
    stats = layer.stats(inputs, output_grads, backend=backend)
    assert not stats.square_norm.isfinite()
    assert not stats.weight_grad[2].isfinite().any()
    assert stats.weight_grad[:2].isfinite().all()


def test_deterministic(backend):
    layer = LAYERS["many samples, few tiles"]
    batch = layer.batch()
    first, second = (layer.stats(*batch, backend=backend) for _ in range(2))
    assert torch.equal(first.weight_grad, second.weight_grad)
    assert torch.equal(first.square_norm, second.square_norm)


def test_few_tiles_are_split_into_ranges_of_samples(launch, monkeypatch):
    monkeypatch.setattr(launch, "PLANS", {})
    layer = LAYERS["many samples, few tiles"]
    layer.stats(*layer.batch(), backend="triton")
    (plan,) = launch.PLANS.values()
    assert plan.ranges > 1


def test_plain_weight_gradient_where_products_serve():
    """Bit for bit what autograd gives, in torch on the CPU."""
    layer = Layer(4, 64, 64, (3, 3), 3, padding=1)
    inputs, output_grads = (x.cpu() for x in layer.batch())
    assert (
        convolution_cpu.cheapest_way(inputs, output_grads, Convolution((3, 3), (1, 1), (1, 1), (1, 1), 1), False)
        == "products"
    )
    weight = torch.zeros(layer.weight, requires_grad=True)
    F.conv2d(inputs, weight, padding=1).backward(output_grads)
    assert torch.equal(layer.stats(inputs, output_grads, backend="torch").weight_grad, weight.grad)
    assert_right(layer, inputs, output_grads, backend="torch")


ON_THE_CPU = {
    "samples": Layer(3, 8, 8, (9, 9), 3, padding=1),
    "products": Layer(2, 96, 96, (4, 4), 3, padding=1),
    "patches": Layer(2, 64, 128, (16, 16), 3, padding=1, stride=2),
    "patches of the input itself": Layer(2, 256, 256, (16, 16), 1),
    "patches of few channels": Layer(3, 3, 40, (40, 36), (5, 3), padding=(2, 0), dilation=(1, 2)),
    "patches in one dimension": Layer(2, 128, 128, (64,), 5, padding=4, stride=2, dilation=2),
    "patches in three dimensions": Layer(2, 24, 96, (5, 6, 7), 3, padding=(1, 0, 2), stride=(1, 2, 1)),
}


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
@pytest.mark.parametrize("name", ON_THE_CPU)
def test_each_way_on_the_cpu(monkeypatch, name, scaled):
    layer = ON_THE_CPU[name]
    ways = []
    choose = convolution_cpu.cheapest_way
    monkeypatch.setattr(convolution_cpu, "cheapest_way", lambda *args: ways.append(choose(*args)) or ways[-1])
    inputs, output_grads = (x.cpu() for x in layer.batch())
    scale = torch.rand(layer.weight) if scaled else None
    assert_right(layer, inputs, output_grads, scale=scale, backend="torch")
    if scaled and name == "products":
        assert "products" not in ways
    else:
        assert ways == [name.split()[0]]


@pytest.mark.parametrize("size", [1e-20, 1e20])
@pytest.mark.parametrize(
    "layer", [ON_THE_CPU["patches"], Layer(4, 64, 64, (3, 3), 3, padding=1), Layer(3, 2, 3, (9, 9), 3)]
)
def test_squares_beyond_float32_on_the_cpu(layer, size):
    inputs, output_grads = (x.cpu() for x in layer.batch())
    output_grads = output_grads * size
    wanted = oracle(layer, inputs, output_grads)[1]
    assert layer.stats(inputs, output_grads, backend="torch").square_norm.item() == pytest.approx(wanted, rel=1e-5)


def test_groups_of_samples_keep_to_the_bound(monkeypatch):
    seen = []
    each = convolution_cpu._each
    monkeypatch.setattr(convolution_cpu, "_each", lambda x, *rest: seen.append(x.shape[0]) or each(x, *rest))
    layer = Layer(7, 8, 8, (9, 9), 3)
    layer.stats(*layer.batch(), max_bytes=3 * 4 * 648, backend="torch")
    assert seen == [3, 3, 1]
    seen.clear()
    layer.stats(*layer.batch(), max_bytes=1, backend="torch")
    assert seen == [1] * 7
    assert cpu.GROUP_BYTES >= 7 * 4 * 648
    seen.clear()
    layer.stats(*layer.batch(), backend="torch")
    assert seen == [7]


@pytest.mark.parametrize("name", ["stride 2, odd", "depthwise", "dilation", "two groups", "one dimension"])
def test_reference_against_the_oracle(name):
    layer = LAYERS[name]
    batch = layer.batch()
    scale = torch.rand(layer.weight, device=DEVICE)
    found = conv_weight_grad_stats_reference(
        *batch,
        layer.kernel,
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        scale=scale,
    )
    total, squares = oracle(layer, *batch, scale)
    assert relative_error(found.weight_grad.cpu(), torch.from_numpy(total)) <= 1e-13
    assert found.square_norm.item() == pytest.approx(squares, rel=1e-13)


class TestCompile:
    @pytest.fixture(autouse=True)
    def compiled_afresh(self):
        torch.compiler.reset()

    @pytest.mark.parametrize("name", ["3 × 3, padded", "depthwise"])
    def test_fullgraph(self, name, backend):
        layer = LAYERS[name]
        batch = layer.batch()
        compiled = torch.compile(layer.stats, backend="aot_eager", fullgraph=True)
        eager, traced = layer.stats(*batch, backend=backend), compiled(*batch, backend=backend)
        assert torch.equal(eager.weight_grad, traced.weight_grad)
        assert torch.equal(eager.square_norm, traced.square_norm)

    def test_operator_registration(self, backend):
        layer = Layer(1, 2, 2, (3, 3), 3, padding=1)
        batch = layer.batch()
        op = torch.ops.sdsd.conv_weight_grad_stats.default
        for scale in (None, torch.rand(layer.weight, device=DEVICE)):
            for weight_grad, dtype, last in (
                (True, torch.bfloat16, False),
                (True, torch.float32, True),
                (False, torch.float32, False),
            ):
                torch.library.opcheck(
                    op, (*batch, scale, [3, 3], [1, 1], [1, 1], [1, 1], 1, weight_grad, dtype, last, 10_000, backend)
                )

    def test_bad_input_is_found_while_tracing(self):
        layer = LAYERS["3 × 3, padded"]
        inputs, output_grads = layer.batch()
        compiled = torch.compile(layer.stats, backend="aot_eager", fullgraph=True)
        with pytest.raises(Exception, match="expected 2 samples like inputs, got 1"):
            compiled(inputs, output_grads[:1])

    def test_results_carry_no_gradient(self):
        layer = LAYERS["3 × 3, padded"]
        stats = layer.stats(*(x.requires_grad_() for x in layer.batch()))
        assert not stats.weight_grad.requires_grad
        assert not stats.square_norm.requires_grad


class TestBadInput:
    @pytest.mark.parametrize(
        ("inputs", "output_grads", "error", "message"),
        [
            ((2, 6, 5, 5), (3, 4, 5, 5), ValueError, "output_grads: expected 2 samples like inputs, got 3"),
            ((2, 6, 5, 5), (2, 4, 5), ValueError, "output_grads: expected 4 dimensions like inputs"),
            ((2, 6), (2, 4), ValueError, r"inputs: expected shape \(N, C, \*size\)"),
            ((2, 6, 5, 5), (2, 4, 5, 4), ValueError, r"output_grads: expected positions \(5, 5\).*got \(5, 4\)"),
            ((2, 5, 5, 5), (2, 4, 5, 5), ValueError, "inputs: expected channels divisible by groups=2, got 5"),
            ((2, 6, 5, 5), (2, 3, 5, 5), ValueError, "output_grads: expected outputs divisible by groups=2, got 3"),
            ((0, 6, 5, 5), (0, 4, 5, 5), ValueError, "inputs: expected at least one element"),
            ((2, 6, 5, 5), (2, 4, 0, 5), ValueError, "output_grads: expected at least one element"),
        ],
    )
    def test_shapes(self, inputs, output_grads, error, message):
        with pytest.raises(error, match=message):
            conv_weight_grad_stats(torch.randn(inputs), torch.randn(output_grads), 3, padding=1, groups=2)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"kernel_size": 0}, ValueError, "kernel_size: expected at least 1, got 0"),
            ({"kernel_size": (3, 3, 3)}, ValueError, "kernel_size: expected an int or 2 of them.*got 3"),
            ({"kernel_size": 3.0}, TypeError, "kernel_size: expected an int, got float"),
            ({"kernel_size": [3, "3"]}, TypeError, r"kernel_size\[1\]: expected an int, got str"),
            ({"stride": 0}, ValueError, "stride: expected at least 1"),
            ({"padding": -1}, ValueError, "padding: expected at least 0, got -1"),
            ({"padding": "same"}, ValueError, "padding: expected an int or 2 of them, got 'same'"),
            ({"dilation": (1, 0)}, ValueError, r"dilation\[1\]: expected at least 1, got 0"),
            ({"groups": 0}, ValueError, "groups: expected at least 1"),
            ({"groups": True}, TypeError, "groups: expected an int, got bool"),
            ({"scale": torch.rand(4, 6, 3)}, ValueError, r"scale: expected shape \(4, 6, 3, 3\)"),
            ({"scale": torch.ones(4, 6, 3, 3, dtype=torch.long)}, TypeError, "scale: expected float64"),
            ({"dtype": "float32"}, TypeError, "dtype: expected one of"),
            ({"max_bytes": 0}, ValueError, "max_bytes: expected at least 1, got 0"),
            ({"max_bytes": True}, TypeError, "max_bytes: expected an int, got bool"),
            ({"backend": "numpy"}, ValueError, "backend: expected one of"),
        ],
    )
    def test_options(self, options, error, message):
        known = {"kernel_size": 3, "padding": 1} | options
        # Right arguments first: what passed before must not let others pass.
        conv_weight_grad_stats(torch.randn(2, 6, 5, 5), torch.randn(2, 4, 5, 5), 3, padding=1, max_bytes=1)
        with pytest.raises(error, match=message):
            conv_weight_grad_stats(torch.randn(2, 6, 5, 5), torch.randn(2, 4, 5, 5), **known)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (lambda x: x.half(), TypeError, "output_grads: expected torch.float32 like inputs, got torch.float16"),
            (lambda x: x.to("meta"), ValueError, "output_grads: expected device cpu like inputs, got meta"),
            (lambda x: x.tolist(), TypeError, "output_grads: expected a torch.Tensor, got list"),
        ],
    )
    def test_kinds(self, change, error, message):
        with pytest.raises(error, match=message):
            conv_weight_grad_stats(torch.randn(2, 6, 5, 5), change(torch.randn(2, 4, 5, 5)), 3, padding=1)
