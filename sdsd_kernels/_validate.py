"""`validate`: every backend on this machine against definitions, over a grid of shapes and dtypes.

What is allowed follows from rounding. With u the unit roundoff of the arithmetic (float32 for halves, whose products it
holds exactly) a sum of n products errs by min(n, 2√n)·u·Σ|a_k b_k|: n in the worst case, 2√n where roundings are
independent (Higham & Mary 2019, SIAM J. Sci. Comput. 41). Σ|a_k b_k| is the definition's result for absolute values.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ._backend import available_backends
from .cosine_matrix.op import cosine_matrix
from .cosine_matrix.reference import cosine_matrix_reference
from .cosine_pairs.op import cosine_row_sums
from .cosine_pairs.reference import cosine_row_sums_reference
from .cosine_topk.op import cosine_topk
from .cosine_topk.reference import cosine_topk_reference
from .gamma_moments.op import gamma_moments
from .gamma_moments.reference import gamma_moments_reference
from .gram_accumulate.op import gram_accumulate
from .gram_accumulate.reference import gram_accumulate_reference
from .weight_grad_stats.op import weight_grad_stats
from .weight_grad_stats.reference import weight_grad_stats_reference

# Of the same name as the call, below the logger that all of sdsd speaks through.
LOGGER = logging.getLogger("sdsd.validate")
LOGGER.addHandler(logging.NullHandler())

GAMMA_SHAPES = ((2, 1), (3, 7), (33, 700), (128, 130), (600, 40))
COSINE_SHAPES = ((1, 5), (2, 3), (17, 130), (70, 33), (130, 257))
WEIGHT_GRAD_SHAPES = ((1, 1, 1, 1), (3, 1, 7, 5), (4, 6, 9, 70), (9, 33, 130, 20), (5, 130, 65, 129))
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class ValidationRow:
    """One comparison: the largest error of `backend` against the definition, and what was allowed."""

    op: str
    backend: str
    case: str
    shape: tuple[int, ...]
    dtype: str
    error: float
    bound: float

    @property
    def ok(self) -> bool:
        """Whether the error is within the bound; a NaN is not."""
        return self.error <= self.bound


@dataclass(frozen=True)
class ValidationReport:
    """What `validate` found; prints as a table.

    Attributes:
        device: "cpu", or a GPU's name.
        rows: one a comparison: function, backend, case, shape, dtype, error, bound.
    """

    device: str
    rows: tuple[ValidationRow, ...]

    @property
    def ok(self) -> bool:
        """Whether there was something to compare and every comparison is within its bound."""
        return bool(self.rows) and all(row.ok for row in self.rows)

    @property
    def summary(self) -> str:
        """How much was compared, with what, and how many comparisons fall short."""
        backends = ", ".join(sorted({row.backend for row in self.rows}))
        failed = sum(not row.ok for row in self.rows)
        outcome = f"{failed} fall short" if failed else "all within bounds"
        return f"{len(self.rows)} comparisons on {self.device}, backends: {backends}; {outcome}"

    def __str__(self) -> str:
        lines = [("function", "backend", "case", "shape", "dtype", "error", "allowed", "")]
        for row in self.rows:
            shape = "×".join(map(str, row.shape))
            verdict = "ok" if row.ok else "FALLS SHORT"
            lines.append(
                (row.op, row.backend, row.case, shape, row.dtype, f"{row.error:.1e}", f"{row.bound:.1e}", verdict)
            )
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
        return f"{table}\n{self.summary}"


def validate(device: str | torch.device | None = None, *, verbose: bool = True) -> ValidationReport:
    """Compare every backend that can run on `device` with the definitions, in float64, and print the table.

    It calls `gamma_moments`, `cosine_matrix`, `cosine_topk`, `cosine_row_sums`, `gram_accumulate` and
    `weight_grad_stats`; other functions share their kernels' parts.

    Args:
        device: None takes the GPU where there is one, else the CPU.
        verbose: print the table.

    Returns:
        `ValidationReport`; `.ok` is True where every error is within its bound.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        rows = (
            *_gamma_rows(place, generator),
            *_cosine_rows(place, generator),
            *_parts_of_cosine_rows(place, generator),
            *_weight_grad_rows(place, generator),
        )
    report = ValidationReport(str(place), rows)
    log(report)
    if verbose:
        print(report)
    return report


def log(report: ValidationReport) -> None:
    """What falls short as warnings, and how much was compared."""
    for row in report.rows:
        if not row.ok:
            shape = "×".join(map(str, row.shape))
            words = (row.op, row.backend, row.case, shape, row.dtype, row.error, row.bound)
            LOGGER.warning("falls short: %s, %s, %s, %s, %s: error %.1e, allowed %.1e", *words)
    LOGGER.info("%s", report.summary)


def _gamma_rows(device: torch.device, generator: torch.Generator) -> Iterator[ValidationRow]:
    make: dict[str, Callable[[Tensor], Tensor]] = {
        "noise": lambda x: x + 0.1,
        "offset 1000": lambda x: x + 1000,
        "tiny": lambda x: x * 1e-25,
        "transposed": lambda x: x.t().contiguous().t(),
    }
    for case, change in make.items():
        for shape in GAMMA_SHAPES:
            for dtype in DTYPES:
                if case in ("offset 1000", "tiny") and dtype in (torch.float16, torch.bfloat16):
                    continue  # not representable, or rounded to a few values
                grads = change(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)).to(device)
                wanted = gamma_moments_reference(grads, per_sample=True)
                bounds = _gamma_bounds(grads, dtype, shifted=case == "offset 1000")
                for backend in available_backends(device):
                    got = gamma_moments(grads, per_sample=True, backend=backend)
                    errors = {
                        field: _relative_error(one, two)
                        for field, one, two in zip(wanted._fields, got, wanted, strict=True)
                        if one is not None and two is not None and two.numel()
                    }
                    for field, error in errors.items():
                        yield ValidationRow(
                            "gamma_moments", backend, f"{field}, {case}", shape, _short(dtype), error, bounds[field]
                        )


def _cosine_rows(device: torch.device, generator: torch.Generator) -> Iterator[ValidationRow]:
    for center in (False, True):
        for neurons, samples in COSINE_SHAPES:
            for dtype in DTYPES:
                activations = torch.randn(samples, neurons, generator=generator, dtype=torch.float64).to(dtype)
                activations[:, 0] *= torch.tensor(1e4 if dtype == torch.float16 else 1e25, dtype=dtype)
                activations = activations.to(device)
                wanted = cosine_matrix_reference(activations, center=center)
                for backend in available_backends(device):
                    if backend == "triton" and dtype == torch.float64:
                        continue  # the cosine kernel has no float64; torch serves
                    got = cosine_matrix(activations, center=center, backend=backend)
                    error = (got.double() - wanted).abs().max().item()
                    yield ValidationRow(
                        "cosine_matrix",
                        backend,
                        "centred" if center else "plain",
                        (neurons, samples),
                        _short(dtype),
                        error,
                        _cosine_bound(samples, dtype),
                    )


def _parts_of_cosine_rows(device: torch.device, generator: torch.Generator) -> Iterator[ValidationRow]:
    """What is computed from pairs of neurons without their whole matrix of cosines."""
    for neurons, samples in COSINE_SHAPES:
        for dtype in DTYPES:
            activations = torch.randn(samples, neurons, generator=generator, dtype=torch.float64).to(device, dtype)
            sums = torch.eye(neurons, dtype=torch.float64 if dtype == torch.float64 else torch.float32, device=device)
            k = min(5, neurons - 1)
            right, largest = (gram_accumulate_reference(sums, x).norm() for x in (activations, activations.abs()))
            cosine = _cosine_bound(samples, dtype)
            bounds = {
                "gram_accumulate": (_summation_error(samples, dtype) + 2 * _unit(dtype)) * (largest / right).item(),
                "cosine_row_sums": cosine + _summation_error(neurons, dtype),
                "cosine_topk": cosine,
            }
            for backend in available_backends(device):
                if backend == "triton" and dtype == torch.float64:
                    continue  # the cosine kernels have no float64; torch serves
                errors = {
                    "gram_accumulate": _relative_error(
                        gram_accumulate(sums.clone(), activations, backend=backend).triu().double(),
                        gram_accumulate_reference(sums, activations),
                    )
                }
                if k:
                    got, wanted = cosine_row_sums(activations, backend=backend), cosine_row_sums_reference(activations)
                    errors["cosine_row_sums"] = (got - wanted).abs().max().item() / neurons
                    errors["cosine_topk"] = _topk_error(activations, k, backend)
                for op, error in errors.items():
                    yield ValidationRow(op, backend, "plain", (neurons, samples), _short(dtype), error, bounds[op])


def _topk_error(activations: Tensor, k: int, backend: str) -> float:
    """The largest error of a neighbour's cosine; of those asked for, and of those named."""
    values, indices = cosine_topk(activations, k, backend=backend)
    wanted, _ = cosine_topk_reference(activations, k)
    named = cosine_matrix_reference(activations).gather(1, indices)
    return max((values.double() - right).abs().max().item() for right in (wanted, named))


def _weight_grad_rows(device: torch.device, generator: torch.Generator) -> Iterator[ValidationRow]:
    for scaled in (False, True):
        for shape in WEIGHT_GRAD_SHAPES:
            samples, positions, d, p = shape
            methods = ("fused", *(() if scaled else ("gram",)), *(("rank1",) if positions == 1 else ()))
            for dtype in DTYPES:
                inputs, output_grads = (
                    torch.randn(samples, positions, last, generator=generator, dtype=torch.float64).to(device, dtype)
                    for last in (d, p)
                )
                scale = torch.rand(p, d, generator=generator).to(device) if scaled else None
                wanted = weight_grad_stats_reference(inputs, output_grads, scale=scale)
                assert wanted.weight_grad is not None
                bounds = _weight_grad_bounds(inputs, output_grads, scale, dtype)
                for backend in available_backends(device):
                    if backend == "triton" and dtype == torch.float64:
                        continue  # the kernels have no float64; torch serves
                    for method in methods:
                        got = weight_grad_stats(inputs, output_grads, scale=scale, method=method, backend=backend)
                        assert got.weight_grad is not None
                        case = f"{method}, scaled" if scaled else method
                        # The square norm alone: a half weight gradient carries the rounding of its dtype.
                        error = _relative_error(got.square_norm, wanted.square_norm)
                        if dtype.itemsize > 2:
                            error = max(error, _relative_error(got.weight_grad.double(), wanted.weight_grad))
                        yield ValidationRow(
                            "weight_grad_stats", backend, case, shape, _short(dtype), error, bounds[method]
                        )


def _unit(dtype: torch.dtype) -> float:
    return 2.0**-53 if dtype == torch.float64 else 2.0**-24


def _summation_error(terms: int, dtype: torch.dtype) -> float:
    """Of a sum, as a share of the sum of its terms' magnitudes."""
    return min(terms, 2 * math.sqrt(terms)) * _unit(dtype)


def _gamma_bounds(grads: Tensor, dtype: torch.dtype, *, shifted: bool) -> dict[str, float]:
    """How far each moment may be off, as a share of its norm.

    A mean of values of size s errs by e = 2√N u s and a few roundings; where the mean is large backends shift by it or
    by a row, and s is the spread. A deviation errs by as much and its own rounding, and what is summed of products of
    two such factors by both and by the summation, three times that where N ‖mean‖² is taken off Σ‖g‖² (README.md of
    gamma_moments). The definition rounds as well, in float64.
    """
    G = grads.double()
    unit, n = _unit(dtype), G.shape[0]
    mean = G.mean(0)
    d = G - mean
    size = 2 * (G - G[0]).abs().amax(0) if shifted else G.abs().amax(0)
    e = _summation_error(n, dtype) * size + 3 * unit * size + 2.0**-53 * 4 * n * G.abs().amax(0)
    off = e + 2 * unit * d.abs()
    sums = 3 * (_summation_error(G.shape[1], dtype) + _summation_error(n, dtype) + 3 * unit)
    one, two = ((d[k : n // 4 * 4 : 4] - d[k + 1 : n // 4 * 4 : 4]).abs() for k in (0, 2))
    allowed = {
        "signal": (2 * mean.abs() * e + e * e).sum() + sums * mean.square().sum(),
        "squares": (2 * d.abs() * off + off * off).sum() + sums * d.square().sum(),
        "deviations": (2 * d.abs() * off + off * off).sum(1) + sums * d.square().sum(1),
        "projections": (d.abs() * e + (mean.abs() + e) * off).sum(1) + sums * (d * mean).abs().sum(1),
        "products": ((one + two) * 4 * unit * (one + two + size)).sum(1) / 2 + sums * (one * two).sum(1) / 2,
    }
    wanted = gamma_moments_reference(grads, per_sample=True)
    return {
        field: (bound.norm() / getattr(wanted, field).norm().clamp_min(1e-300)).item()
        for field, bound in allowed.items()
    }


def _cosine_bound(samples: int, dtype: torch.dtype) -> float:
    """Of a cosine: a product of unit vectors, the squares of two norms, and eight roundings of roots and scaling."""
    return 2 * _summation_error(samples, dtype) + 8 * _unit(dtype)


def _weight_grad_bounds(
    inputs: Tensor, output_grads: Tensor, scale: Tensor | None, dtype: torch.dtype
) -> dict[str, float]:
    """By method, of square norms and of the weight gradient, as a share of their norms.

    A per-sample gradient is a sum over positions, and its square norm one of its squares; "gram" sums over pairs of
    positions products of two inner products.
    """
    samples, positions, d = inputs.shape
    p = output_grads.shape[2]
    right = weight_grad_stats_reference(inputs, output_grads, scale=scale)
    largest = weight_grad_stats_reference(inputs.abs(), output_grads.abs(), scale=scale)
    assert right.weight_grad is not None
    assert largest.weight_grad is not None
    ratio = (largest.square_norm.norm() / right.square_norm.norm()).item()
    one = (_summation_error(positions, dtype) + 2 * _unit(dtype)) * math.sqrt(ratio)
    squares = _summation_error(samples * d * p, dtype) + 2 * one + one**2
    pairs = sum(_summation_error(terms, dtype) for terms in (d, p, samples * positions**2)) * ratio
    whole = _summation_error(samples * positions, dtype)
    whole *= (largest.weight_grad.norm() / right.weight_grad.norm()).item()
    methods = {"fused": squares, "rank1": max(squares, pairs), "gram": pairs}
    return {method: max(error, whole) + 4 * _unit(dtype) for method, error in methods.items()}


def _relative_error(got: Tensor, wanted: Tensor) -> float:
    return ((got - wanted).norm() / wanted.norm().clamp_min(1e-300)).item()


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
