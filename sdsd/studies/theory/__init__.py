"""Studies of "Symmetry-Driven Spatial Density" and "What Moves When Nothing Threatens": the theory's claims.

===========================  ========================================================================================
`functional.py`              orbit, regulariser: H_G, V and L_geom on digits
`quotient.py`                quotient, prediction: what is free of symmetries, what foretells a step
`orbit_experiment.py`        a trained network and random points of its orbit
`gamma_star_experiment.py`   expected and measured change of the loss along runs of SGD
`dynamics.py`                phase, multiplicative, well, conservation: paths of stochastic gradient flow
`selection.py`               selection, rank, sensing: V_sem, the 84% experiment, matrix sensing
===========================  ========================================================================================
"""

from . import dynamics, functional, quotient, selection

STUDIES = (*functional.STUDIES, *quotient.STUDIES, *dynamics.STUDIES, *selection.STUDIES)
"""In the order of `sdsd study --list`."""

__all__ = ["STUDIES"]
