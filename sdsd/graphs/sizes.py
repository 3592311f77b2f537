"""What becomes of sizes that a model's forward asks for: where they go, and which numbers of modules they follow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .atoms import GIVEN, REMOVAL, Ids, Obstacle
from .counts import Count, Origin
from .cut import KEEP_SIZE, CutWalk
from .operations import tensors
from .pieces import Piece
from .settings import Change, changed, is_setting, snapshot
from .values import FREE, Length, words
from .vocabulary import CONVOLUTIONS, TRANSPOSED, sizes_of

TAKE_SIZES = words(
    """
    conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d
    view reshape expand repeat split split_with_sizes chunk narrow unflatten tensor_split zeros
    ones empty full rand randn new_zeros new_ones new_empty new_full flatten tile slice unsafe_chunk broadcast_to select
    index_select repeat_interleave
    """
)
"""Functions that take sizes for what they are; elsewhere a size is used as a number."""
FILLED = {"full": 1, "new_full": 2}
"""Those that take a number as well, and where."""
HAVE_NO_SIZE = {
    *("chunk", "expand_as", "matmul", "broadcast_tensors", "pad", "sparse_mm", "pad_sequence", "pad_packed_sequence")
}
"""Functions that expand or cut by what they are given, whatever its size."""
MADE = {"zeros", "ones", "empty", "full", "rand", "randn"}
ALIGNED = {"view", "reshape", "expand", "unflatten", *MADE, "new_zeros", "new_ones", "new_empty", "new_full"}
"""Those whose sizes are the result's; of MADE they are the first arguments."""
TAKE_GROUPS = {f"conv{kind}{axes}d" for kind in ("", "_transpose") for axes in (1, 2, 3)}
PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
INPUT_FIRST = {*ALIGNED, *TAKE_GROUPS, "numel", "narrow"}
"""What takes `input` first, or by that name."""
READ_OUT = {"numpy", "tolist", "array", "dlpack"}
"""What hands numbers to others than torch."""


class Sizes(TorchFunctionMode):
    """Hands sizes out as `Count`s, and sees where they go."""

    def __init__(self, walk: CutWalk) -> None:
        super().__init__()
        self.walk = walk

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if self.walk.looking:  # scripted code leaves this mode on while its operations are followed
            return func(*args, **named)
        name = getattr(func, "__name__", "")
        if not args and name in INPUT_FIRST and "input" in named:
            args, named = (named["input"],), {key: each for key, each in named.items() if key != "input"}
        if name == "__get__":
            if getattr(getattr(func, "__self__", None), "__name__", "") == "shape":
                return torch.Size(self._count(args[0], dim) for dim in range(args[0].ndim))
            return func(*args, **named)
        if name in ("size", "__len__", "numel", "nelement") and isinstance(args[0], Tensor):
            return self._size(func, name, args, named)
        plain = name.strip("_")
        if plain in READ_OUT:
            self.walk.use(args)
            self.walk.handed_out(args, plain)
            self.walk.decisions.by_values |= not all(self.walk.value(each).static for each in tensors(args))
        counts = [each for each in self._counts((*args, *named.values()), 3) if each.ids or each.origins]
        sized = [each for each in counts if each.ids]
        by_place = plain in ("getitem", "narrow", "slice")
        known = sized if by_place and not _bounds_are_counts(args[1:]) else counts
        takes = (
            plain in TAKE_SIZES
            or (plain == "getitem" and self._own(args[0], sized))
            or (plain == "group_norm" and self._one_group_each(args, named))
        )
        filling = (*args[FILLED[plain] :], named.get("fill_value")) if plain in FILLED else ()
        for each in self._counts(filling, 0) if takes else counts:
            self.walk.used(each, repr(plain))
        before, self.walk.sizes_written_in = (
            self.walk.sizes_written_in,
            not known and not _has_no_size(plain, args, named),
        )
        try:
            out = func(*args, **named)
        finally:
            self.walk.sizes_written_in = before
        if plain in TAKE_SIZES and "split" not in plain:
            self.walk.quotients += [each for count in counts for each in count.quotients]
        if plain in ALIGNED or (plain == "repeat" and known):
            self._align(plain, args, named, out)
        elif plain in ("split", "unsafe_split") and isinstance(out, (tuple, list)):
            self._link_pieces(args, named, out)
        elif plain in TAKE_GROUPS:
            self._link_groups(plain, args, named)
        elif plain == "repeat_interleave" and isinstance(out, Tensor):
            self._link_repeats(args, named, out)
        elif plain == "multi_head_attention_forward":
            self._refuse_heads(plain, args, named)
        elif by_place and known and isinstance(out, Tensor):
            self._link_place(args[0], known, out)
        return out

    def _counts(self, values: Any, depth: int) -> Iterator[Count]:
        for value in values:
            if self.walk.counts(value):
                yield value
            elif isinstance(value, slice):
                yield from self._counts((value.start, value.stop, value.step), depth)
            elif depth and isinstance(value, (tuple, list)):
                yield from self._counts(value, depth - 1)

    def _count(self, tensor: Tensor, dim: int) -> int:
        axis = self.walk.followed(tensor, dim)
        length = tensor.shape[dim]
        if isinstance(axis, np.ndarray):
            made = self._made(length, axis)
            made.given = self.walk.decisions if self.walk.atoms.has(axis, GIVEN) else None
            return made
        return length if self.walk.value(tensor).static else Count(length, self.walk.decisions)

    def _made(self, length: int, *ids: Ids, exact: bool = True) -> Count:
        return Count(length, self.walk, ids, exact=exact)

    def _size(self, func: Any, name: str, args: Any, named: Any) -> Any:
        tensor = args[0]
        dim = args[1] if len(args) > 1 else named.get("dim")
        if name == "size" and dim is None:
            return torch.Size(self._count(tensor, each) for each in range(tensor.ndim))
        if name == "size":
            return self._count(tensor, dim % tensor.ndim)
        if name == "__len__":  # Python hands it on as a plain number
            if isinstance(axis := self.walk.value(tensor).axes[0], np.ndarray):
                self.walk.used(self._made(len(tensor), axis), "'len'")
            elif not self.walk.value(tensor).static:
                self.walk.decisions.compared()
            return tensor.shape[0]
        ids = [axis for axis in self.walk.axes(tensor) if isinstance(axis, np.ndarray)]
        length = func(*args, **named)
        if ids:
            return self._made(length, *ids, exact=False)
        return length if self.walk.value(tensor).static else Count(length, self.walk.decisions)

    def _own(self, tensor: Any, counts: list[Count]) -> bool:
        """Whether the sizes are of the tensor that is sliced."""
        if not isinstance(tensor, Tensor):
            return False
        own = [axis for axis in self.walk.value(tensor).axes if isinstance(axis, np.ndarray)]
        return all(any(np.array_equal(ids, axis) for axis in own) for count in counts for ids in count.ids)

    def _one_group_each(self, args: Any, named: Any) -> bool:
        """Whether a norm takes its statistics over each neuron by itself, in as many groups as there are neurons."""
        axis = self.walk.followed(args[0], 1)
        groups = named.get("num_groups", args[1] if len(args) > 1 else 1)
        if int(groups) != args[0].shape[1] or not isinstance(axis, np.ndarray):
            return False
        self.walk.linked += [(origin, axis) for origin in getattr(groups, "origins", ())]
        if not self.walk.counts(groups):
            self.walk.mixed(axis, f"'group_norm' has the size {groups} written into it", REMOVAL, KEEP_SIZE)
        return True

    def _link_groups(self, name: str, args: Any, named: Any) -> None:
        """The number of groups of a convolution that takes every neuron by itself."""
        given, weight = args[0], args[1] if len(args) > 1 else named["weight"]
        groups = args[6] if len(args) > 6 else named.get("groups", 1)
        channels = given.ndim - weight.ndim + 1
        axis = self.walk.followed(given, channels)
        if int(groups) < 2 or not isinstance(axis, np.ndarray) or int(groups) != len(axis):
            return
        if self.walk.counts(groups):
            self.walk.linked += [(origin, axis) for origin in groups.origins]
        else:
            self.walk.mixed(axis, f"{name!r} has {groups} groups written into it", REMOVAL, KEEP_SIZE)

    def _refuse_heads(self, name: str, args: Any, named: Any) -> None:
        """Of the function behind `torch.nn.MultiheadAttention`, called with weights of a model's own."""
        reason = f"{name!r} takes the size of a head from the width and num_heads"
        advice = "Use torch.nn.MultiheadAttention itself, or merge without removal (remove=False)."
        for weight in tensors((*args[5:6], *(named.get(each) for each in PROJECTIONS))):
            self.walk.note(self.walk.value(weight).axes[0], reason, advice, REMOVAL, name)

    def _align(self, name: str, args: Any, named: Any, out: Any) -> None:
        made = name in MADE
        sizes = args if made else args[1:]
        sizes = sizes[:1] if name in FILLED else sizes
        first, axes = 0, out.ndim if isinstance(out, Tensor) else -1
        if name == "unflatten":
            dim = named.get("dim", sizes[0] if sizes else 0)
            sizes, first, axes = sizes[1:], int(dim) % args[0].ndim, axes - args[0].ndim + 1
        if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
            sizes = tuple(sizes[0])
        if not sizes:
            sizes = tuple(named.get("size", named.get("shape", named.get("sizes", named.get("unflattened_size", ())))))
        if len(sizes) != axes:
            return
        for dim, size in enumerate(sizes, first):
            axis = self.walk.value(out).axes[dim]
            if name == "repeat" and axis is not FREE:
                continue  # a number of times
            if self.walk.counts(size) and (made or axis is FREE) and size.exact:
                axis = self.walk.followed(out, dim)
            if axis is FREE and self.walk.counts(size) and size.origins and not size.ids:
                self.walk.value(out).written_in = True  # a number computed from a module's, which stays
            if not isinstance(axis, np.ndarray) or not isinstance(size, int) or int(size) < 2:
                continue
            if self.walk.counts(size):
                for origin in size.origins if size.exact else ():
                    self.walk.linked.append((origin, axis))
                self.walk.shares += [(*each, axis) for each in size.quotients]
                self._note_length(name, size, axis)
                if size.exact and size.ids and len(size.ids[0]) == len(axis):
                    reason = f"{name!r} gives them the size of other neurons"
                    obstacle = Obstacle(self.walk.where(name), reason, KEEP_SIZE, REMOVAL)
                    self.walk.pieces.same_size.append(Piece(size.ids[0], axis, obstacle))
            elif name != "expand":
                reason = f"{name!r} has the size {size} written into it"
                self.walk.atoms.fix(axis)
                self.walk.pieces.fixed.append((axis, Obstacle(self.walk.where(name), reason, KEEP_SIZE, REMOVAL)))

    def _note_length(self, name: str, size: Count, axis: Ids) -> None:
        """An axis is as long as another, or a share of it."""
        if size.share is None or (size.exact and len(size.ids[0]) == len(axis) and name != "split"):
            return  # of others of the same length it is known
        over = f", over {' and '.join(repr(name) for _, name in size.share[1])}" if size.share[1] else ""
        reason = f"{name!r} takes a length from the number of other neurons{over}"
        obstacle = Obstacle(self.walk.where(name), reason, KEEP_SIZE, REMOVAL)
        self.walk.lengths.append(Length(axis, *size.share, obstacle))

    def _link_repeats(self, args: Any, named: Any, out: Tensor) -> None:
        """How often what there is once is repeated."""
        given, times = args[0], args[1] if len(args) > 1 else named.get("repeats")
        dim = args[2] if len(args) > 2 else named.get("dim")
        axis = None if dim is None or given.shape[dim] != 1 else self.walk.value(out).axes[dim]
        if self.walk.counts(times) and times.exact and isinstance(axis, np.ndarray):
            self.walk.linked += [(origin, axis) for origin in times.origins]

    def _link_pieces(self, args: Any, named: Any, out: Any) -> None:
        size = args[1] if len(args) > 1 else named.get("split_size_or_sections", named.get("split_size"))
        sizes = size if isinstance(size, (tuple, list)) else [size] * len(out)
        dim = args[2] if len(args) > 2 else named.get("dim", 0)
        for each, piece in zip(sizes, out, strict=False):
            axis = self.walk.value(piece).axes[dim]
            if not self.walk.counts(each) or not isinstance(axis, np.ndarray):
                continue
            self._note_length("split", each, axis)
            if each.factors:
                self.walk.products.append((each.factors, axis, self.walk.where("split")))
            else:  # a share of a number grows and shrinks with it, and the number of shares stays
                shares = {divisor for _, divisor in each.quotients}
                self.walk.linked += [(origin, axis) for origin in each.origins if origin not in shares]

    def _link_place(self, whole: Any, counts: list[Count], out: Tensor) -> None:
        """Numbers that say where a piece begins or ends."""
        if not isinstance(whole, Tensor) or whole.ndim != out.ndim:
            return
        shorter = [k for k in range(out.ndim) if out.shape[k] != whole.shape[k]]
        axis = self.walk.value(out).axes[shorter[0]] if len(shorter) == 1 else None
        if isinstance(axis, np.ndarray):
            for each in counts:
                self.walk.placed += [(origin, axis) for origin in each.origins]


def _has_no_size(name: str, args: Any, named: Any) -> bool:
    """Whether a function cuts or expands by what it is given, or into a number of pieces."""
    if name == "tensor_split":
        return isinstance(args[1] if len(args) > 1 else named.get("sections"), int)
    return name in HAVE_NO_SIZE


def _bounds_are_counts(values: Any) -> bool:
    """Whether no place is written into a slice as a plain number."""
    for value in values:
        if isinstance(value, tuple) and not _bounds_are_counts(value):
            return False
        if isinstance(value, slice):
            bounds = [each for each in (value.start, value.stop) if each is not None]
            if value.step is not None or not all(_is_followed(each) or each == 0 for each in bounds):
                return False
    return True


def _is_followed(value: Any) -> bool:
    return isinstance(value, Count) and value.followed


class SettingWrittenError(Exception):
    """The forward writes into a configuration, which it may share with other modules."""


@contextmanager
def counting(model: nn.Module, walk: CutWalk, inside: bool = True) -> Iterator[None]:
    """Whole numbers that modules and their configurations hold become `Count`s meanwhile.

    Args:
        inside: those in lists, tables and configurations of modules' own, too, of which each module gets a copy.

    Raises:
        SettingWrittenError: such a copy was written into.
    """
    held: list[tuple[dict[str, Any], str, Any]] = []
    made: list[tuple[Any, Any]] = []
    try:
        for name, module in model.named_modules():
            store = vars(module)
            for attribute, value in list(store.items()):
                if type(value) is int:
                    counted: Any = _counted(module, name, attribute, value, walk)
                elif attribute == "config" and hasattr(value, "to_dict"):
                    counted = changed(value, _counting((name, attribute), walk), depth=1)
                elif inside and _holds_sizes(module) and is_setting(value):
                    counted = changed(value, _counting((name, attribute), walk))
                    made += [(each, snapshot(each)) for each in ([] if counted is value else [counted])]
                else:
                    counted = value
                if counted is not value:
                    held.append((store, attribute, value))
                    store[attribute] = counted
        yield
        if any(snapshot(each) != before for each, before in made):
            raise SettingWrittenError
    finally:
        for store, attribute, value in held:
            store[attribute] = value


def _counted(module: nn.Module, name: str, attribute: str, number: int, walk: CutWalk) -> int:
    ids = _ids_of(module, attribute, walk) if number > 1 else ()
    return Count(number, walk, ids, () if ids else ((name, attribute),)) if number > 1 else number


def _holds_sizes(module: nn.Module) -> bool:
    """Whether lists and tables of it may hold sizes of neurons; those of torch's layers are strides and the like."""
    return not type(module).__module__.startswith("torch.") or type(module) in (nn.Module, nn.Unflatten)


def _counting(place: Origin, walk: CutWalk) -> Change:
    name, attribute = place
    return lambda path, number: Count(number, walk, origins=((name, f"{attribute}.{path}"),)) if number > 1 else number


def _ids_of(module: nn.Module, attribute: str, walk: CutWalk) -> tuple[Ids, ...]:
    """The entries that a size of a layer counts."""
    row = sizes_of(module).get(attribute)
    if isinstance(module, CONVOLUTIONS) and attribute in ("in_channels", "out_channels"):
        row = ("weight", int((attribute == "in_channels") != isinstance(module, TRANSPOSED)))
    tensor = getattr(module, row[0], None) if row is not None else None
    if not isinstance(tensor, Tensor) and isinstance(getattr(module, "running_mean", None), Tensor):
        tensor = module.running_mean
    if row is None or not isinstance(tensor, Tensor) or id(tensor) not in walk.named:
        return ()
    axis = walk.named[id(tensor)].axes[row[1]]
    return (axis,) if isinstance(axis, np.ndarray) and len(axis) == vars(module)[attribute] else ()
