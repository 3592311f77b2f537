"""Near, far and random pairs of one layer's neurons, from activations or from a matrix of cosines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sdsd_kernels import checks, disjoint_pairs

from ..arithmetic import norms_of
from ..arrays import alive_flags
from ..cosines import NeuronPair, alive_from_norms, as_cosine
from .group import Consumers
from .merger import layer_rows

if TYPE_CHECKING:
    import numpy as np


class PairSource:
    """Checks what `biopsy` was given to choose pairs by, and chooses them; errors as `biopsy` lists them."""

    def __init__(
        self,
        model: nn.Module,
        group: Consumers,
        activations: Tensor | np.ndarray | None,
        cosine: Tensor | np.ndarray | None,
        alive: Tensor | np.ndarray | None,
        neuron_dim: int | None,
    ) -> None:
        self.given: dict[str, Any]
        if activations is not None and cosine is None:
            rows = layer_rows(model, group, activations, neuron_dim)
            self.given, able = {"activations": rows, "neuron_dim": 0}, alive_from_norms(norms_of(rows))
        else:
            matrix = _matrix(activations, cosine, group)
            self.given, able = {"cosine": matrix}, matrix.diagonal() > 0
        self.alive = able if alive is None else able & alive_flags(alive, group.neurons).to(able.device)
        if int(self.alive.sum()) < 2:
            raise ValueError(
                f"layer: {int(self.alive.sum())} of the {group.neurons} neurons of {group.layer!r} are alive, so there "
                "is no pair. The others are zero on all samples, or not finite; look at what enters the layer."
            )

    def pairs(self, count: int, which: str, seed: int) -> tuple[NeuronPair, ...]:
        """Disjoint pairs; fewer than `count` where the neurons that are alive do not suffice."""
        count = min(checks.check_count(count, "pairs"), int(self.alive.sum()) // 2)
        columns = disjoint_pairs(pairs=count, which=which, alive=self.alive, seed=seed, **self.given)
        return tuple(map(NeuronPair, *(column.tolist() for column in columns)))


def _matrix(activations: Tensor | np.ndarray | None, cosine: Tensor | np.ndarray | None, group: Consumers) -> Tensor:
    if activations is not None or cosine is None:
        raise ValueError(
            f"activations, cosine: expected one of them, got {'neither' if cosine is None else 'both'}. Pairs are "
            "chosen by the cosine of activations, or by a matrix such as weight_cosine(model, layer)."
        )
    matrix = as_cosine(cosine)
    if len(matrix) != group.neurons:
        raise ValueError(
            f"cosine: expected ({group.neurons}, {group.neurons}), one row a neuron of {group.layer!r}, got "
            f"{tuple(matrix.shape)}."
        )
    return matrix
