"""Which neurons do the same job: their similarity, from the activations of a layer."""

from .accumulator import GramAccumulator
from .neighbours import NeuronNeighbors, neuron_neighbors
from .similarity import cosine_between, neuron_cosine_matrix

__all__ = ["GramAccumulator", "NeuronNeighbors", "cosine_between", "neuron_cosine_matrix", "neuron_neighbors"]
