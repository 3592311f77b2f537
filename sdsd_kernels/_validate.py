"""`validate`: every backend on this machine against definitions, over a grid of shapes and dtypes."""

from __future__ import annotations

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

GAMMA_SHAPES = ((2, 1), (3, 7), (33, 700), (128, 130), (600, 40))
COSINE_SHAPES = ((1, 5), (2, 3), (17, 130), (70, 33), (130, 257))
WEIGHT_GRAD_SHAPES = ((1, 1, 1, 1), (3, 1, 7, 5), (4, 6, 9, 70), (9, 33, 130, 20), (5, 130, 65, 129))
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Half inputs are exact in float32, where their sums run, so they get its bound. Sums of a few hundred squares in
# float32 err by some units of 6e-8; the bounds leave a factor of about ten.
BOUND = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 5e-6, torch.float16: 5e-6}


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
    """What `validate` found; prints as a table."""

    device: str
    rows: tuple[ValidationRow, ...]

    @property
    def ok(self) -> bool:
        """Whether there was something to compare and every comparison is within its bound."""
        return bool(self.rows) and all(row.ok for row in self.rows)

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
        backends = ", ".join(sorted({row.backend for row in self.rows}))
        failed = sum(not row.ok for row in self.rows)
        summary = f"{len(self.rows)} comparisons on {self.device}, backends: {backends}; "
        return f"{table}\n{summary}" + (f"{failed} fall short" if failed else "all within bounds")


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
    if verbose:
        print(report)
    return report


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
                for backend in available_backends(device):
                    got = gamma_moments(grads, per_sample=True, backend=backend)
                    errors = [
                        _relative_error(one, two)
                        for one, two in zip(got, wanted, strict=True)
                        if one is not None and two is not None and two.numel()
                    ]  # fmt: skip
                    # Subtracting the mean magnifies the rounding of a mean that is 1000 times the deviation.
                    bound = BOUND[dtype] * (20 if case == "offset 1000" else 1)
                    yield ValidationRow(
                        "gamma_moments", backend, case, shape, _short(dtype), max(errors), bound
                    )  # fmt: skip


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
                        "cosine_matrix", backend, "centred" if center else "plain",
                        (neurons, samples), _short(dtype), error, BOUND[dtype],
                    )  # fmt: skip


def _parts_of_cosine_rows(device: torch.device, generator: torch.Generator) -> Iterator[ValidationRow]:
    """What is computed from pairs of neurons without their whole matrix of cosines."""
    for neurons, samples in COSINE_SHAPES:
        for dtype in DTYPES:
            activations = torch.randn(samples, neurons, generator=generator, dtype=torch.float64).to(device, dtype)
            sums = torch.eye(neurons, dtype=torch.float64 if dtype == torch.float64 else torch.float32, device=device)
            k = min(5, neurons - 1)
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
                    yield ValidationRow(op, backend, "plain", (neurons, samples), _short(dtype), error, BOUND[dtype])


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
                for backend in available_backends(device):
                    if backend == "triton" and dtype == torch.float64:
                        continue  # the kernels have no float64; torch serves
                    for method in methods:
                        got = weight_grad_stats(
                            inputs, output_grads, scale=scale, method=method, backend=backend
                        )  # fmt: skip
                        assert got.weight_grad is not None
                        case = f"{method}, scaled" if scaled else method
                        # The square norm alone: a half weight gradient carries the rounding of its dtype.
                        error = _relative_error(got.square_norm, wanted.square_norm)
                        if dtype.itemsize > 2:
                            error = max(error, _relative_error(got.weight_grad.double(), wanted.weight_grad))
                        yield ValidationRow(
                            "weight_grad_stats", backend, case, shape, _short(dtype), error, BOUND[dtype]
                        )  # fmt: skip


def _relative_error(got: Tensor, wanted: Tensor) -> float:
    return ((got - wanted).norm() / wanted.norm().clamp_min(1e-300)).item()


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
