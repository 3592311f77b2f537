"""What was collected of one layer."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..arithmetic import norms_of
from ..cosines import alive_from_norms, neuron_cosine_matrix
from ..gram import GramAccumulator


@dataclass(frozen=True, eq=False)
class LayerActivations:
    """The activations of one layer over all samples, as sums of products or as they were.

    Attributes:
        layer: the layer's name.
        taken_after: "output" for the layer's own output, else what its readers get: "relu" for example, or
            "sigmoid → mul", the functions from the nonlinearity on.
        neurons: how many.
        samples: inputs × positions: pixels of a convolution, tokens of a sequence, without padding.
        sums: the accumulated products of every pair of neurons; None where values were kept.
        values: None where only sums were kept.  # shape: (samples, neurons)
        note: what readers get other than what was taken; "" where they get that.
    """

    layer: str
    taken_after: str
    neurons: int
    samples: int
    sums: GramAccumulator | None = field(default=None, repr=False)
    values: Tensor | None = field(default=None, repr=False)
    note: str = ""

    def cosine_matrix(self, *, center: bool = False) -> Tensor:
        """Cosine of every pair of neurons, as `neuron_cosine_matrix` promises it.  # shape: (n, n)"""
        if self.values is not None:
            return neuron_cosine_matrix(self.values, center=center)
        assert self.sums is not None
        return self.sums.cosine_matrix(center=center)

    def norms(self) -> Tensor:
        """√(Σ_s a_s²) of every neuron.  # shape: (n,), float64"""
        if self.values is not None:
            return norms_of(self.values.T)
        assert self.sums is not None
        return self.sums.norms(center=False)

    def gram(self) -> Tensor:
        """Σ_s a_si a_sj, not centred: what merge(…, how="absorb", gram=…) takes.  # shape: (n, n), float64"""
        if self.values is not None:
            sums = GramAccumulator(self.neurons, dtype=torch.float64, device=self.values.device)
            sums.update(self.values)
            return sums.gram()
        assert self.sums is not None
        return self.sums.gram(center=False)

    @property
    def alive(self) -> Tensor:
        """False for dead neurons: those whose norm is below 1e-3 of the layer's largest.  # shape: (n,), bool"""
        return alive_from_norms(self.norms())

    @property
    def dead(self) -> list[int]:
        """The neurons that are not `alive`."""
        return (~self.alive).nonzero().flatten().tolist()
