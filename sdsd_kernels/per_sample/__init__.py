"""The engine for gradients with the norms of the per-sample gradients: `weight_grad_stats` and `weight_grad_into` take
all of it, `scale_shift_grads` the sums. Start at ../weight_grad_stats/README.md and ../scale_shift_grads/README.md.

====================  ======================================================================================
`checks.py`           what linear layers and convolutions demand of arguments
`method.py`           which method serves a call
`convolution.py`      what the arguments of a convolution mean
`layout.py`           how tensors lie in memory, and what the copy engine can read of them
`launch.py`           one look-up from tensors to launches: gradient and squares in one product
`parts.py`            float16 parts of float32 tensors: their launches, and how they lie
`squares.py`          squares without the weight gradient
`kernel.py`           gradient and squares in one product, in Triton
`squares_kernel.py`   squares alone
`split_kernel.py`     float32 as float16 parts
`cpu.py`              the three methods in torch
`convolution_cpu.py`  convolutions in torch
`config.py`           launch configurations, and the choice among methods
`sums.py`             sums over positions, of norms and biases: their launches
`sums_kernel.py`      these in Triton
`sums_cpu.py`         these in torch, in float32 or better
`sums_config.py`      their launch configurations
`aot.py`              what is compiled ahead of time, and what must show in the machine code
`sums_aot.py`         the same of the sums
====================  ======================================================================================
"""
