"""The proof of a step: what arrived in .grad is what the measured samples add up to.

For every parameter one number is compared, the projection of both on a fixed direction u ⊗ v, random signs and random
normal numbers (signs alone are at right angles to many a gradient of signs, as |w| has). A part of the gradient that
was not measured changes it by about that part's norm; rounding changes it by rounding. On the first measured steps and
now and then after them: for the price of one product of the gradient with a vector.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Container, Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..layers import on_waves as waved
from ..uses import project

FIRST, EVERY, EVERY_ON_CPU = 3, 50, 20
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
"""By the coarsest dtype on the way, a multiple of the gradients' norm: far above rounding, far below a lost use."""
FLOAT32 = 1e-4
"""The same where no product rounds to less than float32. Rounding was 1.5e-6 at most in 13 networks; a bonus for a
policy's entropy, times 0.01, can be 1e-3."""


class Prover:
    """Directions of the projections, and whose turn it is."""

    def __init__(self, every: int = EVERY) -> None:
        self._every = every
        self._directions: dict[str, tuple[Tensor, Tensor]] = {}
        self.steps = 0
        self.ratios: dict[str, float] = {}
        """Of the last step that was compared: .grad's projection over that of the measured sum."""

    def due(self) -> bool:
        return self.steps < FIRST or self.steps % self._every == 0

    def again(self, steps: int = FIRST) -> None:
        """Prove as many steps as these, or more if more were to be: something changed."""
        self.steps = min(self.steps, FIRST - steps)

    def direction(self, name: str, parameter: Tensor) -> tuple[Tensor, Tensor]:
        """u over the first dimension, v over the others, from a generator of their own."""
        known = self._directions.get(name)
        if (
            known is None
            or known[0].device != parameter.device
            or known[0].numel() * known[1].numel() != max(parameter.numel(), 1)
        ):
            # By the name, so that all ranks take the same direction.
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            rows = parameter.shape[0] if parameter.ndim > 1 else 1
            sizes = (rows, max(parameter.numel() // max(rows, 1), 1))
            u = torch.randint(0, 2, sizes[:1], generator=generator).mul_(2).sub_(1)
            v = torch.randn(sizes[1:], generator=generator, dtype=torch.float32)
            self._directions[name] = u.to(parameter.device, torch.float32), v.to(parameter.device)
        return self._directions[name]

    def differences(
        self,
        measured: Mapping[str, Tensor],
        squares: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        dtypes: Mapping[str, torch.dtype],
        samples: int,
        on_waves: Container[str] = (),
    ) -> dict[str, float]:
        """Parameters whose gradient is not what was measured → the difference, relative to the gradient.

        Of n contributions c_i to a gradient, ‖Σ c_i‖² ≤ n Σ‖c_i‖². Squares that are too small for that were lost.

        Args:
            measured: projections of the measured sum, in the unit of .grad.
            squares: Σ‖contribution‖² of the samples, in that unit.
            gradients: .grad.
            dtypes: the coarsest dtype on the way.
            samples: n.
            on_waves: names whose projection compiled code took, which has a direction of its own.
        """
        relative, self.ratios = {}, {}
        # A gradient that is rounding alone (a bias before a softmax, say) has no digits to compare.
        whole = math.sqrt(max(sum(value.item() for value in squares.values() if value.isfinite()), 0.0))
        for name, gradient in gradients.items():
            direction = self._directions.get(name)
            if direction is None or name not in measured:
                continue
            actual, norm = _arrived(gradient, direction, name in on_waves)
            given = norm + math.sqrt(max(squares[name].item(), 0.0))
            most_off = _rounding(max_eps(dtypes.get(name), gradient.dtype), gradient.is_cpu, given, whole)
            difference = abs(actual - measured[name].item())
            most = math.sqrt(samples * max(squares[name].item(), 0.0))
            if math.isfinite(norm) and norm > most + most_off:
                difference = max(difference, norm - most)
            if expected := measured[name].item():
                self.ratios[name] = actual / expected
            if math.isfinite(actual) and math.isfinite(most_off) and difference > most_off:
                relative[name] = difference / norm if norm else math.inf
        return relative

    def common_factor(self) -> float | None:
        """What every gradient is of what was measured of it, where that is one number for all; else None."""
        ratios = list(self.ratios.values())
        if len(ratios) < 2:
            return None
        middle = sorted(ratios)[len(ratios) // 2]
        alike = all(abs(each - middle) <= 1e-2 * abs(middle) for each in ratios)
        return middle if alike and abs(middle - 1) > 1e-2 else None


def _arrived(gradient: Any, direction: tuple[Tensor, Tensor], on_waves: bool) -> tuple[float, float]:
    """The projection of a gradient, and its norm; of one that is sharded every rank has to ask."""
    if hasattr(gradient, "to_local"):
        projected, square = _of_shards(gradient, direction).tolist()
        return projected, math.sqrt(square)
    values = gradient.coalesce().to_dense() if gradient.is_sparse else gradient
    projected = waved(values.detach()) if on_waves else project(values, direction)
    wide = torch.complex128 if values.is_complex() else torch.float64
    return projected.item(), torch.linalg.vector_norm(values, dtype=wide).item()


def _of_shards(gradient: Any, direction: tuple[Tensor, Tensor]) -> Tensor:
    """The projection of a gradient that FSDP2 sharded and its squared norm, added up over ranks; shape: (2,)."""
    mesh, local, (u, v) = gradient.device_mesh, gradient.to_local(), direction
    along = gradient.placements[0].dim

    def part(values: Tensor, dim: int) -> Tensor:
        parts = values.chunk(mesh.size(), dim)  # as torch shards; the last ranks may have nothing
        return parts[mesh.get_local_rank()] if mesh.get_local_rank() < len(parts) else values[:0]

    if gradient.ndim < 2:
        v = part(v, 0)
    elif along == 0:
        u = part(u, 0)
    else:
        v = part(v.view(gradient.shape[1:]), along - 1).flatten()
    sums = torch.zeros(2, dtype=torch.float64, device=local.device)
    if local.numel():
        sums[0], sums[1] = project(local, (u, v)), torch.linalg.vector_norm(local).double().square()
    dist.all_reduce(sums, group=mesh.get_group())
    return sums


def _rounding(dtype: torch.dtype, on_cpu: bool, size: float, whole: float) -> float:
    """The largest difference that is taken for rounding: of a gradient of this size, in a model whose squares add up
    to `whole`²."""
    tolerance = TOLERANCE.get(dtype, 1e-3)
    exact = dtype is torch.float32 and on_cpu and torch.get_float32_matmul_precision() == "highest"
    return (FLOAT32 if exact else tolerance) * size + 1e-3 * tolerance * whole


def impossible(rows: Mapping[str, tuple[float, float]], most: float, dtypes: Iterable[torch.dtype]) -> dict[str, float]:
    """Parameters with (‖.grad‖², Σ‖c‖²), the first beyond `most` times the second → by what part of the gradient."""
    allowed = max((TOLERANCE.get(max_eps(dtype, dtype), 1e-3) for dtype in dtypes), default=1e-3)
    # A gradient that is rounding alone has no digits to compare.
    whole = math.sqrt(sum(square for _, square in rows.values() if 0 < square < math.inf))
    parts = {}
    for name, (square, samples) in rows.items():
        norm, reached = math.sqrt(square), math.sqrt(max(most * samples, 0.0))
        if math.isfinite(norm) and norm - reached > allowed * (norm + reached + 1e-3 * whole):
            parts[name] = 1 - reached / norm
    return parts


def max_eps(one: torch.dtype | None, other: torch.dtype) -> torch.dtype:
    """The coarser of two dtypes; complex ones count as their parts."""
    parts = {torch.complex128: torch.float64, torch.complex64: torch.float32}
    one, other = parts.get(one, one) if one is not None else None, parts.get(other, other)
    return other if one is None or torch.finfo(other).eps >= torch.finfo(one).eps else one
