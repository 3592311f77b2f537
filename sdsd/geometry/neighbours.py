"""Which neurons are nearest, which are farthest, and which are dead."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class NeuronPair(NamedTuple):
    """Two neurons of one layer, `first` < `second`, and the cosine of their activations."""

    first: int
    second: int
    cosine: float


def extreme_pairs(cosine: Tensor, count: int, farthest: bool = False, alive: Tensor | None = None) -> list[NeuronPair]:
    """Disjoint pairs of neurons, chosen greedily: the nearest pair, then the nearest among the rest, and so on.

    Args:
        cosine: symmetric cosine matrix.  # shape: (n, n)
        count: how many pairs; fewer come back where the neurons run out.
        farthest: start from the lowest cosine instead of the highest.
        alive: True for neurons that may be paired; all by default.  # shape: (n,)

    Returns:
        Pairs in the order of choice. No neuron is in two of them. Where cosines are equal the pair with the
        lower indices comes first; a cosine that is NaN is never chosen.

    Example:
        >>> cosine = torch.tensor([[1.0, 0.9, 0.1], [0.9, 1.0, 0.2], [0.1, 0.2, 1.0]])
        >>> pair, = extreme_pairs(cosine, 1)
        >>> pair.first, pair.second
        (0, 1)
    """
    if cosine.ndim != 2 or cosine.shape[0] != cosine.shape[1]:
        raise ValueError(f"cosine: expected a square (n, n) matrix, got shape {tuple(cosine.shape)}.")
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ValueError(f"count: expected an integer ≥ 0, got {count!r}.")
    n = cosine.shape[0]
    nearness = cosine.detach().to("cpu", torch.float64, copy=True)
    if farthest:
        nearness.neg_()
    nearness.masked_fill_(nearness.isnan(), -torch.inf)
    nearness.masked_fill_(torch.ones(n, n, dtype=torch.bool).tril(), -torch.inf)
    if alive is not None:
        if alive.shape != (n,) or alive.dtype != torch.bool:
            raise ValueError(
                f"alive: expected {n} booleans, one a neuron, got {alive.dtype} of shape {tuple(alive.shape)}."
            )
        dead = ~alive.detach().cpu()
        nearness[dead] = -torch.inf
        nearness[:, dead] = -torch.inf
    pairs: list[NeuronPair] = []
    while len(pairs) < count and n > 1:
        first, second = divmod(int(nearness.argmax()), n)
        best = nearness[first, second].item()
        if best == -torch.inf:
            break
        pairs.append(NeuronPair(first, second, -best if farthest else best))
        for neuron in (first, second):
            nearness[neuron] = -torch.inf
            nearness[:, neuron] = -torch.inf
    return pairs


def alive_neurons(activations: Tensor, neuron_dim: int, threshold: float = 1e-3) -> Tensor:
    """True for each neuron whose activation norm is at least `threshold` times the layer's largest.

    Args:
        activations: a layer's output, neurons along `neuron_dim`.
        neuron_dim: the dimension that counts neurons.
        threshold: relative, so that rescaling the layer changes nothing.

    Returns:
        One boolean a neuron. A neuron with a NaN or infinite activation counts as not alive.  # shape: (n,)
    """
    rows = activations.detach().movedim(neuron_dim, 0).flatten(1)
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    finite = norms.isfinite()
    largest = norms[finite].max() if bool(finite.any()) else norms.new_zeros(())
    return finite & (norms >= threshold * largest) & (norms > 0)
