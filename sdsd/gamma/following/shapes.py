"""Functions that rearrange entries: views, permutations, repetitions, pieces, and joins."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .places import piece, rows_at, single_at
from .reshaping import reshaped
from .table import FUNCTIONAL, RULES, SECOND_ALLOWED, TORCH, Call, called, register, register_property
from .tracks import Part, Track, Verdict, track_of

cuts = itertools.count()
"""Every cut of a tensor along its samples has a number."""


def view(call: Call, input: Tensor, *args: Any, **kwargs: Any) -> Verdict:
    track = track_of(input)
    if not isinstance(track, Track):
        return track
    out = call.out
    if isinstance(args[0] if args else kwargs.get("dtype"), torch.dtype):
        return call.over(input) if track.axis == input.dim() - 1 and input.shape != out.shape else track
    return reshaped(track, input.shape, out.shape, call.n) or call.mixed(
        f"from shape {tuple(input.shape)} to {tuple(out.shape)}, which splits the samples along dimension {track.axis}"
    )


def permuted(track: Verdict, order: Sequence[int]) -> Verdict:
    if not isinstance(track, Track):
        return track
    return Track([d % len(order) for d in order].index(track.axis), track.outer, track.inner)


def permute(call: Call, input: Tensor, *dims: Any, **kwargs: Any) -> Verdict:
    given = kwargs.get("dims", dims[0] if len(dims) == 1 and not isinstance(dims[0], int) else dims)
    return permuted(track_of(input), given)


def transpose(call: Call, input: Tensor, dim0: int, dim1: int) -> Verdict:
    order = list(range(input.dim()))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return permuted(track_of(input), order)


def swapped(call: Call, input: Tensor, *args: int, **kwargs: int) -> Verdict:
    return transpose(call, input, *args, *kwargs.values())


def transposed(call: Call, input: Tensor, *_: Any) -> Verdict:
    """The last two dimensions change places."""
    return transpose(call, input, -2, -1) if input.dim() >= 2 else track_of(input)


def reversed_dimensions(call: Call, input: Tensor, *_: Any) -> Verdict:
    return permuted(track_of(input), list(range(input.dim()))[::-1])


def movedim(call: Call, input: Tensor, source: Any, destination: Any) -> Verdict:
    ndim = input.dim()
    given = [source] if isinstance(source, int) else list(source)
    to = [destination] if isinstance(destination, int) else list(destination)
    given, to = [d % ndim for d in given], [d % ndim for d in to]
    order: list[int] = [-1] * ndim
    for old, new in zip(given, to, strict=True):
        order[new] = old
    rest = iter(d for d in range(ndim) if d not in given)
    return permuted(track_of(input), [next(rest) if d == -1 else d for d in order])


def squeeze(call: Call, input: Tensor, dim: Any = None) -> Verdict:
    track = track_of(input)
    if not isinstance(track, Track):
        return track
    given = range(input.dim()) if dim is None else [dim] if isinstance(dim, int) else dim
    gone = {d % input.dim() for d in given if input.shape[d] == 1}
    if track.axis in gone:
        return call.mixed(f"away of the samples (dimension {track.axis} of shape {tuple(input.shape)})")
    return Track(track.axis - sum(d < track.axis for d in gone), track.outer, track.inner)


def inserted(track: Verdict, dim: int, ndim: int) -> Verdict:
    """The verdict after a new dimension `dim` made `ndim` of them."""
    if not isinstance(track, Track):
        return track
    return Track(track.axis + (dim % ndim <= track.axis), track.outer, track.inner)


def unsqueeze(call: Call, input: Tensor, dim: int) -> Verdict:
    return inserted(track_of(input), dim, call.out.dim())


def expand(call: Call, input: Tensor, *_: Any, **__: Any) -> Verdict:
    """Dimensions are aligned from the right; a sample dimension of one that grows fails the check of sizes."""
    track = track_of(input)
    if not isinstance(track, Track):
        return track
    return Track(track.axis + call.out.dim() - input.dim(), track.outer, track.inner)


def repeat(call: Call, input: Tensor, *_: Any, **__: Any) -> Verdict:
    """The whole tensor again and again: along the samples this adds to `outer`."""
    track = track_of(input)
    if not isinstance(track, Track):
        return track
    axis = track.axis + call.out.dim() - input.dim()
    times = call.out.shape[axis] // input.shape[track.axis] if input.shape[track.axis] else 1
    return Track(axis, track.outer * times, track.inner)


def repeat_interleave(call: Call, input: Tensor, repeats: Any = None, dim: int | None = None, **_: Any) -> Verdict:
    track = track_of(input)
    if repeats is None or (isinstance(repeats, Tensor) and track_of(repeats) is not None):
        return call.mixed("as often as samples say")
    if dim is None and isinstance(track, Track):
        track = reshaped(track, input.shape, (input.numel(),), call.n)
        dim, length = 0, input.numel()
    elif not isinstance(track, Track):
        return track
    else:
        assert dim is not None
        dim, length = dim % input.dim(), input.shape[dim]
    if track is None or track.axis != dim:
        return track
    if isinstance(repeats, Tensor) and repeats.numel() != 1:
        return call.mixed(f"by a list along the samples (dimension {dim} of shape {tuple(input.shape)})")
    return Track(dim, track.outer, track.inner * (call.out.shape[dim] // max(1, length)))


def pieces(call: Call, input: Tensor, dim: int) -> Any:
    """split, chunk, and the like: the output's sizes say where the cuts are."""
    track = track_of(input)
    if not isinstance(track, Track) or track.axis != dim % input.dim():
        return track
    verdicts: list[Verdict] = []
    start = 0
    for part in call.out:
        length = part.shape[track.axis]
        whole = piece(track, start, length, call.n)
        verdicts.append(whole or rows_at(input, range(start, start + length), track.axis, call.n))
        start += length
    return verdicts if all(verdicts) else parts(call, input, track, track.axis)


def parts(call: Call, input: Tensor, track: Track, axis: int) -> list[Part]:
    """The samples are cut: what each piece is, so that `together` knows them again."""
    key, count = next(cuts), len(call.out)
    return [Part(call.over(input).reason, key, k, count, track, axis) for k in range(count)]


def together(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> Track | None:
    """cat of all the pieces that a tensor was cut into along its samples, in their order."""
    name = called(func)
    tensors = args[0] if args else kwargs.get("tensors")
    if name not in ("cat", "concat", "concatenate") or not isinstance(tensors, (tuple, list)):
        return None
    tracks = [track_of(x) for x in tensors]
    head = tracks[0]
    if not isinstance(head, Part) or tracks != [head._replace(place=k) for k in range(head.pieces)]:
        return None
    dim = int(args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))) % out.dim()
    return head.whole if dim == head.axis else None


def split(call: Call, input: Tensor, size: Any = None, dim: int = 0, **_: Any) -> Any:
    return pieces(call, input, dim)


def hsplit(call: Call, input: Tensor, *_: Any, **__: Any) -> Any:
    return pieces(call, input, 0 if input.dim() == 1 else 1)


def narrow(call: Call, input: Tensor, dim: int, start: Any, length: int) -> Verdict:
    track = track_of(input)
    if isinstance(start, Tensor) and track_of(start) is not None:
        return call.mixed("at a position that depends on samples")
    if not isinstance(track, Track) or track.axis != dim % input.dim():
        return track
    at = int(start)
    at %= max(1, input.shape[dim])
    whole = piece(track, at, length, call.n) or rows_at(input, range(at, at + length), track.axis, call.n)
    return whole or call.over(input)


def select(call: Call, input: Tensor, dim: int, index: Any) -> Verdict:
    track = track_of(input)
    if isinstance(index, Tensor) and track_of(index) is not None:
        return call.mixed("at a position that depends on samples")
    if not isinstance(track, Track):
        return track
    dim %= input.dim()
    if track.axis == dim:
        return single_at(input, [int(index)], call.n) or call.over(input)
    return Track(track.axis - (dim < track.axis), track.outer, track.inner)


def unbind(call: Call, input: Tensor, dim: int = 0) -> Any:
    track = track_of(input)
    if isinstance(track, Track) and track.axis == dim % input.dim():
        return [single_at(input, [place], call.n) or call.over(input) for place in range(len(call.out))]
    return select(call, input, dim, 0)


def cat(call: Call, tensors: Sequence[Tensor], dim: int = 0, **_: Any) -> Verdict:
    joined = [x for x in tensors if not (x.dim() == 1 and x.numel() == 0)] or list(tensors)
    tracks = [track_of(x) for x in joined]
    dim %= joined[0].dim()
    here = [t for t in tracks if isinstance(t, Track) and t.axis == dim]
    if not here:
        return call.agreed(tracks)
    verdict = call.agreed(t and t._replace(outer=1) if isinstance(t, Track) else t for t in tracks)
    if not isinstance(verdict, Track):
        return verdict
    if len(here) < len(tracks):
        return call.mixed(f"of samples and constants along one dimension ({dim} of shape {tuple(call.out.shape)})")
    return Track(dim, sum(t.outer for t in here), verdict.inner)


def stack(call: Call, tensors: Sequence[Tensor], dim: int = 0, **_: Any) -> Verdict:
    verdict = call.agreed(track_of(x) for x in tensors)
    return inserted(verdict, dim, tensors[0].dim() + 1)


def rows(call: Call, tensors: Sequence[Tensor], **_: Any) -> Verdict:
    """column_stack: vectors are columns, matrices stay."""
    if min(x.dim() for x in tensors) == max(x.dim() for x in tensors) == 1:
        return stack(call, tensors, 1)
    return joined_rows(call, tensors)


def joined_rows(call: Call, tensors: Sequence[Tensor], **_: Any) -> Verdict:
    """hstack: along dimension 1, or 0 of vectors; vstack: along dimension 0 of matrices."""
    if max(x.dim() for x in tensors) < 2:
        return cat(call, tensors, 0) if call.func.__name__ == "hstack" else stack(call, tensors, 0)
    if min(x.dim() for x in tensors) < 2:
        return call.mixed("of vectors and matrices")
    return cat(call, tensors, 0 if call.func.__name__ in ("vstack", "row_stack") else 1)


def broadcast_tensors(call: Call, *tensors: Any) -> list[Verdict]:
    given = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], (tuple, list)) else tensors
    shifts = [out.dim() - x.dim() for x, out in zip(given, call.out, strict=True)]
    tracks = [track_of(x) for x in given]
    return [
        Track(t.axis + shift, t.outer, t.inner) if isinstance(t, Track) else t
        for t, shift in zip(tracks, shifts, strict=True)
    ]


def meshgrid(call: Call, *tensors: Any, **kwargs: Any) -> list[Verdict]:
    given = tensors[0] if len(tensors) == 1 and isinstance(tensors[0], (tuple, list)) else tensors
    order = list(range(len(given)))
    if kwargs.get("indexing", "ij") == "xy" and len(order) > 1:
        order[0], order[1] = 1, 0
    tracks = [track_of(x) for x in given]
    return [Track(order[k], *t[1:]) if isinstance(t, Track) else t for k, t in enumerate(tracks)]


def pad(call: Call, input: Tensor, pad: Sequence[int], *_: Any, **__: Any) -> Verdict:
    track = track_of(input)
    if isinstance(track, Track) and 2 * (input.dim() - track.axis) <= len(pad):
        place = 2 * (input.dim() - 1 - track.axis)
        if pad[place] or pad[place + 1]:
            return call.over(input)
    return track


def windows(call: Call, input: Tensor, dimension: int, *_: Any, **__: Any) -> Verdict:
    """Tensor.unfold: sliding windows along one dimension, their entries in a new last one."""
    track = track_of(input)
    if isinstance(track, Track) and track.axis == dimension % input.dim():
        return call.over(input)
    return track


def diagonal(call: Call, input: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1, **_: Any) -> Verdict:
    track = track_of(input)
    gone = {dim1 % input.dim(), dim2 % input.dim()}
    if not isinstance(track, Track):
        return track
    if track.axis in gone:
        return call.over(input)
    return Track(track.axis - sum(d < track.axis for d in gone), track.outer, track.inner)


def rotated(call: Call, input: Tensor, k: int = 1, dims: Sequence[int] = (0, 1)) -> Verdict:
    track = track_of(input)
    if isinstance(track, Track) and track.axis in {d % input.dim() for d in dims}:
        return call.over(input)
    return track


def last_dimensions(count: int) -> Any:
    """A rule for functions that rearrange or join the last `count` dimensions alone."""

    def rule(call: Call, input: Tensor, *_: Any, **__: Any) -> Verdict:
        track = track_of(input)
        if isinstance(track, Track) and track.axis >= input.dim() - count:
            return call.over(input)
        return track

    return rule


def diag_embed(call: Call, input: Tensor, offset: int = 0, dim1: int = -2, dim2: int = -1, **_: Any) -> Verdict:
    ndim = input.dim() + 1
    if (dim1 % ndim, dim2 % ndim) != (ndim - 2, ndim - 1):
        return call.mixed("into dimensions other than the last two")
    rule: Verdict = last_dimensions(1)(call, input)
    return rule


def view_as_complex(call: Call, input: Tensor) -> Verdict:
    return select(call, input, -1, 0)


SECOND_ALLOWED.update({cat: (None, None), stack: (None, None)})

register("view reshape flatten unflatten ravel _unsafe_view reshape_as view_as", view, TORCH)
register("permute", permute, TORCH)
register("transpose swapaxes swapdims", swapped, TORCH)
register("t adjoint", transposed, TORCH)
register("movedim moveaxis", movedim, TORCH)
register("squeeze", squeeze, TORCH)
del RULES[torch.Tensor.squeeze_]  # Which dimensions went cannot be seen afterwards.
register("unsqueeze", unsqueeze, TORCH)
register("expand expand_as broadcast_to", expand, TORCH)
register("repeat tile", repeat, TORCH)
register("repeat_interleave", repeat_interleave, TORCH)
register("split chunk tensor_split split_with_sizes unsafe_split unsafe_chunk unsafe_split_with_sizes", split, TORCH)
register("hsplit", hsplit, TORCH)
register("vsplit", lambda call, x, *_: pieces(call, x, 0), TORCH)
register("narrow narrow_copy", narrow, TORCH)
register("select", select, TORCH)
register("unbind", unbind, TORCH)
register("cat concat concatenate", cat, TORCH)
register("stack", stack, TORCH)
register("hstack vstack row_stack", joined_rows, TORCH)
register("column_stack", rows, TORCH)
register("broadcast_tensors", broadcast_tensors, TORCH)
register("meshgrid", meshgrid, TORCH)
register("pad constant_pad_nd", pad, (*TORCH, *FUNCTIONAL))
register("unfold", windows, TORCH[2:])
register("diagonal", diagonal, TORCH)
register("diag_embed", diag_embed, TORCH)
register("tril triu", lambda call, x, *_, **__: track_of(x), TORCH)
register("view_as_real", lambda call, x: track_of(x), TORCH)
register("view_as_complex", view_as_complex, TORCH)
register("pixel_shuffle pixel_unshuffle", last_dimensions(3))
register("rot90", rotated, TORCH)
register_property("T", reversed_dimensions)
register_property("mT mH", transposed)
register_property("H", transposed)
