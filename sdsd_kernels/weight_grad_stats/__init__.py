"""Weight gradient of a linear layer or convolution and the squared norms of its per-sample gradients, from one pass.

================  ======================================================================================
`op.py`           `weight_grad_stats`, `conv_weight_grad_stats`: choice of backend, operators and fakes
`reference.py`    the definition in plain torch and float64; compared with, never served
================  ======================================================================================

What computes is in `../per_sample`.
"""

from .op import WeightGradStats, conv_weight_grad_stats, weight_grad_stats

__all__ = ["WeightGradStats", "conv_weight_grad_stats", "weight_grad_stats"]
