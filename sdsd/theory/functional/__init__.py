"""The learning functional L_geom = H_G + λV: symmetry redundancy plus the volume that a layer's directions fill.

The document "Symmetry-Driven Spatial Density (SDSD) Framework" names the two terms and defines neither. Here a layer of
n neurons is n directions û_j, the unit rows of (incoming weights, bias), with a share p_j ∝ ‖(in_j, b_j)‖ ‖out_j‖ of
the layer's mass, Σ p_j = 1:

========================  ==============================================================================================
`orbit_entropy`           H_G: von Neumann entropy of M_ij = √(p_i p_j) cos_ij; smooth, in nats
`log_orbit_count`         H_G to the letter: log of the size of the permutation orbit, log(n! / ∏ n_c!) / n
`realized_volume`         V: share of the sphere that caps round û_j cover together, in caps, with its standard error
`log_volume`              ½ log det(I + d/(nε²) Û Ûᵀ): a smooth surrogate that orders like V, in nats a direction
`participation_ratio`     1 / Tr M²: how many directions the mass is spread over
`geometric_functional`    H_G + λ · (`log_volume`, the surrogate, or V) of a model; with the first, to add to a loss
========================  ==============================================================================================

p_j does not change when a ReLU neuron's incoming weights grow by c and its outgoing ones shrink by c, and neither does
û_j, so a network with one hidden layer needs no canonical form first. Deeper ones do: there the same c also stretches
one entry of every row of the next layer. Take `canonicalize` first where the number must not depend on it.

==================  ================================================================================================
`rows.py`           rows as directions and shares, checked once
`redundancy.py`     `orbit_entropy`, `log_orbit_count`, `participation_ratio`
`volume.py`         `realized_volume`, `telling_angle`, `cap_share`, `log_volume`
`layers.py`         `hidden_layers` of a model
`functional.py`     `geometric_functional`
==================  ================================================================================================
"""

from .functional import GeometricFunctional, geometric_functional
from .layers import NeuronLayer, hidden_layers
from .redundancy import log_orbit_count, orbit_entropy, participation_ratio
from .volume import RealizedVolume, cap_share, log_volume, realized_volume, telling_angle

__all__ = [
    "GeometricFunctional",
    "NeuronLayer",
    "RealizedVolume",
    "cap_share",
    "geometric_functional",
    "hidden_layers",
    "log_orbit_count",
    "log_volume",
    "orbit_entropy",
    "participation_ratio",
    "realized_volume",
    "telling_angle",
]
