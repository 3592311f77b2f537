"""The neural tangent kernel of a network as it is, and how far training moves it.

In the limit of infinite width, scaled for it, the kernel K(x, x') = ∇f(x)·∇f(x') stays as it was at the start, and
training is regression with that kernel (Jacot, Gabriel and Hongler, "Neural Tangent Kernel", arXiv 1806.07572). How far
a given network is from that is what the kernel moves: the part of learning that no fixed kernel has.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sdsd_kernels import checks

from ..models import unwrap
from .derivatives import length_of, rows_of, undisturbed


def tangent_kernel(model: nn.Module, inputs: Any, *, output: int | None = None) -> Tensor:
    """K_ij = ∇f(x_i)·∇f(x_j) over the trainable parameters, where f is one output, or summed over all outputs.

    All gradients are kept at a time: samples × parameters in the model's dtype, output after output.

    Args:
        model: gives (samples, …) for `inputs`; nothing in it changes. BatchNorm has to be in eval mode.
        inputs: a batch: a tensor, or tensors in any nesting, passed to the model as one argument; a tuple as several.
        output: which of a sample's outputs, flattened; None sums the kernels of all.

    Returns:
        float64; shape: (samples, samples).

    Raises:
        ValueError: an output that there is not, answers that are no tensor of one a sample or are random (dropout),
            gradients that are not finite, BatchNorm in train mode, no parameter that trains, or a complex one.

    Example:
        >>> line = nn.Linear(1, 1)
        >>> tangent_kernel(line, torch.tensor([[1.0], [2.0]]))
        tensor([[2., 3.],
                [3., 5.]], dtype=torch.float64)
    """
    root = unwrap(model)
    samples = length_of(inputs, "inputs")
    with undisturbed(root):
        shape = _checked_answers(root, inputs, samples).shape
        count = math.prod(shape[1:])
        if output is not None:
            checks.check_integer(output, "output", least=0, most=count - 1)
        kernel = torch.zeros(samples, samples, dtype=torch.float64)
        for place in range(count) if output is None else (output,):

            def one(model: nn.Module, batch: Any, place: int = place) -> Tensor:
                return _answers(model, batch).flatten()[place]

            rows = rows_of(root, one, inputs, 1).double()
            kernel += (rows @ rows.mT).cpu()
    if not bool(kernel.isfinite().all()):
        raise ValueError("inputs: their gradients hold NaN or infinity, and so would the kernel.")
    return kernel


def _checked_answers(model: nn.Module, inputs: Any, samples: int) -> Tensor:
    with torch.no_grad():
        answers, again = _answers(model, inputs), _answers(model, inputs)
    if not isinstance(answers, Tensor) or not answers.ndim or len(answers) != samples:
        got = f"shape {tuple(answers.shape)}" if isinstance(answers, Tensor) else type(answers).__name__
        raise ValueError(
            f"model: expected a tensor with an answer for each of the {samples} samples, got {got}. Pass a module "
            "around it that returns one."
        )
    if not torch.allclose(
        answers, again, rtol=1e-4, atol=1e-6 * answers.abs().nan_to_num().max().item(), equal_nan=True
    ):
        raise ValueError(
            "model: its answers are random, other ones to the same inputs. Call model.eval() first (dropout): a kernel "
            "belongs to one network."
        )
    return answers


def _answers(model: nn.Module, inputs: Any) -> Tensor:
    answers: Tensor = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return answers


def kernel_change(before: Tensor, after: Tensor) -> float:
    """‖K' − K‖ / ‖K‖ of two tangent kernels on the same inputs (Frobenius norms): 0 where training is a kernel method.

    Args:
        before, after: tangent kernels of the same shape.

    Returns:
        A float, 0 or more.

    Raises:
        ValueError: kernels of different shape, or a first one of zeros.
    """
    if before.ndim != 2 or before.shape != after.shape:
        raise ValueError(f"after: expected shape {tuple(before.shape)}, got {tuple(after.shape)}.")
    size = before.double().norm().item()
    if not size > 0:
        raise ValueError("before: expected a kernel that is not zero; no parameter moves these outputs.")
    return (after.double() - before.double()).norm().item() / size
