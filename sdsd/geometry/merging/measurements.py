"""Losses that were measured, kept in memory and, if wanted, line by line in a file, so that a stopped run goes on."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...models import entries_of

LOGGER = logging.getLogger("sdsd.geometry")
Key = tuple[tuple[int, int], ...]


@dataclass
class Measurements:
    """The loss of one network with some of its neurons merged, for each set of pairs that was tried.

    Attributes:
        layer, how: what was merged and in which way.
        fingerprint: of all parameters and buffers.
        loss_before: of the untouched network.
        losses: by merged pairs, in ascending order.
        path: a file that each new loss is written to at once; None: none.
    """

    layer: str
    how: str
    fingerprint: str
    loss_before: float
    losses: dict[Key, float] = field(default_factory=dict, repr=False)
    path: Path | None = None

    @staticmethod
    def key(pairs: Iterable[Sequence[Any]]) -> Key:
        """Pairs as what a loss is kept under, whatever their order.

        Args:
            pairs: (first, second, …) each.

        Returns:
            Their first two numbers, sorted.
        """
        return tuple(sorted((int(pair[0]), int(pair[1])) for pair in pairs))

    def add(self, key: Key, loss: float) -> None:
        """Keep the loss with these pairs merged, and write it to the file where there is one.

        Args:
            key: what `key` made of the pairs.
            loss: measured.
        """
        self.losses[key] = loss
        if self.path is not None:
            _append(self.path, {"pairs": key, "loss": loss})

    def require_same(self, other: Measurements, where: str) -> None:
        """ValueError unless `other` is of the same layer, network and loss.

        Args:
            other: measurements to go on with.
            where: they come from, in the error's words.
        """
        for name in ("layer", "how", "fingerprint"):
            if getattr(self, name) != getattr(other, name):
                what = "other weights" if name == "fingerprint" else f"{name} {getattr(self, name)!r}"
                raise ValueError(f"resume: {where} was measured with {what}. Pass another path, or remove it.")
        if not math.isclose(self.loss_before, other.loss_before, rel_tol=1e-5, abs_tol=1e-9):
            raise ValueError(
                f"resume: {where} was measured with another loss or other data: the untouched network had "
                f"{self.loss_before:.9g}, and has {other.loss_before:.9g} now. Pass another path, or remove it."
            )


def resumed(started: Measurements, resume: str | Path | Measurements) -> Measurements:
    """What `resume` holds, if it belongs to the same experiment as `started`; a new file where there is none yet.

    Raises:
        TypeError: resume is no path and no `Measurements`.
        ValueError: it belongs to another experiment, or the file is something else.
    """
    if isinstance(resume, Measurements):
        resume.require_same(started, "what was passed")
        return resume
    if not isinstance(resume, (str, Path)):
        raise TypeError(
            f"resume: expected a path, or the measurements of an earlier result, got {type(resume).__name__}."
        )
    path = Path(resume)
    if not path.exists() or path.stat().st_size == 0:
        started.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {name: getattr(started, name) for name in ("layer", "how", "fingerprint", "loss_before")}
        _append(path, {"sdsd": "measurements", **head})
        return started
    earlier = _read(path)
    earlier.require_same(started, str(path))
    LOGGER.info("layer %s: %d losses measured earlier, read from %s", earlier.layer, len(earlier.losses), path)
    return earlier


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all parameters and buffers, those too that a state_dict leaves out.

    Args:
        model: on any device.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name, tensor in {**model.state_dict(), **dict(model.named_buffers())}.items():
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            for part in [tensor] if tensor.layout == torch.strided else entries_of(tensor):
                digest.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _read(path: Path) -> Measurements:
    """The measurements of a file; a last line that was cut off by a crash is taken away."""
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    try:
        head, *rows = [json.loads(line) for line in whole.decode().splitlines()]
        if head.pop("sdsd") != "measurements":
            raise KeyError("sdsd")
        measurements = Measurements(**head, path=path)
        measurements.losses.update((Measurements.key(row["pairs"]), float(row["loss"])) for row in rows)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"resume: {path} does not hold measurements of a biopsy. Pass another path.") from error
    if len(whole) < len(text):
        LOGGER.warning("%s: the last line was cut off and is taken away", path)
        path.write_bytes(whole)
    return measurements
