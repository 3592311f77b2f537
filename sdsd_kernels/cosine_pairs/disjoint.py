"""Disjoint pairs of neurons, chosen greedily or by lot, without the matrix.

Greedy: the pair with the highest cosine (lowest, for the farthest), then the best among the neurons left, and so on;
equal cosines go to the lower first, then the lower second neuron. Every pair i < j belongs to one row, i, so it takes

1. one pass over the triangle for the best cosine of every row;
2. a heap of rows, each with its best free pair or with a bound on it. A pair on top is chosen. A bound on top is
   replaced by the best CANDIDATES of that row, which is computed again, together with the rows that come next. A row
   whose candidates have all been taken goes back with its worst one as the bound.

A pair is only chosen when no other row can hold a better one, so the outcome is that of the greedy choice from the
whole matrix, but for cosines that two ways to compute them put in another order.
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
from ..pairwise.blocks import Neurons, block_sides, fill_cosines, prepare, stable_topk, triangle_blocks
from ..pairwise.reading import part_of
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
    first_half, second_half = _shares(progress)
    source: _Matrix | _Activations
    if cosine is not None:
        check_float_tensor(cosine, "cosine")
        if cosine.ndim != 2 or cosine.shape[0] != cosine.shape[1]:
            raise ValueError(f"cosine: expected a square (N, N) matrix, got shape {tuple(cosine.shape)}.")
        source = _Matrix(cosine.detach(), alive)
    else:
        source = _Activations(rows_of(activations, neuron_dim), alive, bool(center), max_bytes, first_half)
    live = int(source.alive.sum())
    if pairs > live // 2:
        raise ValueError(
            f"pairs: expected at most {live // 2}, for {live} of {len(source.alive)} neurons may be paired and no "
            f"neuron is in two pairs; got {pairs}. Ask for fewer, or give more neurons."
        )
    if which == "random":
        first, second = _drawn(source.alive, pairs, seed)
        some = zip(first.split(source.rows_together), second.split(source.rows_together), strict=True)
        return CosinePairs(first, second, torch.cat([source.cosines(*each).diagonal() for each in some]))
    return _greedy(source, pairs, 1 if which == "nearest" else -1, second_half)


def _shares(progress: Progress | None) -> tuple[Progress | None, Progress | None]:
    """The pass over the triangle is told as the first 50 of 100, the choice as the rest."""
    if progress is None:
        return None, None
    tell = progress
    return lambda done, total: tell(50 * done // total, 100), lambda done, total: tell(50 + 50 * done // total, 100)


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
        self.cosine = cosine
        self.dtype = cosine.dtype
        self.rows_together = ROWS_TOGETHER
        self.alive = _check_alive(alive, cosine.diagonal() > 0)
        """Neurons that may be paired.  # shape: (N,)"""

    def best_in_rows(self, sign: int) -> Tensor:
        """The highest sign · c[i, j], j > i, both alive, of every row i; -inf where there is none.  # shape: (N,)"""
        best = []
        for rows in torch.arange(len(self.cosine), device=self.cosine.device).split(self.rows_together):
            cosines = self.cosine[rows]
            pairs = _are_pairs(rows, self.alive)
            if bool((cosines.isnan() & pairs).any()):
                raise ValueError(
                    "cosine: expected no NaN between neurons with a positive diagonal, got some. "
                    "Leave such neurons out with alive=, or compute the matrix with neuron_cosine_matrix."
                )
            best.append(cosines.mul_(sign).masked_fill_(~pairs, -torch.inf).amax(1))
        return torch.cat(best)

    def cosines(self, rows: Tensor, columns: Tensor | None = None) -> Tensor:
        """Of some neurons with some, or all, in memory that may be written."""
        return self.cosine[rows] if columns is None else self.cosine[rows][:, columns]


class _Activations:
    """The same, computed when they are asked for."""

    def __init__(
        self, rows: Tensor, alive: Tensor | None, center: bool, max_bytes: int | None, progress: Progress | None
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
        left = _select(self.neurons, rows)
        right = self.neurons if columns is None else _select(self.neurons, columns)
        out = left.inverse_norm.new_empty((len(rows), right.rows.shape[0]))
        for column in range(0, out.shape[1], self.sides[1]):
            fill_cosines(out[:, column : column + self.sides[1]], left, 0, right, column)
        return out


def _select(neurons: Neurons, which: Tensor) -> Neurons:
    """A copy of some neurons."""
    return replace(
        neurons,
        rows=neurons.rows[which],
        mean=part_of(neurons.mean, which),
        scale=part_of(neurons.scale, which),
        inverse_norm=neurons.inverse_norm[which],
    )


def _are_pairs(rows: Tensor, free: Tensor) -> Tensor:
    """Where row i meets a free j > i.  # shape: (rows, N)"""
    return (torch.arange(len(free), device=free.device) > rows[:, None]) & free & free[rows][:, None]


def _drawn(alive: Tensor, pairs: int, seed: int) -> tuple[Tensor, Tensor]:
    live = alive.cpu().nonzero().flatten()
    order = torch.randperm(len(live), generator=torch.Generator().manual_seed(seed))[: 2 * pairs]
    drawn = live[order].view(-1, 2).sort(dim=1).values.to(alive.device)
    return drawn[:, 0].contiguous(), drawn[:, 1].contiguous()


class _Rows:
    """The rows of the triangle, best first.

    The heap holds (−score, i, j) for the best free pair of row i as far as is known, or (−bound, −1, i) where it is
    not. Of equal scores the lower pair comes first, after a bound that might hide a lower one.
    """

    def __init__(self, source: _Matrix | _Activations, sign: int) -> None:
        self.source = source
        self.sign = sign
        self.free = source.alive.cpu().clone()
        best = source.best_in_rows(sign).tolist()
        self.heap = [(-score, -1, row) for row, score in enumerate(best) if score > -torch.inf]
        heapq.heapify(self.heap)
        self.scores = torch.full((len(best), CANDIDATES), -torch.inf, dtype=torch.float64)
        self.partners = torch.zeros((len(best), CANDIDATES), dtype=torch.int64)

    def pop(self) -> tuple[float, int, int]:
        """The best free pair, (score, i, j), whose neurons are free no more."""
        while True:
            score, first, second = heapq.heappop(self.heap)
            if first < 0:
                if self.free[second]:
                    self._look_into(second)
            elif self.free[first]:
                if self.free[second]:
                    self.free[first] = self.free[second] = False
                    return -score, first, second
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
        scores = self.source.cosines(rows).mul_(self.sign)
        scores.masked_fill_(~_are_pairs(rows, self.free.to(device)), -torch.inf)
        best, partners = stable_topk(scores, min(CANDIDATES, scores.shape[1]))
        self.scores[rows.cpu(), : best.shape[1]] = best.double().cpu()
        self.partners[rows.cpu(), : best.shape[1]] = partners.cpu()
        for row in together:
            self._push(row)

    def _push(self, row: int) -> None:
        """Put a row back with its best free candidate, or with a bound where all have been taken."""
        scores = self.scores[row]
        open_candidates = (self.free[self.partners[row]] & (scores > -torch.inf)).nonzero()
        if len(open_candidates):
            place = int(open_candidates[0])
            heapq.heappush(self.heap, (-float(scores[place]), row, int(self.partners[row, place])))
        elif float(scores[-1]) > -torch.inf:
            heapq.heappush(self.heap, (-float(scores[-1]), -1, row))


def _greedy(source: _Matrix | _Activations, pairs: int, sign: int, progress: Progress | None) -> CosinePairs:
    rows = _Rows(source, sign)
    chosen = []
    for done in range(1, pairs + 1):
        chosen.append(rows.pop())
        if progress is not None:
            progress(done, pairs)
    device = source.alive.device
    score, first, second = (list(column) for column in zip(*chosen, strict=True))
    return CosinePairs(
        torch.tensor(first, device=device),
        torch.tensor(second, device=device),
        torch.tensor(score, dtype=torch.float64, device=device).mul_(sign).to(source.dtype),
    )
