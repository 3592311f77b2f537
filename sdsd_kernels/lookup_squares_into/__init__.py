"""Squared norms of the per-sample gradients of an embedding table."""
