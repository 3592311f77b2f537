"""Which neurons do the same job: their similarity, and what becomes of a network when they are merged."""

from ._measurements import Measurements, fingerprint
from ._restore import evaluating
from .accumulator import GramAccumulator
from .activations import LayerActivations, collect_activations
from .biopsy import COHORTS, Biopsy, MassConsolidation, biopsy, mass_consolidation
from .consolidate import Consolidation, consolidate, remove_neurons
from .consumers import Consumers, consumers
from .controls import shuffled_pixels, trained, untrained, weight_cosine
from .merge import How, merge
from .neighbours import NeuronNeighbors, neuron_neighbors
from .neuron_map import NeuronMap
from .pairs import NeuronPairs, cosine_histogram, disjoint_pairs, neuron_pairs, row_sums
from .plasticity import Plasticity, plasticity, sgd_training
from .sensitivity import cosine_to_untouched, kl_to_untouched, mean_loss
from .sharded import sharded_cosine
from .similarity import cosine_between, neuron_cosine_matrix

__all__ = [
    "COHORTS",
    "Biopsy",
    "Consolidation",
    "Consumers",
    "GramAccumulator",
    "How",
    "LayerActivations",
    "MassConsolidation",
    "Measurements",
    "NeuronMap",
    "NeuronNeighbors",
    "NeuronPairs",
    "Plasticity",
    "biopsy",
    "collect_activations",
    "consolidate",
    "consumers",
    "cosine_between",
    "cosine_histogram",
    "cosine_to_untouched",
    "disjoint_pairs",
    "evaluating",
    "fingerprint",
    "kl_to_untouched",
    "mass_consolidation",
    "mean_loss",
    "merge",
    "neuron_cosine_matrix",
    "neuron_neighbors",
    "neuron_pairs",
    "plasticity",
    "remove_neurons",
    "row_sums",
    "sgd_training",
    "sharded_cosine",
    "shuffled_pixels",
    "trained",
    "untrained",
    "weight_cosine",
]
