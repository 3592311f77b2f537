"""conv_weight_grad_stats on every backend against loops over samples."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdsd_kernels import conv_weight_grad_stats, weight_grad_stats
from tests.helpers import relative_error

from .convolutions import DEVICE, HAS_KERNELS, LAYERS, Layer, assert_right

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")


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
