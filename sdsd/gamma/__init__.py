"""Γ, the ratio of gradient signal to gradient noise: estimators, error bars, the seed's own procedure."""

from .monitor import GammaMonitor
from .seed import compute_gamma
from .stats import GammaStats, gamma_stats

__all__ = ["GammaMonitor", "GammaStats", "compute_gamma", "gamma_stats"]
