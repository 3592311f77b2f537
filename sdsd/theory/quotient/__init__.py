"""The quotient S/G: which moves of the parameters leave the function alone, and what is left without them.

==================  ================================================================================================
`symmetries.py`     `symmetries` of a model; `horizontal`, `vertical` parts of updates; `canonicalize`, `quotient_gamma`
`matching.py`       `match_neurons`: neurons of two layers, or of two models, one to one
`trace.py`          the walk over a model's graph
`graph_ops.py`      what a node of that graph is
`segments.py`       what the walk finds: which axes of which parameters run over the neurons of a layer
`groups.py`         the symmetries these give rise to, and how they act on a `Point`
`balance.py`        the point of least norm
`tangents.py`       the span of all tangents, and the projection onto it
==================  ================================================================================================
"""

from .matching import ModelMatching, match_neurons
from .segments import Slice
from .symmetries import (
    Symmetries,
    canonicalize,
    horizontal,
    quotient_gamma,
    random_representative,
    rescale,
    symmetries,
    vertical,
    vertical_fraction,
)

__all__ = [
    "ModelMatching",
    "Slice",
    "Symmetries",
    "canonicalize",
    "horizontal",
    "match_neurons",
    "quotient_gamma",
    "random_representative",
    "rescale",
    "symmetries",
    "vertical",
    "vertical_fraction",
]
