"""A user's Python file: it is run, and what it defines is checked.

For training it defines `model` (nn.Module), `loader` (batches, started again when it ends) and `loss(model, batch)`, a
scalar tensor; it may define `optimizer` (default: plain SGD, learning rate 0.01) and `steps`. It runs as a module named
"__sdsd__", so that a part under ``if __name__ == "__main__"`` is left out.
"""

from __future__ import annotations

import runpy
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdsd_kernels import checks

from ..gamma.layers import UnsupportedError

RUN_AS = "__sdsd__"
DEFAULT_STEPS = 200
DEFAULT_LEARNING_RATE = 0.01


class UserCodeError(Exception):
    """The user's file raised; `traceback` shows its own frames."""

    def __init__(self, message: str, traceback: str) -> None:
        super().__init__(message)
        self.traceback = traceback


@dataclass(frozen=True)
class Script:
    """What the file defines."""

    model: nn.Module
    loader: Iterable[Any]
    loss: Callable[[nn.Module, Any], Tensor]
    optimizer: torch.optim.Optimizer
    steps: int


def run_file(path: Path) -> dict[str, Any]:
    """Run the file as a module named "__sdsd__", beside what it imports, and give what it defines."""
    if path.is_dir():
        saved = " = AutoModel.from_pretrained(…)" if (path / "config.json").is_file() else " = …"
        raise ValueError(f"{path}: expected a Python file, got a folder. Write one that says model{saved}.")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file.")
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        with users_code(path):
            return runpy.run_path(str(path), run_name=RUN_AS)
    finally:
        sys.path.pop(0)


def load_script(path: Path) -> Script:
    """Run the file and check what it defines."""
    names = run_file(path)
    missing = [name for name in ("model", "loader", "loss") if name not in names]
    if missing:
        raise ValueError(
            f"{path}: expected it to define model, loader and loss(model, batch); {', '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing."
        )
    model = names["model"]
    optimizer = names.get("optimizer")
    steps = names.get("steps", DEFAULT_STEPS)
    for name, value, kind, good in (
        ("model", model, "an nn.Module", isinstance(model, nn.Module)),
        ("loader", names["loader"], "batches to iterate over", isinstance(names["loader"], Iterable)),
        ("loss", names["loss"], "a function of (model, batch)", callable(names["loss"])),
        (
            "optimizer",
            optimizer,
            "a torch optimizer",
            optimizer is None or isinstance(optimizer, torch.optim.Optimizer),
        ),
        ("steps", steps, "a whole number, at least 1", (checks.whole_number(steps) or 0) >= 1),
    ):
        if not good:
            raise ValueError(f"{path}: {name}: expected {kind}, got {type(value).__name__}.")
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trainable:
        raise ValueError(f"{path}: model has no parameter that trains.")
    optimizer = optimizer or torch.optim.SGD(trainable, lr=DEFAULT_LEARNING_RATE)
    return Script(model, names["loader"], names["loss"], optimizer, steps)


def first_length(batch: Any) -> int | None:
    """The rows of the first tensor in a batch, in containers within each other; None where there is none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else None
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    return next((length for part in parts if (length := first_length(part)) is not None), None)


def length_of(batch: Any) -> int:
    """How many samples a batch holds: `first_length`.

    Raises:
        ValueError: there is no tensor in it.
    """
    length = first_length(batch)
    if length is None:
        raise ValueError(f"loader: expected batches that hold tensors, got {type(batch).__name__} without one.")
    return length


@contextmanager
def users_code(path: Path) -> Iterator[None]:
    """Turn what the user's code raises into a UserCodeError whose traceback begins in the user's file."""
    try:
        yield
    except UnsupportedError:
        raise
    except Exception as error:
        file = str(path)
        frame = error.__traceback__
        while frame is not None and frame.tb_frame.f_code.co_filename != file:
            frame = frame.tb_next
        shown = "".join(traceback.format_exception(type(error), error, frame))
        raise UserCodeError(f"{path} raised {type(error).__name__}: {error}", shown) from error
