"""Sums of products of neurons: activations that come in batches, or lie on several machines.

==================  ================================================================================================
`accumulator.py`    `GramAccumulator`: batches summed, merged, saved
`layout.py`         what it keeps where, and how much is computed at a time
`sums.py`           the sums
`adding.py`         how batches and other sums are added to them
`collectives.py`    sums over several ranks
`results.py`        norms and whole matrices from sums
`checkpoints.py`    sums as tensors and plain values, and back
`sharded.py`        `sharded_cosine`: neurons spread over ranks
`shards.py`         what its ranks know of each other
`ring.py`           who computes what, and how neurons travel
`ranks.py`          what calls over several ranks check
==================  ================================================================================================
"""

from .accumulator import GramAccumulator
from .layout import samples_together, scratch_bytes, triangles_bytes
from .sharded import sharded_cosine

__all__ = ["GramAccumulator", "samples_together", "scratch_bytes", "sharded_cosine", "triangles_bytes"]
