"""What surrounds a call, settings of torch and modes of the thread, changes nothing of what it gives."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import sdsd_kernels
from sdsd_kernels import NORMS_WIDTH, exact_convolutions, exact_float32
from sdsd_kernels._precision import convolutions_may_use_tf32, layers_may_use_tf32

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")


def norms(device: torch.device) -> Tensor:
    return torch.zeros(2, NORMS_WIDTH, dtype=torch.float64, device=device)


def into(call: Callable[..., Any], *tensors: Tensor, **options: Any) -> list[Any]:
    """What a call returns, and what it writes."""
    written = norms(tensors[0].device)
    return [*call(tensors[0], *tensors[1:], written, 0, bias_row=1, **options), written.sum(1)]


def scale_shift(x: Tensor, backend: str) -> list[Any]:
    written = norms(x.device)
    inputs = x.view(6, 8, 40).flip(0)
    options = {"inputs": inputs, "scale_row": 0, "shift_row": 1, "backend": backend}
    return [*sdsd_kernels.scale_shift_grads(x.view(6, 8, 40), written, **options), written]


def lookup(x: Tensor, backend: str) -> list[Any]:
    tokens = torch.arange(48, device=x.device).view(6, 8) % 5
    return [sdsd_kernels.lookup_squares_into(x.view(6, 8, 40), tokens, norms(x.device), 0, backend=backend)]


def gram(x: Tensor, backend: str) -> list[Any]:
    start = torch.ones(40, 40, device=x.device, dtype=torch.float32)
    return [sdsd_kernels.gram_accumulate(start, x, shift=x[0] / 2, scale=x[1], backend=backend).triu()]


def conv(x: Tensor, backend: str) -> list[Any]:
    images = x.view(4, 5, 8, 12)
    return list(sdsd_kernels.conv_weight_grad_stats(images, images.flip(1), 3, padding=1, backend=backend))


CALLS: dict[str, Callable[[Tensor, str], Any]] = {
    "moments": lambda x, b: sdsd_kernels.gamma_moments(x, per_sample=True, backend=b),
    "moments of several": lambda x, b: sdsd_kernels.gamma_moments([x, x[:, ::2], x.half()], backend=b),
    "matrix": lambda x, b: [sdsd_kernels.cosine_matrix(x, backend=b)],
    "topk": lambda x, b: sdsd_kernels.cosine_topk(x, 3, backend=b),
    "between": lambda x, b: [sdsd_kernels.cosine_between(x, x[:, 7:20].flip(1))],
    "pairs": lambda x, b: sdsd_kernels.cosine_pairs(x, above=0.1, backend=b),
    "histogram": lambda x, b: sdsd_kernels.cosine_histogram(x, 16, backend=b),
    "row sums": lambda x, b: [sdsd_kernels.cosine_row_sums(x, backend=b)],
    "gram": gram,
    "fused": lambda x, b: sdsd_kernels.weight_grad_stats(
        x.view(6, 8, 40), x.view(6, 8, 40)[..., :24].flip(0), method="fused", backend=b
    ),
    "products": lambda x, b: sdsd_kernels.weight_grad_stats(
        x.view(6, 8, 40), x.view(6, 8, 40)[..., :24].flip(0), method="gram", backend=b
    ),
    "rank1": lambda x, b: sdsd_kernels.weight_grad_stats(x, x[:, :24].flip(0), backend=b),
    "convolution": conv,
    "weight and bias": lambda x, b: into(
        sdsd_kernels.weight_grad_into, x.view(6, 8, 40), x.view(6, 8, 40)[..., :24].flip(0), backend=b
    ),
    "lookup": lookup,
    "scale and shift": scale_shift,
}


@contextlib.contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    # cuBLAS wants a variable set before the start, and says so.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def lowered(**products: str) -> Iterator[None]:
    """Precisions set by torch's new names, which make its old ones raise."""
    modules = {
        "cuda": torch.backends.cuda.matmul,
        "cudnn": torch.backends.cudnn.conv,
        "mkldnn": torch.backends.mkldnn.matmul,
    }
    before = {name: modules[name].fp32_precision for name in products}
    try:
        for name, precision in products.items():
            modules[name].fp32_precision = precision
        yield
        assert {name: modules[name].fp32_precision for name in products} == products
    finally:
        for name, precision in before.items():
            modules[name].fp32_precision = precision


SURROUNDINGS: dict[str, Callable[[str], Any]] = {
    "autocast": lambda device: torch.autocast(device, torch.bfloat16),
    "inference mode": lambda device: torch.inference_mode(),
    "no gradients": lambda device: torch.no_grad(),
    "another default device": lambda device: torch.device("meta"),
    "another default dtype": lambda device: default_dtype(),
    "deterministic algorithms": lambda device: deterministic(),
}


ROUNDED = {"fused", "products", "rank1", "convolution", "weight and bias"}
"""Gradients of layers, which torch's settings round as they round autograd's."""


def assert_same(got: Any, wanted: Any, where: str) -> None:
    for one, other in zip(got, wanted, strict=True):
        assert one is other is None or torch.equal(one, other), where


@pytest.mark.parametrize("call", CALLS)
def test_the_result_is_the_same_bit_for_bit(call, backend, device):
    x = torch.randn(48, 40, device=device) + 0.1
    wanted = CALLS[call](x, backend)
    for name, surroundings in SURROUNDINGS.items():
        with surroundings(device.type):
            got = CALLS[call](x, backend)
        assert_same(got, wanted, name)


@pytest.mark.parametrize("call", sorted(CALLS.keys() - ROUNDED))
def test_products_of_neurons_are_in_float32_whatever_torch_may_round(call, backend, device):
    x = torch.randn(48, 40, device=device) + 0.1
    wanted = CALLS[call](x, backend)
    for precision in ("tf32", "ieee"):
        with lowered(cuda=precision, mkldnn="bf16"):
            assert_same(CALLS[call](x, backend), wanted, precision)


def test_layers_may_use_tf32_by_either_name(allow_tf32):
    assert not layers_may_use_tf32()
    allow_tf32(True)
    assert layers_may_use_tf32()
    allow_tf32(False)
    with lowered(cuda="tf32"):
        assert layers_may_use_tf32()
    assert not layers_may_use_tf32()


def test_convolutions_may_use_tf32_by_either_name(monkeypatch):
    for allowed in (False, True):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        assert convolutions_may_use_tf32() == allowed
    with lowered(cudnn="ieee"):
        assert not convolutions_may_use_tf32()


@pytest.mark.parametrize("precision", ["tf32", "ieee"])
@pytest.mark.parametrize("call", sorted(ROUNDED))
def test_gradients_of_layers_take_either_name(call, precision, backend, device):
    x = torch.randn(48, 40, device=device) + 0.1
    wanted = CALLS[call](x.double(), "torch")
    with lowered(cuda=precision, cudnn=precision):
        got = CALLS[call](x, backend)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize("transform", ["grad", "jvp", "backward"])
def test_derivatives_of_the_matrix_are_the_same_under_autocast(transform, backend, device):
    x = torch.randn(48, 20, device=device)
    seeds = torch.randn(20, 20, device=device)

    def loss(x: Tensor) -> Tensor:
        return (sdsd_kernels.cosine_matrix(x, backend=backend) * seeds).sum()

    def backward(x: Tensor) -> Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(loss(leaf), leaf)[0]

    way = {
        "grad": torch.func.grad(loss),
        "jvp": lambda x: torch.func.jvp(loss, (x,), (x.flip(0),))[1],
        "backward": backward,
    }[transform]
    wanted = way(x)
    with torch.autocast(device.type, torch.bfloat16):
        assert torch.equal(way(x), wanted)


def test_float32_is_exact_whatever_the_names_of_its_settings():
    with lowered(cuda="tf32", mkldnn="bf16"):
        with pytest.raises(RuntimeError):
            torch.get_float32_matmul_precision()
        with exact_float32():
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"
        with pytest.raises(KeyboardInterrupt), exact_float32():
            raise KeyboardInterrupt
    for precision in ("high", "medium"):
        torch.set_float32_matmul_precision(precision)
        try:
            with exact_float32():
                assert torch.get_float32_matmul_precision() == "highest"
            assert torch.get_float32_matmul_precision() == precision
        finally:
            torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("before", ["tf32", "ieee"])
def test_convolutions_are_exact_whatever_the_names_of_their_settings(before):
    with lowered(cudnn=before), exact_convolutions():
        assert not convolutions_may_use_tf32()
    assert convolutions_may_use_tf32()
