"""Which neurons do the same job: their similarity, from the activations of a layer."""

from .accumulator import GramAccumulator
from .neighbours import NeuronNeighbors, neuron_neighbors
from .pairs import NeuronPairs, cosine_histogram, disjoint_pairs, neuron_pairs, row_sums
from .sharded import sharded_cosine
from .similarity import cosine_between, neuron_cosine_matrix

__all__ = [
    "GramAccumulator",
    "NeuronNeighbors",
    "NeuronPairs",
    "cosine_between",
    "cosine_histogram",
    "disjoint_pairs",
    "neuron_cosine_matrix",
    "neuron_neighbors",
    "neuron_pairs",
    "row_sums",
    "sharded_cosine",
]
