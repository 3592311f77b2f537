"""Γ, the ratio of gradient signal to gradient noise: estimators, error bars, the seed's own procedure."""

from .seed import compute_gamma
from .stats import GammaStats, gamma_stats

__all__ = ["GammaStats", "compute_gamma", "gamma_stats"]
