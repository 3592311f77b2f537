"""Gradients of scales and shifts (norms, biases) with the squared norms of their per-sample gradients.

================  ==========================================================================
`op.py`           `scale_shift_grads`: checks, choice of backend, the operator and its fake
`launch.py`       one look-up from tensors to two launches
`kernel.py`       gradients and their squares in Triton
`cpu.py`          the definition in float32 or better
`config.py`       launch configurations
`aot.py`          what is compiled ahead of time, and what must show in the machine code
`reference.py`    the definition in plain torch and float64; compared with, never served
================  ==========================================================================
"""
