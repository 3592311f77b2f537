"""The weights that read a layer's neurons, as `merge_cost` takes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from .consumers import consumers
from .foretold import roots_of, weights_of
from .sensitivity import LossFunction


def outgoing_weights(
    model: nn.Module,
    layer: str,
    example_input: Any = None,
    *,
    loss: tuple[Iterable[Any], LossFunction] | None = None,
) -> Tensor:
    """All weights that read each neuron of a layer, those of all its readers side by side.

    With `loss` a change of the readers' outputs weighs as the loss makes it weigh: with F = E[Σ g gᵀ], g the gradient
    of a sample's loss with respect to a reader's output and the sum over positions, columns v become F^½ v, so that

        ½ merge_cost² ≈ ½ E[δᵀ F δ]        δ the change of the readers' outputs

    is the rise of the loss to second order, with the empirical Fisher matrix in the place of the curvature, and
    positions taken as independent of each other.

    Args:
        model: left as it was.
        layer: name of an nn.Linear or convolution.
        example_input: as in `consumers`.
        loss: (loader, loss_fn), the loss a mean over samples, as in `biopsy`; a forward and a backward pass a batch, in
            eval mode.

    Returns:
        float64, on the device of the readers.  # shape: (neurons, weights)

    Raises:
        TypeError: as `consumers`; readers with complex weights.
        ValueError: as `consumers`; readers that are not all known; a loader without a batch; a reader whose output the
            loss does not depend on.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))
        >>> outgoing_weights(model, "0", torch.rand(1, 1, 5, 5)).shape
        torch.Size([8, 90])
    """
    group = consumers(model, layer, example_input)
    group.require("outgoing_weights", removal=False)
    return weights_of(model, group, {} if loss is None else roots_of(model, [group], loss))
