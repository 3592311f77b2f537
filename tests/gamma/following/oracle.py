"""Which samples an entry depends on, found by changing one sample at a time: nothing here knows a rule.

A program runs once with a recorder that keeps every tensor any operation returned and what `follow` said of it; it runs
again for each sample with that sample's values changed. An entry that differs depends on that sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sdsd.gamma.following import (
    COMPOSITE,
    WRITING,
    Mixed,
    Part,
    Rows,
    Single,
    Summed,
    Track,
    Tracks,
    about_to_write,
    body,
    follow,
    set_track,
    stated,
    track_of,
    using,
)

UNWRITTEN = ("empty", "empty_like", "new_empty", "new_empty_strided")
"""What is in fresh memory depends on nothing and is never the same."""

BY_VALUE = ("nonzero", "argwhere")
"""Called a constant where every entry is chosen, which is told by the values."""


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in tensors_of(item)] if isinstance(value, (list, tuple)) else []


@dataclass
class Recorder(TorchFunctionMode):
    """Runs `follow` for every call, as a monitor does; keeps a copy of every output and its verdict."""

    n: int
    seen: list[tuple[str, Tensor, Any]] = field(default_factory=list)
    mixing: list[Mixed] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if func in COMPOSITE:
            with self:
                return body(func)(*args, **kwargs)
        before = [track_of(x) for x in tensors_of((args, kwargs))]
        recording = torch.is_grad_enabled()
        if func in WRITING and recording:
            about_to_write(args[0])
        out = func(*args, **kwargs)
        if not (recording or any(x.requires_grad or stated(x) for x in tensors_of((args, kwargs)))):
            return out
        mixed = follow(func, args, kwargs, out, self.n)
        if mixed is not None:
            self.mixing.append(mixed)
        written = tensors_of(args[:1]) if out is None else []
        for x in [*tensors_of(out), *written]:
            verdict = track_of(x)
            self.seen.append((getattr(func, "__name__", str(func)), x.detach().clone(), verdict))
            if isinstance(verdict, Mixed) and not any(isinstance(v, Mixed) for v in before):
                assert mixed is not None, f"{func}: mixes samples, and does not say so"
        return out


def place(track: Track, index: Tensor, n: int) -> Tensor:
    return (index // track.inner) % n


def changed(x: Tensor, track: Track, sample: int, n: int, way: str) -> Tensor:
    """`x` with other values where it belongs to `sample`."""
    x = x.clone()
    rows = place(track, torch.arange(x.shape[track.axis]), n) == sample
    part = x.movedim(track.axis, 0)
    old = part[rows]
    if x.dtype == torch.bool:
        part[rows] = ~old
    elif not x.is_floating_point() and not x.is_complex():
        part[rows] = (old + 1) % (int(x.max()) + 1)
    elif way == "poison":
        part[rows] = float("nan")
    else:
        part[rows] = torch.randn_like(old) * (100.0 if way == "large" else 1.0) + (old if way == "small" else 0)
    return x


def run(
    f: Callable[..., Any], inputs: Sequence[Tensor], tracks: Sequence[Track | None], n: int
) -> tuple[Any, Recorder, list[Any]]:
    """What the program returned, what was seen on the way, and the verdicts of what it returned."""
    torch.manual_seed(5)
    given = [x.clone() for x in inputs]
    with using(Tracks()):
        for x, track in zip(given, tracks, strict=True):
            if track is not None:
                set_track(x, track)
        with Recorder(n) as recorder:
            out = f(*given)
        return out, recorder, [track_of(x) for x in tensors_of(out)]


def influence(before: Tensor, after: Tensor) -> Tensor:
    """Which entries differ: beyond rounding, or by being a number or none."""
    if before.shape != after.shape:
        return torch.ones(before.shape, dtype=torch.bool)
    if before.is_complex():
        before, after = torch.view_as_real(before), torch.view_as_real(after)
        return influence(before, after).any(-1)
    if before.dtype == torch.bool or not before.is_floating_point():
        return before != after
    near = torch.isclose(before, after, rtol=1e-9, atol=1e-11, equal_nan=True)
    return ~near


def check_rows(name: str, before: Tensor, verdict: Rows, after: Tensor, later: Any, sample: int) -> None:
    """Rows of all other samples are, in their order, what they were, however many the changed sample has."""
    if isinstance(later, Mixed):
        return
    assert isinstance(later, Rows), f"{name}: {verdict}, and {later} of another batch"
    kept = [
        x.movedim(rows.track.axis, 0).unflatten(0, (rows.track.outer, -1, rows.track.inner))[
            :, rows.owners.samples != sample
        ]
        for x, rows in ((before, verdict), (after, later))
    ]
    assert kept[0].shape == kept[1].shape, f"{name}: sample {sample} adds rows to others"
    assert not influence(*kept).any(), f"{name}: {verdict.track} of chosen rows, sample {sample} reaches others"


def check(
    f: Callable[..., Any],
    inputs: Sequence[Tensor],
    tracks: Sequence[Track | None],
    n: int,
    ways: Sequence[str] = ("small", "large", "poison"),
) -> list[Any]:
    """Run `f` and hold every verdict on the way against the oracle; the verdicts of its outputs.

    A `Track` and a constant may depend on no other sample; a `Summed` has to be a sum over samples.
    """
    _, recorder, verdicts = run(f, inputs, tracks, n)
    seen = recorder.seen

    def again(samples: Sequence[int], way: str) -> list[tuple[Tensor, Any]]:
        given = list(inputs)
        for sample in samples:
            torch.manual_seed(11 + sample)
            given = [x if t is None else changed(x, t, sample, n, way) for x, t in zip(given, tracks, strict=True)]
        other = run(f, given, tracks, n)[1].seen
        assert len(other) == len(seen), "the program took another path"
        return [(after, verdict) for _, after, verdict in other]

    for sample in sorted({0, n // 2, n - 1}):
        for way in ways:
            for (name, before, verdict), (after, later) in zip(seen, again([sample], way), strict=True):
                if isinstance(verdict, (Mixed, Summed)) or name in UNWRITTEN or (verdict is None and name in BY_VALUE):
                    continue
                if isinstance(verdict, Rows):
                    check_rows(name, before, verdict, after, later, sample)
                    continue
                differs = influence(before, after)
                if verdict is None:
                    assert not differs.any(), f"{name}: called a constant, depends on sample {sample} ({way})"
                elif isinstance(verdict, Single):
                    assert verdict.sample == sample or not differs.any(), f"{name}: {verdict}, {sample} reaches it"
                elif isinstance(verdict, Part):
                    continue
                else:
                    size = before.shape[verdict.axis]
                    assert size == verdict.outer * n * verdict.inner, f"{name}: {verdict} does not fit {before.shape}"
                    rows = place(verdict, torch.arange(size), n) != sample
                    wrong = differs.movedim(verdict.axis, 0)[rows].any()
                    assert not wrong, f"{name}: {verdict} of {tuple(before.shape)}, sample {sample} reaches others"
    if n > 1 and any(isinstance(verdict, Summed) for _, _, verdict in seen):
        first, last, both = again([0], "small"), again([n - 1], "small"), again([0, n - 1], "small")
        for k, (name, before, verdict) in enumerate(seen):
            if isinstance(verdict, Summed):
                torch.testing.assert_close(
                    both[k][0] + before,
                    first[k][0] + last[k][0],
                    rtol=1e-9,
                    atol=1e-9,
                    msg=f"{name}: no sum over samples",
                )
    return verdicts
