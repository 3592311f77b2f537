"""A model's graph: where the neurons of a layer go, and what reads them.

==================  ================================================================================================
`neuron_flow.py`    the walk from a layer to its readers: what touches its neurons, what stands in the way
`size_uses.py`      numbers computed from a tensor's shape, which change when neurons are removed
==================  ================================================================================================
"""

from .neuron_flow import (
    CONVOLUTIONS,
    DENSE,
    IN_PLACE_OPERATORS,
    LAYER_SIZES,
    MAKE_PERMANENT,
    MERGING,
    NORM_SIZES,
    NORM_TENSORS,
    PER_NEURON_NAMES,
    READER_SIZES,
    READING,
    REMOVAL,
    Obstacle,
    Touched,
    computed_tensors,
    follow,
    neuron_count,
    row_dim,
    spatial_dims,
)

__all__ = [
    "CONVOLUTIONS",
    "DENSE",
    "IN_PLACE_OPERATORS",
    "LAYER_SIZES",
    "MAKE_PERMANENT",
    "MERGING",
    "NORM_SIZES",
    "NORM_TENSORS",
    "PER_NEURON_NAMES",
    "READER_SIZES",
    "READING",
    "REMOVAL",
    "Obstacle",
    "Touched",
    "computed_tensors",
    "follow",
    "neuron_count",
    "row_dim",
    "spatial_dims",
]
