"""Near, far and random pairs of one layer's neurons, from activations or from a matrix of cosines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from sdsd_kernels import checks

from ..arrays import alive_flags
from ..cosines import NeuronPair, alive_neurons, as_cosine, disjoint_pairs
from .consumers import Consumers
from .merge import layer_rows

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
        neurons, layer = group.neurons, group.layer
        if (activations is None) == (cosine is None):
            raise ValueError(
                f"activations, cosine: expected one of them, got {'neither' if cosine is None else 'both'}. Pairs are "
                "chosen by the cosine of activations, or by a matrix such as weight_cosine(model, layer)."
            )
        self.rows = None if activations is None else layer_rows(model, group, activations, neuron_dim)
        self.cosine = cosine = None if cosine is None else as_cosine(cosine)
        if self.rows is not None:
            able = alive_neurons(self.rows, 0).cpu()
        else:
            assert cosine is not None
            if tuple(cosine.shape) != (neurons, neurons):
                raise ValueError(
                    f"cosine: expected ({neurons}, {neurons}), one row a neuron of {layer!r}, got "
                    f"{tuple(cosine.shape)}."
                )
            able = (cosine.diagonal() > 0).cpu()
        if alive is not None:
            able &= alive_flags(alive, neurons).cpu()
        if int(able.sum()) < 2:
            raise ValueError(
                f"layer: {int(able.sum())} of the {neurons} neurons of {layer!r} are alive, so there is no pair. The "
                "others are zero on all samples, or not finite; look at what enters the layer."
            )
        self.alive = able

    def pairs(self, count: int, which: str, seed: int) -> tuple[NeuronPair, ...]:
        """Disjoint pairs; fewer than `count` where the neurons that are alive do not suffice."""
        count = min(checks.check_count(count, "pairs"), int(self.alive.sum()) // 2)
        if self.rows is not None:
            alive = self.alive.to(self.rows.device)
            return tuple(disjoint_pairs(self.rows, count, which, alive=alive, neuron_dim=0, seed=seed))
        assert self.cosine is not None
        alive = self.alive.to(self.cosine.device)
        return tuple(disjoint_pairs(None, count, which, cosine=self.cosine, alive=alive, seed=seed))
