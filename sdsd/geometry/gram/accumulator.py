"""`GramAccumulator`: the cosine matrix of neurons whose activations come in batches, or lie on several machines.

Neuron i is kept in units of a power of two, a_i = 2^(−e_i) x_i, which rounds nothing. With T the upper triangle of sums
of products, and for centred sums μ the means of the n₁ samples so far and m those of a batch of n₂:

    T[i, j] += Σ_s a_is a_js
    T[i, j] += Σ_s (a_is − m_i)(a_js − m_j) + (n₁ n₂ / n) δ_i δ_j,     δ = m − μ,     μ += (n₂ / n) δ        centred

(Chan, Golub and LeVeque 1983, "Algorithms for Computing the Sample Variance"). Nothing is subtracted from T, so nothing
cancels. √(n₁ n₂ / n) δ joins the batch as one more sample.

Products of one batch are float32 sums; T is float64, so that a million batches err no more than one. That costs 4 to
6 % of an update of 1,024 samples on a CPU, where float32 with a compensation term takes the same memory and three times
as long.

Sums of values that are not centred follow from centred ones, Σ x_i x_j = T[i, j] + n μ_i μ_j, where nothing cancels
either. The other way round would.

An update writes T + products into a second buffer and then swaps the two. Whatever stops it, Ctrl-C, an error, a full
device, therefore leaves the sums as they were. Each buffer takes 4 n² bytes, as much as a float32 (n, n) matrix, and
the second one is given back before a result is made.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from sdsd_kernels import BACKENDS, checks, gram_strips

from ..._progress import Progress, reporter
from ..arithmetic import (
    UNSEEN,
    WINDOW,
    blas_reads,
    exponents_after,
    peaks,
    plain_arithmetic,
    power_of_two,
)
from ..arrays import neurons_first, sample_parts
from .ranks import check_alike, check_group, gathered

if TYPE_CHECKING:
    import numpy as np
    from torch.distributed import ProcessGroup

PART_SAMPLES, PART_ELEMENTS = 1024, 2**22
"""Samples that are converted, and whose products are added to T, together: at least 1,024, more up to 16 MiB in
float32. Smaller updates wait for each other in a buffer: adding to T takes longer than the products of 64 samples."""


def samples_together(n: int) -> int:
    """How many samples of `n` neurons are summed in the dtype of products before float64 takes over, at least."""
    return max(PART_SAMPLES, PART_ELEMENTS // n)


STRIP = gram_strips.STRIP
"""Rows of T that lie together, and are finished together."""
BLOCK_COLUMNS = 512
"""Columns finished together. Transposed writes of 256 rows by 512 columns stay in the cache."""
TILE = 1024
"""Side of the largest product. 2,048 is as fast, and strips of 256 rows take 1.14 times as long at 4,096 neurons."""
LEAF, LEAF_ROWS = 512, 128
"""A square on the diagonal of this side is computed in strips of so many rows, larger ones by halving."""
SETTINGS = ("n", "center", "dtype")


@dataclass(frozen=True)
class _Sums:
    """What has been accumulated; never written after it was made, but for `gram` once a later one has replaced it.

    Attributes:
        gram: T, strip by strip; None before the first products.  # shape: (elements of the layout,), float64
        mean: μ in scaled units, float64; None without centring.  # shape: (n,)
        exponent: e_i, UNSEEN for a neuron that has been zero so far.  # shape: (n,), int32
        nonfinite: neurons that had a NaN or an infinity.  # shape: (n,)
        samples: how many are in `gram`.
        waiting: how many more wait in the buffer.
        peak: max |x| of every neuron among those that wait; None where none do.  # shape: (n,)
        scaled: whether a neuron may have e_i other than 0; kernels leave all at 0.
    """

    gram: Tensor | None
    mean: Tensor | None
    exponent: Tensor
    nonfinite: Tensor
    samples: int = 0
    waiting: int = 0
    peak: Tensor | None = None
    scaled: bool = True


class _Triangle:
    """Where the upper triangle of an (n, n) matrix lies in flat memory: strips of rows, each from the diagonal on.

    A strip of rows [start, stop) holds columns [start, n), so it is a matrix that BLAS and torch can write; a share of
    height / n of the memory lies below the diagonal and is not used.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.height = min(n, STRIP)
        self._offsets = [0]
        for start in range(0, n, self.height):
            self._offsets.append(self._offsets[-1] + (min(start + self.height, n) - start) * (n - start))

    @property
    def elements(self) -> int:
        return self._offsets[-1]

    def tiles(self, side: int) -> Iterator[tuple[slice, slice]]:
        """Rectangles of at most `side` by `side` that cover the triangle, as (rows, columns) of products to compute."""
        for rows, columns in _halved(0, self.n):
            for top in range(rows.start, rows.stop, side):
                for left in range(columns.start, columns.stop, side):
                    if left + side > top:
                        yield (
                            slice(top, min(top + side, rows.stop)),
                            slice(left, min(left + side, columns.stop)),
                        )

    def pieces(self, flat: Tensor, rows: slice, columns: slice) -> Iterator[tuple[slice, Tensor]]:
        """A tile as views of `flat`, a strip at a time: (part of the tile's rows, view)."""
        first = rows.start - rows.start % self.height
        for start in range(first, rows.stop, self.height):
            top, bottom = max(start, rows.start), min(start + self.height, rows.stop)
            yield slice(top - rows.start, bottom - rows.start), self.piece(flat, top, bottom, columns)

    def piece(self, flat: Tensor, top: int, bottom: int, columns: slice) -> Tensor:
        """Rows [top, bottom), all of one strip, and `columns` as a view of `flat`."""
        strip = top // self.height
        start = strip * self.height
        lines = flat[self._offsets[strip] : self._offsets[strip + 1]].view(-1, self.n - start)
        return lines[top - start : bottom - start, columns.start - start : columns.stop - start]

    def blocks(self, rows: int) -> Iterator[tuple[int, int]]:
        """(top, bottom) of blocks of at most `rows` rows that do not cross strips; each holds columns [top, n)."""
        for start in range(0, self.n, self.height):
            stop = min(start + self.height, self.n)
            for top in range(start, stop, rows):
                yield top, min(top + rows, stop)

    def block(self, flat: Tensor, top: int, bottom: int) -> Tensor:
        """Rows [top, bottom) and columns [top, n) as a view of `flat`."""
        return self.piece(flat, top, bottom, slice(top, self.n))

    def diagonal(self, flat: Tensor) -> Tensor:
        """A copy of the diagonal.  # shape: (n,)"""
        blocks = self.blocks(self.height)
        return torch.cat([self.block(flat, top, bottom).diagonal() for top, bottom in blocks])


class GramAccumulator:
    """Sums of products of every pair of neurons over any number of batches; cosines, covariances and norms from them.

        T = Σ_s x_s x_sᵀ           or, centred,    Σ_s (x_s − μ)(x_s − μ)ᵀ
        C[i, j] = T[i, j] / √(T[i, i] T[j, j])

    The result keeps the promises of `neuron_cosine_matrix`: symmetric bit for bit, |C| ≤ 1, a diagonal of exactly 1,
    NaN confined to its row and column, neurons from 1e-30 to 1e30 in one matrix. The order of batches, how samples are
    cut into them and on which rank they were seen changes nothing beyond rounding.

    An update that is interrupted, or refused, leaves the accumulator as it was. Small updates wait for each other
    in a buffer of 1,024 samples (more for few neurons), which every result takes in first.

    Memory: 8 n² bytes (two float64 triangles), 4 n² and the result while a result is made, and what `max_bytes` bounds.

    Args:
        n: number of neurons.
        center: subtract each neuron's mean over all samples: Pearson's correlation and the covariance. Results can
            then be had without centring too.
        dtype: torch.float32 | torch.float64, of products and of sums within a batch; sums over batches are float64.
            float32 takes float32, float16 and bfloat16 activations, float64 takes all.
        device: where activations come from and results go; None: the CPU.
        precision: "float32" | "fp16", what factors may be rounded to by Triton kernels, as in `neuron_cosine_matrix`.
        max_bytes: bound on buffers beside the two triangles: waiting and converted samples, a tile of products. None
            allows what 1,024 samples and a tile take, and kernels as much as a batch, which they take whole.
        backend: "triton" | "torch"; None takes SDSD_BACKEND, or Triton on a GPU and torch elsewhere.
        nonfinite: what an update with a NaN or an infinity does: "warn", naming the neurons, whose rows and columns
            become NaN; or "raise" a ValueError that names them, without adding anything of the batch. Kernels do not
            wait for a GPU to warn: the warning comes with the next result. "raise" waits.

    Raises:
        TypeError: a dtype other than these two, or n is no integer.
        ValueError: n < 1, an unknown choice, max_bytes too small, Triton asked for float64.

    Example:
        >>> gram = GramAccumulator(3)
        >>> gram.update(torch.tensor([[1.0, 2.0, 0.0]]))  # samples come in batches of any size
        >>> gram.update(torch.tensor([[1.0, 2.0, 3.0]]))
        >>> gram.samples, gram.cosine_matrix()
        (2, tensor([[1.0000, 1.0000, 0.7071],
                [1.0000, 1.0000, 0.7071],
                [0.7071, 0.7071, 1.0000]]))
    """

    def __init__(
        self,
        n: int,
        *,
        center: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        precision: str = "float32",
        max_bytes: int | None = None,
        backend: str | None = None,
        nonfinite: str = "warn",
    ) -> None:
        n = checks.check_integer(n, "n", least=1, why="neuron")
        if dtype not in WINDOW:
            raise TypeError(f"dtype: expected torch.float32 or torch.float64, got {dtype!r}. It is that of products.")
        precision = checks.check_precision(precision)
        checks.check_choice(nonfinite, "nonfinite", ("warn", "raise"))
        if backend is not None:
            checks.check_choice(backend, "backend", BACKENDS)
        if backend == "triton" and dtype == torch.float64:
            raise ValueError("backend: Triton was asked for, but its kernels have no float64. Use backend='torch'.")
        self.n, self.center, self.dtype = n, bool(center), dtype
        self.device = torch.empty(0, device=device or "cpu").device
        self.precision, self.backend, self.nonfinite_policy, self.max_bytes = precision, backend, nonfinite, max_bytes
        self._triangle = _Triangle(n)
        self._part, self._rows, self._side = self._scratch_sizes(max_bytes)
        self._buffer: Tensor | None = None
        self._spare: Tensor | None = None
        self._sums = self._nothing()

    def __repr__(self) -> str:
        return f"GramAccumulator(n={self.n}, center={self.center}, dtype={self.dtype}, samples={self.samples})"

    @property
    def samples(self) -> int:
        """How many samples have been seen."""
        return self._sums.samples + self._sums.waiting

    @property
    def nonfinite(self) -> Tensor:
        """True for neurons that had a NaN or an infinity; their rows and columns are NaN.  # shape: (n,)"""
        with plain_arithmetic(self.device):
            self._settled()
            return self._sums.nonfinite.clone()

    def reset(self) -> None:
        """Forget all samples."""
        self._sums = self._nothing()

    # Taking in samples

    def update(
        self, activations: Tensor | np.ndarray, *, neuron_dim: int | None = None, progress: Progress = False
    ) -> None:
        """Add a batch of samples. A batch without samples changes nothing.

        Gradients do not flow, and it may be called from a hook under torch.inference_mode or autocast.

        Args:
            activations: as in `neuron_cosine_matrix`: any layout, any strides.
            neuron_dim: the dimension that counts neurons; None: the last of two or three dimensions, 1 from four up.
            progress: True for a line on standard error, or a function called with (blocks done, blocks in all).

        Raises:
            TypeError: activations that are no dense tensor or array of a dtype this accumulator takes.
            ValueError: another number of neurons, another device, fewer than two dimensions, neuron_dim out of range;
                with nonfinite="raise", a NaN or an infinity.
        """
        report = reporter(progress, "GramAccumulator.update")
        rows = self._checked(activations, neuron_dim)
        samples = rows[0].numel()
        if samples == 0:
            return
        if self._through_kernel() and not torch.is_inference_mode_enabled():
            # Kernels know neither gradients nor autocast, and the context takes as long as their launches.
            self._take(rows, samples, report)
            return
        with plain_arithmetic(self.device):
            known = self._sums.nonfinite
            self._take(rows, samples, report)
            if not self._through_kernel():
                self._warn(known)

    def _take(self, rows: Tensor, samples: int, report: Callable[[int, int], None]) -> None:
        """Add samples, or let them wait."""
        if samples < self._part:
            if self._sums.waiting + samples > self._part:
                self._settle()
            self._sums = self._postponed(rows)
            report(1, 1)
        else:
            self._settle()
            self._commit(self._added(self._sums, rows, report))

    def merge(self, other: GramAccumulator) -> None:
        """Add what another accumulator has seen; `other` keeps it.

        Raises:
            TypeError: `other` is no GramAccumulator.
            ValueError: another n, center or dtype.
        """
        if not isinstance(other, GramAccumulator):
            raise TypeError(f"other: expected a GramAccumulator, got {type(other).__name__}.")
        for name in SETTINGS:
            if getattr(self, name) != getattr(other, name):
                raise ValueError(
                    f"other: expected the same {name}, {getattr(self, name)}, got {getattr(other, name)}. Only "
                    "accumulators with the same n, center and dtype can be merged."
                )
        with plain_arithmetic(self.device):
            self._settled()
            other._settled()
            if other._sums.samples:
                self._commit(self._merged(self._sums, other._sums))

    def all_reduce(self, group: ProcessGroup | None = None, *, progress: Progress = False) -> None:
        """Replace this accumulator's sums, on every rank of a process group, by those over all of its ranks.

        Every rank of the group has to call it. Each sends its n (n+1) / 2 sums, its count and its means, and all end
        with the same bits. Ranks may have seen different numbers of samples, and none, as long as one has seen some.
        Call it once, at the end: a second call would count everything once a rank.

        Args:
            group: None: the default group.
            progress: as in `update`.

        Raises:
            RuntimeError: torch.distributed is not initialised, or this rank is not in `group`.
            ValueError: on every rank alike, where ranks differ in n, center or dtype, or none has seen a sample.
        """
        report = reporter(progress, "GramAccumulator.all_reduce")
        check_group(group)
        with plain_arithmetic(self.device):
            self._settled()
            counts, rows = self._agreed(group)
            self._commit(self._reduced(self._sums, counts, rows, group, report))

    # Results

    def cosine_matrix(
        self,
        *,
        center: bool | None = None,
        zero: str = "zero",
        out_dtype: torch.dtype | None = None,
        progress: Progress = False,
    ) -> Tensor:
        """Cosine similarity of every pair of neurons over all samples; centred, Pearson's correlation.

        Args:
            center: None: as the accumulator does. One that centres gives both; one that does not refuses True.
            zero: row and column of a neuron that was zero on every sample (constant, where centred): "zero" | "nan" |
                "raise".
            out_dtype: dtype of the result; None: that of the accumulator.
            progress: as in `update`.

        Returns:
            (n, n), with the promises of `neuron_cosine_matrix`.

        Raises:
            TypeError: out_dtype is no floating-point dtype.
            ValueError: no samples, centring without means, an unknown policy, or zero="raise" and a neuron without
                direction.
        """
        report = reporter(progress, "GramAccumulator.cosine_matrix")
        checks.check_choice(zero, "zero", checks.ZERO_POLICIES)
        checks.check_dtype(out_dtype, "out_dtype")
        with plain_arithmetic(self.device):
            shift = self._shift(center)
            square = self._squares(shift)
            dead = square == 0
            if zero == "raise" and bool(dead.any()):
                which = dead.nonzero().flatten().tolist()
                centred = self.center and shift is None
                what = "the same on every sample, so zero after centring" if centred else "zero on every sample"
                raise ValueError(
                    f"zero: expected every neuron to have a direction, got {len(which)} that are {what} "
                    f"(first: {which[:5]}). Leave them out, or use zero='zero' or zero='nan'."
                )
            inverse_norm = torch.where(dead, math.nan if zero == "nan" else 0.0, square.rsqrt())
            out = self._expanded(inverse_norm, shift, out_dtype or self.dtype, report, bound=1.0)
            # 1 for a live neuron, else what stands for the inverse norm of a neuron without direction: 0 or NaN.
            out.diagonal().copy_(torch.where(inverse_norm > 0, 1.0, inverse_norm))
        return out

    def gram(self, *, center: bool | None = None) -> Tensor:
        """Σ_s x_si x_sj, or Σ_s (x_si − μ_i)(x_sj − μ_j) where centred.  # shape: (n, n), float64

        Symmetric bit for bit; NaN in rows and columns of neurons that had a NaN or an infinity. `center` and errors as
        in `cosine_matrix`.

        Args:
            center: as in `cosine_matrix`.

        Returns:
            float64, on the device of the sums.  # shape: (n, n)
        """
        with plain_arithmetic(self.device):
            shift = self._shift(center)
            poison = torch.where(self._squares(shift).isnan(), math.nan, 1.0)
            return self._expanded(self._units() * poison, shift, torch.float64, reporter(False, ""), bound=None)

    def covariance(self, correction: int = 1) -> Tensor:
        """`gram()` / (samples − correction), as torch.cov defines it.  # shape: (n, n), float64

        Args:
            correction: 1 divides by samples − 1, 0 by samples.

        Returns:
            float64, on the device of the sums.  # shape: (n, n)

        Raises:
            ValueError: the accumulator does not centre, or has seen no more samples than `correction`.
        """
        self._need_center("covariance")
        if self.samples <= correction:
            raise ValueError(
                f"correction: expected more than {correction} samples to divide by samples − {correction}, "
                f"got {self.samples}."
            )
        return self.gram(center=True).div_(self.samples - correction)

    def norms(self, *, center: bool | None = None) -> Tensor:
        """√(Σ_s x_si²), or √(Σ_s (x_si − μ_i)²) where centred; NaN for nonfinite neurons.  # shape: (n,), float64

        `center` and errors as in `cosine_matrix`.
        """
        with plain_arithmetic(self.device):
            return self._squares(self._shift(center)).sqrt() * self._units()

    def means(self) -> Tensor:
        """Mean of every neuron over all samples.  # shape: (n,), float64

        Raises:
            ValueError: no samples, or the accumulator does not centre, so that it keeps no means.
        """
        self._need_center("means")
        with plain_arithmetic(self.device):
            self._shift(None)
            poison = torch.where(self._squares(None).isnan(), math.nan, 1.0)
            assert self._sums.mean is not None
            return self._sums.mean * self._units() * poison

    # Keeping and restoring

    def state_dict(self) -> dict[str, Any]:
        """Everything that was accumulated, as tensors and plain values for torch.save (weights_only loads it).

        "gram" holds the upper triangle row by row, n (n+1) / 2 float64 numbers, in units of 2^(e_i + e_j) with e in
        "exponent". Copies: later updates do not change it.
        """
        with plain_arithmetic(self.device):
            self._settled()
            sums, packed = self._sums, None
            if sums.gram is not None:
                packed = torch.cat([_packed(block) for _, block in self._blocks(sums.gram)])
        return {
            "n": self.n,
            "center": self.center,
            "dtype": self.dtype,
            "samples": sums.samples,
            "gram": packed,
            "mean": None if sums.mean is None else sums.mean.clone(),
            "exponent": sums.exponent.clone(),
            "nonfinite": sums.nonfinite.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace what was accumulated by what `state_dict` returned, from any device.

        Args:
            state: what `state_dict` returned.

        Raises:
            ValueError: another n, center or dtype, or something that `state_dict` did not return; nothing changes then.
        """
        with plain_arithmetic(self.device):
            self._commit(self._loaded(state))

    # Below: how

    def _nothing(self) -> _Sums:
        with torch.inference_mode(False):
            return _Sums(
                gram=None,
                mean=torch.zeros(self.n, dtype=torch.float64, device=self.device) if self.center else None,
                exponent=torch.full((self.n,), UNSEEN, dtype=torch.int32, device=self.device),
                nonfinite=torch.zeros(self.n, dtype=torch.bool, device=self.device),
                scaled=False,
            )

    def _scratch_sizes(self, max_bytes: int | None) -> tuple[int, int, int]:
        """Samples that wait, or are converted, together; rows of a block; side of a tile."""
        part = samples_together(self.n)
        if max_bytes is None:
            return part, self._triangle.height, TILE
        max_bytes = checks.check_integer(max_bytes, "max_bytes", optional=True)
        # One waiting sample, one converted one in two copies, and a tile of as many products as a row has, each in 8
        # bytes a neuron; or, for all_reduce, one row of sums and two packed ones.
        smallest = 4 * 8 * self.n
        fits = max_bytes // smallest
        if fits < 1:
            raise ValueError(
                f"max_bytes: expected at least {smallest:,}, what blocks of one row and one sample take for "
                f"{self.n} neurons, got {max_bytes:,}. Allow more, or leave max_bytes out."
            )
        side = min(TILE, math.isqrt(fits * self.n))
        return min(part, fits), min(self._triangle.height, fits), side

    def _checked(self, activations: Tensor | np.ndarray, neuron_dim: int | None) -> Tensor:
        rows = neurons_first(activations, neuron_dim)
        if rows.dtype == torch.float64 and self.dtype != torch.float64:
            raise TypeError(
                "activations: this accumulator takes float32, float16 and bfloat16, got torch.float64. Pass "
                "activations.float(), or make it with GramAccumulator(n, dtype=torch.float64)."
            )
        if rows.shape[0] != self.n:
            raise ValueError(
                f"activations: expected {self.n} neurons, as many as the accumulator has, got {rows.shape[0]} (shape "
                f"{tuple(activations.shape)}). Check that neuron_dim names the dimension that counts neurons."
            )
        if rows.device != self.device:
            raise ValueError(
                f"activations: expected device {self.device} like the accumulator, got {rows.device}. Move them, or "
                f"make it with GramAccumulator(n, device={str(rows.device)!r})."
            )
        return rows

    def _need_center(self, what: str) -> None:
        if not self.center:
            raise ValueError(
                f"{what}: expected an accumulator that centres, got center=False, which keeps no means. "
                "Make it with GramAccumulator(n, center=True)."
            )

    def _warn(self, known: Tensor) -> None:
        new = self._sums.nonfinite & ~known
        if bool(new.any()):
            warnings.warn(
                f"activations: {_named(new)} of {self.n} have a NaN or an infinity in this batch for the first time; "
                "their rows and columns are NaN from here on. nonfinite='raise' refuses such batches.",
                RuntimeWarning,
                stacklevel=3,
            )

    def _peaks(self, a: Tensor, sums: _Sums) -> tuple[Tensor, _Sums]:
        """max |a| of every neuron, and `sums` with those marked that are not finite."""
        peak = peaks(a, self.dtype)
        nonfinite = ~peak.isfinite()
        if self.nonfinite_policy == "raise" and bool(nonfinite.any()):
            raise ValueError(
                f"activations: expected finite values, got a NaN or an infinity in {_named(nonfinite)} of {self.n}. "
                "Nothing of this batch was added. Leave out the samples that hold them, or use nonfinite='warn'."
            )
        return peak, replace(sums, nonfinite=sums.nonfinite | nonfinite)

    def _postponed(self, rows: Tensor) -> _Sums:
        """Sums with `rows` (n, …) in the buffer, behind those that wait there."""
        if self._buffer is None:
            self._buffer = torch.empty((self._part, self.n), dtype=self.dtype, device=self.device)
        sums, samples = self._sums, rows[0].numel()
        place = self._buffer[sums.waiting : sums.waiting + samples].T
        place.unflatten(1, rows.shape[1:]).copy_(rows)
        if self._through_kernel():
            if self.nonfinite_policy == "raise":
                self._peaks(place, sums)
            return replace(sums, waiting=sums.waiting + samples)
        peak, sums = self._peaks(place, sums)
        peak = peak if sums.peak is None else torch.maximum(peak, sums.peak)
        return replace(sums, waiting=sums.waiting + samples, peak=peak)

    def _settle(self) -> None:
        """Take waiting samples into the sums."""
        waiting = self._sums.waiting
        if waiting:
            assert self._buffer is not None
            self._commit(self._added(self._sums, self._buffer[:waiting].T, reporter(False, "")))

    def _settled(self) -> None:
        """As `_settle`, and find out which neurons are not finite, where kernels have not looked."""
        self._settle()
        sums = self._sums
        if sums.gram is not None and self._through_kernel():
            # A sum cannot lose a NaN or an infinity.
            known = sums.nonfinite
            self._sums = replace(sums, nonfinite=known | ~self._triangle.diagonal(sums.gram).isfinite())
            self._warn(known)

    def _commit(self, sums: _Sums) -> None:
        # The order matters: at no time may the spare buffer be the one that holds the sums.
        before = self._sums.gram
        self._sums = sums
        self._spare = before

    def _fresh_gram(self) -> Tensor:
        """Memory for the next sums, the spare buffer where there is one."""
        spare, self._spare = self._spare, None
        if spare is not None:
            return spare
        return torch.empty(self._triangle.elements, dtype=torch.float64, device=self.device)

    def _blocks(self, flat: Tensor) -> Iterator[tuple[slice, Tensor]]:
        for top, bottom in self._triangle.blocks(self._rows):
            yield slice(top, bottom), self._triangle.block(flat, top, bottom)

    def _added(self, sums: _Sums, rows: Tensor, report: Callable[[int, int], None]) -> _Sums:
        """New sums with the samples of `rows` (n, …)."""
        if self._through_kernel():
            return self._added_by_kernel(sums, rows, report)
        out = self._fresh_gram()
        parts, tiles = sample_parts(rows, self._part), list(self._triangle.tiles(self._side))
        for number, part in enumerate(parts):
            a, factor, updated = self._prepared(part, sums)
            products = self._products(a)
            for index, tile in enumerate(tiles):
                self._add_tile(sums.gram, products(*tile), *tile, factor, out)
                report(number * len(tiles) + index + 1, len(parts) * len(tiles))
            sums = replace(updated, gram=out)
        return sums

    def _add_tile(
        self, gram: Tensor | None, products: Tensor, rows: slice, columns: slice, factor: Tensor | None, out: Tensor
    ) -> None:
        """A tile of `out`: that of `gram`, in units changed by `factor`, plus `products`."""
        for part, target in self._triangle.pieces(out, rows, columns):
            if gram is None:
                target.copy_(products[part])
                continue
            which = slice(rows.start + part.start, rows.start + part.stop)
            source = self._triangle.piece(gram, which.start, which.stop, columns)
            if factor is not None:
                source = torch.mul(source, factor[which, None], out=target).mul_(factor[columns])
            torch.add(source, products[part], out=target)

    def _through_kernel(self) -> bool:
        """Whether kernels take a batch whole, rather than tile by tile."""
        return self.dtype == torch.float32 and gram_strips.served(self.device, self.backend)

    def _added_by_kernel(self, sums: _Sums, rows: Tensor, report: Callable[[int, int], None]) -> _Sums:
        """New sums with the samples of `rows` (n, …). Sums are float64, so neurons need no scale of their own."""
        parts = sample_parts(rows, self._kernel_part(rows))
        if self.nonfinite_policy == "raise":
            for part in parts:
                self._peaks(part.flatten(1), sums)
        out = self._fresh_gram()
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
                center=self.center,
                precision=self.precision,
            )
            exponent = sums.exponent if sums.samples else torch.zeros_like(sums.exponent)
            sums = _Sums(
                out,
                mean,
                exponent,
                sums.nonfinite,
                sums.samples + part[0].numel(),
                scaled=sums.scaled and sums.samples > 0,
            )
            report(number + 1, len(parts))
        return sums

    def _kernel_part(self, rows: Tensor) -> int:
        """Samples that kernels take together: all, or as many as `max_bytes` has room for."""
        samples = rows[0].numel()
        if self.max_bytes is None:
            return samples
        needed = gram_strips.batch_bytes(samples, self.n, rows.dtype, center=self.center)
        return max(16, samples * self.max_bytes // max(needed, 1) // 16 * 16)

    def _products(self, a: Tensor) -> Callable[[slice, slice], Tensor]:
        """A function that gives a tile of a aᵀ, for `a` (n, samples); the next call may write over it."""
        scratch = torch.empty(min(self._side, self.n) ** 2, dtype=self.dtype, device=self.device)

        def tile(rows: slice, columns: slice) -> Tensor:
            shape = rows.stop - rows.start, columns.stop - columns.start
            return torch.mm(a[rows], a[columns].T, out=scratch[: shape[0] * shape[1]].view(shape))

        return tile

    def _prepared(self, part: Tensor, sums: _Sums) -> tuple[Tensor, Tensor | None, _Sums]:
        """A part (n, …) as scaled, centred rows (n, samples); the factor that old sums need; all of the new but T."""
        samples = part[0].numel()
        plain = part.dim() == 2 and part.dtype == self.dtype and blas_reads(part)
        a = part if plain and not self.center else self._copied(part, extra=int(self.center))
        peak = sums.peak
        if peak is None:
            peak, sums = self._peaks(a[:, :samples], sums)
        exponent = exponents_after(sums.exponent, peak, self.dtype)
        grown = (exponent - sums.exponent) * (sums.exponent != UNSEEN)
        rescaled, scaled = torch.stack([grown.any(), ((exponent != 0) & (exponent != UNSEEN)).any()]).tolist()
        factor = power_of_two(-grown) if rescaled else None
        if scaled:
            scale = power_of_two(-torch.where(exponent == UNSEEN, 0, exponent)).to(self.dtype)[:, None]
            a = a.to(self.dtype) * scale if a is part else a.mul_(scale)
        mean = sums.mean
        if mean is not None:
            a, mean = self._centered(a, sums.samples, mean if factor is None else mean * factor)
        return a, factor, _Sums(None, mean, exponent, sums.nonfinite, sums.samples + samples)

    def _copied(self, part: Tensor, extra: int) -> Tensor:
        """Values of `part` (n, …) in the dtype of products, laid out as they were, with room for `extra` samples."""
        samples = part[0].numel()
        if part.stride(0) < part.stride(-1):
            copy = torch.empty((samples + extra, self.n), dtype=self.dtype, device=self.device).T
        else:
            copy = torch.empty((self.n, samples + extra), dtype=self.dtype, device=self.device)
        copy[:, samples:] = 0
        copy[:, :samples].unflatten(1, part.shape[1:]).copy_(part)
        return copy

    def _centered(self, a: Tensor, count: int, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Subtract the means of `a` (n, samples + 1) in place and make its last sample √(n₁ n₂ / n) δ; the new μ.

        Values are taken relative to the first sample, so a constant neuron becomes exactly zero.
        """
        body, samples = a[:, :-1], a.shape[1] - 1
        first = body[:, 0].clone()
        body.sub_(first[:, None])
        rest = body.mean(1)
        body.sub_(rest[:, None])
        found = first.double() + rest.double()
        if count == 0:
            return body, found
        delta = found - mean
        a[:, -1] = delta * math.sqrt(count * samples / (count + samples))
        return a, mean + delta * (samples / (count + samples))

    def _merged(self, sums: _Sums, other: _Sums) -> _Sums:
        """New sums of two sets of samples, the second of which is not empty."""
        assert other.gram is not None
        exponent, nonfinite = other.exponent.to(self.device), other.nonfinite.to(self.device)
        mean = None if other.mean is None else other.mean.to(self.device)
        common = torch.maximum(sums.exponent, exponent)
        mine, theirs = _unit_change(sums.exponent, common), _unit_change(exponent, common)
        count, samples = sums.samples, other.samples
        total = count + samples
        joined, step = None, None
        if sums.mean is not None and mean is not None:
            delta = mean * theirs - sums.mean * mine
            joined = sums.mean * mine + delta * (samples / total)
            step = delta * math.sqrt(count * samples / total)
        out = self._fresh_gram()
        for which, target in self._blocks(out):
            block = self._triangle.block(other.gram, which.start, which.stop).to(self.device)
            torch.mul(block, theirs[which, None], out=target).mul_(theirs[which.start :])
            if sums.gram is not None:
                own = self._triangle.block(sums.gram, which.start, which.stop) * mine[which, None]
                target.add_(own.mul_(mine[which.start :]))
            if step is not None:
                target.addr_(step[which], step[which.start :])
        return _Sums(out, joined, common, sums.nonfinite | nonfinite, total)

    def _agreed(self, group: ProcessGroup | None) -> tuple[list[int], int]:
        """Samples of each rank of `group`, and rows of a block that all can hold; ValueError, on all ranks, if none."""
        own = (self.n, int(self.center), self.dtype.itemsize, self._sums.samples, self._rows)
        sizes, centers, itemsizes, counts, rows = gathered(own, group)
        check_alike("all_reduce", "n", sizes)
        check_alike("all_reduce", "center", list(map(bool, centers)))
        check_alike("all_reduce", "dtype", [f"float{8 * itemsize}" for itemsize in itemsizes])
        if not any(counts):
            raise ValueError("all_reduce: expected at least one rank that has seen a sample, got none. Call update.")
        return list(counts), min(rows)

    def _reduced(
        self,
        sums: _Sums,
        counts: list[int],
        rows: int,
        group: ProcessGroup | None,
        report: Callable[[int, int], None],
    ) -> _Sums:
        """New sums over all ranks. A rank adds n_r (m_r − μ)(m_r − μ)ᵀ to its own; their sum is the merged matrix."""
        shared = torch.stack([sums.exponent, sums.nonfinite.int()])
        dist.all_reduce(shared, dist.ReduceOp.MAX, group=group)
        exponent, nonfinite = shared[0].clone(), shared[1].bool()
        unit = _unit_change(sums.exponent, exponent)
        mean, step = None, None
        if sums.mean is not None:
            own = sums.mean * unit
            means = [torch.empty_like(own) for _ in counts]
            dist.all_gather(means, own, group=group)
            mean = _mean_of_means(means, counts)
            step = (own - mean) * math.sqrt(sums.samples)
        out = self._fresh_gram()
        blocks = list(self._triangle.blocks(rows))
        sent: list[tuple[int, Tensor, dist.Work]] = []

        def receive() -> None:
            index, packed, work = sent.pop(0)
            work.wait()
            _unpack(packed, self._triangle.block(out, *blocks[index]))
            report(index + 1, len(blocks))

        for index, (top, bottom) in enumerate(blocks):
            block = torch.zeros((bottom - top, self.n - top), dtype=torch.float64, device=self.device)
            if sums.gram is not None:
                torch.mul(self._triangle.block(sums.gram, top, bottom), unit[top:bottom, None], out=block)
                block.mul_(unit[top:])
                if step is not None:
                    block.addr_(step[top:bottom], step[top:])
            packed = _packed(block)
            sent.append((index, packed, dist.all_reduce(packed, group=group, async_op=True)))
            if len(sent) > 1:
                receive()
        while sent:
            receive()
        return _Sums(out, mean, exponent, nonfinite, sum(counts))

    def _shift(self, center: bool | None) -> Tensor | None:
        """√n μ, whose products turn centred sums into others; None where T is what is asked for.  # shape: (n,)"""
        if not self.samples:
            raise ValueError("GramAccumulator: expected at least one sample before a result, got none. Call update.")
        self._settled()
        if center is None or bool(center) == self.center:
            return None
        self._need_center("center=True")
        assert self._sums.mean is not None
        return self._sums.mean * math.sqrt(self._sums.samples)

    def _squares(self, shift: Tensor | None) -> Tensor:
        """The diagonal of T + shift shiftᵀ, NaN for nonfinite neurons.  # shape: (n,)"""
        assert self._sums.gram is not None
        square = self._triangle.diagonal(self._sums.gram)
        if shift is not None:
            square += shift * shift
        return torch.where(self._sums.nonfinite, math.nan, square)

    def _units(self) -> Tensor:
        """2^e, by which scaled values are multiplied to be what they were.  # shape: (n,)"""
        exponent = self._sums.exponent
        return power_of_two(torch.where(exponent == UNSEEN, 0, exponent))

    def _expanded(
        self,
        factor: Tensor,
        shift: Tensor | None,
        dtype: torch.dtype,
        report: Callable[[int, int], None],
        bound: float | None,
    ) -> Tensor:
        """(T[i, j] + shift_i shift_j) · (factor_i factor_j), within ±bound, as a whole symmetric matrix."""
        self._spare = None  # makes room for the result
        assert self._sums.gram is not None
        out = torch.empty((self.n, self.n), dtype=dtype, device=self.device)
        if self._through_kernel():
            gram_strips.expand(self._sums.gram, factor, shift, out, cosine=bound is not None)
            report(self.n, self.n)
            return out
        for which, block in self._blocks(self._sums.gram):
            for left in range(which.start, self.n, BLOCK_COLUMNS):
                columns = slice(left, min(left + BLOCK_COLUMNS, self.n))
                # factor_i factor_j first, so that an entry does not depend on the order of its neurons.
                piece = factor[which, None] * factor[None, columns]
                sums = block[:, left - which.start : columns.stop - which.start]
                piece.mul_(sums if shift is None else sums.addr(shift[which], shift[columns]))
                if bound is not None:
                    piece.clamp_(-bound, bound)
                piece = piece.to(dtype)
                if left == which.start:
                    corner = piece[:, : which.stop - which.start]
                    corner.copy_(corner.triu() + corner.triu(1).T)
                out[which, columns] = piece
                out[columns, which] = piece.T
            report(which.stop, self.n)
        return out

    def _loaded(self, state: Mapping[str, Any]) -> _Sums:
        self._check_state(state)
        mean, samples = state["mean"], state["samples"]
        exponent, nonfinite = (state[name].to(self.device, copy=True) for name in ("exponent", "nonfinite"))
        mean = None if mean is None else mean.to(self.device, copy=True)
        if not samples:
            return _Sums(None, mean, exponent, nonfinite)
        out, first = self._fresh_gram(), 0
        for which, target in self._blocks(out):
            rows = which.stop - which.start
            count = rows * target.shape[1] - rows * (rows - 1) // 2
            _unpack(state["gram"][first : first + count].to(self.device), target)
            first += count
        return _Sums(out, mean, exponent, nonfinite, samples)

    def _check_state(self, state: Mapping[str, Any]) -> None:
        """ValueError unless `state` is what `state_dict` of an accumulator with the same settings returns."""
        names = (*SETTINGS, "samples", "gram", "mean", "exponent", "nonfinite")
        if not isinstance(state, Mapping) or set(state) != set(names):
            got = f"a mapping with {sorted(map(str, state))}" if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(f"state: expected what state_dict() returned, with {sorted(names)}, got {got}.")
        for name in SETTINGS:
            if state[name] != getattr(self, name):
                raise ValueError(
                    f"state: expected {name}={getattr(self, name)} like this accumulator, got {state[name]}. Load it "
                    f"into GramAccumulator({state['n']}, center={state['center']}, dtype={state['dtype']})."
                )
        samples = state["samples"]
        if checks.whole_number(samples) is None or samples < 0:
            raise ValueError(f"state: expected samples to be an int ≥ 0, got {samples!r}.")
        triangle = self.n * (self.n + 1) // 2
        for name, dtype, elements in (
            ("gram", torch.float64 if samples else None, triangle),
            ("mean", torch.float64 if self.center else None, self.n),
            ("exponent", torch.int32, self.n),
            ("nonfinite", torch.bool, self.n),
        ):
            value = state[name]
            found = (value.dtype, tuple(value.shape)) if isinstance(value, Tensor) else value
            wanted = None if dtype is None else (dtype, (elements,))
            if found != wanted:
                expected = "None" if dtype is None else f"{dtype} of shape {(elements,)}"
                got = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
                raise ValueError(f"state: expected {name} to be {expected}, got {got}.")


def _named(which: Tensor) -> str:
    indices = which.nonzero().flatten().tolist()
    return f"{len(indices)} neurons (first: {indices[:5]})"


def _halved(first: int, last: int) -> Iterator[tuple[slice, slice]]:
    """Rectangles that cover the triangle over [first, last): the upper right quarter, then the same in both halves."""
    if last - first <= LEAF:
        for top in range(first, last, LEAF_ROWS):
            yield slice(top, min(top + LEAF_ROWS, last)), slice(top, last)
        return
    half = first + -(-(last - first) // (2 * LEAF_ROWS)) * LEAF_ROWS
    yield slice(first, half), slice(half, last)
    yield from _halved(first, half)
    yield from _halved(half, last)


def _unit_change(exponent: Tensor, common: Tensor) -> Tensor:
    """2^(exponent − common), by which values in the one unit are multiplied to be in the other."""
    return power_of_two(torch.where(exponent == UNSEEN, 0, exponent - common))


def _mean_of_means(means: list[Tensor], counts: list[int]) -> Tensor:
    """Mean over the samples of all ranks, by merging; equal means stay what they are, to the bit."""
    mean, total = means[0], 0
    for each, count in zip(means, counts, strict=True):
        if count:
            total += count
            mean = mean + (each - mean) * (count / total)
    return mean


def _packed(block: Tensor) -> Tensor:
    """The entries on and above the diagonal of a block that starts on it, row by row."""
    return torch.cat([row[first:] for first, row in enumerate(block.unbind())])


def _unpack(packed: Tensor, block: Tensor) -> None:
    lengths = range(block.shape[1], block.shape[1] - block.shape[0], -1)
    for first, (row, entries) in enumerate(zip(block.unbind(), packed.split(list(lengths)), strict=True)):
        row[first:] = entries
