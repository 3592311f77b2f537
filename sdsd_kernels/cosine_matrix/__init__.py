"""Cosine similarity of every pair of neurons: half the products, symmetric bit for bit. Start at README.md or op.py.

================  ==========================================================================
`op.py`           `cosine_matrix`: checks, choice of backend, the operator and its gradient
`cpu.py`          half the products by recursion, then scaled and mirrored in place
`reference.py`    the definition in plain torch and float64; compared with, never served
================  ==========================================================================
"""
