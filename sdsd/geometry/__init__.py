"""Which neurons do the same job: their similarity, from the activations of a layer."""

from .similarity import neuron_cosine_matrix

__all__ = ["neuron_cosine_matrix"]
