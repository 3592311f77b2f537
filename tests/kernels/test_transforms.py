"""Kernels under torch.vmap and the transforms of torch.func: the operator one by one, or a refusal in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sdsd_kernels
from sdsd_kernels import NORMS_WIDTH, gamma_moments, gram_accumulate

from .test_surroundings import CALLS

WRITING = {"gram", "weight and bias", "lookup", "scale and shift"}
"""Calls that make the tensor which they write into themselves, one for all entries of a batch."""
COUNTING = {"pairs"}
BATCH = 3


def results(call: str, x: Tensor, backend: str) -> tuple[Tensor, ...]:
    return tuple(value for value in CALLS[call](x, backend) if value is not None)


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("call", sorted(CALLS.keys() - WRITING - COUNTING))
def test_a_batch_gives_what_its_entries_give(call, dim, backend, device, recwarn):
    batch = torch.randn(BATCH, 48, 40, device=device).movedim(0, dim)
    got = torch.vmap(lambda x: results(call, x.contiguous(), backend), in_dims=dim)(batch)
    wanted = [results(call, x.contiguous(), backend) for x in batch.unbind(dim)]
    for values, each in zip(got, zip(*wanted, strict=True), strict=True):
        torch.testing.assert_close(values, torch.stack(each), rtol=0, atol=0, equal_nan=True)
    assert not [str(each.message) for each in recwarn if "batching rule" in str(each.message)]


def norms(x: Tensor) -> Tensor:
    return torch.zeros(2, NORMS_WIDTH, dtype=torch.float64, device=x.device)


TOKENS = torch.arange(48).view(6, 8) % 5
INTO: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor, str], Any]]] = {
    "gram": (lambda x: torch.ones(40, 40, device=x.device), lambda x, into, b: gram_accumulate(into, x, backend=b)),
    "weight and bias": (
        norms,
        lambda x, into, b: sdsd_kernels.weight_grad_into(
            x.view(6, 8, 40), x.view(6, 8, 40)[..., :24], into, 0, bias_row=1, backend=b
        ),
    ),
    "convolution": (
        norms,
        lambda x, into, b: sdsd_kernels.conv_weight_grad_into(
            x.view(4, 5, 8, 12), x.view(4, 5, 8, 12).flip(1), into, 0, 3, bias_row=1, padding=1, backend=b
        ),
    ),
    "lookup": (
        norms,
        lambda x, into, b: sdsd_kernels.lookup_squares_into(x.view(6, 8, 40), TOKENS.to(x.device), into, 0, backend=b),
    ),
    "scale and shift": (
        norms,
        lambda x, into, b: sdsd_kernels.scale_shift_grads(
            x.view(6, 8, 40), into, inputs=x.view(6, 8, 40), scale_row=0, shift_row=1, backend=b
        ),
    ),
}


@pytest.mark.parametrize("call", INTO)
def test_every_entry_of_a_batch_is_written_into_its_own(call, backend, device):
    make, write = INTO[call]
    batch = torch.randn(BATCH, 48, 40, device=device)
    written = torch.stack([make(x) for x in batch])
    got = torch.vmap(lambda x, into: write(x, into, backend))(batch, written)
    for index, x in enumerate(batch):
        into = make(x)
        wanted = write(x, into, backend)
        assert torch.equal(written[index], into)
        pairs = [(got, wanted)] if isinstance(wanted, Tensor) else zip(got, wanted, strict=True)
        for values, other in pairs:
            assert torch.equal(values[index], other)


@pytest.mark.parametrize("call", INTO)
def test_one_tensor_written_into_by_all_is_refused(call, backend, device):
    make, write = INTO[call]
    batch = torch.randn(BATCH, 48, 40, device=device)
    into = make(batch[0])
    before = into.clone()
    with pytest.raises(ValueError, match=r"^(gram|square_norms): expected a tensor that torch.vmap cuts .* in_dims\."):
        torch.vmap(lambda x: write(x, into, backend))(batch)
    assert torch.equal(into, before)


def test_vmap_within_vmap_and_entries_of_which_some_are_for_all(backend, device):
    batch, one = torch.randn(BATCH, 2, 20, 7, device=device), torch.randn(20, 9, device=device)
    got = torch.vmap(torch.vmap(lambda x: gamma_moments([x, one], backend=backend).squares))(batch)
    wanted = [[gamma_moments([x, one], backend=backend).squares for x in each] for each in batch]
    assert torch.equal(got, torch.stack([torch.stack(each) for each in wanted]))


@pytest.mark.parametrize("transform", [torch.vmap, torch.func.grad, torch.func.jacfwd])
def test_what_counts_by_values_is_refused_in_words(transform, device):
    batch = torch.randn(BATCH, 20, 6, device=device)
    calls = (
        lambda x: sdsd_kernels.cosine_pairs(x, above=0.1).cosine.sum(),
        lambda x: sdsd_kernels.disjoint_pairs(x, 2).cosine.sum(),
        lambda x: sdsd_kernels.disjoint_pairs(cosine=x[:6, :6], pairs=2).cosine.sum(),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"^(activations|cosine): expected a tensor outside torch\.vmap"):
            transform(call)(batch if transform is torch.vmap else batch[0])


def test_a_batch_of_nothing_is_refused_in_words():
    with pytest.raises(ValueError, match=r"sdsd::gamma_moments: expected a batch of one entry at least .* got none"):
        torch.vmap(lambda x: gamma_moments(x).squares)(torch.ones(0, 5, 4))
