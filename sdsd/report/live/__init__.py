"""A page of a run while it trains: the file of a `GammaHistory`, served on this machine and redrawn as it grows.

=============  ======================================================================================================
`file.py`      `HistoryFile`: a growing file read on from where it was left; half lines, other files
`run.py`       `LiveRun`: its rows as what the page shows, in memory that does not grow with them
`server.py`    `LiveServer`: the page and its data, to this machine alone
`page.py`      the page; `live.js` draws it
=============  ======================================================================================================
"""

from .run import LiveRun
from .server import LiveServer

__all__ = ["LiveRun", "LiveServer"]
