"""Studies of "Symmetry-Driven Spatial Density" and "What Moves When Nothing Threatens": the theory's claims.

===========================  ========================================================================================
`orbit.py`                   H_G, the literal orbit count and V while a network learns digits
`copies.py`                  what copies of neurons do to V, and the loss along an orbit
`regulariser.py`             L_geom beside cross-entropy, and alone
`digits_network.py`          how the two above train
`quotient.py`                gradient, Γ and Γ of the quotient along an orbit
`orbit_experiment.py`        a trained network and random points of its orbit
`prediction.py`              which ratio foretells whether a step lowers the loss
`gamma_star_experiment.py`   expected and measured change of the loss along runs of SGD
`averaging.py`               how often the interval of a running average holds the present Γ
`phase.py`                   where the loss stops falling in bowls
`multiplicative.py`          noise in proportion to the state
`well.py`                    paths that leave a saturating well
`connectivity.py`            the loss on the line between two networks, before and after their neurons are matched
`conservation.py`            u·v = 1 under descent, noise and weight decay
`selection.py`               what V_sem selects
`rank.py`                    the 84% experiment
`sensing.py`                 matrix sensing
`learning_coefficient.py`    λ̂ with true and random labels, and along an orbit
`flatness.py`                the top Hessian eigenvalue along an orbit
`volume.py`                  volume of Boolean functions by formula size
`volume_sgd.py`              where training arrives, by volume
`boolean_experiment.py`      all functions of four bits, and networks that compute them
`basin.py`                   volume of basins from random rays
`occam.py`                   description length, and the bound √(K/N)
`least_norm.py`              which solution of an underdetermined problem an optimizer finds
`tangent_kernel.py`          how far training moves the tangent kernel
`goldstone.py`               variance along and across an orbit
`two_wells.py`               a wide and a narrow well
`kakeya.py`                  segments of all directions, and strips of neurons
===========================  ========================================================================================
"""

from . import (
    averaging,
    basin,
    connectivity,
    conservation,
    copies,
    flatness,
    goldstone,
    kakeya,
    learning_coefficient,
    least_norm,
    multiplicative,
    occam,
    orbit,
    phase,
    prediction,
    quotient,
    rank,
    regulariser,
    selection,
    sensing,
    tangent_kernel,
    two_wells,
    volume,
    volume_sgd,
    well,
)

STUDIES = (
    *orbit.STUDIES,
    *regulariser.STUDIES,
    *copies.STUDIES,
    *quotient.STUDIES,
    *prediction.STUDIES,
    *averaging.STUDIES,
    *phase.STUDIES,
    *multiplicative.STUDIES,
    *well.STUDIES,
    *conservation.STUDIES,
    *selection.STUDIES,
    *rank.STUDIES,
    *sensing.STUDIES,
    *connectivity.STUDIES,
    *learning_coefficient.STUDIES,
    *flatness.STUDIES,
    *volume.STUDIES,
    *volume_sgd.STUDIES,
    *basin.STUDIES,
    *occam.STUDIES,
    *least_norm.STUDIES,
    *tangent_kernel.STUDIES,
    *goldstone.STUDIES,
    *two_wells.STUDIES,
    *kakeya.STUDIES,
)
"""In the order of `sdsd study --list`."""

__all__ = ["STUDIES"]
