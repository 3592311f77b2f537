"""Any other operation that joins samples with parameters: the operation alone is run again, a sample at a time.

One torch function, not the module around it: it has no state and draws no random numbers, so running it again changes
nothing. All samples run in one batched call (vmap), or one after another where the operation cannot be batched.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ...following import Mixed, Track, follow, set_track, track_of
from ..operand import Operand, leaves_of, unexpanded_of
from ..pieces import Lazy, Piece
from ..use import autocast_dtype, watch
from .again import DRAWING, run_again
from .broadcasting import apart

if TYPE_CHECKING:
    from ..measuring import Measuring

MOST_CHOICES = 81
"""So many ways of having rows for samples are tried."""
_ROWS: WeakKeyDictionary[Any, dict[Any, Any]] = WeakKeyDictionary()
"""Which operands have rows for samples, by session and by what the call looks like."""


def any_operation(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
    """The rule of operations without one of their own."""
    name = getattr(func, "__name__", str(func))
    if func is Tensor.__setitem__:
        return _set_item(mode, func, args, kwargs, parameters)
    before, call = [t._version for t in parameters], mode.call
    values, structure = pytree.tree_flatten((args, kwargs))
    tracks = [track_of(value) if isinstance(value, Tensor) else None for value in values]
    out = mode.run(func, args, kwargs)
    # A further input that did not lie as the samples do is none of them.
    tracks = [
        None if track is not None and value is not out and track_of(value) is None else track
        for track, value in zip(tracks, values, strict=True)
    ]
    outputs = [t for t in (pytree.tree_leaves(out)) if isinstance(t, Tensor) and t.requires_grad]
    if not outputs:
        return out
    distinct = list({id(t): t for t in parameters}.values())
    why = None
    if any(each is value for each in outputs for value in values if isinstance(value, Tensor)):
        why = f"torch's {name} changes its input in place"
    elif name == "lstm_cell":
        why = "torch's fused lstm_cell gives two outputs, one of them computed from the other; use nn.LSTM"
    elif name.startswith(DRAWING) and not name.endswith("_cell"):
        why = f"torch's {name} cannot be run again a sample at a time"
    elif [t._version for t in parameters] != before:
        why = f"torch's {name} changes it in place"
    elif len(outputs) > 1 and any(track_of(each) != track_of(outputs[0]) for each in outputs):
        why = f"torch's {name} gives several outputs whose samples lie apart"
    if why is not None:
        mode.lost([Operand(t, leaves_of(t, mode.session)[0]) for t in distinct], Mixed(why))
        return out
    places = [[k for k, value in enumerate(values) if value is t] for t in distinct]
    sampled = [k for k, track in enumerate(tracks) if isinstance(track, Track)]
    bases = [unexpanded_of(t).detach() for t in distinct]
    lying: list[Any] = [tracks[k] for k in sampled]
    pieces = _Pieces(
        func, values, structure, places=places, bases=bases, sampled=sampled, tracks=lying, n=mode.ledger.n
    )
    known = _ROWS.setdefault(mode.session, {})
    for which, output in enumerate(outputs):
        track, key = track_of(output), None if call is None else (call, str(places), which)

        def measure(
            b: Tensor, *saved: Tensor, which: int = which, track: Any = track, key: Any = key
        ) -> Iterator[tuple[int, Piece]]:
            rows = known.get(key)
            if rows is None:
                rows = pieces.rows(saved, which, track)
                if key is not None:
                    known[key] = rows
            yield from pieces.of_operand(b, saved, which, track, rows)

        watch(mode, f"generic ({name})", output, distinct, (values[k] for k in sampled), measure, unexpanded=True)
    return out


class _Pieces:
    """Per-sample gradients of the operands of one operation.

    Operands and constants may be the same for all samples or have a row for each; which, `rows` finds out.
    """

    def __init__(
        self,
        func: Any,
        values: list[Any],
        structure: Any,
        *,
        places: list[list[int]],
        bases: list[Tensor],
        sampled: list[int],
        tracks: list[Track],
        n: int,
    ) -> None:
        self.func, self.structure, self.n = func, structure, n
        self.places, self.bases, self.sampled, self.tracks = places, bases, sampled, tracks
        self.shapes = [values[where[0]].shape for where in places]
        self.values = [value.detach() if isinstance(value, Tensor) else value for value in values]
        self.cast = bases[0].dtype if autocast_dtype(bases[0]) is not None else None
        read = {k for where in places for k in where}.union(sampled)
        self.constants = [k for k, value in enumerate(values) if isinstance(value, Tensor) and k not in read]
        for k in sampled:
            self.values[k] = None

    def of_operand(
        self, b: Tensor, saved: tuple[Tensor, ...], which: int, track: Track, rows: list[int | None]
    ) -> Iterator[tuple[int, Piece]]:
        inputs = [_samples_first(t, each, self.n) for t, each in zip(saved, self.tracks, strict=True)]
        cotangents = _samples_first(b, track, self.n)
        formed: dict[tuple[int, int], list[Tensor]] = {}

        def all_of(start: int, stop: int) -> list[Tensor]:
            if (start, stop) not in formed:
                formed.clear()
                parts = [t[start:stop] for t in inputs]
                formed[start, stop] = self._gradients(parts, cotangents[start:stop], which, rows, start)
            return formed[start, stop]

        size = 8 * (b[:1].numel() + sum(t.numel() for t in self.bases) + sum(t[:1].numel() for t in inputs))
        for index, tensor in enumerate(self.bases):

            def form(start: int, stop: int, index: int = index) -> Tensor:
                return all_of(start, stop)[index]

            yield index, Lazy(self.n, size + 8 * tensor.numel(), form)

    def rows(self, saved: tuple[Tensor, ...], which: int, track: Track) -> list[int | None]:
        """The dimension of each operand, then of each constant, along which it has a row for every sample, or None.

        Sizes do not say it: a matrix may have as many rows as there are samples. So the operation runs for all samples,
        and for the first and the last alone, with numbers that are alike nowhere; what they give has to be the same.
        """
        held = [self.values[k] for k in self.constants]
        share = self.tracks[0].outer * self.tracks[0].inner
        allowed: list[list[int | None]] = []
        for tensor, shape in zip((*self.bases, *held), (*self.shapes, *(t.shape for t in held)), strict=True):
            along = [d for d, size in enumerate(shape) if size == share * self.n != share]
            # What was expanded is most of all expanded to the samples.
            along.sort(key=lambda d: _axis_of(tensor, shape, d) is not None)
            first = sum(_axis_of(tensor, shape, d) is None for d in along)
            allowed.append([*along[:first], None, *along[first:]])
        if all(len(each) == 1 for each in allowed):
            return [None] * len(allowed)
        generator = torch.Generator(saved[0].device).manual_seed(0)
        own, constants, given = ([_disturbed(t, generator) for t in each] for each in (self.bases, held, saved))
        whole = self._run(own, constants, given, which, [None] * len(own))
        wanted = _samples_first(whole, track, self.n)
        inputs = [_samples_first(t, each, self.n) for t, each in zip(given, self.tracks, strict=True)]
        for rows in itertools.islice(itertools.product(*allowed), MOST_CHOICES):
            split = self._split(own, constants, rows)
            parts = [[whole if cut is None else cut[k] for whole, cut in split] for k in (0, self.n - 1)]
            try:
                results = [
                    self._run(part[: len(own)], part[len(own) :], [t[k] for t in inputs], which, rows)
                    for k, part in zip((0, self.n - 1), parts, strict=True)
                ]
            except Exception:  # the sizes do not fit
                continue
            if _alike(results[0], wanted[0]) and _alike(results[1], wanted[-1]):
                return list(rows)
        raise ValueError("run again for one sample, it gives something else")

    def _split(
        self, own: Sequence[Tensor], constants: Sequence[Tensor], rows: Sequence[int | None]
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Each operand and constant, and as (N, …) those that have a row for every sample."""
        shapes = [*self.shapes, *(t.shape for t in constants)]
        split: list[tuple[Tensor, Tensor | None]] = []
        for tensor, shape, d in zip((*own, *constants), shapes, rows, strict=True):
            axis = _axis_of(tensor, shape, d)
            cut = None if axis is None else _samples_first(tensor, self.tracks[0]._replace(axis=axis), self.n)
            split.append((tensor, cut))
        return split

    def _run(
        self,
        own: Sequence[Tensor],
        constants: Sequence[Tensor],
        inputs: Sequence[Tensor],
        which: int,
        rows: Sequence[int | None],
    ) -> Tensor:
        values = list(self.values)
        for where, tensor, shape, d in zip(self.places, own, self.shapes, rows, strict=False):
            sizes = list(shape)
            if d is not None:
                sizes[d] = self.tracks[0].outer * self.tracks[0].inner
            for k in where:
                values[k] = tensor.expand(sizes)
        for k, tensor in zip((*self.constants, *self.sampled), (*constants, *inputs), strict=True):
            values[k] = tensor
        leaves = pytree.tree_leaves(run_again(self.func, values, self.structure, self.cast))
        return [t for t in leaves if isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())][which]

    def _gradients(
        self, inputs: list[Tensor], cotangents: Tensor, which: int, rows: list[int | None], start: int
    ) -> list[Tensor]:
        """Gradients (n, *shape) of the operands."""
        split = self._split(self.bases, [self.values[k] for k in self.constants], rows)
        batched = [cut[start : start + len(cotangents)] for _, cut in split if cut is not None]
        count = len(self.bases)

        def gradient(cotangent: Tensor, *sample: Tensor) -> tuple[Tensor, ...]:
            mine = iter(sample)
            given = [whole if cut is None else next(mine) for whole, cut in split]
            rest = list(mine)
            with torch.enable_grad():
                out, pull = torch.func.vjp(
                    lambda *own: self._run(own, given[count:], rest, which, rows), *given[:count]
                )  # type: ignore[misc]
            return pull(cotangent.reshape(out.shape).to(out.dtype))

        try:
            gradients = list(torch.func.vmap(gradient)(cotangents, *batched, *inputs))
        except Exception:  # an operation that cannot be batched: one sample after another
            columns = []
            for k in range(len(cotangents)):
                mine = iter([t[k] for t in batched])
                given = [whole if cut is None else next(mine) for whole, cut in split]
                leaves = tuple(t.clone().requires_grad_() for t in given[:count])
                with torch.enable_grad():
                    out = self._run(leaves, given[count:], [t[k] for t in inputs], which, rows)
                    columns.append(torch.autograd.grad(out, leaves, cotangents[k].reshape(out.shape).to(out.dtype)))
            gradients = [torch.stack(column) for column in zip(*columns, strict=True)]
        for k, (base, shape, d) in enumerate(zip(self.bases, self.shapes, rows, strict=False)):
            axis = _axis_of(base, shape, d)
            if axis is not None:
                gradients[k] = self._placed(gradients[k], base, axis, start)
        return gradients

    def _placed(self, gradients: Tensor, tensor: Tensor, axis: int, start: int) -> Tensor:
        """Gradients of every sample's own rows as gradients of the whole operand, zero in the rows of others."""
        outer, inner = self.tracks[0][1:]
        split = tensor.unflatten(axis, (outer, self.n, inner))
        full = gradients.new_zeros(gradients.shape[0], *split.shape)
        for k, each in enumerate(gradients):
            full[k].select(axis + 1, start + k).copy_(each.unflatten(axis, (outer, inner)))
        return full.flatten(axis + 1, axis + 3)


def _axis_of(tensor: Tensor, shape: torch.Size, d: int | None) -> int | None:
    """Which dimension of `tensor`, which expands to `shape`, is that one's dimension `d`; None where it is expanded."""
    axis = -1 if d is None else d - (len(shape) - tensor.ndim)
    return None if d is None or axis < 0 or tensor.shape[axis] != shape[d] else axis


def _disturbed(x: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers near `x`, no two of them alike; what is no number, as it is."""
    if not (x.is_floating_point() or x.is_complex()):
        return x
    x = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    noise = torch.rand(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return x * (1 + 0.1 * noise) + 0.1 * noise


def _alike(a: Tensor, b: Tensor) -> bool:
    """To what rounding allows, TF32's too."""
    if a.numel() != b.numel():
        return False
    a, b = a.reshape(b.shape).nan_to_num(), b.nan_to_num()
    return bool((a - b).abs().max() <= 8 * torch.finfo(b.dtype).eps ** 0.5 * b.abs().max()) if b.numel() else True


def _samples_first(x: Tensor, track: Track, n: int) -> Tensor:
    """`x` as (N, …), every sample with the dimensions of `x`, its own share of the sample dimension."""
    split = x.detach().unflatten(track.axis, (track.outer, n, track.inner)).movedim(track.axis + 1, 0)
    return split.flatten(track.axis + 1, track.axis + 2)


def _set_item(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
    """x[index] = value, a value of parameters written into samples."""
    x, index, value = args
    if not isinstance(value, Tensor) or track_of(value) is not None or not isinstance(track_of(x), Track):
        out = mode.run(func, args, kwargs)
        mode.lost([Operand(t, leaves_of(t, mode.session)[0]) for t in parameters], Mixed("it is written into a tensor"))
        return out
    mode.run(func, args, kwargs)
    n = mode.ledger.n
    if isinstance(index, Tensor) and index.dtype == torch.bool and value.ndim <= x.ndim - index.ndim:
        track = track_of(x)
        chosen = index.detach().reshape(*index.shape, *[1] * (x.ndim - index.ndim))

        def masked(b: Tensor) -> Iterator[tuple[int, Piece]]:
            assert isinstance(track, Track)
            yield 0, apart(b.masked_fill(~chosen, 0.0), track, n, unexpanded_of(value).shape)

        watch(mode, "written into samples", x, [value], (), masked, unexpanded=True)
        return None
    shown = x.detach()[index]
    probe = x.detach()
    set_track(probe, track_of(x))
    follow(Tensor.__getitem__, (probe, index), {}, shown, n)
    track = track_of(shown)
    # The hook is on what x is from here on; where the value was written its gradient is the value's.
    if not isinstance(track, Track):
        mode.lost([Operand(value, leaves_of(value, mode.session)[0])], track)
        return None

    def measure(b: Tensor) -> Iterator[tuple[int, Piece]]:
        yield 0, apart(b[index], track, n, unexpanded_of(value).shape)

    watch(mode, "written into samples", x, [value], (), measure, unexpanded=True)
    return None
