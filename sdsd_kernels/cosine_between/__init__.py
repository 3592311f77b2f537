"""Cosine similarity of the neurons of one layer with those of another.

README.md says what is in `op.py` and `reference.py`.
"""
