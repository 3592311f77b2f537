"""Phenomena of training that the framework is said to explain, one file each.

=======================  ============================================================================================
`grokking.py`            addition modulo a prime: memorised at once, understood long after
`neural_collapse.py`     trained on past zero error, a class becomes a point
`lottery_ticket.py`      a pruned network learns as fast as the whole, from its own start
`double_descent.py`      test error of random features peaks where they can just fit
`edge_of_stability.py`   full-batch descent sharpens until its steps are too long
`training.py`            what they share: training under a monitor, geometry along the way, curves over seeds
=======================  ============================================================================================
"""

from . import double_descent, edge_of_stability, grokking, lottery_ticket, neural_collapse

STUDIES = (
    *grokking.STUDIES,
    *neural_collapse.STUDIES,
    *lottery_ticket.STUDIES,
    *double_descent.STUDIES,
    *edge_of_stability.STUDIES,
)
"""In the order of `sdsd study --list`."""

__all__ = ["STUDIES"]
