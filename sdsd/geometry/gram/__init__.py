"""Sums of products of neurons: activations that come in batches, or lie on several machines.

==================  ================================================================================================
`accumulator.py`    `GramAccumulator`: batches summed, merged, saved
`sharded.py`        `sharded_cosine`: neurons spread over ranks
`ranks.py`          what calls over several ranks check
==================  ================================================================================================
"""

from .accumulator import GramAccumulator, samples_together
from .sharded import sharded_cosine

__all__ = ["GramAccumulator", "samples_together", "sharded_cosine"]
