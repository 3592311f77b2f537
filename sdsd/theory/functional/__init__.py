"""The learning functional H_G + λV of a model, and its terms; `functional.py` says what each is."""

from .functional import (
    GeometricFunctional,
    RealizedVolume,
    cap_share,
    geometric_functional,
    hidden_layers,
    log_orbit_count,
    log_volume,
    orbit_entropy,
    participation_ratio,
    realized_volume,
    telling_angle,
)

__all__ = [
    "GeometricFunctional",
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
