"""How similar neurons are, from activations that lie in one tensor.

=================  =================================================================================================
`similarity.py`    every pair of one layer, or of two
`neighbours.py`    the nearest or farthest of each neuron; which neurons are alive
`costs.py`         what merging two neurons does to their readers
`squares.py`       lengths, products and distances in float64, in any range
`approximate.py`   the nearest of each by approximate search, with its recall
`pairs.py`         pairs past a threshold, pairs that share no neuron, histograms, sums over all others
=================  =================================================================================================
"""

from .approximate import ApproximateNeighbors, approximate_neighbors
from .costs import merge_cost
from .neighbours import NeuronNeighbors, NeuronPair, alive_from_norms, neuron_neighbors
from .pairs import CosineHistogram, NeuronPairs, cosine_histogram, disjoint_pairs, neuron_pairs, row_sums
from .similarity import as_cosine, cosine_between, neuron_cosine_matrix

__all__ = [
    "ApproximateNeighbors",
    "CosineHistogram",
    "NeuronNeighbors",
    "NeuronPair",
    "NeuronPairs",
    "alive_from_norms",
    "approximate_neighbors",
    "as_cosine",
    "cosine_between",
    "cosine_histogram",
    "disjoint_pairs",
    "merge_cost",
    "neuron_cosine_matrix",
    "neuron_neighbors",
    "neuron_pairs",
    "row_sums",
]
