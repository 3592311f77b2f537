"""Stochastic gradient flow, ds = −∇L dt + √(2D) dW, in potentials where what it does is known.

The document "Symmetry-Driven Spatial Density (SDSD) Framework" holds (§4) that learning converges where
Γ = ‖∇L‖² / Tr D > 1, dissolves where Γ < 1, and almost surely converges iff Γ > 1. By Itô's formula the loss changes by

    dE[L]/dt = E[−‖∇L‖² + Tr(D H)],    so it falls  ⇔  Γ_H = ‖∇L‖² / Tr(D H) > 1    (Tr(D H) > 0)

with the Hessian H, which the document leaves out. Here both ratios are computed beside what paths do.

================  ==================================================================================================
`problem.py`      `Case`: a potential and its noise; `Trajectory`, `Estimate`
`simulate.py`     `simulate`: Euler–Maruyama, all paths at once, float64, seeded
`ratios.py`       `local_terms`, `stationary_gamma`, `loss_sign_change`, `phase_diagram`: Γ_H beside Γ
`cases.py`        the named cases, `CASES`; `mean_square_factor`, `decay_rate` of multiplicative noise
`steps.py`        one step: gradients, Hessians, roots of the noise
================  ==================================================================================================
"""

from .cases import (
    CASES,
    decay_rate,
    hyperbola,
    imbalance,
    mean_square_factor,
    multiplicative_noise,
    ornstein_uhlenbeck,
    saturating_well,
)
from .problem import Case, Diffusion, Estimate, NoiseRoot, Potential, Trajectory
from .ratios import (
    LocalTerms,
    PhaseDiagram,
    SignChange,
    StationaryGamma,
    local_terms,
    loss_sign_change,
    path_mean,
    path_ratio,
    phase_diagram,
    stationary_gamma,
)
from .simulate import simulate

__all__ = [
    "CASES",
    "Case",
    "Diffusion",
    "Estimate",
    "LocalTerms",
    "NoiseRoot",
    "PhaseDiagram",
    "Potential",
    "SignChange",
    "StationaryGamma",
    "Trajectory",
    "decay_rate",
    "hyperbola",
    "imbalance",
    "local_terms",
    "loss_sign_change",
    "mean_square_factor",
    "multiplicative_noise",
    "ornstein_uhlenbeck",
    "path_mean",
    "path_ratio",
    "phase_diagram",
    "saturating_well",
    "simulate",
    "stationary_gamma",
]
