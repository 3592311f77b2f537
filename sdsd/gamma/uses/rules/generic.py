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

from ...following import Mixed, Track, track_of
from ..operand import Operand, leaves_of
from ..pieces import Lazy, Piece
from ..use import watch

if TYPE_CHECKING:
    from ..measuring import Measuring

_RANDOM = ("dropout", "rrelu", "bernoulli", "multinomial", "normal", "rand", "gumbel", "lstm", "gru", "rnn_tanh", "rnn_relu")


def any_operation(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
    """The rule of operations without one of their own."""
    name = getattr(func, "__name__", str(func))
    if func is Tensor.__setitem__:
        return _set_item(mode, func, args, kwargs, parameters)
    before = [t._version for t in parameters]
    values, structure = pytree.tree_flatten((args, kwargs))
    tracks = [track_of(value) if isinstance(value, Tensor) else None for value in values]
    out = mode.run(func, args, kwargs)
    outputs = [t for t in (pytree.tree_leaves(out)) if isinstance(t, Tensor) and t.requires_grad]
    if not outputs:
        return out
    distinct = list({id(t): t for t in parameters}.values())
    why = None
    if any(each is value for each in outputs for value in values if isinstance(value, Tensor)):
        why = f"torch's {name} changes its input in place"
    elif any(name.startswith(each) for each in _RANDOM):
        why = f"torch's {name} cannot be run again a sample at a time"
    elif [t._version for t in parameters] != before:
        why = f"torch's {name} changes it in place"
    elif len(outputs) > 1 and any(track_of(each) != track_of(outputs[0]) for each in outputs):
        why = f"torch's {name} gives several outputs whose samples lie apart"
    if why is not None:
        mode.lost([Operand(t, leaves_of(t, mode.name_of)[0]) for t in distinct], Mixed(why))
        return out
    places = [next(k for k, value in enumerate(values) if value is t) for t in distinct]
    sampled = [k for k, track in enumerate(tracks) if isinstance(track, Track)]
    pieces = _Pieces(func, values, structure, places, sampled, [tracks[k] for k in sampled], mode.ledger.n)  # type: ignore[misc]
    for which, output in enumerate(outputs):
        track = track_of(output)

        def measure(b: Tensor, *saved: Tensor, which: int = which, track: Any = track) -> Iterator[tuple[int, Piece]]:
            yield from pieces.found(b, saved, which, track)

        watch(mode, f"generic ({name})", output, distinct, (values[k] for k in sampled), measure)
    return out


class _Pieces:
    """Per-sample gradients of the operands of one operation."""

    def __init__(
        self, func: Any, values: list[Any], structure: Any, places: list[int], sampled: list[int],
        tracks: list[Track], n: int,
    ) -> None:  # fmt: skip
        self.func, self.structure, self.places, self.sampled, self.tracks, self.n = (
            func, structure, places, sampled, tracks, n,
        )  # fmt: skip
        self.values = [value.detach() if isinstance(value, Tensor) else value for value in values]
        for k in sampled:
            self.values[k] = None

    def found(self, b: Tensor, saved: tuple[Tensor, ...], which: int, track: Track) -> Iterator[tuple[int, Piece]]:
        own = [self.values[k] for k in self.places]
        if any(self._by_row(t, track, b) for t in own):
            raise ValueError("it has a row for every sample")
        inputs = [_samples_first(t, each, self.n) for t, each in zip(saved, self.tracks, strict=True)]
        cotangents = _samples_first(b, track, self.n)
        formed: dict[tuple[int, int], list[Tensor]] = {}

        def all_of(start: int, stop: int) -> list[Tensor]:
            if (start, stop) not in formed:
                formed.clear()
                formed[start, stop] = self._gradients(
                    own, [t[start:stop] for t in inputs], cotangents[start:stop], which
                )
            return formed[start, stop]

        size = 8 * (b[:1].numel() + sum(t.numel() for t in own) + sum(t[:1].numel() for t in inputs))
        for index, tensor in enumerate(own):

            def form(start: int, stop: int, index: int = index) -> Tensor:
                return all_of(start, stop)[index]

            yield index, Lazy(self.n, size + 8 * tensor.numel(), form)

    def _by_row(self, operand: Tensor, track: Track, b: Tensor) -> bool:
        """Whether an operand may have rows of its own for every sample (no broadcast): then this is no rule for it."""
        behind = track.axis - (b.ndim - operand.ndim)
        elementwise = self.func in _BROADCASTING
        return elementwise and behind >= 0 and operand.shape[behind] != 1

    def _run(self, own: tuple[Tensor, ...], inputs: tuple[Tensor, ...], which: int) -> Tensor:
        values = list(self.values)
        for place, tensor in zip(self.places, own, strict=True):
            values[place] = tensor
        for place, tensor in zip(self.sampled, inputs, strict=True):
            values[place] = tensor
        args, kwargs = pytree.tree_unflatten(values, self.structure)
        out = [t for t in pytree.tree_leaves(self.func(*args, **kwargs)) if isinstance(t, Tensor)]
        return [t for t in out if t.is_floating_point() or t.is_complex()][which]

    def _gradients(self, own: list[Tensor], inputs: list[Tensor], cotangents: Tensor, which: int) -> list[Tensor]:
        def gradient(cotangent: Tensor, *sample: Tensor) -> tuple[Tensor, ...]:
            out, pull = torch.func.vjp(lambda *own: self._run(own, sample, which), *own)
            return pull(cotangent.reshape(out.shape).to(out.dtype))

        try:
            return list(torch.func.vmap(gradient)(cotangents, *inputs))
        except Exception:  # noqa: BLE001  # an operation that cannot be batched: one sample after another
            rows = []
            for k in range(cotangents.shape[0]):
                with torch.enable_grad():
                    leaves = tuple(t.clone().requires_grad_() for t in own)
                    out = self._run(leaves, tuple(t[k] for t in inputs), which)
                    rows.append(torch.autograd.grad(out, leaves, cotangents[k].reshape(out.shape).to(out.dtype)))
            return [torch.stack(column) for column in zip(*rows, strict=True)]


_BROADCASTING = {
    torch.add, torch.sub, torch.mul, torch.div, torch.pow, torch.where, torch.maximum, torch.minimum, torch.lerp,
    torch.addcmul, torch.addcdiv, torch.fmod, torch.atan2, torch.hypot,
    Tensor.add, Tensor.sub, Tensor.mul, Tensor.div, Tensor.pow, Tensor.where, Tensor.maximum, Tensor.minimum,
    Tensor.lerp, Tensor.addcmul, Tensor.addcdiv, Tensor.__pow__, Tensor.__rpow__,
}  # fmt: skip


def _samples_first(x: Tensor, track: Track, n: int) -> Tensor:
    """`x` as (N, …), every sample with the dimensions of `x`, its own share of the sample dimension."""
    split = x.detach().unflatten(track.axis, (track.outer, n, track.inner)).movedim(track.axis + 1, 0)
    return split.flatten(track.axis + 1, track.axis + 2)


def _set_item(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
    """x[index] = value, a value of parameters written into samples."""
    x, index, value = args
    if not isinstance(value, Tensor) or track_of(value) is not None or not isinstance(track_of(x), Track):
        out = mode.run(func, args, kwargs)
        mode.lost([Operand(t, leaves_of(t, mode.name_of)[0]) for t in parameters], Mixed("it is written into a tensor"))
        return out
    mode.run(func, args, kwargs)
    n = mode.ledger.n
    shown = x.detach()[index]
    from ...following import follow, set_track

    probe = x.detach()
    set_track(probe, track_of(x))
    follow(Tensor.__getitem__, (probe, index), {}, shown, n)
    track = track_of(shown)
    # The hook is on what x is from here on; where the value was written its gradient is the value's.
    if not isinstance(track, Track):
        mode.lost([Operand(value, leaves_of(value, mode.name_of)[0])], track)
        return None
    from .elementwise import apart

    def measure(b: Tensor) -> Iterator[tuple[int, Piece]]:
        yield 0, apart(b[index], track, n, value.shape)

    watch(mode, "written into samples", x, [value], (), measure)
    return None


