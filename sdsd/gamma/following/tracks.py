"""Where a tensor carries the samples: the kinds of answer, and the account in which a forward pass keeps them.

Nothing is kept on the tensors themselves, so nothing of it is copied, saved, or taken for true in the next pass: a
buffer or a hidden state that a model keeps is a constant again when another account is in use.

Torch lets several tensors share memory. Where an operation in place brings samples into memory that had none, or
mixes samples, the memory is remembered for the rest of the pass, and every other tensor in it counts as mixed.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


class Track(NamedTuple):
    """Dimension `axis` has size outer·N·inner; its index (o·N + n)·inner + i belongs to sample n."""

    axis: int
    outer: int = 1
    inner: int = 1


class Mixed(NamedTuple):
    """The tensor depends on samples that cannot be told apart any more; `reason` names the operation to blame."""

    reason: str


class Summed(NamedTuple):
    """The tensor is a sum over samples of something of each alone, as a loss is; `reason` says where it was summed."""

    reason: str


class Occurring(NamedTuple):
    """Positions at which something occurs in any sample, as those of the experts that some token was sent to.

    Looped over, each used as an index says what those samples meet that it occurs in, and brings nothing of one to
    another. `reason` says where they were found, `one` whether this is one of them on its turn.
    """

    reason: str
    one: bool = False


class Named(NamedTuple):
    """Read off constants or parameters at such a position: only rows chosen from the samples may meet it.

    Samples that it does not occur in would meet it for no other reason than the others of their batch.
    """

    reason: str


class Part(NamedTuple):
    """Piece `place` of `pieces` that a tensor with track `whole` was cut into along its samples, where values are not
    there to be read.

    `axis`: the dimension along which it was cut. `key`: the cut. All pieces put together again in their order are
    followed on.
    """

    reason: str
    key: int
    place: int
    pieces: int
    whole: Track
    axis: int


class Single(NamedTuple):
    """The tensor depends on one sample alone, whatever was done to it.

    sample: its number. size, outer, inner: of the dimension along which it was one of many; 0 where that is not known.
    axis: of constants that samples are written into, the dimension along which this one, the only one so far, was
    written at its own place; None of any other tensor. viewed: places of other samples were looked at.
    """

    sample: int
    size: int = 0
    outer: int = 1
    inner: int = 1
    axis: int | None = None
    viewed: bool = False

    def at(self, place: int) -> int:
        """The sample that a place along that dimension is of."""
        return place % self.size // self.inner % (self.size // (self.outer * self.inner))


class Owners:
    """The sample that each of some rows belongs to, which a mask or an index chose by what the samples hold.

    samples: (rows,), whole numbers. size, inner: of the dimension that the rows were chosen from, as in `Track`.
    order, places: (rows,), the numbers that the rows were sorted by, and where each came from, where all were sorted.
    batch: of rows of packed sequences, how the sequences lie that they were packed from.
    known: the samples as numbers, where rows at constant places were taken; see `places.py`.
    """

    __slots__ = ("batch", "inner", "known", "order", "places", "samples", "size")

    def __init__(self, samples: Tensor, size: int, inner: int, order: Tensor | None = None) -> None:
        self.samples, self.size, self.inner, self.order = samples, size, inner, order
        self.places: Tensor | None = None
        self.batch: Track | Owners | None = None
        self.known: tuple[int, ...] | None = None


class Rows(NamedTuple):
    """Rows that were chosen from the samples: where they lie, as the samples of a batch of rows would, and whose."""

    track: Track
    owners: Owners


Verdict: TypeAlias = "Track | Mixed | Summed | Occurring | Named | Part | Rows | Single | None"
"""Where the samples are; None for a tensor that does not depend on samples."""
Entry: TypeAlias = "tuple[weakref.ref[Tensor], Verdict, bool]"


class Tracks:
    """What one forward pass knows of its tensors."""

    __slots__ = ("by_second", "chosen", "held", "likes", "placed", "written")

    def __init__(self) -> None:
        self.held: dict[int, Entry] = {}
        self.chosen: dict[int, tuple[weakref.ref[Tensor], int, Owners]] = {}
        """Masks that rows were chosen by, and the version that they had."""
        self.placed: dict[tuple[int, ...], Owners] = {}
        self.written: dict[int, tuple[StorageWeakRef, Mixed | None]] = {}
        self.by_second: dict[int, tuple[StorageWeakRef, Mixed | None]] = {}
        """Those entries of `written` that further inputs of the model alone made."""
        self.likes: dict[int, tuple[weakref.ref[Tensor], Track]] = {}
        """Constants made in the likeness of samples, and of which: see constants.py."""


class Here(threading.local):
    """What is under way in this thread: models of several threads are followed side by side.

    now: the account that is read and written; held, written: its tables.
    asked: while a rule runs, the tensors it asked about.
    through: while a call on these rows is looked at, they are its samples.
    """

    def __init__(self) -> None:
        self.asked: set[int] | None = None
        self.through: Owners | None = None
        self.now = Tracks()
        self.use(self.now)

    def use(self, tracks: Tracks) -> Tracks:
        """Let `tracks` be the account that is read and written from now on; the one before it."""
        before, self.now = self.now, tracks
        self.held, self.written = tracks.held, tracks.written
        return before


here = Here()
use = here.use


@contextmanager
def using(tracks: Tracks) -> Iterator[Tracks]:
    """Inside, `tracks` is the account; what a rule of another one asks, and the rows in its view, wait."""
    before, asked, through = use(tracks), here.asked, here.through
    here.asked = here.through = None
    try:
        yield tracks
    finally:
        use(before)
        here.asked, here.through = asked, through


def _entry(tensor: Tensor) -> Entry | None:
    entry = here.held.get(id(tensor))
    return entry if entry is not None and entry[0]() is tensor else None


def track_of(tensor: Tensor) -> Verdict:
    """Where `tensor` carries the samples; None if it does not depend on them."""
    if here.asked is not None:
        here.asked.add(id(tensor))
    entry = here.held.get(id(tensor))
    verdict = entry[1] if entry is not None and entry[0]() is tensor else None
    if here.written and type(verdict) is not Mixed:
        verdict = _shared(tensor, verdict)
    return verdict if here.through is None else _as_batch(verdict)


def _as_batch(verdict: Verdict) -> Verdict:
    return verdict.track if type(verdict) is Rows and verdict.owners is here.through else verdict


@contextmanager
def batch_of(owners: Owners | None) -> Iterator[None]:
    """Inside, these rows are the samples: their verdict is a `Track`, and what carries them gets one of `Rows`."""
    before, here.through = here.through, owners
    try:
        yield
    finally:
        here.through = before


def rows_in_view() -> Owners | None:
    """The rows that are the samples of the call that is looked at now, or None."""
    return here.through


def owners_of_rows(rows: Tensor) -> Tensor:
    """The samples of these rows of the batch in view: the numbers themselves, unless it is one of chosen rows."""
    return rows if here.through is None else here.through.samples[rows]


def chosen_by(mask: Tensor, n: int) -> Owners | None:
    """Whose the rows are that a mask with samples chooses, by its values; None where these cannot be looked at."""
    held = here.now.chosen.get(id(mask))
    if held is not None and held[0]() is mask and held[1] == mask._version:
        return held[2]
    track = track_of(mask)
    if type(track) is not Track or (mask.is_cuda and torch.cuda.is_current_stream_capturing()):
        return None
    samples = owners_of_rows(mask.detach().nonzero()[:, track.axis].div(track.inner, rounding_mode="floor") % n)
    owners = Owners(samples, mask.shape[track.axis], track.inner)
    for _, _, other in here.now.chosen.values():  # the same choice, made again
        if (other.size, other.inner) == (owners.size, owners.inner) and torch.equal(other.samples, samples):
            owners = other
            break
    here.now.chosen[id(mask)] = (weakref.ref(mask), mask._version, owners)
    return owners


def set_track(tensor: Tensor, track: Verdict, second: bool = False) -> None:
    """State where `tensor` carries the samples, for this forward pass; None: it does not depend on them."""
    if here.through is not None and type(track) is Track:
        track = Rows(track, here.through)
    here.held[id(tensor)] = (weakref.ref(tensor), track, second)


def stated(tensor: Tensor) -> bool:
    """Whether anything was stated of `tensor`: what has a history and was not seen may depend on any sample."""
    return _entry(tensor) is not None


def about_to_write(tensor: Any) -> None:
    """To be called before an operation in place: what has no history yet is a constant that is written over.

    Afterwards its history would be that of the operation, and no telling whether it had one before.
    """
    if isinstance(tensor, Tensor) and tensor.grad_fn is None and _entry(tensor) is None:
        set_track(tensor, None)


def set_second(tensor: Tensor) -> None:
    """A further input of the model: if it does not lie as the samples do it is none of them, but a mask (T, T)."""
    set_track(tensor, track_of(tensor), True)


def is_second(tensor: Tensor) -> bool:
    """Whether `tensor` comes from the model's further inputs alone."""
    entry = _entry(tensor)
    return entry is not None and entry[2]


def take_over(out: Tensor, source: Tensor) -> None:
    """`out` carries samples as `source` does."""
    set_track(out, track_of(source), is_second(source))


def known(tensor: Tensor) -> Verdict:
    """As `track_of`, of an operand: one that has a history which no followed call wrote may depend on any sample."""
    entry = here.held.get(id(tensor))
    if entry is not None and entry[0]() is tensor:
        verdict = entry[1]
        if here.written and type(verdict) is not Mixed:
            verdict = _shared(tensor, verdict)
        return verdict if here.through is None else _as_batch(verdict)
    if tensor.grad_fn is not None:
        return Mixed(f"{tensor.grad_fn.name()}, a function whose inside PyTorch does not show")
    return _shared(tensor, None) if here.written else None


def newly_mixed(tensor: Tensor) -> bool:
    """Whether a mixed tensor became so out of sight: by a write through another tensor, or in an unseen function."""
    entry = _entry(tensor)
    return entry is None or type(entry[1]) is not Mixed


def memory_of(tensor: Tensor) -> int | None:
    """Which memory a tensor lies in; None where it has none."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # Sparse tensors have no storage.
        return None


def _shared(tensor: Tensor, verdict: Verdict) -> Verdict:
    """The verdict of a tensor that may lie in memory that was written to through another one."""
    held = here.written.get(key) if (key := memory_of(tensor)) is not None else None
    if held is None:
        return verdict
    if held[1] is not None:
        return held[1]
    return verdict or Mixed("memory that samples were written into through another tensor")


def set_written(tensor: Tensor, before: Verdict, after: Verdict) -> Mixed | None:
    """Record that `tensor` was written to in place: its verdict was `before`, and is now `after`.

    Returns why everything in this memory is mixed from here on, if it is.
    """
    if after is None and type(before) is Track:
        after = before  # Constants have any track, and views of this memory hold theirs.
    set_track(tensor, after, is_second(tensor))
    if after is None or (type(after) is type(before) and after == before):
        return after if type(after) is Mixed else None
    key = memory_of(tensor)
    if key is None:
        return after if type(after) is Mixed else None
    earlier = here.written.get(key)
    mixed = after if type(after) is Mixed else earlier[1] if earlier else None
    base = tensor._base
    if mixed is None and type(before) is Track:
        mixed = Mixed("samples written over samples that lie along another dimension")
    elif mixed is None and base is not None:
        track = _track_of_base(tensor, base, after) if before is None and type(after) is Track else None
        if track is None:
            mixed = Mixed("a write into a view whose samples cannot be found in the whole tensor")
        else:
            set_track(base, track)
    here.written[key] = (StorageWeakRef(tensor.untyped_storage()), mixed)
    return mixed


def note_written(tensor: Tensor) -> None:
    """From here on no tensor in the memory of `tensor` is a constant."""
    key = memory_of(tensor)
    if key is not None:
        earlier = here.written.get(key)
        here.written[key] = (StorageWeakRef(tensor.untyped_storage()), earlier[1] if earlier else None)


def _track_of_base(view: Tensor, base: Tensor, track: Track) -> Track | None:
    """The dimension of `base` that a view's sample dimension runs along; None if it is not one whole dimension."""
    if not base.is_contiguous():
        return None
    size, stride = view.shape[track.axis], view.stride(track.axis)
    fitting = [d for d in range(base.dim()) if base.stride(d) == stride and base.shape[d] == size]
    if size == 1:
        fitting = [d for d in fitting if d == track.axis] or fitting
    if len(fitting) != 1 or (size > 1 and not _runs_along(view, base, track.axis, fitting[0])):
        return None
    own = Track(fitting[0], track.outer, track.inner)
    entry = _entry(base)
    if entry is not None and entry[1] is not None and entry[1] != own:  # The samples have to lie as they did.
        return None
    return own


def _runs_along(view: Tensor, base: Tensor, axis: int, dimension: int) -> bool:
    """Whether an entry's index along `axis` of the view is its index along `dimension` of the contiguous base."""
    stride, size = base.stride(dimension), base.shape[dimension]
    start = view.storage_offset() - base.storage_offset()
    within = start % stride
    for k, (length, step) in enumerate(zip(view.shape, view.stride(), strict=True)):
        if k == axis or length == 1:
            continue
        if step < stride:
            within += step * (length - 1)
        elif step % (stride * size):
            return False
    return (start // stride) % size == 0 and within < stride


def tensors_in(value: Any) -> Iterable[Tensor]:
    """Every tensor in nested tuples, lists, and dictionaries."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
