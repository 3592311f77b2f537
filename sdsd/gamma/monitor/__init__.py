"""`GammaMonitor` and what it is made of.

====================  ==============================================================================================
`monitor.py`          `GammaMonitor`: what a training loop calls
`readings.py`         what it can be asked between two steps
`arguments.py`        what it may be given
`parameters.py`       which parameters are measured, and by what
`attaching.py`        watchers on the model's modules
`session.py`          forward and backward passes between two steps: what is a batch, what was cleared or given up
`origins.py`          which forward passes a backward pass came through
`inputs.py`           how many samples a forward pass was given, and where they lie
`leftovers.py`        gradients that a pass inside `paused` left
`marks.py`            gradients as a pass or a step left them: cleared, or written to, since?
`arrivals.py`         how gradients came: by how many writes, in whose memory
`meter.py`            one step: summed, proved, joined over ranks
`sums.py`             squares of samples and of gradients
`micro.py`            the same where whole backward passes are the samples
`metric.py`           the optimizer's metric
`refusals.py`         gradients that are not, or not only, of the step's samples
`proof.py`            what arrived in .grad is what was measured
`ranks.py`            processes that share a step
`averages.py`         running averages over steps, with an error bar from their own spread
`results.py`          the last statistics, the averages, the history, and whom they are told
`check.py`            the monitor beside a loop over samples
====================  ==============================================================================================
"""

from .averages import RunningAverages, Step
from .monitor import GammaMonitor
from .session import Session

__all__ = ["GammaMonitor", "RunningAverages", "Session", "Step"]
