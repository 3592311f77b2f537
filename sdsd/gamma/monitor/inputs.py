"""A model's inputs: how many samples they are, and where these lie."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

from ...models import compiling
from ..following import SIZES, Owners, Rows, Single, Track, Verdict, by_length
from ..layers import UnsupportedError
from ..uses import ANNOUNCED, deep_tensors

if TYPE_CHECKING:
    from .session import Session


Inputs = tuple[int, list[tuple[Tensor, Verdict]]]
"""What one forward pass was given: samples, and the inputs that carry them, the first one first."""


def read_inputs(args: tuple[Any, ...], kwargs: dict[str, Any], session: Session) -> Inputs | None:
    """The samples that `session.batch_dim` and `session.batch_size` announce; None without a tensor to read them from.

    Raises:
        UnsupportedError: no input with a sample axis, samples of different length in one tensor, or rows that are no
            whole number for each sample.
    """
    axis, given, exact = session.batch_dim, session.batch_size, session.exact
    if axis is None:
        return _listed([*args, *kwargs.values()], session)
    if len(args) == 1 and not kwargs and given is None and isinstance(args[0], Tensor):
        only = args[0]
        if only.ndim > axis and not only.is_nested:
            batch = only.shape[axis]
            return batch, [(only, session.along)] if batch else []
    plain = not kwargs and all(isinstance(x, Tensor) for x in args)
    leaves = args if plain else pytree.tree_leaves((args, kwargs), is_leaf=_is_packed)
    for each in leaves:
        if isinstance(each, PackedSequence) or (isinstance(each, Tensor) and each.is_nested):
            return _of_different_length(each, leaves, session)
    tensors = [x for x in leaves if isinstance(x, Tensor) and x.ndim > axis]
    if not tensors and not compiling():  # in an object of the user's, or of a library
        tensors = [x for x in deep_tensors([*args, *kwargs.values()]) if x.ndim > axis]
    if not tensors:
        if given is not None:
            return None
        what_to_do = (
            "the batch, or the noise that samples are made from, as tensors, or use mode='micro' with batch_size"
        )
        raise UnsupportedError(
            f"the model was called without a tensor that has a sample axis (dimension {axis}), to read the batch size "
            f"from. {f'Give it {what_to_do}.' if exact else 'Pass batch_size, the samples of a micro-batch.'}"
        )
    first = _first(tensors, axis, given)
    size, inner = first.shape[axis], 1
    if given is None:
        batch = size
    elif size > given and size % given == 0:
        batch, inner = given, size // given
    elif size > given and exact:
        raise UnsupportedError(
            f"the model's first input has {size} rows along dimension {axis}, no whole number for each of the "
            f"{given} samples that batch_size announces. Pass the right batch_size."
        )
    else:
        batch = min(size, given) if exact else given
    carry: list[tuple[Tensor, Verdict]] = [
        (x, Track(axis, 1, x.shape[axis] // batch))
        for x in tensors
        if batch and (x.shape[axis] == size or (inner > 1 and x.shape[axis] == batch))
    ]
    return batch, sorted(carry, key=lambda pair: pair[0] is not first)


def _first(tensors: list[Tensor], axis: int, given: int | None) -> Tensor:
    """The samples: the first tensor, but for a square matrix before them, a mask or a table of distances.

    Of their places, that is: they have a dimension of that size beside their own. Else the square matrix is the batch.

    Raises:
        UnsupportedError: a square matrix of numbers before another matrix may be either.
    """
    square = tensors[0]
    first = next((x for x in tensors if x.ndim != 2 or x.shape[0] != x.shape[1]), square)
    size, other = square.shape[0], first.shape[axis]
    places = size in first.shape[:axis] + first.shape[axis + 1 :]
    if not places or not (square.is_floating_point() or square.dtype == torch.bool):
        return square
    if size != other and square.dtype != torch.bool and first.ndim == 2 and first.is_floating_point():
        if given is None:
            raise UnsupportedError(
                f"the model was called with a matrix of shape {tuple(square.shape)} and one of {tuple(first.shape)}: "
                f"a batch of {size} and a table, or a mask and a batch of {other}. Pass batch_size."
            )
        return square if size % given == 0 else first
    return first


def _listed(values: list[Any], session: Session) -> Inputs:
    """Of a model that is called with a list of samples: all that its k-th element holds is of sample k.

    Other lists as long are taken in the same way, and tensors with as many rows.
    """
    first = next((each for each in values if type(each) in (list, tuple)), None)
    if first is None or compiling():
        where = "in code that is compiled; leave the model uncompiled" if first is not None else "and got none"
        raise UnsupportedError(
            f"batch_dim=None says that the model is called with a list of samples: expected a list or tuple, {where}. "
            "Pass batch_dim=0 where the samples are the rows of a tensor."
        )
    batch = len(first)
    if session.batch_size not in (None, batch):
        raise UnsupportedError(
            f"the model was given a list of {batch} samples, and batch_size announces {session.batch_size}. "
            "Pass the right batch_size, or none."
        )
    inputs: list[tuple[Tensor, Verdict]] = []
    owners: dict[int, int] = {}
    for value in values if session.exact else ():
        if type(value) in (list, tuple) and len(value) == batch:
            for sample, each in enumerate(value):
                for tensor in deep_tensors(each):
                    if owners.setdefault(id(tensor), sample) != sample:
                        raise UnsupportedError(
                            f"samples {owners[id(tensor)]} and {sample} of the list hold the same tensor, of shape "
                            f"{tuple(tensor.shape)}, and cannot be told apart. Give each a clone of its own."
                        )
                    inputs.append((tensor, Single(sample, batch)))
        elif isinstance(value, Tensor) and value.ndim and value.shape[0] == batch:
            inputs.append((value, Track(0)))
    return batch, inputs


def _packed(leaves: Any, sequences: int, given: int | None, axis: int) -> Inputs:
    """Of a model that is called with packed sequences: each is a sample, or `sequences` // `given` are one."""
    batch = sequences if given is None else given
    if sequences % batch:
        raise UnsupportedError(
            f"the model was given a PackedSequence of {sequences} sequences, no whole number for each of the {batch} "
            "samples that batch_size announces. Pass the right batch_size."
        )
    inner = sequences // batch
    orders: list[tuple[Tensor, Owners]] = []
    tracks: list[tuple[Tensor, Verdict]] = []
    for each in leaves:
        if isinstance(each, PackedSequence) and int(each.batch_sizes[0]) == sequences:
            where: Track | Owners = Track(0, 1, inner)
            places = torch.arange(sequences, device=each.data.device)
            if each.sorted_indices is not None:
                places = each.sorted_indices.to(places.device)
                same = [owners for order, owners in orders if torch.equal(order, places)]
                where = same[0] if same else Owners(places // inner, sequences, inner)
                where.places = places
                orders.append((places, where))
            tracks.append((each.data, Rows(Track(0), by_length(each.batch_sizes, places // inner, where))))
            tracks.append((each.batch_sizes, SIZES))
        elif isinstance(each, Tensor) and each.ndim > axis and each.shape[axis] == sequences:
            tracks.append((each, Track(axis, 1, inner)))
    return batch, sorted(tracks, key=lambda pair: type(pair[1]) is not Rows)


def _is_packed(value: Any) -> bool:
    return isinstance(value, PackedSequence)


def _of_different_length(first: Any, leaves: Any, session: Session) -> Inputs:
    """Of a model that is called with samples of different length in one tensor."""
    samples = int(first.batch_sizes[0]) if _is_packed(first) else first.size(0)
    if not session.exact:
        return samples, []
    if _is_packed(first) and not compiling():
        return _packed(leaves, samples, session.batch_size, session.batch_dim or 0)
    if _is_packed(first):
        what, how = "a PackedSequence, whose rows are of several sequences by turns", "pad_packed_sequence"
    else:
        what, how = "a nested tensor, whose samples have no dimension of their own", "torch.nested.to_padded_tensor"
    raise UnsupportedError(
        f"the batch is {what}, and they cannot be told apart. Give the model the padded tensor ({how}) and a mask of "
        "what is valid, or a list of samples (batch_dim=None), or use mode='micro'."
    )


def capturing() -> bool:
    """Whether what is launched now goes into a CUDA graph, and nothing is computed yet."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def hear(out: Any, hook: Callable[[Tensor], None]) -> None:
    """Call `hook` with the gradients of all tensors in what a model returned."""
    for tensor in (out,) if isinstance(out, Tensor) else deep_tensors(out):
        if tensor.grad_fn is not None:
            hooks: Any = tensor._backward_hooks
            if hooks is None:  # what Tensor.register_hook does
                tensor._backward_hooks = hooks = OrderedDict()
                tensor.grad_fn._register_hook_dict(tensor)  # type: ignore[attr-defined]
            hooks[ANNOUNCED] = hook
