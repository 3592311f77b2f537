"""Cosine similarity of every pair of neurons: half the products, symmetric bit for bit. Start at README.md or op.py."""
