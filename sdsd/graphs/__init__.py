"""A model while it runs: which entries of its parameters belong together, and what reads them.

The model is run on an example, and every operation that torch carries out is followed (`torch.utils._python_dispatch`):
below autograd there are few operations, whatever a model is made of and however its forward is written, so that one row
of the vocabulary serves modules, functions and libraries alike. One loop serves all who ask, each with a table of
rules: what can be cut (here, in eval mode and as in training), and what can be moved (`sdsd.theory`).

====================  ==============================================================================================
`operations.py`       the vocabulary: what torch's operations do to neurons, a row for those alike
`walk.py`             what is known of tensors, and one operation after the other, by the rule of its kind
`calls.py`            what a model is called with, and what it gives
`running.py`          running a model under a walk
`writes.py`           parameters that a forward writes into, put back
`chance.py`           random numbers by which a forward decides what it does, drawn from a seed and put back
`atoms.py`            entries of axes, those that go together (union-find), and what stands in the way
`values.py`           what is known of a tensor
`counts.py`           sizes as numbers that know what they count
`settings.py`         numbers in lists, tables and configurations that modules hold
`sizes.py`            where those go while a model runs
`cut.py`              the walk for what can be cut, and its table of rules
`pieces.py`           pieces of axes, and what has to hold of them
`rules_layout.py`     rules for what moves entries about: views, concatenations, pieces, lookups
`rules_values.py`     rules for elementwise operations, sums, norms
`rules_pictures.py`   rules for poolings, resizing, channels that become pixels
`rules_products.py`   rules for matrix products, convolutions, attention
`recorder.py`         all runs that say what can be cut
`recording.py`        what they said
`parts.py`            the units of a layer, and every tensor that has entries of theirs
`groups.py`           those that one recording speaks of
`look.py`             one recording a model, kept while the model is as it was
`examples.py`         what a model is run on, where there is no example too
`others.py`           inputs beside the example, for forwards that decide by what they are given
`attention.py`        `torch.nn.MultiheadAttention` that can have fewer heads
`vocabulary.py`       which attribute of a layer holds which size, a row a class
====================  ==============================================================================================
"""

from .atoms import IS_OUTPUT, MERGING, READING, REMOVAL, Atoms, Ids, Obstacle
from .attention import FewerHeads, can_have_fewer_heads
from .calls import as_arguments, outputs
from .chance import seeded
from .examples import first_line, likely_inputs, on_inputs
from .groups import Groups
from .look import look
from .operations import EACH, Step, adding_to, tensors
from .parts import BETWEEN, READER, TIED, WRITER, Attribute, Group, Norm, Part
from .recorder import listening
from .running import Plain, call_of, run
from .settings import with_number
from .vocabulary import (
    CONVOLUTIONS,
    DENSE,
    MAKE_PERMANENT,
    computed_tensors,
    fit_sizes,
    is_fitted,
    register_layer,
    row_dim,
    spatial_dims,
)
from .walk import Walk

__all__ = [
    "BETWEEN",
    "CONVOLUTIONS",
    "DENSE",
    "EACH",
    "IS_OUTPUT",
    "MAKE_PERMANENT",
    "MERGING",
    "READER",
    "READING",
    "REMOVAL",
    "TIED",
    "WRITER",
    "Atoms",
    "Attribute",
    "FewerHeads",
    "Group",
    "Groups",
    "Ids",
    "Norm",
    "Obstacle",
    "Part",
    "Plain",
    "Step",
    "Walk",
    "adding_to",
    "as_arguments",
    "call_of",
    "can_have_fewer_heads",
    "computed_tensors",
    "first_line",
    "fit_sizes",
    "is_fitted",
    "likely_inputs",
    "listening",
    "look",
    "on_inputs",
    "outputs",
    "register_layer",
    "row_dim",
    "run",
    "seeded",
    "spatial_dims",
    "tensors",
    "with_number",
]
