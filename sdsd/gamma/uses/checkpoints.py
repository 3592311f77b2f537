"""Checkpoints run their function twice; the second time, inside the backward pass, it is followed again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor

from ..following import Verdict, batch_of, set_track, track_of
from .ledger import Pass, carrying

_FORWARD = torch.utils.checkpoint.CheckpointFunction.forward.__code__
Mode = Callable[[], AbstractContextManager[Any]]
"""Makes what is on while a second run is followed."""


def follow_second_run(ledger: Pass, mode: Mode) -> None:
    """Called inside a non-reentrant checkpoint's first run; elsewhere it does nothing."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if hooks is None or not getattr(hooks[0], "__qualname__", "").startswith("_checkpoint_hook"):
        return
    names = hooks[0].__code__.co_freevars
    if "frame" not in names:
        return
    frame = hooks[0].__closure__[names.index("frame")].cell_contents  # type: ignore[index]
    plain = frame.recompute_fn
    if getattr(plain, "_sdsd_followed", False):
        return
    frame.recompute_fn = _followed(plain, _arguments(), ledger, mode)


def follow_reentrant(ledger: Pass, mode: Mode) -> None:
    """Called where gradients are off: let reentrant checkpoints that run for the first time be measured later on."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _FORWARD:
            node = frame.f_locals["ctx"]
            if getattr(node.run_function, "_sdsd_followed", False):
                return
            node.run_function = _followed(node.run_function, frame.f_locals["args"], ledger, mode)
        frame = frame.f_back


def _followed(plain: Callable[..., Any], inputs: Iterable[Any], ledger: Pass, mode: Mode) -> Callable[..., Any]:
    """`plain`, followed, its arguments carrying samples as `inputs` do now."""
    tracks = _tracks(inputs)

    def followed(*args: Any) -> Any:
        with carrying(ledger):
            # Within another checkpoint, or offloaded, they come back as other tensors; behind keywords in torch 2.9.
            _carry(args[len(args) - len(tracks) :], tracks)
            with mode():
                return plain(*args)

    followed._sdsd_followed = True  # type: ignore[attr-defined]
    return followed


def _arguments() -> tuple[Any, ...]:
    """What the innermost checkpoint that is under way was given; nothing where it is not torch's own."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "checkpoint" and frame.f_globals.get("__name__") == "torch.utils.checkpoint":
            return tuple(frame.f_locals["args"])
        frame = frame.f_back
    return ()


def _tracks(values: Iterable[Any]) -> list[Verdict]:
    with batch_of(None):  # chosen rows are still that
        return [track_of(each) if isinstance(each, Tensor) else None for each in values]


def _carry(values: Iterable[Any], tracks: list[Verdict]) -> None:
    for each, track in zip(values, tracks, strict=False):
        if track is not None:
            set_track(each, track)
