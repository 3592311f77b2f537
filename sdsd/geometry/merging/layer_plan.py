"""What is to be merged in one group of layers, or to go from one mixture of experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from .reports import LayerReport

NEURONS, EXPERTS = "neurons", "experts"


class PlannedPair(NamedTuple):
    """Two neurons that are to become one; the second goes."""

    first: int
    """A neuron that stays."""
    second: int
    """One that goes."""
    cosine: float
    """Of what readers get of them."""
    cost: float | None = None
    """What they were chosen by, where that is the cost; None otherwise."""
    share: float | None = None
    """Of the second that the first takes over, for how="absorb"; None otherwise."""


@dataclass(frozen=True)
class LayerPlan:
    """One group of layers, or one mixture of experts.

    Attributes:
        layer: its name.
        writers: other layers that write the same neurons.
        kind: "neurons" | "experts".
        neurons: how many there are.
        pairs: which go.
        parameters: how many fewer the model has for each that goes, about.
        refused: why none can go; "" where some could.
        foretold: root mean square change of what the readers get, over what they get, with these pairs merged.
    """

    layer: str
    writers: tuple[str, ...]
    kind: str
    neurons: int
    pairs: tuple[PlannedPair, ...]
    parameters: float
    refused: str = ""
    foretold: float | None = None

    def report(self, alone: float | None = None) -> LayerReport:
        """The row of `ModelConsolidation`.

        Args:
            alone: as there.

        Returns:
            `LayerReport`.
        """
        count = len(self.pairs)
        return LayerReport(
            self.layer,
            self.writers,
            (self.neurons, self.neurons - count),
            tuple((pair.first, pair.second) for pair in self.pairs),
            sum(pair.cosine for pair in self.pairs) / count if count else None,
            round(self.parameters * count),
            self.refused,
            self.foretold,
            alone,
        )
