"""The SDSD theory as code: every claim of the framework that a program can compute, its correction where it fails.

===================  ================================================================================================
`quotient/`          symmetries of a model, the canonical point, Γ there; two models' neurons one to one
`functional/`        H_G + λV: symmetry redundancy, and the volume that a layer's directions fill
`curvature/`         Γ_H and the critical Γ*: signal and noise with the Hessian kept
`landscape/`         how much room a minimum has: sharpness, basin, description length, learning coefficient
`dynamics/`          stochastic gradient flow in potentials where what it does is known
`derivatives.py`     gradients of samples, Hessian-vector products
`tangent_kernel.py`  the neural tangent kernel, and how far training moves it
`rank.py`            `factorise` and `sense`: whether gradient descent finds the lowest rank
`selection.py`       two toy models: what a second potential picks where the loss is flat
===================  ================================================================================================
"""

from . import rank as rank
from .curvature import CurvatureObserver, CurvatureStats, curvature_gamma
from .derivatives import gradient_rows
from .dynamics import simulate
from .functional import (
    GeometricFunctional,
    RealizedVolume,
    geometric_functional,
    hidden_layers,
    log_orbit_count,
    log_volume,
    orbit_entropy,
    participation_ratio,
    realized_volume,
    telling_angle,
)
from .landscape import (
    BasinVolume,
    DescriptionLength,
    LearningCoefficient,
    RefusedEstimateError,
    Sharpness,
    basin_volume,
    description_length,
    local_learning_coefficient,
    sharpness,
)
from .quotient import (
    ModelMatching,
    Symmetries,
    canonicalize,
    horizontal,
    match_neurons,
    quotient_gamma,
    random_representative,
    rescale,
    symmetries,
    vertical,
    vertical_fraction,
)
from .rank import factorise, sense
from .selection import select_on_hyperbola, select_on_line
from .tangent_kernel import kernel_change, tangent_kernel

__all__ = [
    "BasinVolume",
    "CurvatureObserver",
    "CurvatureStats",
    "DescriptionLength",
    "GeometricFunctional",
    "LearningCoefficient",
    "ModelMatching",
    "RealizedVolume",
    "RefusedEstimateError",
    "Sharpness",
    "Symmetries",
    "basin_volume",
    "canonicalize",
    "curvature_gamma",
    "description_length",
    "factorise",
    "geometric_functional",
    "gradient_rows",
    "hidden_layers",
    "horizontal",
    "kernel_change",
    "local_learning_coefficient",
    "log_orbit_count",
    "log_volume",
    "match_neurons",
    "orbit_entropy",
    "participation_ratio",
    "quotient_gamma",
    "random_representative",
    "realized_volume",
    "rescale",
    "select_on_hyperbola",
    "select_on_line",
    "sense",
    "sharpness",
    "simulate",
    "symmetries",
    "tangent_kernel",
    "telling_angle",
    "vertical",
    "vertical_fraction",
]
