"""Moments of an (N, P) matrix of gradients in one read: what Γ and its error bar are made of.

================  ========================================================================
`op.py`           `gamma_moments`: checks, choice of backend, the operator and its fake
`launch.py`       one matrix by its arguments, a list by a table of who has which columns
`kernel.py`       the passes in Triton
`cpu.py`          blocks that stay in cache, shared out among threads
`layout.py`       how gradients lie in memory, and how a row of results is laid out
`config.py`       launch configurations by dtype, N and device
`aot.py`          what is compiled ahead of time, and what must show in the machine code
`reference.py`    the definition in plain torch and float64; compared with, never served
================  ========================================================================
"""

from .op import GammaMoments, gamma_moments

__all__ = ["GammaMoments", "gamma_moments"]
