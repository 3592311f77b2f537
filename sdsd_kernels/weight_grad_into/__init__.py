"""The gradients of `weight_grad_stats`, with their square norms in a tensor of the caller's.

=============  ==================================================================================
`op.py`        `weight_grad_into`, `conv_weight_grad_into`: checks, choice of backend, operators
`launch.py`    one look-up to launches: the fastest method, squares into rows
=============  ==================================================================================

What computes is in `../per_sample`.
"""
