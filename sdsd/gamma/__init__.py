"""Γ, the ratio of gradient signal to gradient noise: estimators, error bars, the first source document's procedure.

=================  ===================================================================================================
file or folder     what is inside
=================  ===================================================================================================
`estimators.py`    `gamma_stats`: the formulas, and where they come from
`stats.py`         `GammaStats`: estimates, intervals, phases
`sources.py`       the numbers behind one, on the device until they are read
`monitor/`         `GammaMonitor`: attaching, steps, ranks, averages, proofs
`following/`       which dimension of which tensor carries the samples
`uses/`            parameters measured at the operations that read them
`layers/`          the same module by module, for code that torch.compile traces
`precondition.py`  an optimizer's metric
`history.py`       `GammaHistory`: the measured steps as rows, a file that grows, a table, a picture
`rows.py`          such a row, and its line in a file
`plots.py`         those pictures
`recommend.py`     `recommend_batch`
`published.py`     `compute_gamma`
`averaging.py`     `averaging_lag`: whether a running average may be read as of now
=================  ===================================================================================================

One measured step, from door to door. Who reads these functions in this order has followed it; the rest are other
kinds of use, refusals and arguments::

    model(x)          monitor/session.Session.forward         a batch: an account, and a mode around the forward
                      uses/measuring.Measuring._any_call      each call of torch: samples, parameters, or both?
                      following/dispatch.follow               where are the samples now?
                      uses/measuring.Measuring._use           both: a rule measures it
                      uses/rules/linear.linear                such a rule
                      uses/use.watch                          a use, with a hook on the output
    loss.backward()   uses/use.Use.fire, uses/use.Use._deliver  its hook: gradients of the samples, in pieces
                      uses/operand.Operand.deliver            to the parameter, or back through what it was computed by
                      uses/ledger.Pass.receive                squared at once, or kept until all uses have come
    monitor.step()    monitor/monitor.GammaMonitor.step
                      monitor/meter.Meter.measure             settles, sums, proves, joins ranks
                      monitor/session.Session.batches         the passes that make a batch
                      monitor/sums.Sums.of_samples, monitor/sums.Sums.of_gradients  squares of samples and of .grad
                      monitor/proof.Prover.differences        .grad is what was measured
                      monitor/averages.statistics             → GammaStats
"""

from . import averaging as averaging
from . import history as history
from . import precondition as precondition
from .averaging import AveragingLag, averaging_lag
from .estimators import gamma_stats
from .history import GammaHistory
from .monitor import GammaMonitor
from .published import compute_gamma
from .recommend import BatchRecommendation, recommend_batch
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
