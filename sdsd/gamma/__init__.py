"""Γ, the ratio of gradient signal to gradient noise: estimators, error bars, the first source document's procedure.

=================  ===================================================================================================
file or folder     what is inside
=================  ===================================================================================================
`estimators.py`    `gamma_stats`: the formulas, and where they come from
`stats.py`         `GammaStats`: estimates, intervals, phases
`sources.py`       the numbers behind one, on the device until they are read
`student.py`       Student's t
`monitor/`         `GammaMonitor`: attaching, steps, ranks, averages, proofs
`following/`       which dimension of which tensor carries the samples
`uses/`            parameters measured at the operations that read them
`layers/`          the same module by module, for code that torch.compile traces
`precondition.py`  an optimizer's metric
`history.py`       `GammaHistory`: the measured steps as rows, a file that grows, a table, a picture
`plots.py`         those pictures
`recommend.py`     `recommend_batch`
`averaging.py`     `averaging_lag`: whether a running average may be read as of now
`seed.py`          `compute_gamma`
=================  ===================================================================================================

One measured step, from door to door::

    model(x)         models/attachment.py → monitor/session.forward → uses.Measuring sees each torch call
                       following.follow: where are the samples now?
                       uses/rules: a call of samples and parameters → a Use, a hook on its output
    loss.backward()  Use.fire → a Piece (gradients of the samples in the form they come in)
                       Operand.deliver: to the parameter, or back through what it was computed by
                       Pass.receive: squared at once, or kept until all uses of the parameter have come
    monitor.step()   monitor/meter.measure: session.batches settles the accounts, sums squares them and .grad
                       proof: projections of .grad and of what was measured agree
                       → averages → GammaStats
"""

from .averaging import AveragingLag, averaging_lag
from .estimators import gamma_stats
from .history import GammaHistory
from .monitor import GammaMonitor
from .recommend import BatchRecommendation, recommend_batch
from .seed import compute_gamma
from .stats import GammaStats, Phase

__all__ = [
    "AveragingLag",
    "BatchRecommendation",
    "GammaHistory",
    "GammaMonitor",
    "GammaStats",
    "Phase",
    "averaging_lag",
    "compute_gamma",
    "gamma_stats",
    "recommend_batch",
]
