"""Parameters measured at the operation that reads them.

=================  =====================================================================================================
file               what is inside
=================  =====================================================================================================
`measuring.py`     the mode that sees every torch call of a forward pass: follows samples, hands uses to rules
`calls.py`         what sort a function of torch is of
`tensors.py`       the tensors that a call holds, or what a model is given
`checkpoints.py`   second runs of checkpointed functions
`rules/`           one rule an operation: what a sample's gradient is made of
`opaque.py`        compiled parts and transforms of torch.func, into which the mode cannot look
`plans.py`         uses that come again and look the same, made without being looked into
`use.py`           one use: the hook on its output, what it saves for the backward pass
`operand.py`       what a use reads: a parameter, or a tensor computed from parameters, and the way back to these
`pieces.py`        gradients of the samples in the form they come in; their squares and their projection
`combining.py`     squares of what several uses of one parameter add up to
`landed.py`        uses whose gradients and squares come out of one kernel
`convolutions.py`  squares of a convolution's weight gradients
`grouping.py`      gradients of chosen rows, added by the sample that they belong to
`ledger.py`        one forward pass: counts of uses, squares, projections
=================  =====================================================================================================

A rule, from the call that it takes the place of to the squares of the samples' gradients: rules/lookup.embedding,
use.watch, use.Use.fire, use.Use._deliver, operand.Operand.deliver, ledger.Pass.receive. A new rule is the first of
these and a line in `RULES` of `rules/`.
"""

from .combining import combine
from .convolutions import by_samples, products_win, squares_by_products
from .ledger import Pass, carrying, settle
from .measuring import Measuring
from .opaque import through_compiled
from .operand import ANNOUNCED, Leaf, Operand, executes
from .pieces import FEW, SAFE, chunks, lookup_squares, project, square_norm, sum_of_squares, wide
from .plans import Plan
from .tensors import deep_tensors
from .use import without_autocast

__all__ = [
    "ANNOUNCED",
    "FEW",
    "SAFE",
    "Leaf",
    "Measuring",
    "Operand",
    "Pass",
    "Plan",
    "by_samples",
    "carrying",
    "chunks",
    "combine",
    "deep_tensors",
    "executes",
    "lookup_squares",
    "products_win",
    "project",
    "settle",
    "square_norm",
    "squares_by_products",
    "sum_of_squares",
    "through_compiled",
    "wide",
    "without_autocast",
]
