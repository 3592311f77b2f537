"""SDSD: is this gradient signal or noise, and which neurons do the same job?

==========================  ================================================================================
`gamma_stats`               Γ, the gradient noise scale and error bars from per-sample or batch gradients
`GammaMonitor`              the same for every parameter inside an ordinary training loop
`compute_gamma`             the same over batches of a data loader, as the seed document proposed it
`neuron_cosine_matrix`      cosine similarity of every pair of neurons, from their activations
`neuron_neighbors`          the k nearest or farthest neurons of each, without that matrix
`neuron_pairs`              all pairs of neurons past a threshold, without that matrix
`disjoint_pairs`            pairs that share no neuron, nearest, farthest or random: what a merge needs
`cosine_histogram`          how the cosines of all pairs of neurons are distributed
`row_sums`                  sums of cosines or distances to all other neurons: what filter pruning needs
`cosine_between`            cosine similarity of the neurons of two layers, or of two models
`GramAccumulator`           the cosine matrix when activations come in batches, or lie on several machines
`sharded_cosine`            the same when neurons are spread over several ranks
`validate`                  compare every backend on this machine with the definitions
==========================  ================================================================================
"""

from sdsd_kernels import validate

from .gamma import GammaMonitor, GammaStats, compute_gamma, gamma_stats
from .geometry import (
    GramAccumulator,
    cosine_between,
    cosine_histogram,
    disjoint_pairs,
    neuron_cosine_matrix,
    neuron_neighbors,
    neuron_pairs,
    row_sums,
    sharded_cosine,
)

__version__ = "0.1.0"

__all__ = [
    "GammaMonitor",
    "GammaStats",
    "GramAccumulator",
    "compute_gamma",
    "cosine_between",
    "cosine_histogram",
    "disjoint_pairs",
    "gamma_stats",
    "neuron_cosine_matrix",
    "neuron_neighbors",
    "neuron_pairs",
    "row_sums",
    "sharded_cosine",
    "validate",
]
