"""A tensor counts for the values it has, whatever it is a view of and whatever class it is of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sdsd_kernels
from sdsd_kernels import NORMS_WIDTH, cosine_topk, gram_accumulate
from sdsd_kernels._rows import as_rows

from .test_surroundings import CALLS, assert_same

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")


class Subclass(torch.Tensor):
    """Goes through torch's own functions as a tensor does."""


def inference(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return x.clone()


def negated(x: Tensor) -> Tensor:
    """A view that torch negates as it reads: the imaginary part of a conjugate."""
    return torch.complex(torch.zeros_like(x), -x).conj().imag


KINDS: dict[str, Callable[[Tensor], Any]] = {
    "parameter": lambda x: torch.nn.Parameter(x.clone()),
    "one that wants a gradient": lambda x: x.clone().requires_grad_() * 1,
    "subclass": lambda x: x.clone().as_subclass(Subclass),
    "of inference mode": inference,
    "turned around twice": lambda x: x.flip(0).flip(0),
    "in shared memory": lambda x: x.clone().share_memory_() if x.device.type == "cpu" else x,
}


@pytest.mark.parametrize("call", CALLS)
def test_another_kind_of_tensor_changes_nothing(call, backend, device):
    x = torch.randn(48, 40, device=device) + 0.1
    wanted = CALLS[call](x, backend)
    for name, make in KINDS.items():
        assert_same(CALLS[call](make(x), backend), wanted, name)


def norms(device: torch.device) -> Tensor:
    return torch.zeros(2, NORMS_WIDTH, dtype=torch.float64, device=device)


ODD: dict[str, Callable[[Tensor, Tensor, str], Any]] = {
    "neighbours": lambda x, y, b: cosine_topk(x, 3, other=y, backend=b),
    "neighbours that tell": lambda x, y, b: cosine_topk(x, 3, other=y, backend=b, progress=lambda done, total: None),
    "between": lambda x, y, b: [sdsd_kernels.cosine_between(x, y)],
    "gram": lambda x, y, b: [gram_accumulate(torch.zeros(40, 40, device=x.device), y, shift=x[0], backend=b).triu()],
    "shift": lambda x, y, b: [gram_accumulate(torch.zeros(40, 40, device=x.device), x, shift=y[0], backend=b).triu()],
    "rank1": lambda x, y, b: sdsd_kernels.weight_grad_stats(x, y, backend=b),
    "scale and shift": lambda x, y, b: sdsd_kernels.scale_shift_grads(
        y[None], norms(x.device), inputs=x[None], mean=y[None, :, :1], scale_row=0, shift_row=1, backend=b
    ),
    "moments": lambda x, y, b: sdsd_kernels.gamma_moments([x, y], per_sample=True, backend=b),
}
"""What changes where one of two tensors is taken for its negative."""


@pytest.mark.parametrize("call", ODD)
def test_a_view_that_negates_is_read_as_torch_reads_it(call, backend, device):
    x, y = torch.randn(2, 48, 40, device=device)
    got = ODD[call](x, negated(y), backend)
    for one, other in zip(got, ODD[call](x, y, backend), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


def test_rows_of_a_view_that_negates_lie_in_memory():
    x = torch.randn(6, 5)
    rows = as_rows(negated(x), 1)
    assert not rows.is_neg()
    assert torch.equal(rows.flatten(1), x.T)


def test_a_view_that_negates_is_not_written_into(backend, device):
    x, tokens = torch.randn(6, 8, 4, device=device), torch.zeros(6, 8, dtype=torch.int64, device=device)
    for _ in range(2):  # what passed before does not let it pass
        for into in (norms(device), negated(norms(device))):
            calls = (
                lambda: sdsd_kernels.weight_grad_into(x, x, into, 0, backend=backend),  # noqa: B023
                lambda: sdsd_kernels.lookup_squares_into(x, tokens, into, 0, backend=backend),  # noqa: B023
                lambda: sdsd_kernels.scale_shift_grads(x, into, shift_row=0, backend=backend),  # noqa: B023
            )
            for call in calls:
                if into.is_neg():
                    with pytest.raises(ValueError, match=r"square_norms: expected contiguous rows, got a view"):
                        call()
                else:
                    call()
    with pytest.raises(ValueError, match=r"gram: expected contiguous rows, got a view that negates\. Start from"):
        gram_accumulate(negated(torch.zeros(4, 4, device=device)), x.flatten(0, 1), backend=backend)


def test_whole_numbers_beyond_64_bits_are_refused_in_words():
    tokens = torch.zeros(6, 8, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"padding: expected 0 to 9223372036854775807, got 1180591620717411303424"):
        sdsd_kernels.lookup_squares_into(torch.ones(6, 8, 4), tokens, norms(torch.device("cpu")), 0, padding=2**70)


@pytest.mark.parametrize("strides", [(1, 9), (1, 1), (0, 1), (2, 18)], ids=str)
def test_output_gradients_may_lie_anyhow_beside_a_scale(strides, device):
    x, scale = torch.randn(9, 5, device=device), torch.randn(7, 5, device=device)
    b = torch.randn(200, device=device).as_strided((9, 7), strides)
    got = sdsd_kernels.weight_grad_stats(x, b, scale=scale)
    each = scale.double() * torch.einsum("np,nd->npd", b.double(), x.double())
    assert got.square_norm.item() == pytest.approx(each.square().sum().item(), rel=1e-5)
