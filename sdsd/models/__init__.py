"""A user's model while it is looked at: how its forward is seen, and how it is left as it was.

=================  =================================================================================================
`attachment.py`    a subclass in the place of a module's class, which sees the forward pass
`names.py`         the user's model and parameters without what wrappers added
`restore.py`       evaluation mode, parameters and buffers, put back whatever happens
=================  =================================================================================================
"""

from .attachment import (
    attach,
    compiled_parts,
    compiling,
    intercepted,
    is_attached,
    is_skipped,
    paused,
    release,
    uncompiled,
)
from .names import clean, refuse_scripted, unwrap
from .restore import evaluating, restored, training_outside_torch, untouched

__all__ = [
    "attach",
    "clean",
    "compiled_parts",
    "compiling",
    "evaluating",
    "intercepted",
    "is_attached",
    "is_skipped",
    "paused",
    "refuse_scripted",
    "release",
    "restored",
    "training_outside_torch",
    "uncompiled",
    "untouched",
    "unwrap",
]
