"""conv_weight_grad_stats on every backend and by every loader, against loops over samples, taps and positions."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdsd_kernels import available_backends, conv_weight_grad_stats, weight_grad_stats
from sdsd_kernels._device import device_record
from sdsd_kernels.per_sample import convolution_cpu, cpu
from sdsd_kernels.per_sample.convolution import Convolution
from sdsd_kernels.weight_grad_stats.reference import conv_weight_grad_stats_reference
from tests.helpers import assert_within, relative_error, summation_error, unit_roundoff

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HAS_KERNELS = "triton" in available_backends(DEVICE)
ENGINE, POINTERS = "triton, copy engine", "triton, pointers"
WAYS = ["torch", *([ENGINE, POINTERS] if HAS_KERNELS else [])]


@pytest.fixture
def launch() -> ModuleType:
    if not HAS_KERNELS:
        pytest.skip("no Triton here")
    from sdsd_kernels.per_sample import launch

    return launch


@pytest.fixture(params=WAYS)
def backend(request, monkeypatch) -> str:
    """The backend's name, with boxes read as the parameter says."""
    if request.param == "torch":
        return "torch"
    launch = request.getfixturevalue("launch")
    record = device_record(DEVICE)
    if request.param == ENGINE and not record.copy_engine:
        pytest.skip("this GPU has no copy engine")
    monkeypatch.setattr(launch, "device_record", lambda _: replace(record, copy_engine=request.param == ENGINE))
    monkeypatch.setattr(launch, "PLANS", {})
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return "triton"


@pytest.fixture
def allow_tf32():
    """Sets what torch's matrix products may round; monkeypatch cannot put this attribute back."""
    before = torch.backends.cuda.matmul.allow_tf32
    yield lambda value: setattr(torch.backends.cuda.matmul, "allow_tf32", value)
    torch.backends.cuda.matmul.allow_tf32 = before


class Layer(NamedTuple):
    """A convolution and its batch."""

    samples: int
    channels: int
    outputs: int
    size: tuple[int, ...]
    kernel: int | tuple[int, ...]
    stride: int | tuple[int, ...] = 1
    padding: int | tuple[int, ...] = 0
    dilation: int | tuple[int, ...] = 1
    groups: int = 1

    def each(self, value) -> tuple[int, ...]:
        return value if isinstance(value, tuple) else (value,) * len(self.size)

    @property
    def weight(self) -> tuple[int, ...]:
        return (self.outputs, self.channels // self.groups, *self.each(self.kernel))

    @property
    def positions(self) -> tuple[int, ...]:
        return tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(
                self.size, *map(self.each, (self.kernel, self.stride, self.padding, self.dilation)), strict=True
            )
        )

    def batch(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Inputs and output gradients."""
        return (
            torch.randn(self.samples, self.channels, *self.size).to(DEVICE, dtype),
            torch.randn(self.samples, self.outputs, *self.positions).to(DEVICE, dtype),
        )

    def stats(self, inputs: Tensor, output_grads: Tensor, **options):
        return conv_weight_grad_stats(
            inputs,
            output_grads,
            self.kernel,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            **options,
        )


def oracle(layer: Layer, inputs: Tensor, output_grads: Tensor, scale: Tensor | None = None) -> tuple[np.ndarray, float]:
    """Weight gradient and square norm in NumPy float64: every sample alone, every tap a sum over positions."""
    a, b = (x.detach().cpu().double().numpy() for x in (inputs, output_grads))
    factors = 1.0 if scale is None else scale.detach().cpu().double().numpy()
    stride, padding, dilation = (layer.each(value) for value in (layer.stride, layer.padding, layer.dilation))
    a = np.pad(a, [(0, 0), (0, 0), *((p, p) for p in padding)])
    per_group, outputs = layer.channels // layer.groups, layer.outputs // layer.groups
    total, squares = np.zeros(layer.weight), 0.0
    for image, grads in zip(a, b, strict=True):
        gradient = np.zeros(layer.weight)
        for tap in np.ndindex(*layer.each(layer.kernel)):
            met = tuple(
                slice(t * d, t * d + (n - 1) * s + 1, s)
                for t, d, n, s in zip(tap, dilation, layer.positions, stride, strict=True)
            )
            for group in range(layer.groups):
                left = grads[group * outputs : (group + 1) * outputs].reshape(outputs, -1)
                right = image[group * per_group : (group + 1) * per_group][(slice(None), *met)].reshape(per_group, -1)
                gradient[(slice(group * outputs, (group + 1) * outputs), slice(None), *tap)] = left @ right.T
        total += gradient
        squares += float(((factors * gradient) ** 2).sum())
    return total, squares


def assert_right(layer: Layer, inputs: Tensor, output_grads: Tensor, scale: Tensor | None = None, **options) -> None:
    """Within what sums of that many products may err by."""
    stats = layer.stats(inputs, output_grads, scale=scale, **options)
    assert (stats.square_norm.dtype, stats.square_norm.shape) == (torch.float64, ())
    assert (stats.weight_grad.dtype, stats.weight_grad.device) == (options.get("dtype", inputs.dtype), inputs.device)
    total, squares = oracle(layer, inputs, output_grads, scale)
    magnitude, most = oracle(layer, inputs.abs(), output_grads.abs(), scale)
    terms = int(np.prod(layer.positions))
    dtype = torch.promote_types(inputs.dtype, torch.float32)
    rounding = 8 * unit_roundoff(dtype)
    inner = 2 * summation_error(terms, dtype) + rounding
    if options["backend"] == "torch" and scale is None:  # products of positions may serve
        inner += summation_error(layer.channels * magnitude[0, 0].size, dtype) + summation_error(layer.outputs, dtype)
    bound = (inner + summation_error(layer.samples * max(terms**2, magnitude.size), dtype)) * most
    assert_within(stats.square_norm, torch.tensor(squares, dtype=torch.float64), bound)
    allowed = (summation_error(layer.samples * terms, dtype) + rounding) * torch.from_numpy(magnitude)
    if stats.weight_grad.dtype.itemsize < dtype.itemsize:
        # The interpreter truncates to bfloat16, which errs twice as much as rounding.
        returned = unit_roundoff(stats.weight_grad.dtype) * 2
        allowed = allowed * (1 + returned) + returned * torch.from_numpy(np.abs(total)) + 1e-7 * (dtype.itemsize < 8)
    assert_within(stats.weight_grad, torch.from_numpy(total), allowed)


LAYERS = {
    "1 × 1": Layer(3, 20, 18, (5, 6), 1),
    "3 × 3, padded": Layer(2, 33, 17, (5, 9), 3, padding=1),
    "padding on one side alone would do": Layer(2, 16, 5, (4, 4), 3, padding=(2, 0)),
    "kernel not square": Layer(2, 18, 9, (7, 6), (1, 4), padding=(0, 3)),
    "kernel as large as the image": Layer(3, 16, 6, (4, 5), (4, 5)),
    "stride 2, even": Layer(2, 24, 17, (8, 6), 3, stride=2, padding=1),
    "stride 2, odd": Layer(2, 24, 17, (7, 9), 3, stride=2, padding=1),
    "strides that differ": Layer(2, 17, 8, (9, 8), (3, 2), stride=(3, 1), padding=(2, 1)),
    "1 × 1, stride 2": Layer(2, 16, 18, (7, 8), 1, stride=2),
    "stride 2, kernel 2": Layer(3, 32, 8, (6, 8), 2, stride=2),
    "dilation": Layer(2, 17, 9, (9, 8), 3, padding=2, dilation=(2, 3)),
    "dilation and stride": Layer(2, 16, 9, (9, 10), 3, stride=2, padding=2, dilation=2),
    "dilation and stride share a factor": Layer(1, 16, 4, (12, 11), (2, 3), stride=(4, 3), dilation=(2, 3)),
    "one channel": Layer(3, 1, 20, (7, 6), 3, padding=1),
    "three channels": Layer(3, 3, 17, (8, 9), 3, stride=2, padding=1),
    "three channels, patches": Layer(2, 3, 20, (8, 12), 4, stride=4),
    "eight channels, two outputs": Layer(2, 8, 2, (5, 5), 3, padding=1),
    "few channels, 1 × 1": Layer(3, 5, 6, (4, 5), 1),
    "depthwise": Layer(3, 10, 10, (6, 7), 3, padding=1, groups=10),
    "depthwise, stride and dilation": Layer(2, 6, 6, (9, 8), 3, stride=2, padding=2, dilation=2, groups=6),
    "depthwise, three outputs a channel": Layer(2, 5, 15, (6, 5), (2, 3), groups=5),
    "depthwise, several samples a range": Layer(9, 10, 10, (4, 4), 3, padding=1, groups=10),
    "two groups": Layer(2, 48, 48, (4, 5), (1, 3), padding=(0, 1), groups=2),
    "two groups in one tile": Layer(2, 16, 16, (5, 4), 3, padding=1, groups=2),
    "small groups": Layer(2, 32, 32, (5, 4), 3, padding=1, groups=4),
    "groups of three channels": Layer(2, 12, 8, (6, 5), 3, stride=2, padding=1, groups=4),
    "groups that no box starts at": Layer(2, 51, 21, (5, 4), 2, groups=3),
    "many samples, few tiles": Layer(19, 16, 8, (3, 3), (1, 2), padding=(0, 1)),
    "one dimension": Layer(3, 17, 9, (23,), 3, stride=2, padding=1),
    "one dimension, depthwise": Layer(3, 6, 6, (11,), 4, padding=3, groups=6),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, backend):
    layer = LAYERS[name]
    assert_right(layer, *layer.batch(), backend=backend)


@pytest.mark.parametrize(
    "name",
    [
        "3 × 3, padded",
        "stride 2, odd",
        "dilation and stride",
        "three channels",
        "depthwise",
        "small groups",
        "groups that no box starts at",
        "one dimension",
    ],
)
def test_scaled(name, backend):
    layer = LAYERS[name]
    assert_right(layer, *layer.batch(), torch.rand(layer.weight, device=DEVICE) + 0.5, backend=backend)


@pytest.mark.parametrize("name", ["3 × 3, padded", "stride 2, odd", "three channels", "depthwise"])
def test_squares_alone(name, backend):
    layer = LAYERS[name]
    batch = layer.batch()
    both, brief = layer.stats(*batch, backend=backend), layer.stats(*batch, weight_grad=False, backend=backend)
    assert brief.weight_grad is None
    assert brief.square_norm.item() == pytest.approx(both.square_norm.item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "name",
    [
        "3 × 3, padded",
        "stride 2, odd",
        "three channels",
        "depthwise",
        "small groups",
        "two groups",
        "dilation and stride",
    ],
)
def test_dtypes(name, dtype, backend):
    if backend == "triton" and dtype == torch.float64:
        pytest.skip("the kernel has no float64")
    layer = LAYERS[name]
    inputs, output_grads = layer.batch(dtype)
    assert_right(layer, inputs, output_grads, backend=backend)


@pytest.mark.parametrize("size", [(1, 1), (1, 17), (3, 5), (4, 8), (16, 16), (17, 15)], ids=str)
def test_boxes_that_do_not_fit(size, backend):
    """Boxes hang over the ends in either direction, or cover them."""
    layer = Layer(3, 17, 18, size, 3, padding=1)
    assert_right(layer, *layer.batch(), backend=backend)


@pytest.mark.parametrize("layer", [Layer(2, 6, 4, (4, 5, 3), 3, padding=1), Layer(2, 4, 4, (5, 6, 4), 2, 2, groups=2)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_three_dimensions_of_space(layer, channels_last):
    inputs, output_grads = layer.batch()
    assert_right(layer, inputs, output_grads, channels_last=channels_last, backend="torch")
    assert_right(layer, inputs, output_grads, torch.rand(layer.weight, device=DEVICE), backend="torch")
    if HAS_KERNELS:
        with pytest.raises(ValueError, match="no third dimension of space"):
            layer.stats(inputs, output_grads, backend="triton")


VIEWS = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every second sample": lambda x: torch.cat((x, x))[::2],
    "every second column": lambda x: torch.cat((x, x), 3)[..., ::2],
    "misaligned": lambda x: torch.cat((x.flatten(), x.flatten()[:1]))[1:].view(x.shape),
    "a part of the channels": lambda x: torch.cat((x, x), 1).contiguous(memory_format=torch.channels_last)[
        :, 3 : 3 + x.shape[1]
    ],
    "one sample, expanded": lambda x: x[:1].expand_as(x),
    "one row, expanded": lambda x: x[:, :, :1].expand_as(x),
    "space turned": lambda x: x.mT.contiguous().mT,
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ["stride 2, even", "1 × 1, stride 2", "depthwise"])
def test_strides(name, view, backend):
    layer = LAYERS[name]
    inputs, output_grads = layer.batch(torch.float16)
    assert_right(layer, VIEWS[view](inputs), VIEWS[view](output_grads), dtype=torch.float32, backend=backend)


@pytest.mark.parametrize("name", ["3 × 3, padded", "three channels", "depthwise", "small groups", "one dimension"])
def test_memory_format_of_the_weight_gradient(name, backend):
    layer = LAYERS[name]
    batch = layer.batch()
    plain = layer.stats(*batch, backend=backend).weight_grad
    assert plain.is_contiguous()
    turned = layer.stats(*batch, channels_last=True, backend=backend).weight_grad
    assert torch.equal(plain, turned)
    assert turned.movedim(1, -1).is_contiguous()


def test_strided_scale(backend):
    layer = LAYERS["3 × 3, padded"]
    batch = layer.batch()
    scale = torch.rand(3, 3, 33, 34, dtype=torch.float64, device=DEVICE).permute(3, 2, 1, 0)[::2]
    assert_right(layer, *batch, scale, backend=backend)
    assert_right(layer, *batch, scale[:, :1, :1, :1].expand(layer.weight), backend=backend)


def test_a_linear_layer_is_a_convolution_of_one_tap(backend):
    inputs, output_grads = (torch.randn(4, 19, last, device=DEVICE) for last in (33, 17))
    layer = weight_grad_stats(inputs, output_grads, method="fused", backend=backend)
    found = conv_weight_grad_stats(inputs.mT, output_grads.mT, 1, backend=backend)
    assert relative_error(found.weight_grad[..., 0], layer.weight_grad.double()) <= 1e-6
    assert found.square_norm.item() == pytest.approx(layer.square_norm.item(), rel=1e-6)


def test_a_transposed_convolution_with_the_parts_changed(backend):
    x = torch.randn(3, 16, 5, 4, dtype=torch.float64)
    weight = torch.randn(16, 17, 3, 3, dtype=torch.float64, requires_grad=True)
    out = F.conv_transpose2d(x, weight, stride=2, padding=1, output_padding=1)
    grads = torch.randn_like(out)
    each = [torch.autograd.grad(out[n], weight, grads[n], retain_graph=True)[0] for n in range(3)]
    found = conv_weight_grad_stats(
        grads.float().to(DEVICE), x.float().to(DEVICE), 3, stride=2, padding=1, backend=backend
    )
    assert relative_error(found.weight_grad.cpu(), sum(each)) <= 1e-6
    assert found.square_norm.item() == pytest.approx(sum(g.square().sum().item() for g in each), rel=1e-6)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    samples=st.integers(1, 5),
    groups=st.integers(1, 4),
    channels=st.sampled_from([1, 3, 8, 15, 17, 33]),
    outputs=st.sampled_from([1, 2, 8, 17]),
    size=st.tuples(*[st.integers(4, 9)] * 2),
    kernel=st.tuples(*[st.integers(1, 3)] * 2),
    stride=st.tuples(*[st.integers(1, 3)] * 2),
    padding=st.tuples(*[st.integers(0, 2)] * 2),
    dilation=st.tuples(*[st.integers(1, 2)] * 2),
    scaled=st.booleans(),
    half=st.booleans(),
    max_bytes=st.integers(1, 2**14),
    seed=st.integers(0, 2**31),
)
def test_random_layers(
    backend, samples, groups, channels, outputs, size, kernel, stride, padding, dilation, scaled, half, max_bytes, seed
):
    torch.manual_seed(seed)
    layer = Layer(samples, channels * groups, outputs * groups, size, kernel, stride, padding, dilation, groups)
    if min(layer.positions) < 1:
        return
    scale = torch.rand(layer.weight, device=DEVICE) if scaled else None
    batch = layer.batch(torch.float16 if half else torch.float32)
    assert_right(layer, *batch, scale, dtype=torch.float32, max_bytes=max_bytes, backend=backend)


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
