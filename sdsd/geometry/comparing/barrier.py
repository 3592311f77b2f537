"""The loss along the straight line between two networks: whether they lie in one valley."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdsd_kernels import checks

from ..._drawing import figure_and_axes
from ..._progress import Progress, reporter
from ...models import copy_of, evaluating
from ..merging import LossFunction, Sensitivity, as_sensitivity, single_number

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True)
class LossBarrier:
    """The loss along the line between two networks; prints as a line.

    Attributes:
        shares: λ of each point, from 0, the first network, to 1, the second.
        losses: L((1 − λ) θ_a + λ θ_b).
    """

    shares: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def heights(self) -> tuple[float, ...]:
        """The loss of each point less (1 − λ) L(θ_a) + λ L(θ_b)."""
        first, last = self.losses[0], self.losses[-1]
        return tuple(
            loss - ((1 - share) * first + share * last) for share, loss in zip(self.shares, self.losses, strict=True)
        )

    @property
    def barrier(self) -> float:
        """The largest of `heights`: 0 where the loss nowhere lies above the line between its ends."""
        return max(self.heights)

    def plot(self, *, axes: Any = None) -> tuple[Any, Any]:
        """Draw the loss along the line.

        Args:
            axes: matplotlib axes to draw into; None makes a figure.

        Returns:
            The figure and the axes.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        figure, axes = figure_and_axes(axes, 5.6, 3.6)
        axes.plot(self.shares, self.losses, marker="o", markersize=4)
        axes.plot([0, 1], [self.losses[0], self.losses[-1]], linestyle=(0, (5, 2)), color="#66707d")
        axes.set_xlabel("from the first network to the second")
        axes.set_ylabel("loss")
        axes.set_title(f"Barrier {self.barrier:.3g}", loc="left", fontsize=10.5)
        return figure, axes

    def __str__(self) -> str:
        highest = self.shares[self.heights.index(self.barrier)]
        return (
            f"loss {self.losses[0]:.4g} and {self.losses[-1]:.4g}, barrier {self.barrier:.4g} at {highest:.2g} of the "
            f"way ({len(self.shares)} points)"
        )


def loss_barrier(
    model_a: nn.Module,
    model_b: nn.Module,
    loss: Sensitivity | tuple[Iterable[Any], LossFunction],
    *,
    points: int = 11,
    statistics: Sensitivity | tuple[Iterable[Any], LossFunction] | None = None,
    progress: Progress = False,
) -> LossBarrier:
    """How far the loss rises along the straight line between two networks of one architecture.

        max over λ of  L((1 − λ) θ_a + λ θ_b) − (1 − λ) L(θ_a) − λ L(θ_b)

    Two networks trained from different starts are separated by a barrier mostly because their neurons stand in
    different places: `match_neurons` puts them in one order first.

    Statistics that a BatchNorm keeps belong to its own network. Between the two they are taken anew, as means over the
    batches of one run with the BatchNorms in training. Other buffers of floating-point numbers are interpolated.

    Args:
        model_a, model_b: not changed. They run in eval mode.
        loss: a function of the model that gives a number, or (loader, loss_fn), as `biopsy` takes it.
        points: on the line, both ends included.
        statistics: what is run for the statistics of BatchNorms, like `loss`: (training batches, loss_fn), say. None:
            `loss` itself.
        progress: True for a line on standard error, or a function called with (done, total).

    Raises:
        TypeError: no modules; a loss that is no function, or gives no single number.
        ValueError: parameters or buffers of other names or shapes; fewer than three points; a BatchNorm that
            `statistics` does not run; a loss that is NaN or infinite.

    Source:
        Entezari et al. 2022, "The Role of Permutation Invariance in Linear Mode Connectivity of Neural Networks"; for
        the statistics Jordan et al. 2023, "REPAIR: REnormalizing Permuted Activations for Interpolation Repair".

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model_a, model_b = (nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)) for _ in range(2))
        >>> data = [(torch.randn(20, 3), torch.arange(20) % 2)]
        >>> found = loss_barrier(model_a, model_b, (data, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1])))
        >>> len(found.losses), found.barrier >= 0
        (11, True)
    """
    for name, model in (("model_a", model_a), ("model_b", model_b)):
        if not isinstance(model, nn.Module):
            raise TypeError(f"{name}: expected an nn.Module, got {type(model).__name__}.")
    points = checks.check_count(points, "points", least=3)
    measure = as_sensitivity(loss)
    renew = measure if statistics is None else as_sensitivity(statistics)
    check_alike(model_a, model_b)
    report = reporter(progress, "loss barrier")
    shares = [place / (points - 1) for place in range(points)]
    between, losses = copy_of(model_a), []
    for done, share in enumerate(shares, 1):
        _move(between, model_a, model_b, share)
        if 0 < share < 1:
            take_statistics(between, renew)
        with evaluating(between):
            value = single_number(measure(between), "loss")
        if not math.isfinite(value):
            raise ValueError(f"loss: expected a finite number, got {value} at {share:.3g} of the way.")
        losses.append(value)
        report(done, points)
    return LossBarrier(tuple(shares), tuple(losses))


def check_alike(model_a: nn.Module, model_b: nn.Module) -> None:
    """ValueError unless both have parameters and buffers of the same names, shapes and dtypes."""
    one, other = (
        {name: (tuple(value.shape), value.dtype) for name, value in _state(model)} for model in (model_a, model_b)
    )
    for name in {**one, **other}:
        if one.get(name) != other.get(name):
            ours, theirs = (
                "none" if each is None else f"{each[1]} of shape {each[0]}" for each in (one.get(name), other.get(name))
            )
            raise ValueError(
                f"model_b: expected the architecture of model_a, got another {name!r}: {theirs} instead of {ours}."
            )


def _state(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


@torch.no_grad()
def _move(model: nn.Module, model_a: nn.Module, model_b: nn.Module, share: float) -> None:
    """Make `model` the point (1 − share) a + share b; integers are those of a."""
    for (_, value), (_, one), (_, other) in zip(*map(_state, (model, model_a, model_b)), strict=True):
        if not value.is_floating_point() or share in (0, 1):
            value.copy_(other if share == 1 else one)
        else:
            value.copy_(torch.lerp(one.double(), other.to(one.device).double(), share))


def take_statistics(model: nn.Module, run: Sensitivity) -> None:
    """Replace the statistics of every BatchNorm by means over the batches of one run; nothing where there is none.

    Raises:
        ValueError: a BatchNorm that the run left out.
    """
    norms = {name: module for name, module in model.named_modules() if isinstance(module, BATCH_NORMS)}
    norms = {name: module for name, module in norms.items() if module.running_mean is not None}
    if not norms:
        return
    momenta = {name: module.momentum for name, module in norms.items()}
    with evaluating(model):
        for module in norms.values():
            module.reset_running_stats()
            module.momentum, module.training = None, True
        run(model)
    for name, module in norms.items():
        module.momentum = momenta[name]
        if module.num_batches_tracked == 0:
            raise ValueError(
                f"statistics: expected a run of every BatchNorm in training, got none of {name!r}. Pass "
                "statistics=(loader, loss_fn) that runs the whole model and leaves train and eval modes alone."
            )
