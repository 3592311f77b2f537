"""Which neurons do the same job: their similarity, from the activations of a layer."""

from .accumulator import GramAccumulator
from .similarity import neuron_cosine_matrix

__all__ = ["GramAccumulator", "neuron_cosine_matrix"]
