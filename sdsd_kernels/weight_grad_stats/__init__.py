"""Weight gradient of a linear layer and the squared norms of its per-sample gradients, from one pass."""

from .op import WeightGradStats, weight_grad_stats

__all__ = ["WeightGradStats", "weight_grad_stats"]
