"""Cosine similarity of the neurons of one layer with those of another. Start at README.md or op.py.

================  =======================================================================
`op.py`           `cosine_between`: checks, the operator, blocks of products in torch
`reference.py`    the definition in plain torch and float64; compared with, never served
================  =======================================================================
"""
