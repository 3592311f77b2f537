"""Cosine similarity of every pair of neurons: half the products, symmetric bit for bit.

README.md says what is in `op.py`, `cpu.py` and `reference.py`.
"""
