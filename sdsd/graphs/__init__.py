"""A model while it runs: which entries of its parameters belong together, and what reads them.

The model is run once, on an example, in eval mode and as in training, and every operation that torch carries out is
followed (`torch.utils._python_dispatch`): below autograd there are few operations, whatever a model is made of and
however its forward is written, so that one row of the vocabulary serves modules, functions and libraries alike.

====================  ==============================================================================================
`atoms.py`            entries of axes, those that go together (union-find), and what stands in the way
`values.py`           what is known of a tensor
`counts.py`           sizes as numbers that know what they count
`sizes.py`            where those go while a model runs
`walk.py`             one operation after the other, and the table of rules
`rules_layout.py`     rules for what moves entries about: views, concatenations, pieces, lookups
`rules_values.py`     rules for elementwise operations, sums, norms; a new operation is one name in a row
`rules_pictures.py`   rules for poolings, resizing, channels that become pixels
`rules_products.py`   rules for matrix products, convolutions, attention
`recording.py`        running a model and noting all of this
`writes.py`           parameters that a forward writes into, put back
`groups.py`           the units of a layer, and every tensor that has entries of theirs
`look.py`             one recording a model, kept while the model is as it was
`attention.py`        `torch.nn.MultiheadAttention` that can have fewer heads
`vocabulary.py`       which attribute of a layer holds which size, a row a class; names of functions
====================  ==============================================================================================
"""

from .atoms import MERGING, READING, REMOVAL, Atoms, Ids, Obstacle
from .attention import FewerHeads, can_have_fewer_heads
from .groups import BETWEEN, READER, TIED, WRITER, Attribute, Group, Groups, Norm, Part
from .look import first_line, likely_inputs, look
from .recording import IS_OUTPUT, Plain, as_arguments, call_of, follow, listening, outputs
from .rules_pictures import spatial_names
from .vocabulary import (
    CONVOLUTIONS,
    DENSE,
    IN_PLACE_OPERATORS,
    MAKE_PERMANENT,
    PER_NEURON_NAMES,
    computed_tensors,
    fit_sizes,
    register_layer,
    row_dim,
    sizes_of,
    spatial_dims,
)
from .walk import Step, adding_to, tensors

__all__ = [
    "BETWEEN",
    "CONVOLUTIONS",
    "DENSE",
    "IN_PLACE_OPERATORS",
    "IS_OUTPUT",
    "MAKE_PERMANENT",
    "MERGING",
    "PER_NEURON_NAMES",
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
    "adding_to",
    "as_arguments",
    "call_of",
    "can_have_fewer_heads",
    "computed_tensors",
    "first_line",
    "fit_sizes",
    "follow",
    "likely_inputs",
    "listening",
    "look",
    "outputs",
    "register_layer",
    "row_dim",
    "sizes_of",
    "spatial_dims",
    "spatial_names",
    "tensors",
]
