"""Γ, the ratio of gradient signal to gradient noise: estimators, error bars, the seed's own procedure."""

from .monitor import GammaMonitor
from .recommend import BatchRecommendation, recommend_batch
from .seed import compute_gamma
from .stats import GammaStats, gamma_stats

__all__ = [
    "BatchRecommendation",
    "GammaMonitor",
    "GammaStats",
    "compute_gamma",
    "gamma_stats",
    "recommend_batch",
]
