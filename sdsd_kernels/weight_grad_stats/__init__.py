"""Weight gradient of a linear layer or convolution and the squared norms of its per-sample gradients, from one pass."""

from .op import WeightGradStats, conv_weight_grad_stats, weight_grad_stats

__all__ = ["WeightGradStats", "conv_weight_grad_stats", "weight_grad_stats"]
