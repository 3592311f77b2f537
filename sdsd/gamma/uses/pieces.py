"""What one use of a parameter knows of the samples' gradients, in the form that it comes in.

A piece stands for gradients g_n (N, *shape) of the operand of one operation. It gives Σ‖g_n‖², a range of samples, and
the projection ⟨Σ g_n, u ⊗ v⟩ that proves the step, each in the cheapest way its form allows.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdsd_kernels import weight_grad_stats

from ..following import Track, arrange

if TYPE_CHECKING:
    from .ledger import Pass

_scale_shift_grads: Any = torch.ops.sdsd.scale_shift_grads.default._op
_lookup_squares: Any = torch.ops.sdsd.lookup_squares_into.default._op

SAFE = (1e-20, 1e30)
"""Sums of squares in this range have lost nothing that counts to float32 underflow or overflow."""
FEW = 2**19
"""So many squares may be added up in float32, in eight sums or more, and agree with float64 to about 1e-7."""
PART_BYTES = 2**20
"""Products of samples are formed on a CPU for so many bytes at a time, which stay in the cache and in memory that is at
hand: as many as a layer has come as new pages, a fault each. Half as much was slower for the calls that it takes."""


def wide(x: Tensor) -> Tensor:
    """`x` in float32 or better."""
    return x if x.dtype in (torch.float32, torch.float64, torch.complex64, torch.complex128) else x.float()


def chunks(samples: int, bytes_each: int, max_bytes: int) -> list[tuple[int, int]]:
    """Ranges of samples whose per-sample gradients fit `max_bytes`; one sample at least."""
    step = max(1, min(samples, max_bytes // max(bytes_each, 1)))
    return [(start, min(start + step, samples)) for start in range(0, samples, step)]


def sum_of_squares(gradients: Tensor, scale: Tensor | None) -> Tensor:
    """Σ_n ‖D ∘ g_n‖², gradients (N, *shape), as a 0-dim float64 tensor; squares in float32 or better."""
    values = wide(gradients)
    if scale is not None:
        values = values * scale
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    if values.device.type != "cpu":
        return torch.linalg.vector_norm(values, dtype=torch.float64).square()
    if values.numel() <= FEW:
        flat = values.reshape(-1)
        total = torch.dot(flat, flat).double()
    else:
        total = torch.linalg.vector_norm(values.reshape(values.shape[0], -1), dim=1).double().square().sum()
    if values.dtype == torch.float64 or torch.compiler.is_compiling() or SAFE[0] < total.item() < SAFE[1]:
        return total
    return torch.linalg.vector_norm(values, dtype=torch.float64).square()


def square_norm(x: Tensor) -> float:
    """‖x‖² of a tensor on the CPU: products in float32 or better, added up in float64 beyond a few of them."""
    total = 0.0
    if x.dtype in (torch.float32, torch.float64) and x.is_contiguous():
        flat = x if x.ndim == 1 else x.view(-1)
        if flat.numel() <= FEW:
            total = torch.dot(flat, flat).item()
        else:
            for part in flat.split(FEW):
                total += torch.dot(part, part).item()
    if SAFE[0] < total < SAFE[1]:
        return total
    dtype = torch.complex128 if x.is_complex() else torch.float64
    norm: float = torch.linalg.vector_norm(x, dtype=dtype).item()
    return norm**2


def project(gradient: Tensor, direction: tuple[Tensor, Tensor]) -> Tensor:
    """⟨gradient, u ⊗ v⟩ as a 0-dim float64 tensor; of a complex gradient, of its real and imaginary parts added."""
    u, v = direction
    values = wide(gradient)
    if values.is_complex():
        values = values.real + values.imag
    matrix = values.reshape(u.numel(), -1)
    return torch.dot(torch.mv(matrix, v.to(matrix.dtype)).double(), u.double())


Squared = Tensor | float
"""Σ_n ‖g_n‖²: a 0-dim tensor, or a number where it was read on a CPU."""


class Piece(abc.ABC):
    """Gradients of N samples with respect to one operand."""

    n: int
    factors: tuple[str, Tensor, Tensor] | None = None
    """("linear", a, b) or ("embedding", tokens, g): what a tied pair needs to skip forming gradients."""
    alone: Squared | None = None
    """Σ‖·‖² of this use by itself, where it was found on the way."""
    bytes_each: int
    """Memory that one sample's gradient takes while it is formed."""

    def land(self, ledger: Pass, row: int) -> bool:
        """Σ_n ‖g_n‖² into a row of `ledger.norms` by a kernel; False where there is none, and nothing was done."""
        return False

    @abc.abstractmethod
    def each(self, start: int, stop: int) -> Tensor:
        """Gradients of samples start … stop; shape: (stop − start, *operand.shape)."""

    def squares(self, scale: Tensor | None, max_bytes: int) -> Squared:
        """Σ_n ‖D ∘ g_n‖²."""
        if self.alone is not None and scale is None:
            return self.alone
        total: Tensor | None = None
        for start, stop in chunks(self.n, self.bytes_each, max_bytes):
            part = sum_of_squares(self.each(start, stop), scale)
            total = part if total is None else total + part
        assert total is not None
        return total

    def projection(self, direction: tuple[Tensor, Tensor], max_bytes: int) -> Tensor:
        """⟨Σ g_n, u ⊗ v⟩."""
        parts = [
            project(self.each(start, stop).sum(0), direction)
            for start, stop in chunks(self.n, self.bytes_each, max_bytes)
        ]
        return torch.stack(parts).sum()


class Dense(Piece):
    """All gradients, formed: (N, *shape)."""

    def __init__(self, gradients: Tensor, alone: Squared | None = None) -> None:
        self.gradients, self.alone = gradients, alone
        self.n = gradients.shape[0]
        self.bytes_each = 8

    def each(self, start: int, stop: int) -> Tensor:
        return wide(self.gradients[start:stop])

    def squares(self, scale: Tensor | None, max_bytes: int) -> Squared:
        return sum_of_squares(self.gradients, scale) if self.alone is None or scale is not None else self.alone


class Sums(Piece):
    """g_n = Σ_t b_nt ∘ x_nt, (C,), of rows b (N, T, C) and x (N, T, C), or of b alone; x times `rstd` (N, T, 1)."""

    def __init__(self, b: Tensor, x: Tensor | None = None, rstd: Tensor | None = None) -> None:
        self.b, self.x, self.rstd = b, x, rstd
        self.n = b.shape[0]
        self.bytes_each = 8 * b[0].numel()

    def each(self, start: int, stop: int) -> Tensor:
        values = wide(self.b[start:stop])
        if self.x is not None:
            values = values * wide(self.x[start:stop])
        if self.rstd is not None:
            values = values * self.rstd[start:stop]
        return values.sum(1)

    def land(self, ledger: Pass, row: int) -> bool:
        if not ledger.serves(self.b) or (self.x is not None and not ledger.serves(self.x)):
            return False
        rows = (-1, row) if self.x is None else (row, -1)
        norms = ledger.norms_on(self.b.device)
        _scale_shift_grads(self.b, self.x, None, self.rstd, norms, *rows, torch.float32, "triton")
        return True


class Lazy(Piece):
    """Gradients formed on request by `form(start, stop)`; `total` is their sum where it is at hand."""

    def __init__(
        self,
        n: int,
        bytes_each: int,
        form: Callable[[int, int], Tensor],
        alone: Tensor | None = None,
        total: Tensor | None = None,
    ) -> None:
        self.n, self.bytes_each, self.form, self.alone, self.total = n, bytes_each, form, alone, total

    def each(self, start: int, stop: int) -> Tensor:
        return wide(self.form(start, stop))

    def projection(self, direction: tuple[Tensor, Tensor], max_bytes: int) -> Tensor:
        if self.total is not None:
            return project(self.total, direction)
        return super().projection(direction, max_bytes)


class OfSamples(Piece):
    """Gradients of single samples, by their numbers; those of the others are zero."""

    def __init__(self, sample: int, gradient: Tensor, n: int) -> None:
        self.gradients, self.n = {sample: wide(gradient)}, n
        self.bytes_each = 8 * gradient.numel()

    def add(self, sample: int, gradient: Tensor) -> None:
        held = self.gradients.get(sample)
        self.gradients[sample] = wide(gradient) if held is None else held + wide(gradient)

    def each(self, start: int, stop: int) -> Tensor:
        nothing = torch.zeros_like(next(iter(self.gradients.values())))
        return torch.stack([self.gradients.get(k, nothing) for k in range(start, stop)])

    def squares(self, scale: Tensor | None, max_bytes: int) -> Tensor:
        return torch.stack([sum_of_squares(each.unsqueeze(0), scale) for each in self.gradients.values()]).sum()

    def projection(self, direction: tuple[Tensor, Tensor], max_bytes: int) -> Tensor:
        return torch.stack([project(each, direction) for each in self.gradients.values()]).sum()


class OwnRows(Piece):
    """An operand of `shape` with rows for every sample: the gradient of a sample is zero in those of all others.

    values: gradients of an output, of a shape that `shape` is broadcast to; its samples lie along `track`.
    """

    def __init__(self, values: Tensor, track: Track, n: int, shape: torch.Size) -> None:
        self.values, self.track, self.n, self.shape = values, track, n, shape
        self.bytes_each = 8 * values.numel()

    def each(self, start: int, stop: int) -> Tensor:
        axis = self.track.axis
        split = self.values.unflatten(axis, (self.track.outer, self.n, self.track.inner))
        rows = []
        for sample in range(start, stop):
            alone = torch.zeros_like(split)
            alone.select(axis + 1, sample).copy_(split.select(axis + 1, sample))
            rows.append(wide(alone.flatten(axis, axis + 2)).sum_to_size(self.shape))
        return torch.stack(rows)

    def looked_up(self, ids: Tensor, rows: int, padding: int | None) -> Lookup | None:
        """Gradients of the table (rows, d) that the operand was read from at `ids`; None where it was broadcast."""
        if self.values.shape != self.shape or self.track.axis >= ids.dim():
            return None
        tokens = arrange(ids, self.track, self.n, 0)
        return Lookup(tokens, arrange(self.values, self.track, self.n, 1), rows, padding)


class Product(Piece):
    """g_n = Σ_t b_nt a_ntᵀ of a linear operation: a (N, T, d), b (N, T, p); the operand (p, d), transposed (d, p)."""

    def __init__(
        self, a: Tensor, b: Tensor, transposed: bool = False, alone: Squared | None = None, total: Tensor | None = None
    ) -> None:
        self.a, self.b, self.transposed, self.alone, self.total = a, b, transposed, alone, total
        self.n = a.shape[0]
        self.bytes_each = 8 * a.shape[-1] * b.shape[-1]
        if not transposed and not a.is_complex() and not b.is_complex():
            self.factors = ("linear", a, b)

    def each(self, start: int, stop: int) -> Tensor:
        left, right = (self.a, self.b) if self.transposed else (self.b, self.a)
        a, b = wide(left[start:stop]), wide(right[start:stop])
        # Of complex numbers torch's gradients take the conjugate of what was multiplied.
        a, b = (a.conj(), b) if self.transposed else (a, b.conj())
        return torch.bmm(a.transpose(1, 2), b)

    def squares(self, scale: Tensor | None, max_bytes: int) -> Squared:
        # Where it came with the gradient, the preconditioner is in it already.
        if self.alone is not None and (scale is None or self.total is not None):
            return self.alone
        if self.a.is_complex() or self.b.is_complex() or not self.a.shape[1]:
            return super().squares(scale, max_bytes)
        if scale is not None and self.transposed:
            scale = scale.t()
        return weight_grad_stats(self.a, self.b, scale=scale, weight_grad=False).square_norm

    def projection(self, direction: tuple[Tensor, Tensor], max_bytes: int) -> Tensor:
        if self.total is not None:
            return project(self.total, direction)
        if self.a.is_complex() or self.b.is_complex():
            return super().projection(direction, max_bytes)
        u, v = direction
        if self.transposed:
            u, v = v, u
        left = wide(self.b).flatten(0, 1) @ u.to(wide(self.b).dtype)
        right = wide(self.a).flatten(0, 1) @ v.to(wide(self.a).dtype)
        return torch.dot(left.double(), right.double())


class OnePosition:
    """Σ‖a_n‖²‖b_n‖², and Σ‖b_n‖² with `bias`, of rows b (n, p) and a (n, d) on a CPU, from norms taken once;
    None where it is not safe.

    `weight_grad_stats` would find the first, but a bias shares the norms, and small layers are spared its overhead. The
    norms have memory of their own: behind products that fill the caches, making and freeing small tensors costs as much
    as taking norms.
    """

    def __init__(self, n: int, dtype: torch.dtype, *, bias: bool) -> None:
        self.bias, self.dtype = bias, dtype
        self.norms_a, self.norms_b = torch.empty(2, n, dtype=dtype).unbind()

    def __call__(self, b: Tensor, a: Tensor) -> tuple[float, ...] | None:
        if type(b) is not Tensor or b.dtype is not self.dtype:
            return None
        products, norms_b = self.norms_a, self.norms_b
        torch.linalg.vector_norm(b, dim=1, out=norms_b)
        torch.linalg.vector_norm(a, dim=1, out=products)
        products.mul_(norms_b)
        weight: float = torch.dot(products, products).item()
        if not SAFE[0] < weight < SAFE[1]:
            return None
        if not self.bias:
            return (weight,)
        of_bias: float = torch.dot(norms_b, norms_b).item()
        return (weight, of_bias) if SAFE[0] < of_bias < SAFE[1] else None


class Lookup(Piece):
    """Rows of a table (rows, d): g_n adds gradients g (N, T, d) at tokens (N, T), `distinct` ones in every sample."""

    def __init__(
        self, tokens: Tensor, gradients: Tensor, rows: int, padding: int | None, distinct: bool = False
    ) -> None:
        self.tokens, self.rows, self.padding, self.distinct = tokens, rows, padding, distinct
        self._given = gradients
        self.n = tokens.shape[0]
        self.bytes_each = 8 * rows * gradients.shape[-1]

    @functools.cached_property
    def gradients(self) -> Tensor:
        """Zero where padding was read."""
        if self.padding is None:
            return self._given
        return self._given.masked_fill((self.tokens == self.padding).unsqueeze(-1), 0.0)

    @functools.cached_property
    def factors(self) -> tuple[str, Tensor, Tensor]:  # type: ignore[override]
        return "embedding", self.tokens, self.gradients

    def land(self, ledger: Pass, row: int) -> bool:
        given = self._given
        if self.alone is not None or not ledger.serves(given):
            return False
        padding = -1 if self.padding is None else self.padding
        _lookup_squares(given, self.tokens, ledger.norms_on(given.device), row, padding, "triton")
        return True

    def each(self, start: int, stop: int) -> Tensor:
        part = wide(self.gradients[start:stop])
        table = part.new_zeros(stop - start, self.rows, part.shape[-1])
        return table.scatter_add_(1, self.tokens[start:stop].unsqueeze(-1).expand_as(part), part)

    def squares(self, scale: Tensor | None, max_bytes: int) -> Squared:
        if self.distinct and scale is None:
            return sum_of_squares(self.gradients, None)  # no two positions read one row
        return lookup_squares(self.gradients, self.tokens, scale)

    def projection(self, direction: tuple[Tensor, Tensor], max_bytes: int) -> Tensor:
        u, v = direction
        g = wide(self.gradients)
        return torch.dot((g @ v.to(g.dtype)).double().flatten(), u.double()[self.tokens.flatten()])


def lookup_squares(gradients: Tensor, tokens: Tensor, scale: Tensor | None) -> Tensor:
    """Σ_n ‖per-sample gradient of the table‖², gradients (N, T, d), tokens (N, T); a 0-dim float64 tensor.

    Tokens of a sample are sorted, equal neighbours share a slot, gradients are added into slots: static shapes,
    O(N T d), and nothing of the size of the table. On the CPU, where counts can be read, only rows whose token stands
    more than once in its sample are moved at all.
    """
    values = wide(gradients)
    if scale is not None:
        values = values * scale[tokens]
    if tokens.shape[1] < 2:
        return torch.linalg.vector_norm(values.flatten(0, -2), dim=1, dtype=torch.float64).square().sum()
    ordered, order = tokens.sort(dim=1)
    new = torch.ones_like(ordered, dtype=torch.bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    if values.device.type == "cpu" and not torch.compiler.is_compiling():
        repeated = ~new
        repeated[:, :-1] |= ~new[:, 1:]
        sample, place = repeated.nonzero(as_tuple=True)
        position = order[sample, place]
        squares = torch.linalg.vector_norm(values, dim=2).double().square()
        squares[sample, position] = 0.0
        total = squares.sum()
        if len(sample):
            rows = values[sample, position]
            slots = new[sample, place].cumsum(0) - 1
            together = torch.zeros_like(rows[: int(slots[-1]) + 1]).index_add_(0, slots, rows)
            total = total + torch.linalg.vector_norm(together, dim=1).double().square().sum()
        if values.dtype != torch.float32 or SAFE[0] < total.item() < SAFE[1]:
            return total
        return lookup_squares(gradients.double(), tokens, scale)
    # Slots count on through the samples, so that no two samples share one.
    slots = new.flatten().cumsum(0) - 1
    rows = values.gather(1, order.unsqueeze(-1).expand_as(values)).flatten(0, 1)
    values = torch.zeros_like(rows).index_add(0, slots, rows)
    return torch.linalg.vector_norm(values.flatten(0, -2), dim=1, dtype=torch.float64).square().sum()
