"""The SDSD theory as code: every claim of the framework that a program can compute, its correction where it fails."""

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
)

__all__ = [
    "GeometricFunctional",
    "RealizedVolume",
    "geometric_functional",
    "hidden_layers",
    "log_orbit_count",
    "log_volume",
    "orbit_entropy",
    "participation_ratio",
    "realized_volume",
    "simulate",
]
