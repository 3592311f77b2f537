"""Weight gradient of a linear layer or convolution and the squared norms of its per-sample gradients, from one pass.

===================  ======================================================================================
`op.py`              `weight_grad_stats`, `conv_weight_grad_stats`: choice of backend, operators and fakes
`checks.py`          what they and their like demand of arguments
`method.py`          which method serves a call
`geometry.py`        what the arguments of a convolution mean
`layout.py`          how tensors lie in memory, and what the copy engine can read of them
`launch.py`          one look-up from tensors to launches: gradient and squares in one product
`parts.py`           float16 parts of float32 tensors: their launches, and how they lie
`squares.py`         squares without the weight gradient
`kernel.py`          gradient and squares in one product, in Triton
`squares_kernel.py`  squares alone
`split_kernel.py`    float32 as float16 parts
`cpu.py`             the three methods in torch
`conv.py`            convolutions in torch
`config.py`          launch configurations, and the choice among methods
`aot.py`             what is compiled ahead of time, and what must show in the machine code
`reference.py`       the definition in plain torch and float64; compared with, never served
===================  ======================================================================================
"""

from .op import WeightGradStats, conv_weight_grad_stats, weight_grad_stats

__all__ = ["WeightGradStats", "conv_weight_grad_stats", "weight_grad_stats"]
