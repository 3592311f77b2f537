"""Squared norms of the per-sample gradients of an embedding table.

================  =======================================================================
`op.py`           `lookup_squares_into`: checks, choice of backend, the operator
`launch.py`       one sort, and two launches that a plan has settled
`kernel.py`       squares of summed gradients in Triton
`cpu.py`          the same in torch, by slots of equal tokens
`aot.py`          what is compiled ahead of time, and what must show in the machine code
`reference.py`    the definition in plain torch and float64; compared with, never served
================  =======================================================================
"""
