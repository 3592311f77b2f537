"""Two layers, or two networks, held beside each other.

==================  ================================================================================================
`comparison.py`     `LayerComparison`: CKA, Procrustes, RSA and cosines of two layers, from sums over batches
`layer_sums.py`     those sums
`matching.py`       which neuron of one layer is which of another
`barrier.py`        the loss along the straight line between two networks
==================  ================================================================================================
"""

from .barrier import LossBarrier, check_alike, loss_barrier
from .comparison import LayerComparison, Similarity
from .matching import MatchedPair, NeuronMatching, best_order, match_by_cosine

__all__ = [
    "LayerComparison",
    "LossBarrier",
    "MatchedPair",
    "NeuronMatching",
    "Similarity",
    "best_order",
    "check_alike",
    "loss_barrier",
    "match_by_cosine",
]
