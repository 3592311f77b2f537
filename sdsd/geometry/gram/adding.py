"""How batches and other sums are added to what has been accumulated; `sums.py` has the formulas."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from sdsd_kernels import gram_strips

from ..._progress import Report
from ..arithmetic import UNSEEN, blas_reads, exponents_after, peaks, power_of_two
from ..arrays import sample_parts
from .layout import Plan
from .sums import Fresh, Sums, unit_change


def nothing(plan: Plan) -> Sums:
    """Sums of no sample."""
    with torch.inference_mode(False):
        return Sums(
            gram=None,
            mean=torch.zeros(plan.n, dtype=torch.float64, device=plan.device) if plan.center else None,
            exponent=torch.full((plan.n,), UNSEEN, dtype=torch.int32, device=plan.device),
            nonfinite=torch.zeros(plan.n, dtype=torch.bool, device=plan.device),
            scaled=False,
        )


def peaks_of(plan: Plan, a: Tensor, sums: Sums) -> tuple[Tensor, Sums]:
    """max |a| of every neuron, and `sums` with those marked that are not finite."""
    peak = peaks(a, plan.dtype, plan.scratch)
    nonfinite = ~peak.isfinite()
    if plan.nonfinite == "raise" and bool(nonfinite.any()):
        raise ValueError(
            f"activations: expected finite values, got a NaN or an infinity in {names_of(nonfinite)} of {plan.n}. "
            "Nothing of this batch was added. Leave out the samples that hold them, or use nonfinite='warn'."
        )
    return peak, replace(sums, nonfinite=sums.nonfinite | nonfinite)


def buffer_rows(plan: Plan, sums: Sums, rows: Tensor, buffer: Tensor) -> Sums:
    """Sums with `rows` (n, …) in the buffer, behind those that wait there."""
    samples = rows[0].numel()
    place = buffer[sums.waiting : sums.waiting + samples].T
    place.unflatten(1, rows.shape[1:]).copy_(rows)
    if plan.through_kernel():
        if plan.nonfinite == "raise":
            peaks_of(plan, place, sums)
        return replace(sums, waiting=sums.waiting + samples)
    peak, sums = peaks_of(plan, place, sums)
    peak = peak if sums.peak is None else torch.maximum(peak, sums.peak)
    return replace(sums, waiting=sums.waiting + samples, peak=peak)


def add_rows(plan: Plan, sums: Sums, rows: Tensor, fresh: Fresh, report: Report) -> Sums:
    """New sums with the samples of `rows` (n, …)."""
    if plan.through_kernel():
        return add_by_kernel(plan, sums, rows, fresh, report)
    out = fresh()
    parts, tiles = sample_parts(rows, plan.part), list(plan.triangle.tiles(plan.side))
    scratch = tile_scratch(plan)
    for number, part in enumerate(parts):
        a, factor, updated = prepare_rows(plan, part, sums)
        products = products_of(a, scratch)
        for index, tile in enumerate(tiles):
            add_tile(plan, sums.gram, products(*tile), tile, factor, out)
            report(number * len(tiles) + index + 1, len(parts) * len(tiles))
        sums = replace(updated, gram=out)
        del a, products  # before the next part is converted
    return sums


def add_tile(
    plan: Plan, gram: Tensor | None, products: Tensor, tile: tuple[slice, slice], factor: Tensor | None, out: Tensor
) -> None:
    """A tile of `out`: that of `gram`, in units changed by `factor`, plus `products`."""
    rows, columns = tile
    for part, target in plan.triangle.pieces(out, rows, columns):
        if gram is None:
            target.copy_(products[part])
            continue
        which = slice(rows.start + part.start, rows.start + part.stop)
        source = plan.triangle.piece(gram, which.start, which.stop, columns)
        if factor is not None:
            source = torch.mul(source, factor[which, None], out=target).mul_(factor[columns])
        torch.add(source, products[part], out=target)


def add_by_kernel(plan: Plan, sums: Sums, rows: Tensor, fresh: Fresh, report: Report) -> Sums:
    """New sums with the samples of `rows` (n, …). Sums are float64, so neurons need no scale of their own."""
    parts = sample_parts(rows, kernel_part(plan, rows))
    if plan.nonfinite == "raise":
        for part in parts:
            peaks_of(plan, part.flatten(1), sums)
    out = fresh()
    for number, part in enumerate(parts):
        weight = None
        if sums.scaled:
            weight = power_of_two(-torch.where(sums.exponent == UNSEEN, 0, sums.exponent)).float()
        mean = gram_strips.add_batch(
            sums.gram,
            part,
            out,
            weight=weight,
            mean=sums.mean if sums.samples else None,
            count=sums.samples,
            center=plan.center,
            precision=plan.precision,
        )
        exponent = sums.exponent if sums.samples else torch.zeros_like(sums.exponent)
        sums = Sums(
            out,
            mean,
            exponent,
            sums.nonfinite,
            sums.samples + part[0].numel(),
            scaled=sums.scaled and sums.samples > 0,
        )
        report(number + 1, len(parts))
    return sums


def kernel_part(plan: Plan, rows: Tensor) -> int:
    """Samples that kernels take together: all, or as many as `max_bytes` has room for."""
    samples = rows[0].numel()
    if plan.max_bytes is None:
        return samples
    needed = gram_strips.batch_bytes(samples, plan.n, rows.dtype, center=plan.center)
    return max(16, samples * plan.max_bytes // max(needed, 1) // 16 * 16)


def tile_scratch(plan: Plan) -> Tensor:
    """Memory for a tile of products."""
    return plan.scratch(1, min(plan.side, plan.n) ** 2)[0]


def products_of(a: Tensor, scratch: Tensor) -> Callable[[slice, slice], Tensor]:
    """A function that gives a tile of a aᵀ in `scratch`, for `a` (n, samples); the next call writes over it."""

    def tile(rows: slice, columns: slice) -> Tensor:
        shape = rows.stop - rows.start, columns.stop - columns.start
        return torch.mm(a[rows], a[columns].T, out=scratch[: shape[0] * shape[1]].view(shape))

    return tile


def prepare_rows(plan: Plan, part: Tensor, sums: Sums) -> tuple[Tensor, Tensor | None, Sums]:
    """A part (n, …) as scaled, centred rows (n, samples); the factor that old sums need; all of the new but T."""
    samples = part[0].numel()
    plain = part.dim() == 2 and part.dtype == plan.dtype and blas_reads(part)
    a = part if plain and not plan.center else copy_values(plan, part, extra=int(plan.center))
    peak = sums.peak
    if peak is None:
        peak, sums = peaks_of(plan, a[:, :samples], sums)
    exponent = exponents_after(sums.exponent, peak, plan.dtype)
    grown = (exponent - sums.exponent) * (sums.exponent != UNSEEN)
    rescaled, scaled = torch.stack([grown.any(), ((exponent != 0) & (exponent != UNSEEN)).any()]).tolist()
    factor = power_of_two(-grown) if rescaled else None
    if scaled:
        scale = power_of_two(-torch.where(exponent == UNSEEN, 0, exponent)).to(plan.dtype)[:, None]
        a = a.to(plan.dtype) * scale if a is part else a.mul_(scale)
    mean = sums.mean
    if mean is not None:
        a, mean = centered(a, sums.samples, mean if factor is None else mean * factor)
    return a, factor, Sums(None, mean, exponent, sums.nonfinite, sums.samples + samples)


def copy_values(plan: Plan, part: Tensor, extra: int) -> Tensor:
    """Values of `part` (n, …) in the dtype of products, laid out as they were, with room for `extra` samples."""
    samples = part[0].numel()
    if part.stride(0) < part.stride(-1):
        copy = plan.scratch(samples + extra, plan.n).T
    else:
        copy = plan.scratch(plan.n, samples + extra)
    copy[:, samples:] = 0
    copy[:, :samples].unflatten(1, part.shape[1:]).copy_(part)
    return copy


def centered(a: Tensor, count: int, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract the means of `a` (n, samples + 1) in place and make its last sample √(n₁ n₂ / n) δ; the new μ.

    Values are taken relative to the first sample, so a constant neuron becomes exactly zero.
    """
    body, samples = a[:, :-1], a.shape[1] - 1
    first = body[:, 0].clone()
    body.sub_(first[:, None])
    rest = body.mean(1)
    body.sub_(rest[:, None])
    sums = first.double() + rest.double()
    if count == 0:
        return body, sums
    delta = sums - mean
    a[:, -1] = delta * math.sqrt(count * samples / (count + samples))
    return a, mean + delta * (samples / (count + samples))


def merge_sums(plan: Plan, sums: Sums, other: Sums, fresh: Fresh) -> Sums:
    """New sums of two sets of samples, the second of which is not empty."""
    assert other.gram is not None
    exponent, nonfinite = other.exponent.to(plan.device), other.nonfinite.to(plan.device)
    mean = None if other.mean is None else other.mean.to(plan.device)
    common = torch.maximum(sums.exponent, exponent)
    mine, theirs = unit_change(sums.exponent, common), unit_change(exponent, common)
    count, samples = sums.samples, other.samples
    total = count + samples
    joined, step = None, None
    if sums.mean is not None and mean is not None:
        delta = mean * theirs - sums.mean * mine
        joined = sums.mean * mine + delta * (samples / total)
        step = delta * math.sqrt(count * samples / total)
    out = fresh()
    for which, target in plan.blocks(out):
        block = plan.triangle.block(other.gram, which.start, which.stop).to(plan.device)
        torch.mul(block, theirs[which, None], out=target).mul_(theirs[which.start :])
        if sums.gram is not None:
            own = plan.triangle.block(sums.gram, which.start, which.stop) * mine[which, None]
            target.add_(own.mul_(mine[which.start :]))
        if step is not None:
            target.addr_(step[which], step[which.start :])
    return Sums(out, joined, common, sums.nonfinite | nonfinite, total)


def names_of(which: Tensor) -> str:
    """How many neurons, and the first of them."""
    indices = which.nonzero().flatten().tolist()
    return f"{len(indices)} neurons (first: {indices[:5]})"


def warn_of_nonfinite(new: Tensor, stacklevel: int) -> None:
    """Warn of neurons that are not finite for the first time; `stacklevel` as the caller would give it."""
    if bool(new.any()):
        text = (
            f"activations: {names_of(new)} of {len(new)} have a NaN or an infinity in this batch for the first time; "
            "their rows and columns are NaN from here on. nonfinite='raise' refuses such batches."
        )
        warnings.warn(text, RuntimeWarning, stacklevel=stacklevel + 1)
