"""`sdsd gamma train.py`: train what a user's file defines, with a monitor, and show signal and noise while it runs.

The file defines `model` (nn.Module), `loader` (batches, started again when it ends) and `loss(model, batch)`, a scalar
tensor; it may define `optimizer` (default: plain SGD, learning rate 0.01) and `steps`. It runs as a module named
"__sdsd__", so that a part under ``if __name__ == "__main__"`` is left out.
"""

from __future__ import annotations

import runpy
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdsd_kernels import checks

from ..gamma import GammaHistory, GammaMonitor, GammaStats
from ..gamma.layers import UnsupportedError
from .engine import Display, Row, choose_display, gamma_columns, table_row

RUN_AS = "__sdsd__"
DEFAULT_STEPS = 200
DEFAULT_LEARNING_RATE = 0.01
EMA = 0.98
MOST_ROWS = 20


class UserCodeError(Exception):
    """The user's file raised; `traceback` shows its own frames."""

    def __init__(self, message: str, traceback: str) -> None:
        super().__init__(message)
        self.traceback = traceback


@dataclass
class TrainingRun:
    """What a run measured, finished or not."""

    stats: GammaStats | None = None
    steps: int = 0
    measured: int = 0
    interrupted: bool = False

    @property
    def window(self) -> str:
        """How many steps the running averages are worth."""
        share = (1 - EMA) / (1 + EMA) * (1 + EMA**self.measured) / (1 - EMA**self.measured)
        return f"{1 / share:.0f} of them"


@dataclass(frozen=True)
class Script:
    """What the file defines."""

    model: nn.Module
    loader: Iterable[Any]
    loss: Callable[[nn.Module, Any], Tensor]
    optimizer: torch.optim.Optimizer
    steps: int


def train_file(
    path: str | Path,
    *,
    steps: int | None = None,
    every: int = 1,
    confidence: float = 0.95,
    population: int | None = None,
    history: str | Path | None = None,
    quiet: bool = False,
    display: Display | None = None,
) -> TrainingRun:
    """Train what `path` defines for `steps` steps; an interrupt (Ctrl-C) ends it early and keeps what was measured.

    With `history` every measured step is written to that file, in total and by parameter (`GammaHistory`); what an
    earlier run left there is replaced.

    Raises:
        ValueError: no such file, `history` is a file of something else,
            a name is missing or of the wrong kind, no batches, a model the monitor refuses.
        UserCodeError: the file, its loader or its loss raised.
    """
    path = Path(path)
    kept = None if history is None else GammaHistory(history, parameters=True)
    script = load_script(path)
    total = steps or script.steps
    run = TrainingRun()
    display = display or choose_display(quiet)
    batches = endless(script.loader, path)
    with GammaMonitor(
        script.model, every=every, ema=EMA, confidence=confidence, population=population, history=kept
    ) as monitor:
        display.start(total)
        try:
            for batch in batches:
                loss = train_step(script, batch, path)
                stats = monitor.step()
                script.optimizer.step()
                run.steps += 1
                if stats is not None:
                    run.stats, run.measured = stats, run.measured + 1
                rows = table(run.stats) if not quiet and run.stats is not None else []
                header = gamma_columns("parameter", run.stats.batch_size, confidence) if run.stats is not None else ()
                display.update(run.steps, f"loss {loss:.4f}", header, rows)
                if run.steps == total:
                    break
        except KeyboardInterrupt:
            run.interrupted = True
        finally:
            display.stop()
    return run


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


def endless(loader: Iterable[Any], path: Path) -> Iterator[Any]:
    """Batches of the loader, again and again; ends only where a loader cannot be started a second time."""
    passes = 0
    while True:
        count = 0
        with users_code(path):
            batches = iter(loader)
        while True:
            with users_code(path):
                try:
                    batch = next(batches)
                except StopIteration:
                    break
            count += 1
            yield batch
        if count == 0 and passes == 0:
            raise ValueError(f"{path}: loader gave no batch.")
        if count == 0:
            return
        passes += 1


def train_step(script: Script, batch: Any, path: Path) -> float:
    """Gradients of one batch; returns the loss."""
    script.optimizer.zero_grad()
    with users_code(path):
        loss = script.loss(script.model, batch)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"{path}: loss: expected a scalar tensor, got {got}.")
    if not loss.requires_grad:
        raise ValueError(f"{path}: loss: it does not depend on a parameter that trains.")
    with users_code(path):
        loss.backward()
    return loss.item()


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


def table(stats: GammaStats) -> list[Row]:
    """The parameters with the most noise, in the model's order, and in total; smoothed."""
    assert stats.smoothed is not None
    parameters = stats.smoothed.parameters
    loudest = set(sorted(parameters, key=lambda name: parameters[name].noise, reverse=True)[:MOST_ROWS])
    shown = {name: part for name, part in parameters.items() if name in loudest}
    rows = []
    for name, part in {**shown, "total": stats.smoothed}.items():
        low, high = part.interval or (float("nan"), float("nan"))
        each = part.samples_per_gradient
        rows.append(table_row(name, part.gamma_unbiased / each, low / each, high / each, stats.batch_size))
    return rows
