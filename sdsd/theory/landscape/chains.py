"""What several Markov chains say together: how well they agree, and how many independent draws they are worth."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def split_r_hat(draws: Tensor) -> float:
    """Gelman and Rubin's R̂ over the halves of each chain: 1 where chains agree and do not drift.

    √(((m−1)/m · W + B/m) / W) with the variance W within and m times the variance of means B between half-chains of m
    draws (Gelman et al., Bayesian Data Analysis, 3rd ed., 11.4). Infinity where a half does not move at all.

    Args:
        draws: shape: (chains, draws), at least 4 draws.
    """
    length = draws.shape[1] // 2
    halves = torch.cat((draws[:, :length], draws[:, -length:])).double()
    within = halves.var(1).mean().item()
    if not within > 0:
        return math.inf
    between = halves.mean(1).var().item()
    return math.sqrt((length - 1) / length + between / within)


def effective_draws(draws: Tensor) -> float:
    """Independent draws that would give the mean of all chains the same error: chains · length / τ.

    τ = 1 + 2 Σ ρ_t, the autocorrelations summed in pairs as long as the pairs are positive and fall (Geyer 1992),
    ρ_t with the variance between chains in its denominator (Gelman et al., 11.5). 0 where nothing moves.

    Args:
        draws: shape: (chains, draws), at least 4 draws.
    """
    chains, length = draws.shape
    centred = draws.double() - draws.double().mean(1, keepdim=True)
    spectrum = torch.fft.rfft(centred, n=2 * length)
    covariance = torch.fft.irfft(spectrum.abs().square(), n=2 * length)[:, :length].mean(0) / length
    within = covariance[0].item() * length / (length - 1)
    if not within > 0:
        return 0.0
    between = draws.double().mean(1).var().item() if chains > 1 else 0.0
    total = (length - 1) / length * within + between
    correlation = 1 - (within - covariance * length / (length - 1)) / total
    pairs = correlation[: length // 2 * 2].view(-1, 2).sum(1)
    falling = pairs.cummin(0).values
    positive = int((falling <= 0).nonzero()[0]) if bool((falling <= 0).any()) else len(falling)
    time = 2 * falling[:positive].sum().item() - 1
    return chains * length / max(time, 1.0)
