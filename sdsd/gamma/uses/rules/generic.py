"""Any other operation that joins samples with parameters: the operation alone is run again, a sample at a time.

One torch function, not the module around it: it has no state and draws no random numbers, so running it again changes
nothing. All samples run in one batched call (vmap), or one after another where the operation cannot be batched.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ...following import Mixed, Track, follow, set_track, track_of
from ..operand import Operand, leaves_of, unexpanded_of
from ..pieces import Lazy, Piece
from ..use import autocast_dtype, watch
from .broadcasting import apart

if TYPE_CHECKING:
    from ..measuring import Measuring

DRAWING = (
    "dropout",
    "rrelu",
    "bernoulli",
    "multinomial",
    "normal",
    "rand",
    "gumbel",
    "lstm",
    "gru",
    "rnn_tanh",
    "rnn_relu",
)
"""Functions that may draw random numbers, by how their names begin."""


def any_operation(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
    """The rule of operations without one of their own."""
    name = getattr(func, "__name__", str(func))
    if func is Tensor.__setitem__:
        return _set_item(mode, func, args, kwargs, parameters)
    before = [t._version for t in parameters]
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
    places = [next(k for k, value in enumerate(values) if value is t) for t in distinct]
    sampled = [k for k, track in enumerate(tracks) if isinstance(track, Track)]
    bases = [unexpanded_of(t).detach() for t in distinct]
    lying: list[Any] = [tracks[k] for k in sampled]
    pieces = _Pieces(
        func, values, structure, places=places, bases=bases, sampled=sampled, tracks=lying, n=mode.ledger.n
    )
    for which, output in enumerate(outputs):
        track = track_of(output)

        def measure(b: Tensor, *saved: Tensor, which: int = which, track: Any = track) -> Iterator[tuple[int, Piece]]:
            yield from pieces.of_operand(b, saved, which, track)

        watch(mode, f"generic ({name})", output, distinct, (values[k] for k in sampled), measure, unexpanded=True)
    return out


def in_dtype(x: Any, dtype: torch.dtype | None) -> Any:
    """`x` in another dtype if it is numbers and one is given."""
    return x.to(dtype) if dtype is not None and isinstance(x, Tensor) and x.is_floating_point() else x


def run_again(func: Any, values: list[Any], structure: Any, cast: torch.dtype | None) -> Any:
    """func of its arguments as `values` and their structure, in the parameters' dtype `cast` where autocast was on."""
    if cast is None:
        args, kwargs = pytree.tree_unflatten(values, structure)
        return func(*args, **kwargs)
    values = [in_dtype(x, cast) for x in values]
    args, kwargs = pytree.tree_unflatten(values, structure)
    device = next(x.device.type for x in values if isinstance(x, Tensor))
    with torch.autocast(device, enabled=False):
        return func(*args, **kwargs)


class _Pieces:
    """Per-sample gradients of the operands of one operation."""

    def __init__(
        self,
        func: Any,
        values: list[Any],
        structure: Any,
        *,
        places: list[int],
        bases: list[Tensor],
        sampled: list[int],
        tracks: list[Track],
        n: int,
    ) -> None:
        self.func, self.structure, self.n = func, structure, n
        self.places, self.bases, self.sampled, self.tracks = places, bases, sampled, tracks
        self.values = [value.detach() if isinstance(value, Tensor) else value for value in values]
        self.cast = bases[0].dtype if autocast_dtype(bases[0]) is not None else None
        self.sizes = [self._sizes(values[place], base) for place, base in zip(places, bases, strict=True)]
        for k in sampled:
            self.values[k] = None

    def _sizes(self, tensor: Tensor, base: Tensor) -> list[int]:
        """To what one sample's run expands an operand: along the samples to one sample's share."""
        sizes = list(tensor.shape)
        track = self.tracks[0]
        dim = track.axis
        if tensor.ndim > dim and sizes[dim] == track.outer * self.n * track.inner != 1:
            before = dim - (tensor.ndim - base.ndim)
            if before < 0 or base.shape[before] == 1:
                sizes[dim] = track.outer * track.inner
        return sizes

    def of_operand(self, b: Tensor, saved: tuple[Tensor, ...], which: int, track: Track) -> Iterator[tuple[int, Piece]]:
        inputs = [_samples_first(t, each, self.n) for t, each in zip(saved, self.tracks, strict=True)]
        cotangents = _samples_first(b, track, self.n)
        formed: dict[tuple[int, int], list[Tensor]] = {}

        def all_of(start: int, stop: int) -> list[Tensor]:
            if (start, stop) not in formed:
                formed.clear()
                parts = [t[start:stop] for t in inputs]
                formed[start, stop] = self._either(parts, cotangents[start:stop], which, start, stop)
            return formed[start, stop]

        size = 8 * (b[:1].numel() + sum(t.numel() for t in self.bases) + sum(t[:1].numel() for t in inputs))
        for index, tensor in enumerate(self.bases):

            def form(start: int, stop: int, index: int = index) -> Tensor:
                return all_of(start, stop)[index]

            yield index, Lazy(self.n, size + 8 * tensor.numel(), form)

    def _either(self, inputs: list[Tensor], cotangents: Tensor, which: int, start: int, stop: int) -> list[Tensor]:
        """Gradients with what all samples share; or, where that does not fit, with operands and constants by row."""
        try:
            return self._gradients(self.bases, inputs, cotangents, which)
        except Exception:
            rowed = [self._rows(t) for t in self.bases]
            constant = [
                k
                for k, value in enumerate(self.values)
                if isinstance(value, Tensor) and k not in self.places and k not in self.sampled and self._rows(value)
            ]
            if not any(rowed) and not constant:
                raise
        track = self.tracks[0]
        own = [
            _samples_first(t, track, self.n)[start:stop] if rows else t
            for t, rows in zip(self.bases, rowed, strict=True)
        ]
        held, more = self.sampled, [_samples_first(self.values[k], track, self.n)[start:stop] for k in constant]
        self.sampled = [*held, *constant]
        try:
            gradients = self._gradients(own, [*inputs, *more], cotangents, which, rowed)
        finally:
            self.sampled = held
        return [
            self._placed(g, t, start) if rows else g for g, t, rows in zip(gradients, self.bases, rowed, strict=True)
        ]

    def _rows(self, tensor: Tensor) -> bool:
        track = self.tracks[0]
        size = track.outer * self.n * track.inner
        return tensor.ndim > track.axis and tensor.shape[track.axis] == size

    def _placed(self, gradients: Tensor, tensor: Tensor, start: int) -> Tensor:
        """Gradients of every sample's own rows as gradients of the whole operand, zero in the rows of others."""
        track = self.tracks[0]
        split = tensor.unflatten(track.axis, (track.outer, self.n, track.inner))
        full = gradients.new_zeros(gradients.shape[0], *split.shape)
        for k, each in enumerate(gradients):
            full[k].select(track.axis + 1, start + k).copy_(each.unflatten(track.axis, (track.outer, track.inner)))
        return full.flatten(track.axis + 1, track.axis + 3)

    def _run(self, own: tuple[Tensor, ...], inputs: tuple[Tensor, ...], which: int, rowed: list[bool]) -> Tensor:
        values = list(self.values)
        for place, tensor, sizes, rows in zip(self.places, own, self.sizes, rowed, strict=True):
            values[place] = tensor if rows else tensor.expand(sizes)
        for place, tensor in zip(self.sampled, inputs, strict=True):
            values[place] = tensor
        out = [
            t
            for t in pytree.tree_leaves(run_again(self.func, values, self.structure, self.cast))
            if isinstance(t, Tensor)
        ]
        return [t for t in out if t.is_floating_point() or t.is_complex()][which]

    def _gradients(
        self, own: list[Tensor], inputs: list[Tensor], cotangents: Tensor, which: int, rowed: list[bool] | None = None
    ) -> list[Tensor]:
        """Gradients (n, *shape) of the operands; `rowed` ones come with a row for every sample."""
        rows = [False] * len(own) if rowed is None else rowed
        shared = [None if each else t for t, each in zip(own, rows, strict=True)]
        batched = [t for t, each in zip(own, rows, strict=True) if each]

        def gradient(cotangent: Tensor, *sample: Tensor) -> tuple[Tensor, ...]:
            mine = iter(sample[: len(batched)])
            whole = tuple(next(mine) if t is None else t for t in shared)
            rest = sample[len(batched) :]
            out, pull = torch.func.vjp(lambda *own: self._run(own, rest, which, rows), *whole)  # type: ignore[misc]
            return pull(cotangent.reshape(out.shape).to(out.dtype))

        try:
            return list(torch.func.vmap(gradient)(cotangents, *batched, *inputs))
        except Exception:  # an operation that cannot be batched: one sample after another
            columns = []
            for k in range(cotangents.shape[0]):
                with torch.enable_grad():
                    leaves = tuple(
                        (t[k] if each else t).clone().requires_grad_() for t, each in zip(own, rows, strict=True)
                    )
                    out = self._run(leaves, tuple(t[k] for t in inputs), which, rows)
                    columns.append(torch.autograd.grad(out, leaves, cotangents[k].reshape(out.shape).to(out.dtype)))
            return [torch.stack(column) for column in zip(*columns, strict=True)]


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
