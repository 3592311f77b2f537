"""What the model's own watcher asks of `traced` while torch.compile traces it; without torch.compile nothing happens.

`comptime` reads and sets the variables of the function that calls it: their names are what `traced` knows them by.
Dynamo is imported where it is at work already.
"""

from __future__ import annotations

from typing import Any


def may_trace(session: Any) -> bool:
    """Whether the model can be traced: its graph does not break, and could be followed before."""
    from .traced import choose, comptime

    traced = False
    comptime(choose)
    return traced


def begin_tracing(batch: Any, tracks: Any) -> None:
    """The model is called with `batch` samples, which lie in its inputs as `tracks` says."""
    from .traced import begin, comptime

    comptime(begin)


def what_is_untrue(session: Any, out: Any) -> str | None:
    """The model has returned `out`: what makes the numbers of its layers untrue, or None."""
    from .traced import comptime, finish

    reason = None
    comptime(finish)
    return reason


def give_up_tracing(session: Any, error: Exception) -> None:
    """Compiled code could not be followed: where it need not be one graph, run it as it is from now on."""
    from .traced import comptime, give_up

    comptime(give_up)
