"""Which neurons do the same job: their similarity, and what becomes of a network when they are merged.

==================  ================================================================================================
`cosines/`          similarity of the neurons in one tensor: matrix, neighbours, pairs, histogram, sums
`gram/`             the same when activations come in batches, or lie on several machines
`collect/`          what the neurons of a model answer
`map/`              neurons as points in space, in clusters
`comparing/`        two layers, or two networks, held beside each other
`merging/`          who reads a neuron, and networks with fewer of them
`arrays.py`         activations as calls take them, checked once
`arithmetic.py`     what long sums share
==================  ================================================================================================
"""

from ..graphs import FewerHeads, register_layer
from ..models import evaluating
from .collect import LayerActivations, collect_activations
from .comparing import LayerComparison, LossBarrier, NeuronMatching, Similarity, loss_barrier
from .cosines import (
    ApproximateNeighbors,
    CosineHistogram,
    NeuronNeighbors,
    NeuronPairs,
    approximate_neighbors,
    cosine_between,
    cosine_histogram,
    disjoint_pairs,
    merge_cost,
    neuron_cosine_matrix,
    neuron_neighbors,
    neuron_pairs,
    row_sums,
)
from .gram import GramAccumulator, sharded_cosine
from .map import NeuronMap
from .merging import (
    COHORTS,
    Biopsy,
    ConfigFit,
    Consolidation,
    Consumers,
    How,
    LayerReport,
    MassConsolidation,
    Measurements,
    ModelConsolidation,
    Plasticity,
    RepeatedNorm,
    biopsy,
    consolidate,
    consolidate_experts,
    consolidate_model,
    consumers,
    cosine_to_untouched,
    expert_cosine,
    fingerprint,
    fit_config,
    group_activations,
    kl_to_untouched,
    mass_consolidation,
    mean_loss,
    merge,
    merge_experts,
    outgoing_weights,
    plasticity,
    remove_experts,
    remove_neurons,
    sgd_training,
    shuffled_pixels,
    trained,
    untrained,
    weight_cosine,
)

__all__ = [
    "COHORTS",
    "ApproximateNeighbors",
    "Biopsy",
    "ConfigFit",
    "Consolidation",
    "Consumers",
    "CosineHistogram",
    "FewerHeads",
    "GramAccumulator",
    "How",
    "LayerActivations",
    "LayerComparison",
    "LayerReport",
    "LossBarrier",
    "MassConsolidation",
    "Measurements",
    "ModelConsolidation",
    "NeuronMap",
    "NeuronMatching",
    "NeuronNeighbors",
    "NeuronPairs",
    "Plasticity",
    "RepeatedNorm",
    "Similarity",
    "approximate_neighbors",
    "biopsy",
    "collect_activations",
    "consolidate",
    "consolidate_experts",
    "consolidate_model",
    "consumers",
    "cosine_between",
    "cosine_histogram",
    "cosine_to_untouched",
    "disjoint_pairs",
    "evaluating",
    "expert_cosine",
    "fingerprint",
    "fit_config",
    "group_activations",
    "kl_to_untouched",
    "loss_barrier",
    "mass_consolidation",
    "mean_loss",
    "merge",
    "merge_cost",
    "merge_experts",
    "neuron_cosine_matrix",
    "neuron_neighbors",
    "neuron_pairs",
    "outgoing_weights",
    "plasticity",
    "register_layer",
    "remove_experts",
    "remove_neurons",
    "row_sums",
    "sgd_training",
    "sharded_cosine",
    "shuffled_pixels",
    "trained",
    "untrained",
    "weight_cosine",
]
