"""Which dimension of a tensor carries the samples, followed from operation to operation.

A tensor is known by its `Track` (the dimension along which the samples lie), by `Summed` (a sum over samples, as a
loss is), by `Part` (some of the samples, on their way to be put together again), by `Mixed` (it depends on samples that
cannot be told apart any more), by `Rows` (rows that a mask or constant places chose, each of one sample), by `Single`
(one sample alone), by `Occurring` (the names of what any sample was sent to) and `Named` (what was read under such a
name), or by nothing: it depends on no sample.
`follow` takes what is known of a call's inputs to its outputs; it never decides by a size. What is known is kept in a
`Tracks`, one for each forward pass.

| module | what is inside |
|---|---|
| `tracks.py` | `Track` and its kin, the account they are kept in, writes into shared memory |
| `constants.py` | further inputs that turn out to be constants; constants in the likeness of samples |
| `arranging.py` | `arrange`: a tensor by sample |
| `table.py` | the table of rules, and what a rule is given |
| `elementwise.py` | entry by entry; conversions; outputs without samples |
| `reductions.py` | sums, extremes, softmax, sorting, norms of vectors, Fourier transforms |
| `reshaping.py` | where a reshape puts the samples |
| `shapes.py` | views, permutations, repetitions, pieces, joins |
| `indexing.py` | brackets, gather, scatter, read and written |
| `products.py` | matmul, einsum, linear, convolution, embedding, attention |
| `layers.py` | norms, pools, resampling, recurrent layers, losses |
| `sums.py` | what a sum over samples stays one under |
| `singles.py` | samples one by one: loops over them, and their way back |
| `rows.py` | rows chosen by a mask or an index, and their way back |
| `places.py` | of which samples places are; rows at constant ones: chunks, slices, permutations |
| `bags.py` | bags of embeddings, by offsets |
| `packed.py` | sequences of different length in one tensor, samples in another order |
| `occurring.py` | which experts some token was sent to |
| `independence.py` | a test on the spot for functions without a rule |
| `bodies.py` | `COMPOSITE` functions, whose inside is followed |
| `dispatch.py` | `follow` |

Rules of operations lean on `table.py` and `places.py`, and but for `layers.py` not on each other; those of what is
known (`rows.py`, `singles.py`, `packed.py`, `occurring.py`) ask which of them a call goes by; `dispatch.py` brings all
together.
"""

from typing import Any

import torch

from .arranging import arrange
from .bags import Bags, with_offsets
from .bodies import body, composite_functions
from .constants import as_constants, like_samples
from .dispatch import entrywise, follow, has_rule, layers_of
from .occurring import indexes
from .packed import SIZES, by_length, is_packed_call
from .places import samples_along
from .rows import sorted_offsets
from .table import RULES, called, in_place
from .tracks import (
    Mixed,
    Named,
    Occurring,
    Owners,
    Part,
    Rows,
    Single,
    Summed,
    Track,
    Tracks,
    Verdict,
    about_to_write,
    batch_of,
    here,
    is_second,
    rows_in_view,
    set_second,
    set_track,
    stated,
    take_over,
    track_of,
    use,
    using,
)

COMPOSITE = composite_functions()
"""Functions of torch, written in Python, that are followed through their own body."""
ENTRYWISE = frozenset(func for func, rule in RULES.items() if rule is RULES[torch.relu] and not in_place(func))
"""Functions whose output of the input's shape carries samples as the input does."""
WRITING = frozenset(func for func in RULES if in_place(func)) | {torch.Tensor.__setitem__}
"""Functions that write into their first argument."""
BY_VALUE = frozenset(func for func, rule in RULES.items() if rule.__module__.endswith(".indexing")) | frozenset(
    func for func in RULES if called(func) in ("nonzero", "argwhere", "repeat_interleave", "narrow", "select", "data")
)
"""Functions of which an argument's values may decide where their output carries samples."""
PROPERTIES = frozenset({"T", "mT", "H", "mH", "real", "imag", "data"})
"""Attributes that give a tensor with samples."""
name_of = called
SHAPE_ONLY = frozenset(["to", "type_as", "expand_as", "view_as", "reshape_as"]) | frozenset(
    called(func) for func, rule in RULES.items() if rule is RULES[torch.zeros_like] and called(func) != "normal"
)
"""Functions that take nothing but shape or type from tensors after the first (or from any), by name."""


def by_shape(func: Any) -> bool:
    """Whether shapes, tracks and plain arguments decide where the output of a call carries samples."""
    return func in RULES and func not in BY_VALUE


__all__ = [
    "COMPOSITE",
    "ENTRYWISE",
    "PROPERTIES",
    "SHAPE_ONLY",
    "SIZES",
    "WRITING",
    "Bags",
    "Mixed",
    "Named",
    "Occurring",
    "Owners",
    "Part",
    "Rows",
    "Single",
    "Summed",
    "Track",
    "Tracks",
    "Verdict",
    "about_to_write",
    "arrange",
    "as_constants",
    "batch_of",
    "body",
    "by_length",
    "by_shape",
    "entrywise",
    "follow",
    "has_rule",
    "here",
    "indexes",
    "is_packed_call",
    "is_second",
    "layers_of",
    "like_samples",
    "name_of",
    "rows_in_view",
    "samples_along",
    "set_second",
    "set_track",
    "sorted_offsets",
    "stated",
    "take_over",
    "track_of",
    "use",
    "using",
    "with_offsets",
]
