"""Activations as calls take them, checked once: neurons first, samples behind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .similarity import _as_tensor

if TYPE_CHECKING:
    import numpy as np

FLOAT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def neurons_first(activations: Tensor | np.ndarray, neuron_dim: int | None) -> Tensor:
    """A view (neurons, …) of activations as `neuron_cosine_matrix` takes them; there may be no samples.

    Raises:
        TypeError: no tensor or array, or not a dense one of a supported floating-point dtype.
        ValueError: fewer than two dimensions, or neuron_dim out of range.
    """
    activations = _as_tensor(activations)
    if activations.is_quantized or activations.layout != torch.strided or activations.dtype not in FLOAT_DTYPES:
        what = "quantised" if activations.is_quantized else f"{activations.dtype}, {activations.layout}"
        raise TypeError(
            f"activations: expected a dense tensor of float64, float32, float16 or bfloat16, got {what}. "
            "Pass activations.float(), or .to_dense() or .dequantize() first."
        )
    shape = tuple(activations.shape)
    if len(shape) < 2:
        raise ValueError(
            f"activations: expected at least two dimensions, samples and neurons, got shape {shape}. "
            "Give a single sample a dimension of size 1."
        )
    if neuron_dim is None:
        neuron_dim = 1 if len(shape) >= 4 else -1
    if isinstance(neuron_dim, bool) or not isinstance(neuron_dim, int):
        raise TypeError(f"neuron_dim: expected an int or None, got {type(neuron_dim).__name__}.")
    if not -len(shape) <= neuron_dim < len(shape):
        raise ValueError(
            f"neuron_dim: expected {-len(shape)} to {len(shape) - 1} for activations of shape {shape}, "
            f"got {neuron_dim}. It names the dimension that counts neurons."
        )
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
