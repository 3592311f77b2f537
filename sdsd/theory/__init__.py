"""The SDSD theory as code: every claim of the framework that a program can compute, its correction where it fails."""

from ._hessian import gradient_rows
from .basin import BasinVolume, basin_volume
from .curvature import CurvatureStats, curvature_gamma
from .curvature_observer import CurvatureObserver
from .description import DescriptionLength, description_length
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
from .learning_coefficient import LearningCoefficient, RefusedEstimateError, local_learning_coefficient
from .matching import ModelMatching, match_neurons
from .quotient import (
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
from .rank import factorise, sense
from .selection import select_on_hyperbola, select_on_line
from .sharpness import Sharpness, sharpness
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
