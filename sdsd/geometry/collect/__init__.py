"""What a model's neurons answer.

======================  ============================================================================================
`activations.py`        `collect_activations`: layers by name or pattern, kept or summed
`layer_activations.py`  `LayerActivations`: what was collected of one layer
`selection.py`          which layers names and patterns stand for
`model_call.py`         a model called on batches as loaders give them
`collector.py`          values taken out of forward passes, a store a layer
`kept.py`               such a store: sums, or the values themselves
`nonlinearity.py`       from a layer's output to what its readers get
`mixtures.py`           whether a mean, a maximum or a pooling puts several neurons together
`choice.py`             which of the values on the way is taken
`function_names.py`     what functions of torch do to the values of neurons, by name
`padding.py`            which positions are padding, and no samples
`positions.py`          whether flattened rows have samples or positions first
======================  ============================================================================================
"""

from .activations import MOST_BYTES, collect_activations
from .layer_activations import LayerActivations
from .model_call import Forward, ModelCall, batches_of, caller, check_loader
from .padding import Mask, Padding

__all__ = [
    "MOST_BYTES",
    "Forward",
    "LayerActivations",
    "Mask",
    "ModelCall",
    "Padding",
    "batches_of",
    "caller",
    "check_loader",
    "collect_activations",
]
