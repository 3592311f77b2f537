"""What a model's neurons answer.

===================  ===============================================================================================
`activations.py`     `collect_activations`: layers by name or pattern, kept or summed
`nonlinearity.py`    from a layer's output to what its readers get
`padding.py`         which positions are padding, and no samples
===================  ===============================================================================================
"""

from .activations import MOST_BYTES, Forward, LayerActivations, ModelCall, collect_activations
from .padding import Mask, Padding

__all__ = [
    "MOST_BYTES",
    "Forward",
    "LayerActivations",
    "Mask",
    "ModelCall",
    "Padding",
    "collect_activations",
]
