"""Gradients of scales and shifts (norms, biases) with the squared norms of their per-sample gradients."""
