"""How many bits a trained network takes to write down, and the bound on its error that follows.

A code fixed before the data gives every network it can write K bits; with probability 1 − δ over N samples, all of them
at once generalise within √((K ln 2 + ln 1/δ) / 2N) (Occam's bound: Hoeffding's inequality and the union bound with
weights 2^−K). The code here: parameters rounded to multiples of a step, and the integers of each tensor written by an
adaptive arithmetic code. Nothing about the data is in it, so K is a length that a decoder could do with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sdsd_kernels import checks

from ..derivatives import LossFunction, undisturbed
from .landscape import landscape_at

EXPONENTS = tuple(place / 4 for place in range(12, -81, -1))
"""Exponents e of the steps tried: 2^e root mean squares of a tensor, from coarse to fine."""


@dataclass(frozen=True)
class DescriptionLength:
    """A network rounded as far as its loss allows, and what that takes to write down.

    Attributes:
        bits: K, the length of the code.
        parameters: d.
        exponent: parameters are multiples of 2^exponent root mean squares of their tensor.
        loss: of the network as it was.
        rounded_loss: of the rounded one.
        model: the rounded network.
    """

    bits: float
    parameters: int
    exponent: float
    loss: float
    rounded_loss: float
    model: nn.Module = field(repr=False)

    def bound(self, samples: int, confidence: float = 0.95) -> float:
        """√((K ln 2 + ln 1/δ) / 2N) for an error between 0 and 1: by how much, at most, it is larger on all data than
        on N independent samples; vacuous from 1 on.

        Args:
            samples: N, at least 1.
            confidence: 1 − δ, between 0 and 1.

        Returns:
            A float, in units of the error.

        Raises:
            TypeError, ValueError: a number that is none, or out of range.
        """
        checks.check_count(samples, "samples")
        checks.check_number(confidence, "confidence", "a number between 0 and 1", above=0, below=1)
        return math.sqrt((self.bits * math.log(2) - math.log(1 - confidence)) / (2 * samples))

    def __str__(self) -> str:
        return (
            f"description length {self.bits:,.0f} bits, {self.bits / self.parameters:.3g} a parameter, in steps of "
            f"2^{self.exponent:g} root mean squares; loss {self.loss:.4g}, rounded {self.rounded_loss:.4g}"
        )


def description_length(
    model: nn.Module,
    data: Any,
    loss_fn: LossFunction,
    *,
    tolerance: float = 0.01,
    canonicalize: bool = True,
    softmax_head: bool = False,
    example_input: Any = None,
) -> DescriptionLength:
    """Round a network's trainable parameters as far as its loss allows, and count the bits that are left.

    Frozen parameters and buffers count as known to the reader. Where they come from the same data (running statistics
    of a BatchNorm, say), `bound` does not hold.

    Steps are 2^e times the root mean square of a tensor, one e for the network, the first from coarse to fine (3, 2¾, …
    −20) at which the loss is at most `tolerance` above what it was. The code holds e (8 bits), for each tensor its
    root mean square (32 bits) and largest integer m (Elias's γ code), and its integers by the adaptive code of
    Krichevsky and Trofimov over −m … m::

        log₂ Γ(n + A/2)/Γ(A/2) · ∏ Γ(½)/Γ(c + ½),    A = 2m + 1 symbols, c times each, n in all

    Args:
        model, data, loss_fn, canonicalize, softmax_head, example_input: as in `local_learning_coefficient`. `loss_fn`
            need not be differentiable: the share of errors makes K the bits of what the network answers.
        tolerance: ≥ 0, in units of the loss.

    Returns:
        `DescriptionLength`, with the rounded model.

    Raises:
        TypeError, ValueError: as `local_learning_coefficient`; a loss that no step keeps.

    Example:
        >>> class Point(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = nn.Parameter(torch.tensor([1.0, -1.0, 1.0, -1.0]))
        >>> found = description_length(
        ...     Point(), torch.zeros(1), lambda model, x: (model.w.abs() - 1).square().sum(), canonicalize=False
        ... )
        >>> found.exponent, found.model.w.tolist(), found.bits < 60
        (0.0, [1.0, -1.0, 1.0, -1.0], True)
    """
    checks.check_number(tolerance, "tolerance", "a number, 0 or more", least=0)
    landscape = landscape_at(model, loss_fn, data, canonicalize, softmax_head, example_input)
    tensors = [parameter.detach().clone() for parameter in landscape.model.parameters() if parameter.requires_grad]
    with undisturbed(landscape.model):
        loss = landscape.checked_loss()
        for exponent in EXPONENTS:
            coded = [_rounded(tensor, exponent) for tensor in tensors]
            rounded = torch.cat([(step * integers).flatten() for step, integers in coded])
            rounded_loss = landscape.loss(rounded)
            if rounded_loss <= loss + tolerance:
                break
        else:
            raise ValueError(
                f"tolerance: no step down to 2^{EXPONENTS[-1]:g} root mean squares keeps the loss within "
                f"{tolerance:g} of {loss:.6g}; take a larger one."
            )
    bits = 8.0 + sum(32 + code_length(integers.flatten()) for _, integers in coded)
    return DescriptionLength(bits, len(rounded), exponent, loss, rounded_loss, landscape.model)


def _rounded(tensor: Tensor, exponent: float) -> tuple[float, Tensor]:
    """The step (its root mean square as float32 has it) and the integers, float64."""
    size = tensor.double().square().mean().sqrt().float().item()
    step = 2.0**exponent * size
    return step, (tensor.double() / step).round() if step > 0 else torch.zeros_like(tensor, dtype=torch.float64)


def code_length(integers: Tensor) -> float:
    """Bits of whole numbers, shape (n,): their largest size m by Elias's γ code, then the adaptive code over −m … m."""
    largest = int(integers.abs().max())
    symbols = 2 * largest + 1
    counts = integers.unique(return_counts=True)[1].double()
    half = torch.tensor(0.5, dtype=torch.float64)
    nats = math.lgamma(len(integers) + symbols / 2) - math.lgamma(symbols / 2)
    nats -= (torch.lgamma(counts + half) - torch.lgamma(half)).sum().item()
    return nats / math.log(2) + 2 * math.floor(math.log2(largest + 1)) + 1
