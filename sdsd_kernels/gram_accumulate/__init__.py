"""Sums of products of neurons, added to a Gram matrix in place. Start at README.md or op.py.

================  =========================================================================
`op.py`           `gram_accumulate`: checks, choice of backend, the operator and its fake
`cpu.py`          half the products by recursion, added in place
`reference.py`    the definition in plain torch and float64; compared with, never served
================  =========================================================================
"""
