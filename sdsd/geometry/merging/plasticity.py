"""Does a merged network learn on as well? It is trained again beside a randomly merged and an untouched one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from sdsd_kernels import checks

from ..._progress import Progress, reporter
from ...graphs import seeded
from ...models import copy_of, evaluating
from ..cosines import NeuronPair
from .consolidate import consolidate
from .consumers import consumers
from .controls import Training, cuda_devices
from .merger import How
from .pair_source import PairSource
from .sensitivity import single_number

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Plasticity:
    """Accuracy after each epoch of training three copies of one network; prints as a table.

    Attributes:
        layer, how: what was merged, and in which way.
        pairs: the nearest pairs, merged in the first copy.
        geometry: accuracies of the copy with near pairs merged, after each epoch.
        random: the same with as many random pairs merged.
        untouched: the same with none merged.
    """

    layer: str
    how: How
    pairs: tuple[NeuronPair, ...]
    geometry: tuple[float, ...]
    random: tuple[float, ...]
    untouched: tuple[float, ...]

    @property
    def difference(self) -> float:
        """Peak accuracy of the geometric copy less that of the random one."""
        return max(self.geometry) - max(self.random)

    def __str__(self) -> str:
        lines = [f"{self.layer!r}, {len(self.pairs)} pairs merged (how={self.how!r}), {len(self.geometry)} epochs"]
        for name in ("geometry", "random", "untouched"):
            values = getattr(self, name)
            lines.append(f"  {name:<10} peak {max(values):.4f}   " + " ".join(f"{value:.4f}" for value in values))
        return "\n".join(lines)


def plasticity(
    model: nn.Module,
    layer: str,
    train: Training,
    accuracy: Callable[[nn.Module], Any],
    pairs: int = 50,
    *,
    epochs: int = 5,
    how: How = "mean",
    activations: Tensor | np.ndarray | None = None,
    cosine: Tensor | None = None,
    alive: Tensor | None = None,
    gram: Tensor | np.ndarray | None = None,
    neuron_dim: int | None = None,
    example_input: Any = None,
    seed: int = 0,
    progress: Progress = False,
) -> Plasticity:
    """Train on with near pairs merged, with random pairs merged, and untouched; compare peak accuracies.

    The procedure of "Functional Geometry in Deep Neural Networks", phase IV. Merges are for good but keep the shapes,
    so that all three have the same parameters to learn with. Each copy trains from the same seed.

    Args:
        model: not changed; copies are trained.
        train: a generator function that trains the model it is given and yields after each epoch. `sgd_training`
            makes one.
        accuracy: a function of the model, called in eval mode after each epoch.
        epochs: how many, at least 1.
        others: as in `biopsy`.

    Returns:
        `Plasticity`.

    Raises:
        TypeError, ValueError: as `biopsy`; a `train` that yields fewer than `epochs` times.

    Example:
        >>> import torch
        >>> from sdsd.geometry import sgd_training
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> x, y = torch.randn(20, 3), torch.arange(20) % 2
        >>> loss = lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
        >>> result = plasticity(
        ...     model, "0", sgd_training([(x, y)], loss), lambda model: (model(x).argmax(1) == y).float().mean(),
        ...     pairs=2, epochs=3, activations=model[:2](x),
        ... )
        >>> len(result.geometry)
        3
    """
    epochs = checks.check_count(epochs, "epochs")
    source = PairSource(model, consumers(model, layer, example_input), activations, cosine, alive, neuron_dim)
    chosen = [source.pairs(pairs, which, seed) for which in ("nearest", "random")]
    options = {"activations": activations, "gram": gram, "neuron_dim": neuron_dim, "example_input": example_input}
    copies = [consolidate(model, layer, pairing, how, remove=False, **options)[0] for pairing in chosen]
    copies.append(copy_of(model))
    report = reporter(progress, f"plasticity of {layer}")
    curves = []
    for number, network in enumerate(copies):
        curve = _learning_curve(network, train, accuracy, epochs, seed)
        accuracies = []
        for value in curve:
            accuracies.append(value)
            report(number * epochs + len(accuracies), len(copies) * epochs)
        curves.append(tuple(accuracies))
    return Plasticity(layer, how, chosen[0], *curves)


def _learning_curve(
    network: nn.Module, train: Training, accuracy: Callable[[nn.Module], Any], epochs: int, seed: int
) -> Iterator[float]:
    with seeded(checks.check_integer(seed, "seed"), cuda_devices(network)):
        training = iter(train(network))
        for epoch in range(epochs):
            try:
                next(training)
            except StopIteration:
                raise ValueError(
                    f"train: expected a generator that yields after each of {epochs} epochs, got {epoch} of them."
                ) from None
            with evaluating(network):
                yield single_number(accuracy(network), "accuracy")
