"""What every function of kernels refuses, by the name of the argument: other tensors, and memory that is read too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sdsd_kernels
from sdsd_kernels import NORMS_WIDTH, gram_accumulate


def norms() -> Tensor:
    return torch.zeros(2, NORMS_WIDTH, dtype=torch.float64)


TOKENS = torch.zeros(3, 4, dtype=torch.int64)
CALLS: dict[str, Callable[[Any], Any]] = {
    "moments": lambda x: sdsd_kernels.gamma_moments(x),
    "moments of several": lambda x: sdsd_kernels.gamma_moments([torch.ones(3, 5), x]),
    "inputs": lambda x: sdsd_kernels.weight_grad_stats(x, torch.ones(3, 4, 5)),
    "output gradients": lambda x: sdsd_kernels.weight_grad_stats(torch.ones(3, 4, 5), x),
    "scale": lambda x: sdsd_kernels.weight_grad_stats(torch.ones(3, 4, 5), torch.ones(3, 4, 5), scale=x),
    "inputs and norms": lambda x: sdsd_kernels.weight_grad_into(x, torch.ones(3, 4, 5), norms(), 0),
    "square norms": lambda x: sdsd_kernels.weight_grad_into(torch.ones(3, 4, 5), torch.ones(3, 4, 5), x, 0),
    "convolution": lambda x: sdsd_kernels.conv_weight_grad_stats(x, torch.ones(3, 4, 5), 1),
    "convolution and norms": lambda x: sdsd_kernels.conv_weight_grad_into(torch.ones(3, 4, 5), x, norms(), 0, 1),
    "shift": lambda x: sdsd_kernels.scale_shift_grads(x, norms(), shift_row=0),
    "normalised": lambda x: sdsd_kernels.scale_shift_grads(torch.ones(3, 4, 5), norms(), inputs=x, scale_row=0),
    "norms of a shift": lambda x: sdsd_kernels.scale_shift_grads(torch.ones(3, 4, 5), x, shift_row=0),
    "lookup": lambda x: sdsd_kernels.lookup_squares_into(x, TOKENS, norms(), 0),
    "matrix": lambda x: sdsd_kernels.cosine_matrix(x),
    "topk": lambda x: sdsd_kernels.cosine_topk(x, 1),
    "between": lambda x: sdsd_kernels.cosine_between(torch.ones(3, 5), x),
    "pairs": lambda x: sdsd_kernels.cosine_pairs(x, above=0.5),
    "histogram": lambda x: sdsd_kernels.cosine_histogram(x),
    "row sums": lambda x: sdsd_kernels.cosine_row_sums(x),
    "gram": lambda x: gram_accumulate(torch.zeros(5, 5), x),
    "sum": lambda x: gram_accumulate(x, torch.ones(3, 5)),
}


class Spread(torch.Tensor):
    """As a DTensor is."""

    device_mesh = "of two ranks"


OTHERS: dict[str, tuple[Any, str]] = {
    "nested": (torch.nested.nested_tensor([torch.ones(4, 5)] * 3), "nested"),
    "jagged": (torch.nested.nested_tensor([torch.ones(4, 5)] * 3, layout=torch.jagged), "nested"),
    "spread over ranks": (torch.ones(3, 4, 5).as_subclass(Spread), r"Spread\. Pass .*full_tensor"),
    "sparse": (torch.ones(3, 4, 5).to_sparse(), "sparse_coo"),
    "quantised": (torch.quantize_per_tensor(torch.ones(3, 4, 5), 0.1, 0, torch.qint8), "quantised"),
    "complex": (torch.ones(3, 4, 5, dtype=torch.complex64), "complex64"),
    "whole numbers": (torch.ones(3, 4, 5, dtype=torch.int64), "int64"),
    "truth values": (torch.ones(3, 4, 5, dtype=torch.bool), "bool"),
    "eight bits": (torch.ones(3, 4, 5).to(torch.float8_e4m3fn), "float8_e4m3fn"),
    "no tensor": ("abc", "str"),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("call", CALLS)
def test_other_tensors_are_refused_in_words(call, other):
    value, name = OTHERS[other]
    with pytest.raises(TypeError, match=rf"^\w+(\[\d\])?: expected .*got .*{name}"):
        CALLS[call](value)


def test_a_dtype_that_cannot_be_hashed_is_refused_in_words():
    with pytest.raises(TypeError, match="dtype: expected one of"):
        sdsd_kernels.scale_shift_grads(torch.ones(3, 4, 5), norms(), shift_row=0, dtype=[])  # type: ignore[arg-type]


def test_norms_that_want_a_gradient_are_refused_after_others_passed():
    for _ in range(2):
        sdsd_kernels.scale_shift_grads(torch.ones(3, 4, 5), norms(), shift_row=0)
        with pytest.raises(ValueError, match="square_norms: expected a tensor without gradient"):
            sdsd_kernels.scale_shift_grads(torch.ones(3, 4, 5), norms().requires_grad_(), shift_row=0)


def test_bytes_beyond_64_bits_are_refused_in_words():
    with pytest.raises(ValueError, match=r"max_bytes: expected fewer than 2\*\*63, got 9223372036854775808"):
        sdsd_kernels.weight_grad_stats(torch.ones(3, 5), torch.ones(3, 5), max_bytes=2**63)


SHARED: dict[str, Callable[[Tensor], dict[str, Tensor]]] = {
    "activations": lambda memory: {"activations": memory[:1600].view(40, 40)},
    "part of activations": lambda memory: {"activations": memory[400:2000].view(40, 40)},
    "every second of them": lambda memory: {"activations": memory.as_strided((10, 40), (250, 2), 1)},
    "shift": lambda memory: {"shift": memory[120:160]},
    "scale": lambda memory: {"scale": memory[1560:1600]},
}


@pytest.mark.parametrize("shared", SHARED)
def test_a_sum_that_lies_in_what_is_read_is_refused(shared, backend, device):
    memory = torch.zeros(3000, device=device)
    gram = memory[:1600].view(40, 40)
    given = {"activations": torch.ones(7, 40, device=device)} | SHARED[shared](memory)
    with pytest.raises(ValueError, match=r"gram: expected memory of its own, got .* Pass \w+\.clone\(\)"):
        gram_accumulate(gram, backend=backend, **given)
    assert not memory.any()


def test_neighbours_in_memory_are_taken(backend, device):
    memory = torch.ones(4000, device=device)
    gram, x, shift = memory[400:2000].view(40, 40), memory[2000:2800].view(20, 40), memory[360:400]
    assert gram_accumulate(gram, x, shift=shift, backend=backend) is gram
    gram_accumulate(gram, memory[:400].view(10, 40), backend=backend)
    assert gram[0, 0] == 11
