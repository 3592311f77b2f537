"""What the upper triangle of cosines holds, as tensor operations: checks, choice of backend, torch.library."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._backend import choose_backend
from .._checks import check_choice, check_integer, check_max_bytes, check_number
from .._progress import Progress
from .._register import check_no_transform, register
from .._rows import rows_of
from ..pairwise.config import Request, lacks, operand_bytes
from ..pairwise.reading import summed_in
from . import config, cpu

ROW_SUMS = ("cosine", "absolute", "distance")
PAIRS_MAX_BYTES = 2**30
"""Bound on `cosine_pairs` where the caller names none: about 50 million pairs."""
ADVICE_BINS = 4096
"""Bins of the histogram that finds a threshold which fits. A power of two: its edges are exact in float32."""


class CosineHistogram(NamedTuple):
    """How the cosines of all pairs i < j of neurons are distributed."""

    counts: Tensor
    """Pairs in each bin; shape: (bins,), int64. The last bin includes 1."""
    edges: Tensor
    """Of the bins, from −1 to 1; shape: (bins + 1,), float64."""
    zero_pairs: Tensor
    """Pairs that have no cosine because a neuron is zero on every sample (and none has a NaN); shape: (), int64."""
    nan_pairs: Tensor
    """Pairs that have none because a neuron has a NaN or an infinity; shape: (), int64."""


class CosinePairs(NamedTuple):
    """Pairs of neurons, `first` < `second`, ordered by first and then second."""

    first: Tensor
    """shape: (pairs,), int64"""
    second: Tensor
    """shape: (pairs,), int64"""
    cosine: Tensor
    """shape: (pairs,), float64 for float64 activations, else float32"""


def cosine_histogram(
    activations: Tensor,
    bins: int = 100,
    *,
    neuron_dim: int = -1,
    center: bool = False,
    max_bytes: int | None = None,
    progress: Progress | None = None,
    backend: str | None = None,
) -> CosineHistogram:
    """Histogram of the cosines of all pairs of neurons, without the matrix.

        C = cosine_matrix(activations, zero="nan")                                 # never stored
        counts = torch.histc(C[triu(1)], bins, -1, 1)                              # int64, exact

    A pair falls into bin floor((c + 1) · bins / 2), computed in the dtype of the cosines; c = 1 into the last. So bins
    are closed on the left, and a cosine within rounding of an edge may fall to either side of it. Counts are exact
    integers: counts.sum() + zero_pairs + nan_pairs is n (n − 1) / 2. Not differentiable.

    Args:
        activations: two or more dimensions; float64, float32, float16 or bfloat16; any strides, as in `cosine_matrix`.
        bins: how many, of equal width on [−1, 1].
        neuron_dim: the dimension that counts neurons; all others are samples.
        center: subtract the mean of each neuron first; a constant neuron then is zero on every sample.
        max_bytes: bound on scratch memory and result; None: none, and about 10 MiB (torch), or as much as the
            input (Triton) is taken. Where that is more than max_bytes, torch serves.
        progress: called with (done, total) as the triangle is worked through.
        backend: "triton" | "torch"; None lets SDSD_BACKEND or the device decide. Triton has no float64 and at most
            512 bins.

    Returns:
        `CosineHistogram`, on the device of `activations`.

    Raises:
        TypeError: not a dense tensor of a supported floating-point dtype; bins or max_bytes that is no int.
        ValueError: fewer than two dimensions, no neuron, no sample, neuron_dim out of range, bins < 1, max_bytes that
            is not enough for one block, an unknown backend, or Triton asked for where it cannot serve.
    """
    rows = rows_of(activations, neuron_dim)
    bins = check_integer(bins, "bins", least=1, most=2**30 - 1)  # twice as many have 32 bits
    max_bytes = check_max_bytes(max_bytes)
    # Counts, and the edges that are added to them. Tiles stay in registers.
    problem = lacks(rows, center=bool(center), max_bytes=max_bytes, beside=16 * (bins + 1))
    too_many = f"the kernel has at most {config.MOST_BINS} bins" if bins > config.MOST_BINS else None
    chosen = choose_backend(backend, rows.device, kernel_lacks=problem or too_many)
    add_up = _operator if progress is None else partial(_totals, progress=progress)
    counts, live = add_up(rows, "histogram", bins, bool(center), max_bytes, chosen)
    edges = torch.linspace(-1, 1, bins + 1, dtype=torch.float64, device=rows.device)
    clean, directed = (n * (n - 1) // 2 for n in ((~live.isnan()).sum(), (live > 0).sum()))
    return CosineHistogram(counts, edges, clean - directed, len(rows) * (len(rows) - 1) // 2 - clean)


def cosine_row_sums(
    activations: Tensor,
    kind: str = "cosine",
    *,
    neuron_dim: int = -1,
    center: bool = False,
    max_bytes: int | None = None,
    progress: Progress | None = None,
    backend: str | None = None,
) -> Tensor:
    """For every neuron the sum over all others of their cosine, or of what pruning methods make of it.

        C = cosine_matrix(activations, zero="nan").fill_diagonal_(nan)             # never stored
        "cosine":    C.nansum(1)                    Σ_{j≠i} c_ij
        "absolute":  C.abs().nansum(1)              Σ_{j≠i} |c_ij|
        "distance":  (2 - 2 * C).sqrt().nansum(1)   Σ_{j≠i} ‖u_i − u_j‖,  u_i = x_i / ‖x_i‖

    A pair in which one neuron has no direction adds nothing: with L neurons that have one, the mean over the others is
    result / (L − 1), and Σ_{j≠i} (1 − c_ij) is L − 1 − result. A neuron that is zero on every sample gets 0; one with a
    NaN or an infinity gets NaN. Sums of a block are float32, over blocks float64 or exact. Where c is within rounding
    of 1, √(2 − 2c) is within 5e-4 of the distance. Not differentiable.

    Args:
        activations, neuron_dim, center, progress, backend: as in `cosine_histogram`.
        kind: "cosine" | "absolute" | "distance".
        max_bytes: bound on scratch memory and result; None: none, and 10 MiB (torch), or as much as the input and
            32 bytes a neuron (Triton) are taken. Where that is more than max_bytes, torch serves.

    Returns:
        float64, on the device of `activations`.  # shape: (N,)

    Raises:
        TypeError: as `cosine_histogram`.
        ValueError: as `cosine_histogram`; an unknown kind.

    Source:
        He et al. 2019, "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration":
        the filters with the least sum of distances to all others are pruned. "distance" is that sum for neurons scaled
        to unit length, "absolute" the sum in the authors' code for the cosine.
    """
    rows = rows_of(activations, neuron_dim)
    check_choice(kind, "kind", ROW_SUMS)
    max_bytes = check_max_bytes(max_bytes)
    problem = lacks(rows, center=bool(center), max_bytes=max_bytes, beside=config.VECTORS * rows.shape[0])
    chosen = choose_backend(backend, rows.device, kernel_lacks=problem)
    add_up = _operator if progress is None else partial(_totals, progress=progress)
    sums, live = add_up(rows, kind, 0, bool(center), max_bytes, chosen)
    return sums.masked_fill_(live.isnan(), torch.nan)


def cosine_pairs(
    activations: Tensor,
    *,
    above: float | None = None,
    below: float | None = None,
    neuron_dim: int = -1,
    center: bool = False,
    max_bytes: int | None = None,
    progress: Progress | None = None,
    backend: str | None = None,
) -> CosinePairs:
    """All pairs of neurons whose cosine is at least `above`, or at most `below`, without the matrix.

        C = cosine_matrix(activations, zero="nan")                                 # never stored
        first, second = (C.triu(1) >= above).nonzero(as_tuple=True)                # of i < j only

    Ordered by first and then second neuron; same input, same result, bit for bit. The comparison is in the dtype of the
    cosines. Neurons without direction (zero on every sample, or with a NaN or an infinity) are in no pair. Not
    differentiable.

    Args:
        activations, neuron_dim, center, progress, backend: as in `cosine_histogram`.
        above: the least cosine, in [−1, 1]. Either this or `below`.
        below: the largest cosine, in [−1, 1].
        max_bytes: bound on the result, 20 bytes a pair (24 for float64), and on scratch memory together; None: 1 GiB,
            and for Triton as much as the input beside it. Where its halves take more than max_bytes, torch serves.

    Returns:
        `CosinePairs`, on the device of `activations`.

    Raises:
        TypeError: as `cosine_histogram`; a threshold that is no number.
        ValueError: as `cosine_histogram`; both or neither of above and below, a threshold outside [−1, 1], more pairs
            than `max_bytes` holds: the message has their number and a threshold that would fit; a call within
            torch.vmap or torch.func.
    """
    rows = rows_of(activations, neuron_dim)
    check_no_transform("activations")
    threshold = _check_threshold(above, below)
    max_bytes = check_max_bytes(max_bytes)
    counters = config.pairs_bytes(rows.shape[0], config.SMALLEST)
    problem = lacks(rows, center=bool(center), max_bytes=max_bytes, beside=counters)
    chosen = choose_backend(backend, rows.device, kernel_lacks=problem)
    allowed = PAIRS_MAX_BYTES if max_bytes is None else max_bytes
    if chosen == "triton" and max_bytes is None:
        samples = rows.shape[1] * rows.shape[2]
        allowed += operand_bytes(rows.shape[0], samples, rows.dtype, "float32", center=bool(center))
    request = Request(bool(center), allowed, progress)
    try:
        return CosinePairs(*_implementation("cosine_pairs", chosen)(rows, threshold, above is not None, request))
    except config.TooManyPairsError as error:
        bins = config.MOST_BINS if chosen == "triton" else ADVICE_BINS
        request = request._replace(max_bytes=None)
        counts, _ = _implementation("cosine_totals", chosen)(rows, "histogram", bins, request)
        raise ValueError(_advice(error, counts, threshold, above is not None, allowed)) from None


def _advice(error: config.TooManyPairsError, counts: Tensor, threshold: float, above: bool, max_bytes: int) -> str:
    """How many pairs there are, and what to ask for instead by the histogram `counts`."""
    count, most, needed = error.args
    bins = len(counts)
    # Pairs in so many bins from the end on, whole ones: never too few. A pair at an edge is in the bin to its right.
    reached = (counts.flip(0) if above else counts).cumsum(0)
    fit = int((reached <= most).sum())
    name, bound = ("above", "at least") if above else ("below", "at most")
    text = (
        f"{name}: {count:,} pairs have a cosine of {bound} {threshold:g}, and max_bytes={max_bytes:,} holds "
        f"{most:,} of them. Allow max_bytes={needed:,}"
    )
    if fit < (1 if above else 2):
        return text + f"; no threshold on a grid of {2 / bins:g} leaves as few."
    edge = 1 - 2 * fit / bins if above else 2 * (fit - 1) / bins - 1
    return text + f", or use {name}={edge:g}, which leaves {int(reached[fit - 1]):,} at most."


def _implementation(name: str, backend: str) -> Callable[..., Any]:
    if backend == "torch":
        return getattr(cpu, f"{name}_torch")  # type: ignore[no-any-return]
    from . import kernel

    return getattr(kernel, f"launch_{name}")  # type: ignore[no-any-return]


def _check_threshold(above: Any, below: Any) -> float:
    if (above is None) == (below is None):
        got = "neither" if above is None else "both"
        raise ValueError(
            f"above, below: expected exactly one of them, got {got}. "
            "Pass above=0.9 for near neurons, or below=-0.9 for opposite ones."
        )
    name, value = ("above", above) if below is None else ("below", below)
    return check_number(value, name, "a cosine from -1 to 1", least=-1, most=1, do="No pair is beyond these.")


def _totals(rows: Tensor, kind: str, bins: int, *settings: Any, progress: Progress | None = None) -> Any:
    """Counts of a "histogram" or row sums; for every neuron 1, 0 if it is zero, NaN if it has a NaN or an infinity."""
    center, max_bytes, backend = settings
    request = Request(center, max_bytes, progress)
    totals, inverse_norm = _implementation("cosine_totals", backend)(rows, kind, bins, request)
    return totals, torch.where(inverse_norm > 0, 1.0, inverse_norm)


def _fake(rows: Tensor, kind: str, bins: int, *settings: Any) -> tuple[Tensor, Tensor]:
    size, dtype = (bins, torch.int64) if kind == "histogram" else (rows.shape[0], torch.float64)
    return rows.new_empty(size, dtype=dtype), rows.new_empty(rows.shape[0], dtype=summed_in(rows.dtype))


_operator = register(
    "cosine_totals(Tensor rows, str kind, SymInt bins, bool center, SymInt? max_bytes, str backend) "
    "-> (Tensor, Tensor)",
    _totals,
    fake=_fake,
)
