"""Sums of products of neurons, added to a Gram matrix in place. Start at README.md or op.py."""
