"""Which neuron of one layer is which of another: one to one, with the largest sum of similarities there is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..._extras import require


class MatchedPair(NamedTuple):
    """Neuron `one` of the first layer, neuron `other` of the second, and the cosine of their activations."""

    one: int
    other: int
    cosine: float


@dataclass(frozen=True, eq=False)
class NeuronMatching:
    """Neurons of two layers, one to one; iterating gives `MatchedPair`s (one, other, cosine).

    Attributes:
        one: neurons of the first layer, ascending.  # shape: (pairs,), int64
        other: the neuron of the second layer that belongs to each.  # shape: (pairs,), int64
        cosine: of their activations.  # shape: (pairs,)
        neurons: how many both layers have. All of the smaller one are matched.
    """

    one: Tensor
    other: Tensor
    cosine: Tensor
    neurons: tuple[int, int]

    def __len__(self) -> int:
        return len(self.one)

    def __iter__(self) -> Iterator[MatchedPair]:
        columns = (column.tolist() for column in (self.one, self.other, self.cosine))
        return (MatchedPair(*pair) for pair in zip(*columns, strict=True))

    @property
    def mean_cosine(self) -> float:
        """Mean cosine of matched neurons."""
        return self.cosine.double().mean().item()

    @property
    def order(self) -> Tensor:
        """The second layer's neurons in the order of the first's, for layers of equal size: activations[:, order].

        Raises:
            ValueError: one layer has more neurons than the other.
        """
        if self.neurons[0] != self.neurons[1]:
            raise ValueError(
                f"order: expected layers of equal size, got {self.neurons[0]} and {self.neurons[1]} neurons, so some "
                "have no partner. Use `one` and `other`."
            )
        return self.other

    def __repr__(self) -> str:
        one, other = self.neurons
        return f"NeuronMatching({len(self)} pairs of {one} and {other} neurons, mean cosine {self.mean_cosine:.3f})"


def best_order(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The one-to-one assignment of rows to columns with the largest sum of `scores`; rows ascend.

    Every row, or every column where these are fewer, is used once. Solved exactly by scipy (Crouse 2016, "On
    implementing 2D rectangular assignment algorithms"), O(n³).

    Args:
        scores: finite.  # shape: (n, m)

    Raises:
        ValueError: a NaN or an infinity.
        MissingExtraError: scipy is not installed.
    """
    if not bool(scores.isfinite().all()):
        raise ValueError(
            "matching: expected finite scores, got a NaN or an infinity. Check the weights and the data of both models."
        )
    optimize = require("scipy.optimize", extra="report", purpose="matching neurons")
    rows, columns = optimize.linear_sum_assignment(scores.detach().cpu().double().numpy(), maximize=True)
    return torch.as_tensor(rows, dtype=torch.long), torch.as_tensor(columns, dtype=torch.long)


def match_by_cosine(cosine: Tensor) -> NeuronMatching:
    """The matching with the largest sum of cosines.

    Args:
        cosine: of the neurons of one layer (rows) with those of another (columns).  # shape: (n, m)

    Raises:
        ValueError: a NaN, as neurons with a NaN or an infinity have it; nothing but zeros, as of neurons that do not
            vary.
        MissingExtraError: scipy is not installed.
    """
    wrong = cosine.isnan()
    if bool(wrong.any()):
        rows, columns = (wrong.all(dim).nonzero().flatten().tolist() for dim in (1, 0))
        raise ValueError(
            "activations: expected finite values, got a NaN or an infinity in "
            f"{len(rows)} neurons of the first layer (first: {rows[:5]}) and {len(columns)} of the second (first: "
            f"{columns[:5]}). Leave these neurons, or the samples that hold them, out."
        )
    if not bool((cosine != 0).any()):
        raise ValueError(
            "activations: expected neurons of both layers that vary over the samples, and every cosine is 0. Pass more "
            "samples (a single one, less its mean, is 0), or center=False."
        )
    one, other = best_order(cosine)
    matched = cosine.detach()[one.to(cosine.device), other.to(cosine.device)]
    return NeuronMatching(one, other, matched.cpu(), (cosine.shape[0], cosine.shape[1]))
