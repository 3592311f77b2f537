"""Neurons of two layers, or of two models, one to one; and a model with its neurons in another's order.

The permutations of `symmetries` leave a model's function alone, so of all points that compute what the second model
does, the one nearest to the first can be taken: nearest in its activations, neuron by neuron, or in its weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from sdsd_kernels import checks

from ..._progress import Progress
from ...geometry import NeuronMatching, collect_activations, cosine_between
from ...geometry.collect import MOST_BYTES
from ...geometry.comparing import best_order, check_alike, match_by_cosine
from ...models import copy_of
from .groups import Permutation
from .point import Point
from .same_function import require_same
from .symmetries import symmetries

MOST_SWEEPS, MOST_ROUNDS = 100, 5


@dataclass(frozen=True, eq=False)
class ModelMatching:
    """Neurons of two models of one architecture, one to one; `print` it for a report.

    Attributes:
        by: "weights" | "activations".
        layers: the layers that write each group of neurons; a residual stream has several. Heads of attention are
            groups of their own, before those of the neurons inside them.
        orders: for each group the neuron (or head) of the second model that belongs to each of the first.
            # shape: (neurons,) each, int64
        distances: ‖θ_a − θ_b‖ before and after.
        not_analysed: what kept its order, and why.
    """

    by: str
    layers: tuple[tuple[str, ...], ...]
    orders: tuple[Tensor, ...]
    distances: tuple[float, float]
    not_analysed: tuple[str, ...]
    _permutations: tuple[Permutation, ...]
    _model: nn.Module
    _norms: tuple[tuple[str, str], ...]
    _example: Any

    def apply(self, model: nn.Module, *, example_input: Any = None, check: bool = True) -> nn.Module:
        """A copy of the second model with its neurons in the first one's order: the same function.

        Args:
            model: the second model, or another state of it (an average of weights, say). Not changed.
            example_input: as in `match_neurons`, for the check; None: what was given there.
            check: run both in float64 on the example and compare. Without an example nothing is run.

        Raises:
            ValueError: a model of another architecture; outputs that differ by more than rounding.
        """
        check_alike(self._model, model)
        moved = copy_of(model)
        point = Point(moved, self._norms)
        for permutation, order in zip(self._permutations, self.orders, strict=True):
            permutation.permute(point, order)
        point.write_back()
        example = self._example if example_input is None else example_input
        if check and example is not None:
            require_same(model, moved, example)
        return moved

    def __str__(self) -> str:
        before, after = self.distances
        lines = [f"neurons matched by {self.by}: ‖θ_a − θ_b‖ {before:.4g} → {after:.4g}"]
        for layers, order, what in zip(self.layers, self.orders, (p.what for p in self._permutations), strict=True):
            moved = int((order != torch.arange(len(order))).sum())
            lines.append(f"  {', '.join(layers)}: {moved} of {len(order)} {what} change places")
        return "\n".join([*lines, *(f"  not analysed: {note}" for note in self.not_analysed)])


@overload
def match_neurons(
    one: Tensor | np.ndarray,
    other: Tensor | np.ndarray,
    *,
    neuron_dim: int | None = None,
    center: bool = True,
    max_bytes: int | None = None,
    progress: Progress = False,
) -> NeuronMatching: ...
@overload
def match_neurons(
    one: nn.Module,
    other: nn.Module,
    loader: Iterable[Any] | None = None,
    *,
    example_input: Any = None,
    center: bool = True,
    max_batches: int | None = None,
    max_bytes: int | None = None,
    seed: int = 0,
    progress: Progress = False,
) -> ModelMatching: ...
def match_neurons(
    one: Any,
    other: Any,
    loader: Iterable[Any] | None = None,
    *,
    neuron_dim: int | None = None,
    example_input: Any = None,
    center: bool = True,
    max_batches: int | None = None,
    max_bytes: int | None = None,
    seed: int = 0,
    progress: Progress = False,
) -> Any:
    """Find which neuron of one layer, or model, is which of another: one to one.

    **Two layers**, from what they answer to the same samples: the assignment with the largest sum of cosines
    (`cosine_between`). The layers may be of one model or of two, and of different size: then all neurons of the smaller
    one are matched.

    **Two models** of one architecture, group by group of the neurons that can change places (`symmetries`):

        with a loader       each group by the cosines of its activations, summed over the layers that write it
        without             by weights: the permutation P of all groups with the largest ⟨θ_a, P θ_b⟩, that is the least
                            ‖θ_a − P θ_b‖, by coordinate descent: one group after the other is assigned given the rest,
                            until none gains. That is a local optimum; `seed` orders the groups.

    Whole heads of attention are matched by how well their neurons can be, and then the neurons inside them.
    `apply` of the result gives the second model in the first one's order, with the function it had, and `loss_barrier`
    says what that does to the line between them. Only permutations are looked for: two neurons that differ by a factor
    (ReLU) or a sign (tanh) are not made equal.

    Args:
        one: activations, as `neuron_cosine_matrix` takes them, or a model.
        other: of the same samples in the same order; or a model like `one`, whose neurons are put in its order.
        loader: for models: batches to match activations on, as `collect_activations` takes them. Read once and kept, so
            that both models answer to the same samples in the same order.
        neuron_dim: for activations: the dimension that counts neurons.
        example_input: for models: an input, or a tuple of arguments, that shapes are known from, and that `apply` is
            checked on. None: the input of the first batch, where that is a tensor.
        center: match correlations rather than cosines, where activations are matched.
        max_batches: of the loader.
        max_bytes: bound on memory, as in `cosine_between`, or on activations kept, as in `collect_activations`.
        seed: the order in which groups are matched by weights.
        progress: True for a line on standard error, or a function called with (done, total), while activations are
            collected or compared.

    Returns:
        `NeuronMatching` for activations, `ModelMatching` for models.

    Raises:
        TypeError: neither two tensors or arrays nor two modules.
        ValueError: other samples, as in `cosine_between`; models of different architecture; a model that cannot be
            traced, or in which no neurons can change places.
        MissingExtraError: scipy is not installed.

    Source:
        Li et al. 2016, "Convergent Learning: Do Different Neural Networks Learn the Same Representations?"; Ainsworth,
        Hayase and Srinivasa 2023, "Git Re-Basin: Merging Models modulo Permutation Symmetries".

    Example:
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(50, 4)
        >>> match_neurons(x, x[:, [2, 0, 3, 1]]).order.tolist()
        [1, 3, 0, 2]
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> import copy
        >>> other = copy.deepcopy(model)
        >>> matching = match_neurons(model, other)
        >>> matching.distances
        (0.0, 0.0)
    """
    given = [isinstance(each, nn.Module) for each in (one, other)]
    if any(given) and not all(given):
        raise TypeError(
            f"one, other: expected two models or two tensors of activations, got {type(one).__name__} and "
            f"{type(other).__name__}."
        )
    if not any(given):
        for name, value in (("loader", loader), ("example_input", example_input), ("max_batches", max_batches)):
            if value is not None:
                raise TypeError(f"{name}: expected two models, got {type(one).__name__}; it goes with models only.")
        cosine = cosine_between(
            one, other, neuron_dim=neuron_dim, center=center, max_bytes=max_bytes, progress=progress, zero="zero"
        )
        return match_by_cosine(cosine)
    if neuron_dim is not None:
        raise TypeError("neuron_dim: expected tensors of activations, got models; it goes with tensors only.")
    batches = None if loader is None else list(itertools.islice(loader, max_batches))
    return _Models(one, other, batches, example_input).match(center, max_bytes, seed, progress)


class _Models:
    """Two models, and the groups of neurons of the second that can change places."""

    def __init__(self, one: nn.Module, other: nn.Module, batches: list[Any] | None, example_input: Any) -> None:
        check_alike(one, other)
        self.one, self.other, self.batches, self.example = one, other, batches, example_input
        if example_input is None and batches:
            first = batches[0][0] if isinstance(batches[0], (tuple, list)) else batches[0]
            self.example = first if isinstance(first, Tensor) else None
        # What is frozen does not move along an orbit, but it can change places.
        moved = copy_of(other).requires_grad_(True)
        self.moves = symmetries(moved, self.example)
        self.permutations = self.moves.permutations
        if not self.permutations:
            raise ValueError(f"other: no neurons of it are known to be able to change places.\n{self.moves}")
        norms = (norm for segment in self.moves._segments for norm in segment.norms if norm.name)
        self.norms = tuple(dict.fromkeys((norm.name, norm.eps) for norm in norms))
        self.fixed, self.point = Point(one, ()), Point(moved, self.norms)

    def match(self, center: bool, max_bytes: int | None, seed: int, progress: Progress) -> ModelMatching:
        before = self._distance()
        self.orders = [torch.arange(permutation.width) for permutation in self.permutations]
        if self.batches is None:
            self._by_weights(checks.check_count(seed, "seed", least=0))
        else:
            self._by_activations(center, max_bytes, progress)
        return ModelMatching(
            by="weights" if self.batches is None else "activations",
            layers=tuple(permutation.layers for permutation in self.permutations),
            orders=tuple(self.orders),
            distances=(before, self._distance()),
            not_analysed=self.moves.not_analysed,
            _permutations=self.permutations,
            _model=self.other,
            _norms=self.norms,
            _example=self.example,
        )

    def _by_weights(self, seed: int) -> None:
        """Neurons until none gains; then heads, and neurons again from the start, for they stand inside heads."""
        heads = [place for place, each in enumerate(self.permutations) if each.what == "heads"]
        start = {name: value.clone() for name, value in self.point.values.items()}, dict(self.point.buffers)
        best: tuple[float, list[Tensor]] | None = None
        for _ in range(MOST_ROUNDS):
            self._sweep(seed)
            distance = self._distance()
            if best is None or distance < best[0]:
                best = distance, list(self.orders)
            moved = {place: self._best_heads(place) for place in heads}
            if all(torch.equal(order, torch.arange(len(order))) for order in moved.values()):
                break
            orders = {place: self.orders[place][order] for place, order in moved.items()}
            self._restart(start, [orders.get(k, torch.arange(p.width)) for k, p in enumerate(self.permutations)])
        assert best is not None
        self._restart(start, best[1])

    def _restart(self, start: tuple[dict[str, Tensor], dict[str, Tensor]], orders: list[Tensor]) -> None:
        """Go to the point that has these orders."""
        self.point.values.update({name: value.clone() for name, value in start[0].items()})
        self.point.buffers.clear()
        self.point.buffers.update(start[1])
        self.orders = orders
        for permutation, order in zip(self.permutations, orders, strict=True):
            permutation.permute(self.point, order)

    def _sweep(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(checks.check_integer(seed, "seed"))
        neurons = [place for place, each in enumerate(self.permutations) if each.what == "neurons"]
        for _ in range(MOST_SWEEPS):
            gained = False
            for choice in torch.randperm(len(neurons), generator=generator).tolist():
                gained |= self._assign(neurons[choice])
            if not gained:
                return

    def _best_heads(self, place: int) -> Tensor:
        """The order of heads by what their neurons would gain in the best order, parameter by parameter."""
        permutation = self.permutations[place]
        scores = torch.zeros(permutation.width, permutation.width, dtype=torch.float64)
        for part in permutation.parts:
            values = (point.values[part.name].movedim(part.axis, 0) for point in (self.fixed, self.point))
            ours, theirs = (value.reshape(len(value), -1) for value in values)
            scores += _between_blocks((ours @ theirs.T).cpu(), part.entries(permutation.width))
        return best_order(scores)[1]

    def _assign(self, place: int) -> bool:
        """Match one group by its weights, the others as they are; whether that gained anything."""
        permutation = self.permutations[place]
        scores = torch.zeros(permutation.width, permutation.width, dtype=torch.float64)
        for part in permutation.parts:
            if part.name in self.point.values:
                ours, theirs = (permutation.entries(part, point) for point in (self.fixed, self.point))
                scores += (ours @ theirs.T).cpu()
        order = _best_in_runs(scores, permutation.run)
        names = {part.name for part in permutation.parts} & set(self.point.values)
        before = self._product(names)
        kept = {name: self.point.values[name] for name in names}, dict(self.point.buffers)
        permutation.permute(self.point, order)
        # A weight that both writes and reads a group is not linear in its order, so that an assignment may lose.
        if self._product(names) > before + 1e-12 * abs(before):
            self.orders[place] = self.orders[place][order]
            return True
        self.point.values.update(kept[0])
        self.point.buffers.update(kept[1])
        return False

    def _by_activations(self, center: bool, max_bytes: int | None, progress: Progress) -> None:
        assert self.batches is not None
        names = list(dict.fromkeys(name for permutation in self.permutations for name in permutation.layers))
        answers = [
            collect_activations(
                model,
                self.batches,
                names,
                after_nonlinearity=False,
                keep=True,
                progress=progress,
                max_bytes=MOST_BYTES if max_bytes is None else max_bytes,
            )
            for model in (self.one, self.other)
        ]
        cosines: dict[str, Tensor] = {}
        for name in names:
            ours, theirs = (answer[name].values for answer in answers)
            assert ours is not None
            assert theirs is not None
            if ours.shape[1] == theirs.shape[1]:
                cosines[name] = cosine_between(ours, theirs, center=center).double().cpu()
        for place, permutation in enumerate(self.permutations):
            scores = torch.zeros(permutation.width, permutation.width, dtype=torch.float64)
            blocks = self._blocks(permutation, cosines)
            for name, entries in blocks.items():
                if permutation.what == "heads":
                    scores += _between_blocks(cosines[name], entries)
                else:
                    scores += sum(cosines[name][each][:, each] for each in entries.T)
            order = _best_in_runs(scores, permutation.run)
            self.orders[place] = order
            permutation.permute(self.point, order)
            for name, entries in blocks.items():
                cosines[name][:, entries.flatten()] = cosines[name][:, entries[order].flatten()]

    def _blocks(self, permutation: Permutation, cosines: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Which outputs of each layer that writes them belong to each unit.  # shape: (units, entries)"""
        blocks = {}
        for part in permutation.parts:
            name = part.name.rpartition(".")[0]
            if name in permutation.layers and len(cosines.get(name, ())) == len(part.units):
                blocks[name] = part.entries(permutation.width)
        return blocks

    def _product(self, names: Iterable[str]) -> float:
        """⟨θ_a, θ_b⟩ over some parameters."""
        return sum((self.fixed.values[name] * self.point.values[name]).sum().item() for name in names)

    def _distance(self) -> float:
        parts = ((self.fixed.values[name] - value).square().sum().item() for name, value in self.point.values.items())
        return sum(parts) ** 0.5


def _between_blocks(scores: Tensor, entries: Tensor) -> Tensor:
    """For each two blocks the sum of scores in the best order of their entries.  # shape: (blocks, blocks)"""
    pairs = [[scores[ours][:, theirs] for theirs in entries] for ours in entries]
    return torch.tensor(
        [[float(each.gather(1, best_order(each)[1][:, None]).sum()) for each in row] for row in pairs]
    ).double()


def _best_in_runs(scores: Tensor, run: int) -> Tensor:
    """The best order in which neurons stay within their runs of equal length.  # shape: (width,)"""
    starts = range(0, len(scores), run)
    return torch.cat([start + best_order(scores[start : start + run, start : start + run])[1] for start in starts])
