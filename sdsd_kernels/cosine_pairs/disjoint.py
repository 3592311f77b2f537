"""Disjoint pairs of neurons, chosen greedily or by lot, without the matrix.

README.md says how bounds on rows stand for it. A pair is only chosen when no other row can hold a better one, so the
outcome is that of the greedy choice from the whole matrix, but for cosines that two ways to compute them put in another
order.
"""

from __future__ import annotations

import heapq

import torch
from torch import Tensor

from .._checks import check_choice, check_float_tensor, check_integer, check_max_bytes
from .._progress import Progress
from .._register import check_no_transform
from .._rows import rows_of
from ..pairwise.blocks import block_sides, fill_cosines, prepare, stable_topk
from .op import CosinePairs

WHICH = ("nearest", "farthest", "random")
CANDIDATES = 32
ROWS_TOGETHER = 128
COLUMNS_TOGETHER = 2048
GATHERED_ELEMENTS = 2**22
"""Activations of rows copied together, unless one neuron has more."""
SEARCH_BYTES = 32
"""What a row allocates for each of its cosines while its best are found."""


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
        max_bytes: bound on memory beyond the result; None: none, and some 40 MiB and 6 kB a neuron are taken.
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
        source = _Activations(rows_of(activations, neuron_dim), alive, bool(center), max_bytes)
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
    chosen = _greedy(source, 1 if which == "nearest" else -1, pairs, tell)
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

    def cosines(self, rows: Tensor, columns: Tensor | slice) -> Tensor:
        """Of some neurons with others, in memory that may be written."""
        return self.cosine[rows][:, columns]

    def scores(self, rows: Tensor, free: Tensor, sign: int, start: int = 0) -> Tensor:
        """sign · c[i, j] of some rows i, for j from `start` on; -inf unless j > i is free."""
        place = torch.where(free, torch.arange(len(free), device=free.device), -1)[start:]
        return self.cosines(rows, slice(start, None)).mul_(sign).masked_fill_(place <= rows[:, None], -torch.inf)


class _Activations(_Matrix):
    """The same, computed when they are asked for."""

    def __init__(self, rows: Tensor, alive: Tensor | None, center: bool, max_bytes: int | None) -> None:
        count, samples = rows.shape[0], rows.shape[1] * rows.shape[2]
        self.neurons = prepare(rows, center=center)
        self.dtype = self.neurons.dtype
        self.alive = _check_alive(alive, self.neurons.directed)
        beside = self.neurons.some(slice(COLUMNS_TOGETHER))
        preferred = max(1, min(ROWS_TOGETHER, GATHERED_ELEMENTS // samples)), len(beside.rows)
        a_row = count * (self.dtype.itemsize + SEARCH_BYTES) + 2 * samples * rows.dtype.itemsize
        size, kept = -(-a_row // preferred[1]), count * (CANDIDATES * 16 + 300)
        self.rows_together, _ = block_sides(
            self.neurons, beside, preferred, pair_bytes=size, fixed_bytes=kept, max_bytes=max_bytes, whole_rows=True
        )

    def cosines(self, rows: Tensor, columns: Tensor | slice) -> Tensor:
        left, right = self.neurons.some(rows), self.neurons.some(columns)
        out = left.inverse_norm.new_empty((len(rows), len(right.rows)))
        for column in range(0, out.shape[1], COLUMNS_TOGETHER):
            fill_cosines(out[:, column : column + COLUMNS_TOGETHER], left, 0, right, column)
        return out


def _greedy(source: _Matrix, sign: int, pairs: int, tell: Progress) -> list[tuple[float, int, int]]:
    """(cosine, i, j) of the best pair, of the best among the neurons left, …: the highest sign · cosine.

    Two heaps hold the rows of the triangle, best first: (−score, i, j) with the best free pair of row i as far as is
    known, or (−bound, i) where it is not. Of equal scores the lower row comes first, and in a row the lower partner.
    """
    best: list[tuple[float, int, int]] = []
    bounds: list[tuple[float, int]] = []
    chunks = source.alive.nonzero().flatten().split(2 * source.rows_together)  # their best are not sorted
    for done, rows in enumerate(chunks, 1):
        highest = source.scores(rows, source.alive, sign, int(rows[0])).amax(1)
        if bool(highest.isnan().any()):
            raise ValueError(
                "cosine: expected no NaN between neurons with a positive diagonal, got some. "
                "Leave such neurons out with alive=, or compute the matrix with neuron_cosine_matrix."
            )
        bounds += zip((-highest).tolist(), rows.tolist(), strict=True)
        tell(50 * done // len(chunks), 100)
    heapq.heapify(bounds)
    free: list[bool] = source.alive.tolist()
    candidates = torch.empty((len(free), min(CANDIDATES, len(free)), 2), dtype=torch.float64)

    def put_back(row: int) -> None:
        """With its best candidate that is free, or with a bound where all of them have been taken."""
        for score, partner in candidates[row].tolist():
            if score == -torch.inf:
                return
            if free[int(partner)]:
                heapq.heappush(best, (-score, row, int(partner)))
                return
        heapq.heappush(bounds, (-score, row))

    chosen: list[tuple[float, int, int]] = []
    while len(chosen) < pairs:
        if bounds and (not best or bounds[0] < best[0]):
            count = min(len(bounds), source.rows_together)
            together = [row for _, row in (heapq.heappop(bounds) for _ in range(count)) if free[row]]
            if together:
                rows, left = (torch.tensor(each, device=source.alive.device) for each in (together, free))
                some = stable_topk(source.scores(rows, left, sign), candidates.shape[1])
                candidates[together] = torch.stack([each.double() for each in some], 2).cpu()
            for row in together:
                put_back(row)
            continue
        score, first, second = heapq.heappop(best)
        if free[first] and free[second]:
            free[first] = free[second] = False
            chosen.append((-score * sign, first, second))
            tell(50 + 50 * len(chosen) // pairs, 100)
        elif free[first]:
            put_back(first)
    return chosen
