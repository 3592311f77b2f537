"""What all runs of a model said of the entries of its parameters."""

from __future__ import annotations

from typing import NamedTuple

from .atoms import Atoms
from .calls import Call
from .cut import CutWalk
from .values import Value


class Recording(NamedTuple):
    """What the runs of one model said."""

    atoms: Atoms
    values: dict[str, Value]  # by the names of parameters and buffers
    walks: list[CutWalk]
    ran: set[str]  # modules that were called
    others: list[Call]  # what it was run on beside the example
    lists: list[list[str]]  # names of what stands beside each other in lists and dictionaries of modules and parameters
