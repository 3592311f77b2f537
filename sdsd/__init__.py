"""SDSD: is this gradient signal or noise, and which neurons do the same job?

==========================  ================================================================================
`gamma_stats`               Γ, the gradient noise scale and error bars from per-sample or batch gradients
`GammaMonitor`              the same for every parameter inside an ordinary training loop
`compute_gamma`             the same over batches of a data loader, as the seed document proposed it
`neuron_cosine_matrix`      cosine similarity of every pair of neurons, from their activations
`neuron_neighbors`          the k nearest or farthest neurons of each, without that matrix
`cosine_between`            cosine similarity of the neurons of two layers, or of two models
`GramAccumulator`           the cosine matrix when activations come in batches, or lie on several machines
`validate`                  compare every backend on this machine with the definitions
==========================  ================================================================================
"""

from sdsd_kernels import validate

from .gamma import GammaMonitor, GammaStats, compute_gamma, gamma_stats
from .geometry import GramAccumulator, cosine_between, neuron_cosine_matrix, neuron_neighbors

__version__ = "0.1.0"

__all__ = [
    "GammaMonitor",
    "GammaStats",
    "GramAccumulator",
    "compute_gamma",
    "cosine_between",
    "gamma_stats",
    "neuron_cosine_matrix",
    "neuron_neighbors",
    "validate",
]
