"""Potentials and noises in which what happens is known, and multiplicative noise exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdsd_kernels import checks

from .problem import Case, Diffusion, NoiseRoot
from .steps import isotropic, per_path

NOISES = ("none", "isotropic", "label")


@dataclass(frozen=True)
class Bowl:
    """L = k‖s‖²/2."""

    stiffness: Tensor

    def __call__(self, states: Tensor) -> Tensor:
        return self.stiffness * states.square().sum(1) / 2

    def gradient(self, states: Tensor) -> Tensor:
        return self.stiffness[..., None] * states


@dataclass(frozen=True)
class Well:
    """L = 1 − exp(−‖s‖²/2)."""

    def __call__(self, states: Tensor) -> Tensor:
        return 1 - torch.exp(-states.square().sum(1) / 2)

    def gradient(self, states: Tensor) -> Tensor:
        return states * torch.exp(-states.square().sum(1, keepdim=True) / 2)


@dataclass(frozen=True)
class Hyperbola:
    """L = (uv − 1)²/2 + λ(u² + v²)/2."""

    weight_decay: float

    def __call__(self, states: Tensor) -> Tensor:
        u, v = states.unbind(1)
        return (u * v - 1).square() / 2 + self.weight_decay * (u.square() + v.square()) / 2

    def gradient(self, states: Tensor) -> Tensor:
        residual = states[:, :1] * states[:, 1:] - 1
        return residual * states.flip(1) + self.weight_decay * states


def ornstein_uhlenbeck(stiffness: float | Tensor, diffusion: float | Tensor) -> Case:
    """A bowl, L = k‖s‖²/2, under isotropic noise. Γ_H = k‖s‖²/(D·dim); the document's Γ is k times that.

    Args:
        stiffness: k > 0; one number, or one a path for a whole diagram in one run.
        diffusion: D ≥ 0, likewise.
    """
    k, d = per_path(stiffness, "stiffness", 0.0), per_path(diffusion, "diffusion", -1.0)
    return Case(Bowl(k), isotropic(d))


def multiplicative_noise(stiffness: float, sigma: float) -> Case:
    """A bowl in one dimension with noise in proportion to the state: ds = −k s dt + σ s dW, D = σ²s²/2; Γ_H = 2k/σ²."""
    per_path(sigma, "sigma", -1.0)
    return Case(Bowl(per_path(stiffness, "stiffness", 0.0)), lambda s: NoiseRoot(sigma * s[:, :, None]))


def saturating_well(diffusion: float | Tensor) -> Case:
    """A well that ends: L = 1 − exp(−‖s‖²/2), isotropic noise, one D or one a path. Nothing pulls back who has left."""
    d = per_path(diffusion, "diffusion", -1.0)
    return Case(Well(), isotropic(d))


def hyperbola(
    noise: str = "none", strength: float = 0.0, *, weight_decay: float = 0.0, learning_rate: float = 0.0
) -> Case:
    """u·v = 1, the smallest model with a rescaling symmetry: L = (uv − 1)²/2 + λ(u² + v²)/2, states (u, v).

    Rescaling (u, v) → (cu, v/c) leaves the loss alone, so gradient flow conserves Q = u² − v² (`imbalance`).

    Args:
        noise: "none" | "isotropic" (D = `strength`·I) | "label" (the target 1 gets noise of standard deviation
            `strength` at every step of size `learning_rate`: D = (η/2) strength² (v, u)(v, u)ᵀ).
        weight_decay: λ ≥ 0.
        learning_rate: η, for "label" only.
    """
    checks.check_choice(noise, "noise", NOISES)
    per_path(strength, "strength", -1.0)
    per_path(weight_decay, "weight_decay", -1.0)
    if noise == "label" and not learning_rate > 0:
        raise ValueError(
            f"learning_rate: expected the step size (> 0) that label noise comes with, got {learning_rate}."
        )

    def label(s: Tensor) -> NoiseRoot:
        return NoiseRoot(math.sqrt(learning_rate) * strength * s.flip(1)[:, :, None])

    choices: dict[str, Diffusion] = {"none": 0.0, "isotropic": strength, "label": label}
    return Case(Hyperbola(weight_decay), choices[noise])


CASES: dict[str, Callable[..., Case]] = {
    "ornstein-uhlenbeck": ornstein_uhlenbeck,
    "multiplicative-noise": multiplicative_noise,
    "saturating-well": saturating_well,
    "hyperbola": hyperbola,
}


def imbalance(states: Tensor) -> Tensor:
    """Q = u² − v² of states (…, 2) of the hyperbola, which gradient flow conserves.

    Gradient descent multiplies it by ∏(1 − η²r²), r = uv − 1 − label noise; weight decay λ by (1 − ηλ)² − η²r² a step.
    """
    return states[..., 0].square() - states[..., 1].square()


def mean_square_factor(stiffness: float, sigma: float, step_size: float) -> float:
    """By what a step multiplies E[s²]: (1 − kη)² + σ²η, for s ← s(1 − kη + σ√η z). Exact.

    Above 1 the mean square grows, which is where Γ_H = 2k/σ² falls below 1/(1 − kη/2). A mean over sampled paths misses
    this: ever fewer of them carry the mean.
    """
    return (1 - stiffness * step_size) ** 2 + sigma**2 * step_size


def decay_rate(stiffness: float, sigma: float) -> float:
    """The rate at which almost every path decays: |s| ~ exp(−(k + σ²/2) t) (Itô). Positive on both sides of Γ_H = 1."""
    return stiffness + sigma**2 / 2
