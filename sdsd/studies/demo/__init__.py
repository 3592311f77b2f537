"""`sdsd demo`: train on real digits, watch signal and noise, map the neurons, merge near and far pairs.

=============  ======================================================================================================
`config.py`    `DemoConfig`, and what a run leaves
`run.py`       `run_demo`: what is computed, and results.json
`report.py`    its page, every sentence of which is computed
`noise.py`     of the page: signal and noise
`neurons.py`   of the page: the map
`merges.py`    of the page: what merging costs
=============  ======================================================================================================
"""

from .config import DemoConfig
from .report import summary_lines
from .run import run_demo

__all__ = ["DemoConfig", "run_demo", "summary_lines"]
