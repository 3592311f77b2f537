"""Activations as calls take them, checked once: neurons first, samples behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from sdsd_kernels import checks

from .similarity import _as_tensor

if TYPE_CHECKING:
    import numpy as np


def neurons_first(activations: Tensor | np.ndarray, neuron_dim: int | None) -> Tensor:
    """A view (neurons, …) of activations as `neuron_cosine_matrix` takes them; there may be no samples.

    Raises:
        TypeError: no tensor or array, or not a dense one of a supported floating-point dtype.
        ValueError: fewer than two dimensions, or neuron_dim out of range.
    """
    activations = checks.check_float_tensor(_as_tensor(activations), "activations")
    checks.check_integer(neuron_dim, "neuron_dim", optional=True)
    if neuron_dim is None:
        neuron_dim = 1 if activations.ndim >= 4 else -1
    neuron_dim = checks.check_neurons(activations, neuron_dim, samples=False)
    return activations.detach().movedim(neuron_dim, 0)


def sample_parts(rows: Tensor, most: int) -> list[Tensor]:
    """Cut `rows` (neurons, …) into views of at most `most` samples each."""
    samples = rows[0].numel()
    if samples <= most:
        return [rows]
    try:
        return list(rows.view(rows.shape[0], samples).split(most, 1))
    except RuntimeError:  # samples with several strides
        inner = samples // rows.shape[1]
    if inner <= most:
        return list(rows.split(most // inner, 1))
    return [part for each in rows.unbind(1) for part in sample_parts(each, most)]
