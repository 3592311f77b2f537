"""Disjoint pairs of neurons, chosen greedily or by lot, without the matrix.

README.md says how bounds on rows stand for it. A pair is only chosen when no other row can hold a better one, so the
outcome is that of the greedy choice from the whole matrix, but for cosines that two ways to compute them put in another
order.
"""

from __future__ import annotations

import heapq
from dataclasses import replace

import torch
from torch import Tensor

from .._checks import check_choice, check_float_tensor, check_integer, check_max_bytes
from .._progress import Progress
from .._register import check_no_transform
from .._rows import rows_of
from ..pairwise.blocks import block_sides, fill_cosines, prepare, stable_topk, triangle_blocks
from .cpu import BLOCK
from .op import CosinePairs

WHICH = ("nearest", "farthest", "random")
CANDIDATES = 32
ROWS_TOGETHER = 128
GATHERED_ELEMENTS = 2**22
"""Activations copied together to compute single rows, unless one neuron has more."""
SEARCH_BYTES = 32
"""What a row that is computed again allocates for each of its cosines while its best are found."""


def disjoint_pairs(
    activations: Tensor | None = None,
    pairs: int = 50,
    which: str = "nearest",
    *,
    cosine: Tensor | None = None,
    alive: Tensor | None = None,
    neuron_dim: int = -1,
    center: bool = False,
    seed: int = 0,
    max_bytes: int | None = None,
    progress: Progress | None = None,
) -> CosinePairs:
    """Pairs of neurons no two of which share a neuron: nearest first, farthest first, or by lot.

        while len(chosen) < pairs:                             # "nearest"; the matrix C itself is never stored
            i, j = argmax of C[i, j] over free i < j           # the first of equal ones, row by row
            chosen.append((i, j)), and i and j are free no more

    Cosines closer than rounding may be taken in either order; equal ones (of a given matrix, or because all products
    are exact) in the order said. Not differentiable. Computed by torch on every device.

    Args:
        activations, neuron_dim, center: as in `cosine_matrix`.
        pairs: how many.
        which: "nearest" | "farthest" | "random" (uniformly drawn, in the order drawn).
        cosine: a symmetric cosine matrix (N, N) to choose from, instead of activations. Its upper half is read.
        alive: booleans, (N,): neurons that may be paired. Those that are zero on every sample, or have a NaN or an
            infinity, never are; in a matrix they are known by a diagonal that is not positive.
        seed: of the random choice.
        max_bytes: bound on memory beyond the result; None: none, and some 50 MiB and 300 bytes a neuron are taken.
        progress: called with (done, total) as the work goes on.

    Returns:
        `CosinePairs` in the order of choice.

    Raises:
        TypeError: not a dense tensor of a supported floating-point dtype; pairs, seed or max_bytes that is no int.
        ValueError: both or neither of activations and cosine; a matrix that is not square, or has a NaN between
            neurons that may be paired; alive that is not (N,) booleans; fewer than two neurons a pair; an unknown
            `which`; max_bytes that is not enough; shapes as in `cosine_matrix`; a call within torch.vmap or torch.func.
    """
    pairs = check_integer(pairs, "pairs", least=1)
    check_choice(which, "which", WHICH)
    max_bytes = check_max_bytes(max_bytes)
    seed = check_integer(seed, "seed")
    if (activations is None) == (cosine is None):
        got = "neither" if activations is None else "both"
        raise ValueError(f"activations, cosine: expected exactly one of them, got {got}.")
    check_no_transform("activations" if cosine is None else "cosine")
    tell = progress or (lambda done, total: None)
    if cosine is not None:
        check_float_tensor(cosine, "cosine")
        if cosine.ndim != 2 or cosine.shape[0] != cosine.shape[1]:
            raise ValueError(f"cosine: expected a square (N, N) matrix, got shape {tuple(cosine.shape)}.")
        source = _Matrix(cosine.detach(), alive)
    else:
        rows = rows_of(activations, neuron_dim)
        source = _Activations(rows, alive, bool(center), max_bytes, lambda done, of: tell(50 * done // of, 100))
    live = int(source.alive.sum())
    if pairs > live // 2:
        raise ValueError(
            f"pairs: expected at most {live // 2}, for {live} of {len(source.alive)} neurons may be paired and no "
            f"neuron is in two pairs; got {pairs}. Ask for fewer, or give more neurons."
        )
    if which == "random":
        candidates = source.alive.cpu().nonzero().flatten()
        order = torch.randperm(live, generator=torch.Generator().manual_seed(seed))[: 2 * pairs]
        first, second = candidates[order].view(-1, 2).sort(dim=1).values.to(source.alive.device).T.contiguous()
        some = zip(first.split(source.rows_together), second.split(source.rows_together), strict=True)
        return CosinePairs(first, second, torch.cat([source.cosines(*each).diagonal() for each in some]))
    ordered, chosen = _Rows(source, 1 if which == "nearest" else -1), []
    for done in range(1, pairs + 1):
        chosen.append(ordered.pop())
        tell(50 + 50 * done // pairs, 100)
    columns = torch.tensor(chosen, dtype=torch.float64, device=source.alive.device).T
    return CosinePairs(columns[1].long(), columns[2].long(), columns[0].to(source.dtype))


def _check_alive(alive: Tensor | None, directed: Tensor) -> Tensor:
    """Neurons that may be paired: those of `alive` that have a direction."""
    if alive is None:
        return directed
    if not isinstance(alive, Tensor) or alive.dtype != torch.bool or alive.shape != directed.shape:
        got = f"{alive.dtype} of shape {tuple(alive.shape)}" if isinstance(alive, Tensor) else type(alive).__name__
        raise ValueError(f"alive: expected {len(directed)} booleans, one a neuron, got {got}.")
    return directed & alive.to(directed.device)


class _Matrix:
    """Cosines that have been computed before."""

    def __init__(self, cosine: Tensor, alive: Tensor | None) -> None:
        self.cosine, self.dtype, self.rows_together = cosine, cosine.dtype, ROWS_TOGETHER
        self.alive = _check_alive(alive, cosine.diagonal() > 0)
        """Neurons that may be paired.  # shape: (N,)"""

    def cosines(self, rows: Tensor, columns: Tensor | None = None) -> Tensor:
        """Of some neurons with some, or all, in memory that may be written."""
        return self.cosine[rows] if columns is None else self.cosine[rows][:, columns]

    def scores(self, rows: Tensor, free: Tensor, sign: int) -> Tensor:
        """sign · c[i, j] of some rows i, -inf but where i and j > i are both free.  # shape: (rows, N)"""
        pairs = (torch.arange(len(free), device=free.device) > rows[:, None]) & free & free[rows][:, None]
        return self.cosines(rows).mul_(sign).masked_fill_(~pairs, -torch.inf)

    def best_in_rows(self, sign: int) -> Tensor:
        """The highest sign · c[i, j], j > i, both alive, of every row i; -inf where there is none.  # shape: (N,)"""
        rows = torch.arange(len(self.alive), device=self.alive.device).split(self.rows_together)
        best = torch.cat([self.scores(some, self.alive, sign).amax(1) for some in rows])
        if bool(best.isnan().any()):
            raise ValueError(
                "cosine: expected no NaN between neurons with a positive diagonal, got some. "
                "Leave such neurons out with alive=, or compute the matrix with neuron_cosine_matrix."
            )
        return best


class _Activations(_Matrix):
    """The same, computed when they are asked for."""

    def __init__(
        self, rows: Tensor, alive: Tensor | None, center: bool, max_bytes: int | None, progress: Progress
    ) -> None:
        count, samples = rows.shape[0], rows.shape[1] * rows.shape[2]
        neurons = prepare(rows, center=center)
        self.dtype, self.progress = neurons.dtype, progress
        self.alive = _check_alive(alive, neurons.directed)
        # Whoever may not be paired counts as without direction.
        self.neurons = replace(neurons, inverse_norm=torch.where(self.alive, neurons.inverse_norm, 0))
        kept = count * (CANDIDATES * 16 + 300)
        a_row = count * (self.dtype.itemsize + SEARCH_BYTES) + samples * rows.dtype.itemsize
        self.rows_together = max(1, min(ROWS_TOGETHER, GATHERED_ELEMENTS // samples))
        if max_bytes is not None:
            self.rows_together = max(1, min(self.rows_together, (max_bytes - kept) // (2 * a_row)))
        fixed = kept + self.rows_together * a_row
        size = self.dtype.itemsize
        self.sides = block_sides(neurons, neurons, BLOCK, pair_bytes=size, fixed_bytes=fixed, max_bytes=max_bytes)

    def best_in_rows(self, sign: int) -> Tensor:
        best = self.neurons.inverse_norm.new_full((len(self.alive),), -torch.inf)
        for block, row, _ in triangle_blocks(self.neurons, self.sides, fill=-sign * torch.inf, progress=self.progress):
            some = best[row : row + block.shape[0]]
            torch.maximum(some, block.mul_(sign).amax(1), out=some)
        return best

    def cosines(self, rows: Tensor, columns: Tensor | None = None) -> Tensor:
        left, right = (self.neurons if each is None else self.neurons.some(each) for each in (rows, columns))
        out = left.inverse_norm.new_empty((len(rows), right.rows.shape[0]))
        for column in range(0, out.shape[1], self.sides[1]):
            fill_cosines(out[:, column : column + self.sides[1]], left, 0, right, column)
        return out


class _Rows:
    """The rows of the triangle, best first.

    The heap holds (−score, i, j) for the best free pair of row i as far as is known, or (−bound, −1, i) where it is
    not. Of equal scores the lower pair comes first, after a bound that might hide a lower one.
    """

    def __init__(self, source: _Matrix, sign: int) -> None:
        self.source, self.sign = source, sign
        self.free: list[bool] = source.alive.tolist()
        best = source.best_in_rows(sign).tolist()
        self.heap = [(-score, -1, row) for row, score in enumerate(best) if score > -torch.inf]
        heapq.heapify(self.heap)
        self.scores = torch.full((len(best), CANDIDATES), -torch.inf, dtype=torch.float64)
        self.partners = torch.zeros((len(best), CANDIDATES), dtype=torch.int64)

    def pop(self) -> tuple[float, int, int]:
        """The best free pair, (cosine, i, j), whose neurons are free no more."""
        while True:
            score, first, second = heapq.heappop(self.heap)
            if first < 0:
                if self.free[second]:
                    self._look_into(second)
            elif self.free[first]:
                if self.free[second]:
                    self.free[first] = self.free[second] = False
                    return -score * self.sign, first, second
                self._push(first)

    def _look_into(self, row: int) -> None:
        """Find the candidates of `row`, and of other rows with a bound near the top of the heap."""
        together = [row]
        aside: list[tuple[float, int, int]] = []
        while self.heap and len(together) < self.source.rows_together and len(aside) < ROWS_TOGETHER:
            entry = heapq.heappop(self.heap)
            if entry[1] >= 0:
                aside.append(entry)
            elif self.free[entry[2]]:
                together.append(entry[2])
        for entry in aside:
            heapq.heappush(self.heap, entry)
        device = self.source.alive.device
        rows = torch.tensor(together, device=device)
        scores = self.source.scores(rows, torch.tensor(self.free, device=device), self.sign)
        best, partners = stable_topk(scores, min(CANDIDATES, scores.shape[1]))
        self.scores[rows.cpu(), : best.shape[1]] = best.double().cpu()
        self.partners[rows.cpu(), : best.shape[1]] = partners.cpu()
        for row in together:
            self._push(row)

    def _push(self, row: int) -> None:
        """Put a row back with its best free candidate, or with a bound where all have been taken."""
        for score, partner in zip(self.scores[row].tolist(), self.partners[row].tolist(), strict=True):
            if score > -torch.inf and self.free[partner]:
                heapq.heappush(self.heap, (-score, row, partner))
                return
        if score > -torch.inf:
            heapq.heappush(self.heap, (-score, -1, row))
