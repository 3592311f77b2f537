"""Γ, the ratio of gradient signal to gradient noise: estimators, error bars, the first source document's procedure.

===================  =================================================================================================
file or folder       what is inside
===================  =================================================================================================
`stats.py`           `gamma_stats`, `GammaStats`: estimates, intervals, phases
`averages.py`        running averages over steps, with an error bar from their own spread
`monitor.py`         `GammaMonitor`: attaching, steps, ranks, checkpoints
`session.py`         forward and backward passes between two steps: what is a batch, what was cleared or given up
`following/`         which dimension of which tensor carries the samples
`uses/`              parameters measured at the operations that read them
`layers/`            the same module by module, for code that torch.compile traces
`proof.py`           what arrived in .grad is what was measured
`check.py`           the monitor beside a loop over samples
`history.py`         `GammaHistory`: the measured steps as rows, a file that grows, a table, a picture
`plots.py`           those pictures
`seed.py`            `compute_gamma`
===================  =================================================================================================

One measured step, from door to door::

    model(x)         attachment.py → session.forward → uses.Measuring sees each torch call
                       following.follow: where are the samples now?
                       uses/rules: a call of samples and parameters → a Use, a hook on its output
    loss.backward()  Use.fire → a Piece (gradients of the samples in the form they come in)
                       Operand.deliver: to the parameter, or back through what it was computed by
                       Pass.receive: squared at once, or kept until all uses of the parameter have come
    monitor.step()   session.batches settles the accounts → squares, ‖.grad‖² → averages → GammaStats
                       proof: projections of .grad and of what was measured agree
"""

from .history import GammaHistory
from .monitor import GammaMonitor
from .recommend import BatchRecommendation, recommend_batch
from .seed import compute_gamma
from .stats import GammaStats, Phase, gamma_stats

__all__ = [
    "BatchRecommendation",
    "GammaHistory",
    "GammaMonitor",
    "GammaStats",
    "Phase",
    "compute_gamma",
    "gamma_stats",
    "recommend_batch",
]
