"""What a demonstration depends on, and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sdsd_kernels import checks

from ...geometry import NeuronMap

HISTORY = "history.jsonl"
"""Every measured step, in the demonstration's folder."""


@dataclass(frozen=True)
class DemoConfig:
    """Everything the numbers depend on, but the machine."""

    seed: int = 0
    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 0.2
    momentum: float = 0.9
    hidden: tuple[int, ...] = (128, 64)
    held_out: int = 450
    smoothing: float = 0.9
    confidence: float = 0.95
    pairs: int = 20
    random_pairings: int = 8

    def __post_init__(self) -> None:
        checks.check_integer(self.epochs, "epochs", least=1)
        checks.check_integer(self.seed, "seed", least=0)


@dataclass
class DemoResult:
    """What a run found, finished or not."""

    results: dict[str, Any]
    folder: Path
    interrupted: bool
    neuron_map: NeuronMap | None = None
    activations: Tensor | None = None
    written: list[Path] = field(default_factory=list)
