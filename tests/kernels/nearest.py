"""Nearest neurons in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from sdsd_kernels.cosine_topk.op import cosine_topk
from tests.helpers import cosine_error
from tests.kernels.cosines import exact_cosines, exact_rows, flat

NAN, INF = float("nan"), float("inf")


def exact_scores(x: Tensor, other: Tensor | None = None, neuron_dim: int = -1, center: bool = False) -> Tensor:
    """NaN where there is no neighbour."""
    left = exact_rows(x, neuron_dim, center)
    cosine = exact_cosines(left, left if other is None else exact_rows(other, neuron_dim, center))
    cosine[cosine.isinf()] = NAN
    if other is None:
        cosine.fill_diagonal_(NAN)
    return cosine


def near(x: Tensor, other: Tensor | None = None, neuron_dim: int = -1, center: bool = False) -> float:
    """The most that any computed cosine may be off."""
    rows = [flat(each, neuron_dim) for each in (x, other) if each is not None]
    dtype = torch.promote_types(x.dtype, torch.float32)
    return cosine_error(*rows, center=center, dtype=dtype).nan_to_num(0).max().item()


def check(found: tuple[Tensor, Tensor], exact: Tensor, k: int, farthest: bool, error: float) -> None:
    """Everything the docstring promises, given all exact cosines and how far a computed one may be from its own."""
    values, indices = (part.cpu() for part in found)
    values = values.double()
    rows = exact.shape[0]
    assert values.shape == indices.shape == (rows, k)
    assert indices.dtype == torch.int64
    scores = torch.where(exact.isnan(), -INF, -exact if farthest else exact)
    sorted_scores, sorted_indices = scores.sort(dim=1, descending=True, stable=True)
    there = sorted_scores[:, :k] > -INF
    assert torch.equal(values.isnan(), ~there)
    assert (indices[~there] == -1).all()
    assert (values[there].abs() <= 1).all()
    own = scores.gather(1, indices.clamp(min=0))
    signed = -values if farthest else values
    # Each value is that of its index, and the j-th best is within the error of the j-th best of all.
    assert ((signed - own)[there].abs() <= error).all()
    assert ((signed - sorted_scores[:, :k])[there].abs() <= error).all()
    for row in range(rows):
        found_here = indices[row][there[row]].tolist()
        assert len(set(found_here)) == len(found_here)
    both = there[:, 1:]
    step = (signed[:, 1:] - signed[:, :-1])[both]
    assert (step <= 0).all()
    assert ((indices[:, 1:] - indices[:, :-1])[both][step == 0] > 0).all()
    if error == 0:
        assert torch.equal(indices[there], sorted_indices[:, :k][there])


def check_call(x: Tensor, k: int, backend: str | None, **options) -> None:
    found = cosine_topk(x, k, backend=backend, **options)
    center, neuron_dim = options.get("center", False), options.get("neuron_dim", -1)
    other = options.get("other")
    exact = exact_scores(x, other, neuron_dim, center)
    check(found, exact, k, options.get("farthest", False), near(x, other, neuron_dim, center))


def signs(neurons: int, samples: int, seed: int, of: int = 4) -> Tensor:
    """Neurons with 4 (or 16) entries of ±1, else 0: cosines are exact multiples of 1/4 (1/16) and mostly tied."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(samples, neurons)
    for neuron in range(neurons):
        places = torch.randperm(samples, generator=generator)[:of]
        x[places, neuron] = torch.randint(0, 2, (of,), generator=generator).mul(2).sub(1).float()
    return x
