"""What was done, to one layer or to a whole model: as text, as JSON, as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from .merger import How
from .model_page import page_of


def outcome(compared: bool) -> str:
    """What became of the outputs, for a report."""
    if compared:
        return "equal to the merged network's, to rounding"
    return "not compared: the model is random, it gave no finite number on any input that was tried, or check=False"


@dataclass(frozen=True)
class Consolidation:
    """What `consolidate` did. Each of the pairs of numbers is (before, after).

    Attributes:
        layer: name of the layer.
        how: "mean" | "act" | "absorb"; "" where neurons were removed without merging.
        pairs: the merged pairs.
        removed: indices, in the old layer, of neurons that are gone.
        neurons: of the layer.
        parameters: of the whole model.
        flops: of matrix products and convolutions in one forward pass over the example input, a multiplication and
            an addition counting two; None without one.
        compared: whether the smaller network was run beside the merged one, and agreed to rounding.
        foretold: root mean square change of what the readers get, over what they get, from activations or gram alone,
            as `merge_cost` foretells it; None where neither was given.
    """

    layer: str
    how: How | Literal[""]
    pairs: tuple[tuple[int, int], ...]
    removed: tuple[int, ...]
    neurons: tuple[int, int]
    parameters: tuple[int, int]
    flops: tuple[int, int] | None
    compared: bool
    foretold: float | None = None

    def __str__(self) -> str:
        done = f"{len(self.pairs)} pairs merged (how={self.how!r})" if self.how else "neurons removed"
        flops = "not counted (pass example_input)" if self.flops is None else _change(self.flops)
        return (
            f"{self.layer!r}: {done}\n  neurons    {_change(self.neurons)}\n"
            f"  parameters {_change(self.parameters)}\n  FLOPs      {flops}"
            + (
                ""
                if self.foretold is None
                else f"\n  readers    get values that differ by {self.foretold:.2%}, foretold (root mean square)"
            )
            + (f"\n  outputs    {outcome(self.compared)}" if self.compared or self.removed else "")
        )


def _change(numbers: tuple[int, int]) -> str:
    before, after = numbers
    percent = f" (−{100 * (before - after) / before:.1f}%)" if after != before else ""
    return f"{before:,} → {after:,}{percent}"


@dataclass(frozen=True)
class LayerReport:
    """One layer of `ModelConsolidation`.

    Attributes:
        layer: its name.
        writers: layers that write the same neurons.
        neurons: (before, after); of a mixture, experts.
        pairs: what was merged; of a mixture, the second expert of each was taken out.
        cosine: mean of the pairs' cosines; None without pairs.
        parameters: how many fewer the model has for it, about: what several layers save together is counted once.
        refused: why nothing was done; "" where something could be.
        foretold: root mean square change of what the readers get, over what they get; None without pairs, and for
            experts.
        alone: what `evaluate` gave with this layer's pairs merged and no others; None without it.
    """

    layer: str
    writers: tuple[str, ...]
    neurons: tuple[int, int]
    pairs: tuple[tuple[int, int], ...]
    cosine: float | None
    parameters: int
    refused: str
    foretold: float | None = None
    alone: float | None = None


@dataclass(frozen=True)
class ModelConsolidation:
    """What `consolidate_model` did; prints as a table. Each of the pairs of numbers is (before, after).

    Attributes:
        layers: one row a group of layers, and one a mixture of experts.
        how: "mean" | "absorb".
        parameters: of the whole model.
        flops: of one forward pass over the example.
        compared: whether the smaller network was run beside the merged one, and agreed to rounding.
        evaluated: what `evaluate` gave; None without it.
    """

    layers: tuple[LayerReport, ...]
    how: How
    parameters: tuple[int, int]
    flops: tuple[int, int] | None
    compared: bool
    evaluated: tuple[float, float] | None = None

    def __str__(self) -> str:
        lines = table_of(self.layers, None if self.evaluated is None else self.evaluated[0])
        share = 100 * (1 - self.parameters[1] / self.parameters[0])
        lines.append(f"parameters {self.parameters[0]:,} → {self.parameters[1]:,} (−{share:.1f}%), how={self.how!r}")
        if self.evaluated is not None:
            lines.append(f"evaluated {self.evaluated[0]:.6g} → {self.evaluated[1]:.6g}")
        if not self.compared and self.parameters[1] < self.parameters[0]:
            lines.append(f"outputs {outcome(self.compared)}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as `json.dumps` takes it."""
        return asdict(self)

    def save_html(self, path: str | Path) -> Path:
        """One page that opens without a network: neurons that were cut, layer by layer, beside what it cost.

        Args:
            path: of the file to write.

        Returns:
            The path.
        """
        path = Path(path)
        path.write_text(page_of(self.to_dict()), encoding="utf-8")
        return path


def table_of(rows: Sequence[LayerReport], whole: float | None) -> list[str]:
    """Rows as lines of text; `whole`: what `evaluate` gave for the model as it was."""
    wide = max((len(row.layer) for row in rows), default=5)
    costs = f"  {'foretold':>8}" + ("" if whole is None else f"  {'alone':>10}")
    lines = [f"  {'layer':<{wide}}  neurons        pairs  mean cosine{costs}"]
    for row in rows:
        change = f"{row.neurons[0]} → {row.neurons[1]}"
        cosine = "–" if row.cosine is None else f"{row.cosine:.3f}"
        foretold = "–" if row.foretold is None else f"{row.foretold:.2%}"
        alone = "" if whole is None else f"  {'–' if row.alone is None else f'{row.alone - whole:+.3g}':>10}"
        refused = f"  refused: {row.refused}" if row.refused else ""
        lines.append(
            f"  {row.layer:<{wide}}  {change:<13}  {len(row.pairs):>5}  {cosine:>11}  {foretold:>8}{alone}{refused}"
        )
    return lines
