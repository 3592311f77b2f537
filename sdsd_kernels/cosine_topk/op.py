"""The k nearest neurons as a tensor operation: checks, choice of backend, torch.library registration."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._backend import choose_backend
from .._checks import check_integer, check_max_bytes, check_precision
from .._progress import Progress
from .._register import register
from .._rows import rows_of, rows_of_both
from ..pairwise.config import Request, lacks
from ..pairwise.reading import summed_in
from .config import MOST_NEIGHBORS, lanes, list_bytes
from .cpu import cosine_topk_torch


def cosine_topk(
    activations: Tensor,
    k: int,
    *,
    neuron_dim: int = -1,
    other: Tensor | None = None,
    farthest: bool = False,
    precision: str = "float32",
    center: bool = False,
    max_bytes: int | None = None,
    progress: Progress | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The k highest (or lowest) cosines of every neuron and whose they are, without the matrix of all of them.

        C = cosine_matrix(activations, neuron_dim=neuron_dim, center=center)          # never stored
        C.fill_diagonal_(-inf)
        values, indices = C.topk(k, dim=1)                                            # -C with farthest=True

    Equal cosines are ordered by index; the same call gives the same bits. A neuron that is zero on every sample or has
    a NaN or an infinity is nobody's neighbour and has none. Where a row has fewer than k neighbours the rest of it is
    NaN in `values` and -1 in `indices`. Not differentiable: gather the neighbours by `indices` and compute what needs
    a gradient.

    Args:
        activations: as `cosine_matrix` takes them.
        k: how many neighbours, from 1 to one less than there are neurons (to all of `other`).
        neuron_dim: the dimension that counts neurons, in `other` too; all others are samples.
        other: look for neighbours among these neurons instead, over the same samples in the same order, in the same
            dtype and on the same device. No neuron is left out then, for none is compared with itself.
        farthest: the lowest cosines, lowest first, instead of the highest.
        precision: what the products may be rounded to on a GPU: "float32" or "fp16", as in `cosine_matrix`.
        center: subtract the mean of each neuron first, which makes cosines Pearson's correlations.
        max_bytes: bound on the memory beyond input and result; None takes what is fastest: 20 to 96 MiB a thread
            on a CPU, about 1 GiB of a GPU. The Triton kernel takes as much as the input and k of a few partial results;
            where that is more than max_bytes, torch serves.
        progress: called with (done, total) from time to time, in units of equal work, last with done == total.
        backend: "triton" | "torch"; None lets SDSD_BACKEND or the device decide. Triton has no float64 and keeps at
            most 32 neighbours; torch serves beyond, on every device.

    Returns:
        values (neurons, k), float64 for float64 and float32 for all others, best first; indices (neurons, k), int64.

    Raises:
        TypeError: not a dense tensor of a supported floating-point dtype; k, neuron_dim or max_bytes no int.
        ValueError: k out of range; a single neuron; fewer than two dimensions; no sample; neuron_dim out of range;
            `other` with other samples, dtype or device; an unknown choice; Triton asked for where it cannot serve;
            max_bytes too small for one block.

    Source:
        README.md in this folder.
    """
    rows, others = rows_of(activations, neuron_dim), None
    if other is not None:
        rows, others = rows_of_both(activations, other, neuron_dim, ("activations", "other"))
    k = _check_k(k, rows, others)
    precision = check_precision(precision)
    max_bytes = check_max_bytes(max_bytes)
    neurons = (rows,) if others is None else (rows, others)
    lists = list_bytes(rows.shape[0], lanes(k))
    problem = lacks(*neurons, center=bool(center), max_bytes=max_bytes, precision=precision, beside=lists)
    too_many = f"the kernel keeps at most {MOST_NEIGHBORS} neighbours and k is {k}" if k > MOST_NEIGHBORS else None
    chosen = choose_backend(backend, rows.device, kernel_lacks=problem or too_many)
    settings = (k, bool(farthest), precision, bool(center), max_bytes, chosen)
    search = _operator if progress is None else partial(_compute, progress=progress)
    return search(rows, others, *settings)


def _check_k(k: Any, rows: Tensor, others: Tensor | None) -> int:
    if others is None and rows.shape[0] == 1:
        raise ValueError(
            "activations: expected at least two neurons, got 1, which has no neighbours. "
            "Check that neuron_dim names the dimension that counts neurons."
        )
    most = rows.shape[0] - 1 if others is None else others.shape[0]
    whose = f"{most} neurons in other" if others is not None else f"{most + 1} neurons"
    number: int = check_integer(k, "k", least=1, most=most, why=f"for {whose}")
    return number


def _compute(
    rows: Tensor, others: Tensor | None, k: int, farthest: bool, *settings: Any, progress: Progress | None = None
) -> tuple[Tensor, Tensor]:
    precision, center, max_bytes, backend = settings
    request = Request(center, max_bytes, progress, precision)
    if backend == "torch":
        return cosine_topk_torch(rows, others, k, farthest, request)
    from .kernel import launch_cosine_topk

    return launch_cosine_topk(rows, others, k, farthest, request)


_operator = register(
    "cosine_topk(Tensor rows, Tensor? others, int k, bool farthest, str precision, bool center, int? max_bytes, "
    "str backend) -> (Tensor, Tensor)",
    _compute,
    fake=lambda rows, others, k, *_: (
        rows.new_empty((rows.shape[0], k), dtype=summed_in(rows.dtype)),
        rows.new_empty((rows.shape[0], k), dtype=torch.int64),
    ),
)
