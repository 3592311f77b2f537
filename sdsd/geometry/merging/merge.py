"""Merging pairs of neurons for the length of a `with` block, the model restored bit for bit."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from .consumers import consumers
from .edits import Merging, Pairs
from .merger import How, Merger, absorption_from

if TYPE_CHECKING:
    import numpy as np


def merge(
    model: nn.Module,
    layer: str,
    pairs: Pairs,
    how: How = "mean",
    *,
    activations: Tensor | np.ndarray | None = None,
    gram: Tensor | np.ndarray | None = None,
    neuron_dim: int | None = None,
    example_input: Any = None,
) -> AbstractContextManager[nn.Module]:
    """Merge pairs (i, j) of neurons inside a `with` block; afterwards the model is as it was, bit for bit.

        "mean"    w_i, w_j ← (w_i + w_j) / 2, the same for biases, for entries of norms on the way (γ, β, means and
                  variances) and for kernels of depthwise convolutions; readers keep their weights, but those that
                  are a writer's as well, as in a tied head
        "act"     o_i, o_j ← (o_i + o_j) / 2: readers see the average of both activations; incoming weights stay
        "absorb"  o_i ← o_i + o_j ⟨a_i, a_j⟩ / ⟨a_i, a_i⟩,  o_j ← 0: j is dropped, and i stands in for it as well as
                  least squares on the activations can make it

    w are incoming weights, o the columns of the layers that read the neurons; both are found by `consumers`. Two
    neurons that always agree are merged without changing what the network computes; by "mean" where their weights, and
    their entries of norms, agree as well: averages of neurons that a BatchNorm brings together from different scales
    are another neuron. Averages are taken in float64, then rounded.

    Args:
        model: changed in place inside the block. Restored after it, whatever happens inside (training too): all
            parameters and buffers, requires_grad, train and eval modes; a copy of them waits meanwhile.
        layer: name of an nn.Linear or convolution, as in `model.named_modules()`.
        pairs: index pairs, a list or a (k, 2) tensor; no neuron may be in two of them.
        how: "mean" | "act" | "absorb".
        activations: for "absorb", what readers see of the neurons (after norm and nonlinearity), any layout, any
            number of samples.
        gram: for "absorb", instead of activations: sums of products Σ_s a_si a_sj (`GramAccumulator.gram()`).
            # shape: (n, n)
        neuron_dim: the dimension of `activations` that counts neurons; None: 1 for convolutions, else the last.
        example_input: as in `consumers`.

    Returns:
        A context manager that gives the model. Nothing happens before it is entered, which may be done again, with the
        weights as they are then; `consolidate` changes for good.

    Raises:
        TypeError: as `consumers`; pairs that are no integers.
        ValueError: as `consumers`; an unknown `how`; an index out of range, a neuron in two pairs or paired with
            itself; readers that cannot be changed; weights shared with another layer; "absorb" without activations,
            or with a first neuron that is zero on all of them while the second is not.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> x, before = torch.ones(1, 3), model[0].weight.clone()
        >>> with merge(model, "0", [(0, 2)]):
        ...     hidden = model[:2](x)
        >>> bool(hidden[0, 0] == hidden[0, 2]), bool((model[0].weight == before).all())
        (True, True)
    """
    group = consumers(model, layer, example_input)
    absorption = absorption_from(model, group, activations, gram, neuron_dim) if how == "absorb" else None
    merger = Merger(model, group, how, absorption)
    checked = merger.checked(pairs)
    return Merging(model, lambda: merger.edits(checked))
