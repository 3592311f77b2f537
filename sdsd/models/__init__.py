"""A user's model while it is looked at: how its forward is seen, and how it is left as it was.

=================  =================================================================================================
`attachment.py`    a subclass in the place of a module's class, which sees the forward pass
`copies.py`        copies of models that hold what they computed
`held.py`          what modules' attributes hold, put back
`memory.py`        tensors that lie in the memory of others
`names.py`         the user's model and parameters without what wrappers added
`restore.py`       evaluation mode, parameters and buffers, put back whatever happens
`usable.py`        what is no model whose layers can be watched and changed, or no loss, and what to pass instead
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
from .copies import copy_of
from .memory import entries_of, memory_of_others, place_of
from .names import clean, unwrap, unwrap_calls
from .restore import evaluating, plainly, restored, running, training_outside_torch, untouched, unwritten
from .usable import check_loss_function, check_model, check_module, quantised, refuse_scripted_parts

__all__ = [
    "attach",
    "check_loss_function",
    "check_model",
    "check_module",
    "clean",
    "compiled_parts",
    "compiling",
    "copy_of",
    "entries_of",
    "evaluating",
    "intercepted",
    "is_attached",
    "is_skipped",
    "memory_of_others",
    "paused",
    "place_of",
    "plainly",
    "quantised",
    "refuse_scripted_parts",
    "release",
    "restored",
    "running",
    "training_outside_torch",
    "uncompiled",
    "untouched",
    "unwrap",
    "unwrap_calls",
    "unwritten",
]
