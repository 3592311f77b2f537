"""`GramAccumulator`: the cosine matrix of neurons whose activations come in batches, or lie on several machines.

An update writes T + products into a second buffer and then swaps the two. Whatever stops it, Ctrl-C, an error, a full
device, therefore leaves the sums as they were. Each buffer takes 4 n² bytes, as much as a float32 (n, n) matrix, and
the second one is given back before a result is made.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdsd_kernels import checks

from ..._progress import Progress, Report, reporter
from ..arithmetic import plain_arithmetic
from .adding import add_rows, buffer_rows, merge_sums, nothing, warn_of_nonfinite
from .checkpoints import loaded, saved
from .collectives import agreed, reduced
from .layout import Plan
from .ranks import check_group
from .results import expanded, inverse_norms, products, squares, units
from .sums import Sums

if TYPE_CHECKING:
    import numpy as np
    from torch.distributed import ProcessGroup


class GramAccumulator:
    """Sums of products of every pair of neurons over any number of batches; cosines, covariances and norms from them.

        T = Σ_s x_s x_sᵀ           or, centred,    Σ_s (x_s − μ)(x_s − μ)ᵀ
        C[i, j] = T[i, j] / √(T[i, i] T[j, j])

    The result keeps the promises of `neuron_cosine_matrix`: symmetric bit for bit, |C| ≤ 1, a diagonal of exactly 1,
    NaN confined to its row and column, neurons of any scale in one matrix. The order of batches, how samples are
    cut into them and on which rank they were seen changes nothing beyond rounding.

    An update that is interrupted, or refused, leaves the accumulator as it was. Small updates wait for each other
    in a buffer of 1,024 samples (more for few neurons), which every result takes in first.

    Memory: 8 n (n + 256) bytes (two float64 triangles, in strips of 256 rows), half of that and the result while a
    result is made, and what `max_bytes` bounds.

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
        self._plan = plan = Plan.of(
            n,
            center,
            dtype,
            device=device,
            precision=precision,
            max_bytes=max_bytes,
            backend=backend,
            nonfinite=nonfinite,
        )
        self.n, self.center, self.dtype, self.device = plan.n, plan.center, plan.dtype, plan.device
        self.precision, self.backend, self.max_bytes = plan.precision, plan.backend, plan.max_bytes
        self.nonfinite_policy = plan.nonfinite
        self._buffer: Tensor | None = None
        self._spare: Tensor | None = None
        self._sums = nothing(self._plan)

    def __repr__(self) -> str:
        return f"GramAccumulator(n={self.n}, center={self.center}, dtype={self.dtype}, samples={self.samples})"

    def __copy__(self) -> GramAccumulator:
        """Sums and buffers are written in place, so a copy has its own."""
        return copy.deepcopy(self)

    @property
    def samples(self) -> int:
        """How many samples have been seen."""
        return self._sums.samples + self._sums.waiting

    @property
    def nonfinite(self) -> Tensor:
        """True for neurons that had a NaN or an infinity; their rows and columns are NaN.  # shape: (n,)"""
        with self._result():
            return self._sums.nonfinite.clone()

    def reset(self) -> None:
        """Forget all samples."""
        self._sums = nothing(self._plan)

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
        rows = self._plan.checked(activations, neuron_dim)
        samples = rows[0].numel()
        if samples == 0:
            return
        if self._plan.through_kernel() and not torch.is_inference_mode_enabled():
            # Kernels know neither gradients nor autocast, and the context takes as long as their launches.
            self._take(rows, samples, report)
            return
        with plain_arithmetic(self.device):
            known = self._sums.nonfinite
            self._take(rows, samples, report)
            if not self._plan.through_kernel():
                warn_of_nonfinite(self._sums.nonfinite & ~known, stacklevel=2)

    def _take(self, rows: Tensor, samples: int, report: Report) -> None:
        """Add samples, or let them wait."""
        if samples < self._plan.part:
            if self._sums.waiting + samples > self._plan.part:
                self._settle()
            if self._buffer is None:
                self._buffer = torch.empty((self._plan.part, self.n), dtype=self.dtype, device=self.device)
            self._sums = buffer_rows(self._plan, self._sums, rows, self._buffer)
            report(1, 1)
        else:
            self._settle()
            self._commit(add_rows(self._plan, self._sums, rows, self._fresh_gram, report))

    def merge(self, other: GramAccumulator) -> None:
        """Add what another accumulator has seen; `other` keeps it.

        Raises:
            TypeError: `other` is no GramAccumulator.
            ValueError: another n, center or dtype.
        """
        if not isinstance(other, GramAccumulator):
            raise TypeError(f"other: expected a GramAccumulator, got {type(other).__name__}.")
        self._plan.require_same(other._plan)
        with self._result(), other._result():
            if other._sums.samples:
                self._commit(merge_sums(self._plan, self._sums, other._sums, self._fresh_gram))

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
        with self._result():
            counts, rows = agreed(self._plan, self._sums.samples, group)
            self._commit(
                reduced(self._plan, self._sums, counts, rows, group=group, fresh=self._fresh_gram, report=report)
            )

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
        with self._result():
            shift = self._shift(center)
            square = squares(self._plan, self._sums, shift)
            inverse_norm = inverse_norms(square, zero, centred=self.center and shift is None)
            self._spare = None  # makes room for the result
            out = expanded(
                self._plan,
                self._sums.gram,
                inverse_norm,
                shift,
                dtype=out_dtype or self.dtype,
                bound=1.0,
                report=report,
            )
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

        Raises:
            ValueError: as `cosine_matrix`; neurons so large, or all so small, that float64 has no such sums.
        """
        return self._gram(center)

    def _gram(self, center: bool | None, exponent: Tensor | None = None) -> Tensor:
        """`gram` of neurons divided by 2^exponent; None: as they are, and what leaves float64's range is refused."""
        with self._result():
            shift = self._shift(center)
            self._spare = None  # makes room for the result
            return products(self._plan, self._sums, shift, exponent)

    def covariance(self, correction: int = 1) -> Tensor:
        """`gram()` / (samples − correction), as torch.cov defines it.  # shape: (n, n), float64

        Args:
            correction: 1 divides by samples − 1, 0 by samples.

        Returns:
            float64, on the device of the sums.  # shape: (n, n)

        Raises:
            ValueError: the accumulator does not centre, or has seen no more samples than `correction`; sums that
                float64 does not have, as in `gram`.
        """
        self._plan.need_center("covariance")
        if self.samples <= correction:
            raise ValueError(
                f"correction: expected more than {correction} samples to divide by samples − {correction}, "
                f"got {self.samples}."
            )
        return self.gram(center=True).div_(self.samples - correction)

    def norms(self, *, center: bool | None = None) -> Tensor:
        """√(Σ_s x_si²), or √(Σ_s (x_si − μ_i)²) where centred; NaN for nonfinite neurons.  # shape: (n,), float64

        At most float64's largest number. `center` and errors as in `cosine_matrix`.
        """
        with self._result():
            shift = self._shift(center)
            norms = squares(self._plan, self._sums, shift).sqrt() * units(self._sums)
            return norms.clamp_max_(torch.finfo(torch.float64).max)

    def means(self) -> Tensor:
        """Mean of every neuron over all samples.  # shape: (n,), float64

        Raises:
            ValueError: no samples, or the accumulator does not centre, so that it keeps no means.
        """
        self._plan.need_center("means")
        with self._result():
            self._shift(None)
            poison = torch.where(squares(self._plan, self._sums, None).isnan(), math.nan, 1.0)
            assert self._sums.mean is not None
            return self._sums.mean * units(self._sums) * poison

    def state_dict(self) -> dict[str, Any]:
        """Everything that was accumulated, as tensors and plain values for torch.save (weights_only loads it).

        "gram" holds the upper triangle row by row, n (n+1) / 2 float64 numbers, in units of 2^(e_i + e_j) with e in
        "exponent". Copies: later updates do not change it.
        """
        with self._result():
            return saved(self._plan, self._sums)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace what was accumulated by what `state_dict` returned, from any device.

        Args:
            state: what `state_dict` returned.

        Raises:
            ValueError: another n, center or dtype, or something that `state_dict` did not return; nothing changes then.
        """
        with plain_arithmetic(self.device):
            self._commit(loaded(self._plan, state, self._fresh_gram))

    def _settle(self) -> None:
        """Take waiting samples into the sums."""
        waiting = self._sums.waiting
        if waiting:
            assert self._buffer is not None
            rows = self._buffer[:waiting].T
            self._commit(add_rows(self._plan, self._sums, rows, self._fresh_gram, reporter(False, "")))

    @contextmanager
    def _result(self) -> Iterator[None]:
        """What a result is made in: waiting samples are taken in, and, where kernels have not looked, neurons that are
        not finite are known; the warning of these waits for the device, so it comes when all else is under way."""
        with plain_arithmetic(self.device):
            self._settle()
            sums, new = self._sums, None
            if sums.gram is not None and self._plan.through_kernel():
                # A sum cannot lose a NaN or an infinity.
                nonfinite = sums.nonfinite | ~self._plan.triangle.diagonal(sums.gram).isfinite()
                new = nonfinite & ~sums.nonfinite
                self._sums = replace(sums, nonfinite=nonfinite)
            try:
                yield
            finally:
                if new is not None:
                    warn_of_nonfinite(new, stacklevel=4)

    def _commit(self, sums: Sums) -> None:
        # The order matters: at no time may the spare buffer be the one that holds the sums.
        before = self._sums.gram
        self._sums = sums
        self._spare = before

    def _fresh_gram(self) -> Tensor:
        """Memory for the next sums, the spare buffer where there is one."""
        spare, self._spare = self._spare, None
        if spare is not None:
            return spare
        return torch.empty(self._plan.triangle.elements, dtype=torch.float64, device=self.device)

    def _shift(self, center: bool | None) -> Tensor | None:
        """√n μ, whose products turn centred sums into others; None where T is what is asked for.  # shape: (n,)"""
        if not self.samples:
            raise ValueError("GramAccumulator: expected at least one sample before a result, got none. Call update.")
        if center is None or bool(center) == self.center:
            return None
        self._plan.need_center("center=True")
        assert self._sums.mean is not None
        return self._sums.mean * math.sqrt(self._sums.samples)
