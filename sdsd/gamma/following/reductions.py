"""Functions that join or mix entries along some dimensions and leave the others apart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .table import (
    FUNCTIONAL,
    NAMESPACES,
    RULES,
    SECOND_ALLOWED,
    TORCH,
    Call,
    aligned,
    axes,
    register,
    register_property,
)
from .tracks import Mixed, Track, Verdict, track_of


def reduced(call: Call, x: Tensor, dims: Iterable[int], keepdim: bool) -> Verdict:
    """The verdict after a reduction of `x` over `dims`."""
    track = track_of(x)
    if not isinstance(track, Track):
        return track
    gone = set(dims)
    if track.axis in gone:
        return call.over(x)
    if keepdim:
        return track
    return Track(track.axis - sum(d < track.axis for d in gone), track.outer, track.inner)


def reduction(call: Call, input: Tensor, dim: Any = None, keepdim: Any = False, *_: Any, **__: Any) -> Verdict:
    return reduced(call, input, axes(dim, input.dim()), bool(keepdim))


def total(call: Call, input: Tensor, dim: Any = None, keepdim: Any = False, *_: Any, **__: Any) -> Verdict:
    """sum and mean: over the samples, the sum of what each of them gives."""
    track = track_of(input)
    dims = axes(dim, input.dim())
    if isinstance(track, Track) and track.axis in dims:
        return call.summed(input)
    return reduced(call, input, dims, bool(keepdim))


def spread(
    call: Call, input: Tensor, dim: Any = None, unbiased: Any = True, keepdim: bool = False, **_: Any
) -> Verdict:
    """std and var: the second positional argument is `dim`, or `unbiased` in the form without dimensions."""
    if isinstance(dim, bool):
        dim = None
    return reduced(call, input, axes(dim, input.dim()), keepdim)


def extreme(call: Call, input: Tensor, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> Verdict:
    """max and min: of all entries, along a dimension, or of two tensors entry by entry."""
    other = kwargs.get("other", dim)
    if isinstance(other, Tensor):
        return call.agreed(aligned(x, call.out) for x in (input, other))
    return reduced(call, input, axes(dim, input.dim()), keepdim)


def norm(
    call: Call, input: Tensor, p: Any = None, dim: Any = None, keepdim: bool = False, *_: Any, **__: Any
) -> Verdict:
    return reduced(call, input, axes(dim, input.dim()), keepdim)


def matrix_norm(
    call: Call, input: Tensor, ord: Any = None, dim: Any = (-2, -1), keepdim: bool = False, **_: Any
) -> Verdict:
    return reduced(call, input, axes(dim, input.dim()), keepdim)


def quantile(call: Call, input: Tensor, q: Any, dim: int | None = None, keepdim: bool = False, **_: Any) -> Verdict:
    if isinstance(q, Tensor) and track_of(q) is not None:
        return call.mixed("at levels that depend on samples")
    verdict = reduced(call, input, axes(dim, input.dim()), keepdim)
    if isinstance(verdict, Track) and isinstance(q, Tensor) and q.dim() == 1:
        return Track(verdict.axis + 1, verdict.outer, verdict.inner)
    return verdict


def kthvalue(call: Call, input: Tensor, k: int, dim: int = -1, keepdim: bool = False, **_: Any) -> Verdict:
    return reduced(call, input, axes(dim, input.dim()), keepdim)


def ordinary(call: Call, input: Tensor, dim: int = -1, keepdim: bool = False, **_: Any) -> Verdict:
    """median and mode along one dimension; median of all entries if no dimension is given."""
    return reduced(call, input, axes(dim, input.dim()), keepdim)


def along(call: Call, input: Tensor, dim: Any = -1, *_: Any, **__: Any) -> Verdict:
    """Entries are joined along `dim`, which stays; every other dimension is left apart."""
    return reduced(call, input, axes(dim, input.dim()), True)


def along_all(call: Call, input: Tensor, dim: Any = None, *_: Any, **__: Any) -> Verdict:
    """As `along`; without `dim` all entries are joined."""
    return reduced(call, input, axes(dim, input.dim()), True)


def sort(call: Call, input: Tensor, *args: Any, **kwargs: Any) -> Verdict:
    dims = [a for a in args if isinstance(a, int) and not isinstance(a, bool)]
    return along(call, input, kwargs.get("dim", dims[0] if dims else -1))


def softmax(call: Call, input: Tensor, dim: int | None = None, *_: Any, **__: Any) -> Verdict:
    if dim is None:  # torch's historical choice.
        dim = 0 if input.dim() in (0, 1, 3) else 1
    return along(call, input, dim)


def topk(call: Call, input: Tensor, k: Any, dim: int = -1, *_: Any, **__: Any) -> Verdict:
    return along(call, input, dim)


def normalize(call: Call, input: Tensor, p: float = 2.0, dim: int = 1, *_: Any, **__: Any) -> Verdict:
    return along(call, input, dim)


def roll(call: Call, input: Tensor, shifts: Any, dims: Any = None, *_: Any, **__: Any) -> Verdict:
    return along_all(call, input, None if dims is None or dims == () else dims)


def flip(call: Call, input: Tensor, *dims: Any, **kwargs: Any) -> Verdict:
    given = kwargs.get("dims", dims[0] if len(dims) == 1 else dims)
    return along_all(call, input, given if given != () else None)


def first_dimension(call: Call, input: Tensor, *_: Any, **__: Any) -> Verdict:
    return along(call, input, 0)


def difference(
    call: Call, input: Tensor, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None, **_: Any
) -> Verdict:
    given = [x for x in (prepend, input, append) if x is not None]
    return call.agreed(along(call, x, dim) for x in given)


def gumbel_softmax(
    call: Call, logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1
) -> Verdict:
    return along(call, logits, dim)


def whole(call: Call, input: Any, *_: Any, **__: Any) -> Verdict:
    """Every entry of the output depends on every entry of the input."""
    return call.over(input) if isinstance(input, Tensor) else call.mixed("of samples")


def values_decide(call: Call, *_: Any, **__: Any) -> Verdict:
    return call.mixed("whose output is as long as the values say")


def chosen(call: Call, input: Tensor, *_: Any, **__: Any) -> Verdict:
    """nonzero where every entry is chosen: the positions are those of any batch of this shape, a constant."""
    if isinstance(call.out, Tensor) and call.out.shape == (input.numel(), input.dim()):
        return None
    return values_decide(call)


def gradients(call: Call, *_: Any, **__: Any) -> Verdict:
    return call.mixed("within the forward pass")


def gradient_property(call: Call, input: Tensor, *_: Any) -> Verdict:
    return None if call.out is None else Mixed("a gradient read within the forward pass")


def similarity(call: Call, x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Verdict:
    """cosine_similarity: broadcasting, then a sum along `dim`."""
    ndim = max(x1.dim(), x2.dim())
    dim %= ndim
    verdicts: list[Verdict] = []
    for x in (x1, x2):
        track = track_of(x)
        if isinstance(track, Track):
            axis = track.axis + ndim - x.dim()
            if axis == dim:
                return call.over(x)
            track = Track(axis - (dim < axis), track.outer, track.inner)
        verdicts.append(track)
    return call.agreed(verdicts)


def pairwise_distance(
    call: Call, x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Verdict:
    ndim = max(x1.dim(), x2.dim())
    if not keepdim:
        return similarity(call, x1, x2, ndim - 1)
    verdicts: list[Verdict] = []
    for x in (x1, x2):
        track = track_of(x)
        if isinstance(track, Track):
            track = Track(track.axis + ndim - x.dim(), track.outer, track.inner)
            if track.axis == ndim - 1:
                return call.over(x)
        verdicts.append(track)
    return call.agreed(verdicts)


def cross(call: Call, input: Tensor, other: Tensor, dim: int | None = None, **_: Any) -> Verdict:
    """The vector product along `dim`; torch.cross without it takes the first dimension of size 3."""
    if dim is None:
        dim = call.out.shape.index(3)
    dim = dim % call.out.dim() - call.out.dim()
    verdict = call.agreed(aligned(x, call.out) for x in (input, other))
    if isinstance(verdict, Track) and verdict.axis == call.out.dim() + dim:
        return call.over(call.out, verdict.axis)
    return verdict


def integral(call: Call, y: Tensor, x: Any = None, *, dx: Any = 1, dim: int = -1) -> Verdict:
    """trapezoid: the sum along `dim`, which goes."""
    if isinstance(x, Tensor) and track_of(x) is not None:
        return call.mixed("over positions that depend on samples")
    return reduced(call, y, [dim % y.dim()], False)


def norm_except(call: Call, input: Tensor, pow: int = 2, dim: int = 0) -> Verdict:
    """norm_except_dim, of weight normalisation: all dimensions but one are joined."""
    return reduced(call, input, [d for d in range(input.dim()) if d != dim % input.dim()], True)


def rescaled(call: Call, input: Tensor, p: float, dim: int, maxnorm: float) -> Verdict:
    """renorm: each slice along `dim` by its own norm."""
    return norm_except(call, input, dim=dim)


def multinomial(call: Call, input: Tensor, *_: Any, **__: Any) -> Verdict:
    return along(call, input, -1)


def fft(call: Call, input: Tensor, n: Any = None, dim: int = -1, *_: Any, **__: Any) -> Verdict:
    return along(call, input, dim)


def fft2(call: Call, input: Tensor, s: Any = None, dim: Any = (-2, -1), *_: Any, **__: Any) -> Verdict:
    return along(call, input, dim)


def fftn(call: Call, input: Tensor, s: Any = None, dim: Any = None, *_: Any, **__: Any) -> Verdict:
    if dim is None and s is not None:
        dim = tuple(range(-len(s), 0))
    return along_all(call, input, dim)


SECOND_ALLOWED[similarity] = (None, None)

LINALG = NAMESPACES[6:7]
FFT = NAMESPACES[7:8]

register("vector_norm", lambda call, x, ord=2, dim=None, keepdim=False, **_: norm(call, x, ord, dim, keepdim), LINALG)
register("norm", lambda call, x, ord=None, dim=None, keepdim=False, **_: norm(call, x, ord, dim, keepdim), LINALG)
register("matrix_norm", matrix_norm, LINALG)
register("sum mean", total, TORCH)
register("prod amax amin all any logsumexp nansum nanmean argmax argmin count_nonzero", reduction, NAMESPACES)
register("aminmax", lambda call, x, *, dim=None, keepdim=False, **_: reduction(call, x, dim, keepdim), TORCH)
register("std var std_mean var_mean", spread, TORCH)
register("max min", extreme, TORCH)
register("norm", norm, TORCH)
register("quantile nanquantile", quantile, TORCH)
register("kthvalue", kthvalue, TORCH)
register("median nanmedian", lambda call, x, dim=None, keepdim=False, **_: reduction(call, x, dim, keepdim), TORCH)
register("mode", ordinary, TORCH)
register("cumsum cumprod cummax cummin logcumsumexp log_softmax argsort", along, TORCH)
register("sort", sort, TORCH)
register("softmax", softmax)
register("log_softmax softmin", softmax)
register("topk", topk, TORCH)
register("normalize", normalize, FUNCTIONAL)
register("glu", along)
register("gumbel_softmax", gumbel_softmax, FUNCTIONAL)
register("roll", roll, TORCH)
register("flip", flip, TORCH)
register("fliplr", lambda call, x: along(call, x, 1), TORCH)
register("flipud msort", first_dimension, TORCH)
register("diff", difference, TORCH)
register("cosine_similarity", similarity)
register("pairwise_distance", pairwise_distance)
register("unique unique_consecutive masked_select flatnonzero", values_decide, TORCH)
register("nonzero argwhere", chosen, TORCH)
register("cov corrcoef histc bincount histogram dist", whole, TORCH)
register("cross", cross, TORCH)
register("cross", lambda call, x, other, *, dim=-1, **_: cross(call, x, other, dim), LINALG)
register("trapezoid trapz", integral, TORCH)
register("norm_except_dim", norm_except, TORCH)
register("renorm", rescaled, TORCH)
register("multinomial", multinomial, TORCH)
register("trace pdist nuclear_norm frobenius_norm", whole)
register("fft ifft rfft irfft hfft ihfft", fft, FFT)
register("fft2 ifft2 rfft2 irfft2 hfft2 ihfft2", fft2, FFT)
register("fftn ifftn rfftn irfftn hfftn ihfftn", fftn, FFT)
register("fftshift ifftshift", along_all, FFT)
RULES[torch.autograd.grad] = gradients
register_property("grad", gradient_property)
