"""Studies of "Symmetry-Driven Spatial Density" and "What Moves When Nothing Threatens": the theory's claims.

===========================  ========================================================================================
`orbit.py`                   H_G, the literal orbit count and V while a network learns digits
`regulariser.py`             L_geom beside cross-entropy, and alone
`digits_network.py`          how the two above train
`quotient.py`                gradient, Γ and Γ of the quotient along an orbit
`orbit_experiment.py`        a trained network and random points of its orbit
`prediction.py`              which ratio foretells whether a step lowers the loss
`gamma_star_experiment.py`   expected and measured change of the loss along runs of SGD
`phase.py`                   where the loss stops falling in bowls
`multiplicative.py`          noise in proportion to the state
`well.py`                    paths that leave a saturating well
`connectivity.py`            the loss on the line between two networks, before and after their neurons are matched
`conservation.py`            u·v = 1 under descent, noise and weight decay
`selection.py`               what V_sem selects
`rank.py`                    the 84% experiment
`sensing.py`                 matrix sensing
===========================  ========================================================================================
"""

from . import (
    connectivity,
    conservation,
    multiplicative,
    orbit,
    phase,
    prediction,
    quotient,
    rank,
    regulariser,
    selection,
    sensing,
    well,
)

STUDIES = (
    *orbit.STUDIES,
    *regulariser.STUDIES,
    *quotient.STUDIES,
    *prediction.STUDIES,
    *phase.STUDIES,
    *multiplicative.STUDIES,
    *well.STUDIES,
    *conservation.STUDIES,
    *selection.STUDIES,
    *rank.STUDIES,
    *sensing.STUDIES,
    *connectivity.STUDIES,
)
"""In the order of `sdsd study --list`."""

__all__ = ["STUDIES"]
