"""What merging two neurons does to their readers, foretold from activations and outgoing weights.

Neurons i and j with activations a and outgoing weights v (the columns of all layers that read them) add
v_i a_i + v_j a_j to what the readers get. With both activations replaced by their mean, sample for sample,

    (v_i + v_j) (a_i + a_j) / 2 − v_i a_i − v_j a_j  =  −(a_i − a_j) (v_i − v_j) / 2

so that the root mean square change over S samples is ‖a_i − a_j‖ ‖v_i − v_j‖ / (2 √S). With j dropped and i standing
in for it by least squares, v_i ← v_i + α v_j, α = ⟨a_i, a_j⟩ / ‖a_i‖², it is ‖a_j − α a_i‖ ‖v_j‖ / √S. Squares of
distances come from squared lengths and products, in float64: near pairs are what is asked for, and there these cancel.
"""

from __future__ import annotations

import heapq
import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sdsd_kernels import checks

from ..._progress import Progress, Report, reporter
from ..arithmetic import plain_arithmetic
from ..arrays import as_tensor, neurons_first
from .squares import Products, Values, power

if TYPE_CHECKING:
    import numpy as np

BLOCK_ROWS = 256
"""Neurons whose costs with all others are computed together."""
BLOCK_ELEMENTS = 2**22
"""Activations of all neurons that are converted to float64 together (32 MiB), unless one sample has more."""
CANDIDATES = 32
"""Cheapest partners kept for every neuron; a neuron whose partners are all taken is computed anew."""
FEW = 4
"""A neuron with no more partners left is computed anew together with one that has none."""
HEAPED = 400
"""Bytes of a neuron in the heap: a tuple of a float and two ints, in two lists, and its lengths."""


def merge_cost(
    activations: Tensor | np.ndarray | None,
    outgoing: Tensor | np.ndarray,
    pairs: Tensor | np.ndarray | Iterable[Sequence[int]] | None = None,
    *,
    how: str = "mean",
    gram: Tensor | np.ndarray | None = None,
    samples: int | None = None,
    neuron_dim: int | None = None,
    max_bytes: int | None = None,
) -> Tensor:
    """How much merging two neurons changes what their readers get, foretold without a forward pass.

        "mean", "act"    cost[i, j] = ‖a_i − a_j‖ ‖v_i − v_j‖ / (2 √S)        a: activations over S samples
        "absorb"         cost[i, j] = ‖a_j‖ √(1 − cos²) ‖v_j‖ / √S            v: outgoing weights; i stays, j is dropped

    The root mean square, over samples, of the change of the readers' outputs: exactly for "act" and "absorb", and
    readers that have one column a neuron. With several, the taps of a kernel or the positions of a flattened channel,
    as if what positions answer were independent. About that for "mean", where weights are averaged and not answers.

    With `outgoing_weights(…, loss=…)`, which weighs a change of the readers by the curvature of the loss, cost² / 2 is
    the rise of the loss to second order.

    Args:
        activations: what the readers get of the neurons, as `neuron_cosine_matrix` takes them; or None, with `gram`.
        outgoing: the weights that read each neuron, of all readers: `outgoing_weights` collects them.
            # shape: (neurons, weights)
        pairs: index pairs, or what `disjoint_pairs` gave; None: all.  # shape: (k, 2)
        how: "mean" | "act" | "absorb", as in `merge`.
        gram: instead of activations, sums Σ_s a_si a_sj, not centred: `GramAccumulator.gram()`.  # shape: (n, n)
        samples: with `gram`, how many were summed.
        neuron_dim: the dimension of `activations` that counts neurons.
        max_bytes: bound on memory beyond activations and result; None takes what is fastest.

    Returns:
        (k,), or (n, n) with a diagonal of 0; float64, on the device of `activations`. NaN with a neuron that is not
        finite.

    Raises:
        TypeError: no tensors or arrays of floating-point numbers; pairs that are no integers.
        ValueError: both or neither of activations and gram; other numbers of neurons; gram without samples; an index
            out of range; max_bytes that is not enough for one neuron.

    Example:
        >>> a = torch.tensor([[1.0, 1.0, 0.0], [1.0, 3.0, 2.0]])  # two samples, three neurons
        >>> merge_cost(a, torch.tensor([[1.0], [2.0], [2.0]]))
        tensor([[0.0000, 0.7071, 0.5000],
                [0.7071, 0.0000, 0.0000],
                [0.5000, 0.0000, 0.0000]], dtype=torch.float64)
    """
    costs = Costs(
        activations, outgoing, how=how, gram=gram, samples=samples, neuron_dim=neuron_dim, max_bytes=max_bytes
    )
    with plain_arithmetic(costs.device):
        if pairs is not None:
            return costs.roots_of(costs.of_pairs(*_checked_pairs(pairs, costs.count).to(costs.device).unbind(1)))
        result = torch.empty(costs.count, costs.count, dtype=torch.float64, device=costs.device)
        for rows in costs.blocks():
            result[rows] = costs.roots_of(costs.of_rows(rows))
        result.fill_diagonal_(0).masked_fill_((~costs.finite)[:, None] | ~costs.finite, math.nan)
    return result


class Chosen(NamedTuple):
    """Pairs in the order of choice; shapes: (pairs,) each."""

    first: Tensor
    second: Tensor
    cosine: Tensor


class Costs:
    """Squared costs of pairs of neurons, computed when they are asked for; errors as `merge_cost` lists them."""

    def __init__(
        self,
        activations: Tensor | np.ndarray | None,
        outgoing: Tensor | np.ndarray,
        *,
        how: str = "mean",
        gram: Tensor | np.ndarray | None = None,
        samples: int | None = None,
        neuron_dim: int | None = None,
        max_bytes: int | None = None,
    ) -> None:
        self.absorbed = checks.check_choice(how, "how", ("mean", "act", "absorb")) == "absorb"
        if (activations is None) == (gram is None):
            got = "neither" if gram is None else "both"
            raise ValueError(f"activations, gram: expected exactly one of them, got {got}.")
        checks.check_max_bytes(max_bytes)
        if activations is not None:
            rows = neurons_first(activations, neuron_dim)
            if not math.prod(rows.shape[1:]):
                raise ValueError(f"activations: expected at least one sample, got shape {tuple(activations.shape)}.")
            self.samples, self.dtype = math.prod(rows.shape[1:]), rows.dtype
        else:
            rows = checks.check_float_tensor(as_tensor(gram, "gram"), "gram").detach()  # type: ignore[arg-type]
            if rows.ndim != 2 or rows.shape[0] != rows.shape[1]:
                raise ValueError(f"gram: expected a square (n, n) matrix, got shape {tuple(rows.shape)}.")
            self.samples = checks.check_integer(samples, "samples", least=1, why="sample")
            self.dtype = torch.float64
        self.dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.count, self.device = len(rows), rows.device
        weights = checks.check_float_tensor(as_tensor(outgoing, "outgoing"), "outgoing").detach()
        if weights.ndim != 2 or len(weights) != self.count:
            raise ValueError(
                f"outgoing: expected ({self.count}, weights), the weights that read each neuron, got shape "
                f"{tuple(weights.shape)}. outgoing_weights(model, layer) collects them."
            )
        weights = weights.to(self.device)
        self.height, self.step = min(BLOCK_ROWS, self.count), max(1, BLOCK_ELEMENTS // self.count)
        if max_bytes is not None:
            # Costs, products, what is sorted and where it stood, of a row; a sample and a weight in two copies;
            # candidates, and a neuron in the heap.
            row, sample, kept = 6 * 8 * self.count, 4 * 8 * self.count, self.count * (16 * CANDIDATES + HEAPED)
            left = max_bytes - kept
            if left < 2 * row:
                raise ValueError(
                    f"max_bytes: expected at least {kept + 2 * row:,} for blocks of one of {self.count} neurons, got "
                    f"{max_bytes:,}. Allow more, or leave max_bytes out."
                )
            self.height, self.step = min(self.height, left // 2 // row), min(self.step, left // 2 // sample)
        with plain_arithmetic(self.device):
            self.outgoing = Values(weights, self.step)
            self.values = Values(rows, self.step) if gram is None else Products(rows)
        self.lengths = self.values.lengths
        self.finite = self.lengths.isfinite() & self.outgoing.lengths.isfinite()

    def roots_of(self, squared: Tensor) -> Tensor:
        """Costs from squared ones, in the memory of these."""
        costs = squared.sqrt_()
        for each in (self.outgoing, self.values):
            if each.exponent:
                costs.mul_(power(each.exponent))
        return costs

    def blocks(self) -> Iterator[slice]:
        for top in range(0, self.count, self.height):
            yield slice(top, min(top + self.height, self.count))

    def of_rows(self, rows: slice | Tensor) -> Tensor:
        """Squared costs of some neurons, which stay where one is dropped, with all.  # shape: (rows, n), float64"""
        if self.absorbed:
            return self._dropping(self.values.products(rows), self.lengths[rows, None], slice(None))
        apart = _distances(self.values.products(rows), self.lengths[rows], self.lengths)
        products = self.outgoing.products(rows)
        apart.mul_(_distances(products, self.outgoing.lengths[rows], self.outgoing.lengths))
        return apart.div_(4 * self.samples)

    def of_either(self, rows: Tensor) -> Tensor:
        """Squared costs of some neurons with all, where the one that costs less is dropped.  # shape: (rows, n)"""
        if not self.absorbed:
            return self.of_rows(rows)
        products = self.values.products(rows)
        first = self._dropping(products.T, self.lengths[:, None], rows).T
        return torch.minimum(first, self._dropping(products, self.lengths[rows, None], slice(None)), out=first)

    def of_pairs(self, first: Tensor, second: Tensor) -> Tensor:
        """Squared costs of pairs, from differences where there are activations.  # shape: (pairs,), float64"""
        if not self.absorbed:
            apart, weights = self.values.apart(first, second), self.outgoing.apart(first, second)
            return apart * weights / (4 * self.samples)
        products = self.values.products_of_pairs(first, second)
        share = torch.where(self.lengths[first] == 0, 0.0, products / self.lengths[first])
        return self.values.apart(first, second, share) * self.outgoing.lengths[second] / self.samples

    def dropped_second(self, first: Tensor, second: Tensor) -> Tensor:
        """Whether dropping the second of each pair costs no more than dropping the first.  # shape: (pairs,)"""
        products = self.values.products_of_pairs(first, second)
        one, other = (
            self._dropping(products, self.lengths[kept], dropped)
            for kept, dropped in ((first, second), (second, first))
        )
        return one <= other

    def _dropping(self, products: Tensor, kept: Tensor, dropped: Tensor | slice) -> Tensor:
        """Squared costs of dropping neurons for which others, of squared lengths `kept`, stand in."""
        rest = self.lengths[dropped] - torch.where(kept == 0, 0.0, products.square() / kept)
        return rest.clamp_min_(0).mul_(self.outgoing.lengths[dropped]).div_(self.samples)

    def cosines(self, first: Tensor, second: Tensor) -> Tensor:
        """Cosines of the activations of pairs.  # shape: (pairs,), float64"""
        norms = self.lengths[first].sqrt() * self.lengths[second].sqrt()
        return (self.values.products_of_pairs(first, second) / norms).clamp(-1, 1)


def chosen_by_cost(
    costs: Costs, pairs: int, which: str, *, alive: Tensor | None, seed: int, progress: Progress
) -> Chosen:
    """Disjoint pairs, greedily the one with the least cost ("nearest"), or the greatest, among the neurons left.

    `CANDIDATES` partners are kept for every neuron; a heap holds every neuron with its best partner that is free. The
    outcome is that of the greedy choice from the whole matrix. Arguments and errors as in `disjoint_pairs`.
    """
    report = reporter(progress, "disjoint pairs by cost")
    pairs = checks.check_integer(pairs, "pairs", least=1)
    checks.check_choice(which, "which", ("nearest", "farthest", "random"))
    seed = checks.check_integer(seed, "seed")
    free = costs.finite & (costs.lengths > 0)
    if alive is not None:
        if not isinstance(alive, Tensor) or alive.dtype != torch.bool or alive.shape != free.shape:
            got = f"{alive.dtype} of shape {tuple(alive.shape)}" if isinstance(alive, Tensor) else type(alive).__name__
            raise ValueError(f"alive: expected {costs.count} booleans, one a neuron, got {got}.")
        free &= alive.to(free.device)
    live = free.nonzero().flatten()
    if pairs > len(live) // 2:
        raise ValueError(
            f"pairs: expected at most {len(live) // 2}, for {len(live)} of {costs.count} neurons may be paired and no "
            f"neuron is in two pairs; got {pairs}. Ask for fewer, or give more neurons."
        )
    with plain_arithmetic(costs.device):
        if which == "random":
            drawn = torch.randperm(
                len(live), generator=torch.Generator().manual_seed(checks.check_integer(seed, "seed"))
            )[: 2 * pairs]
            first, second = live[drawn.to(live.device)].view(-1, 2).sort(dim=1).values.T.contiguous()
        else:
            first, second = _greedy(costs, pairs, 1 if which == "nearest" else -1, free, report)
        if costs.absorbed:
            as_it_is = costs.dropped_second(first, second)
            first, second = torch.where(as_it_is, first, second), torch.where(as_it_is, second, first)
        return Chosen(first, second, costs.cosines(first, second).to(costs.dtype))


def _greedy(costs: Costs, pairs: int, sign: int, free: Tensor, report: Report) -> tuple[Tensor, Tensor]:
    rows = _Rows(costs, sign, free)
    blocks = free.nonzero().flatten().split(costs.height)
    for done, some in enumerate(blocks, 1):
        rows.look_into(some)
        report(done, len(blocks) + pairs)
    chosen = []
    for done in range(len(blocks) + 1, len(blocks) + pairs + 1):
        chosen.append(rows.pop())
        report(done, len(blocks) + pairs)
    first, second = torch.tensor(chosen, device=costs.device).unbind(1)
    return first.contiguous(), second.contiguous()


class _Rows:
    """Neurons with their best partners.

    A pair belongs to one neuron, that of which readers get less (more, for the farthest). All others would have the
    same few as their best, and none left once these are taken.

    The heap holds (score, i, j, neuron) for the best free pair (i, j) of a neuron as far as is known, or (bound, −1,
    −1, neuron) where it is not.
    """

    def __init__(self, costs: Costs, sign: int, free: Tensor) -> None:
        self.costs, self.sign = costs, sign
        self.free = free.cpu().numpy().copy()
        order = (costs.lengths * costs.outgoing.lengths).mul_(sign).argsort(stable=True)
        self.place = torch.empty_like(order)
        self.place[order] = torch.arange(costs.count, device=costs.device)
        shape = costs.count, min(CANDIDATES, costs.count)
        self.scores = torch.full(shape, math.inf, dtype=torch.float64).numpy()
        self.partners = torch.zeros(shape, dtype=torch.long).numpy()
        self.heap: list[tuple[float, int, int, int]] = []
        self.latest: dict[int, tuple[float, int, int, int]] = {}  # of each neuron; older ones on the heap do not count

    def pop(self) -> tuple[int, int]:
        """The best free pair, whose neurons are free no more."""
        while True:
            entry = heapq.heappop(self.heap)
            _, first, second, neuron = entry
            if not self.free[neuron] or self.latest[neuron] is not entry:
                continue
            if first < 0:
                self.look_into(self._together(neuron))
            elif self.free[first] and self.free[second]:
                self.free[first] = self.free[second] = False
                return first, second
            else:
                self._push(neuron)

    def look_into(self, neurons: Tensor) -> None:
        """Find the candidates of some neurons, and put them on the heap."""
        rising = self.costs.of_either(neurons).mul_(self.sign)
        free = torch.from_numpy(self.free).to(self.costs.device)
        rising.masked_fill_(~(free & (self.place > self.place[neurons, None])), math.inf)
        best, which = _least(rising, self.scores.shape[1])
        where = neurons.tolist()
        self.scores[where], self.partners[where] = best.cpu().numpy(), which.cpu().numpy()
        for neuron in where:
            self._push(neuron)

    def _together(self, neuron: int) -> Tensor:
        """A neuron whose candidates have all been taken, and those that have the fewest left."""
        left = (self.free[self.partners] & (self.scores < math.inf)).sum(1)
        left[~self.free | (self.scores[:, -1] == math.inf)] = CANDIDATES
        left[neuron] = -1
        together = left.argsort(kind="stable")[: self.costs.height]
        return torch.from_numpy(together[left[together] <= FEW]).to(self.costs.device)

    def _push(self, neuron: int) -> None:
        scores, partners = self.scores[neuron], self.partners[neuron]
        left = self.free[partners]
        best = int(left.argmax())
        if left[best] and scores[best] < math.inf:
            i, j = sorted((neuron, int(partners[best])))
            entry = float(scores[best]), i, j, neuron
        elif scores[-1] < math.inf:  # there are others, that were no candidates
            entry = float(scores[-1]), -1, -1, neuron
        else:
            return
        self.latest[neuron] = entry
        heapq.heappush(self.heap, entry)


def _least(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The least of every row, rising, and where they are; of equal ones the first.  # shape: (rows, count) each"""
    least, where = values.topk(count, dim=1, largest=False)
    last = least[:, -1:]
    tied = ((values == last).sum(1) > (least == last).sum(1)).nonzero().flatten()
    if len(tied):
        least[tied], where[tied] = (each[:, :count] for each in values[tied].sort(dim=1, stable=True))
    where, order = where.sort(dim=1)
    least, order = least.gather(1, order).sort(dim=1, stable=True)
    return least, where.gather(1, order)


def _distances(products: Tensor, of_rows: Tensor, of_all: Tensor) -> Tensor:
    """‖x_i‖² + ‖x_j‖² − 2 ⟨x_i, x_j⟩, no less than 0, in the memory of `products`."""
    return products.mul_(-2).add_(of_rows[:, None]).add_(of_all).clamp_min_(0)


def _checked_pairs(pairs: Any, count: int) -> Tensor:
    if not isinstance(pairs, Tensor):
        try:
            listed = [[operator.index(neuron) for neuron in pair[:2]] for pair in pairs]
            pairs = torch.tensor(listed, dtype=torch.long) if listed else torch.empty(0, 2, dtype=torch.long)
        except (TypeError, ValueError, IndexError) as error:
            raise TypeError(f"pairs: expected pairs of integers, got {type(pairs).__name__}: {error}") from error
    if not isinstance(pairs, Tensor) or pairs.is_floating_point() or pairs.dtype == torch.bool:
        got = pairs.dtype if isinstance(pairs, Tensor) else type(pairs).__name__
        raise TypeError(f"pairs: expected a tensor of integers, got {got}.")
    if pairs.ndim != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs: expected shape (k, 2), got {tuple(pairs.shape)}.")
    if pairs.numel() and not 0 <= int(pairs.min()) <= int(pairs.max()) < count:
        raise ValueError(
            f"pairs: expected neurons from 0 to {count - 1}, got {int(pairs.min())} to {int(pairs.max())}."
        )
    return pairs.long()
