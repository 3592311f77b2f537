"""Sums of products of neurons, added to a Gram matrix in place.

README.md says what is in `op.py` and `reference.py`.
"""
