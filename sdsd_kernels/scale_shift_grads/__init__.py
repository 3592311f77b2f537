"""Gradients of scales and shifts (norms, biases) with the squared norms of their per-sample gradients.

================  ==========================================================================
`op.py`           `scale_shift_grads`: checks, choice of backend, the operator and its fake
`launch.py`       one look-up from tensors to two launches
`reference.py`    the definition in plain torch and float64; compared with, never served
================  ==========================================================================

The kernels, and the same in torch, are in `../per_sample`: the sums.
"""
