"""A history's rows as scalars of a logger: TensorBoard, Weights & Biases, MLflow, trackio, or a function of your own.

A `Log` takes the scalars of one step. Each function here makes one for a library, which stays the user's to set up:
offline, to a local folder, or to a server. What is not known is left out; what is infinite goes as each takes it.

==================  =======================================  ========================================================
`to_tensorboard`    SummaryWriter of torch                   infinity is written; the page marks it with a triangle
`to_wandb`          a run of `wandb.init`                    infinity is written as "Infinity"
`to_trackio`        a run of `trackio.init`                  infinity is written as "Infinity"
`to_mlflow`         a run's id, and an `MlflowClient`        its databases hold no infinity: NAME_is_infinite is 1 or 0
==================  =======================================  ========================================================
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from typing import Any

from .._extras import require
from ..gamma import history

Log = Callable[[Mapping[str, float], int], None]
"""Called with the scalars of a step, by name, and its number."""

WORDS = ("step", "parameter", "confidence", "phase", "verdict", "advice")
SCALARS = tuple(name for name in history.COLUMNS if name not in WORDS)
"""Columns of a history that are measured numbers."""
NOT_IN_MLFLOW = re.compile(r"[^\w\-. :/]", re.ASCII)


def row_scalars(row: history.Row, prefix: str = "gamma/") -> dict[str, float]:
    """The numbers of a history's row: "gamma/noise" of the total, "gamma/0.weight/noise" of a parameter.

    What is missing (NaN or None) is left out; what is infinite is there. No name is the beginning of another, which
    loggers with a file a name could not keep.
    """
    if row["parameter"] != history.TOTAL:
        prefix += f"{row['parameter']}/"
    known = {name: row[name] for name in SCALARS if row[name] is not None}
    return {f"{prefix}{name}": float(value) for name, value in known.items() if not math.isnan(value)}


class RowLogger:
    """Sends the rows of a history to a logger, each step once.

    Example:
        >>> sent = {}
        >>> send = RowLogger(lambda scalars, step: sent.update({step: scalars["gamma/noise"]}))
        >>> row = dict.fromkeys(SCALARS, 2.0) | {"step": 7, "parameter": "total"}
        >>> send([row]), send([row]), sent
        (1, 0, {7: 2.0})

    Args:
        log: of `to_tensorboard`, `to_wandb`, `to_mlflow`, `to_trackio`, or a function of (scalars, step).
        prefix: put before every name.
    """

    def __init__(self, log: Log, prefix: str = "gamma/") -> None:
        self.log, self.prefix = log, prefix
        self.step = 0

    def __call__(self, rows: Iterable[history.Row]) -> int:
        """Send what is newer than what was sent; `monitor.history` is such rows. Reading it waits for the device.

        Returns:
            How many steps were sent.
        """
        sent = 0
        for step, group in groupby(rows, key=lambda row: row["step"]):
            if step <= self.step:
                continue
            scalars: dict[str, float] = {}
            for row in group:
                scalars |= row_scalars(row, self.prefix)
            self.log(scalars, step)
            self.step, sent = step, sent + 1
        return sent


def to_tensorboard(writer: Any) -> Log:
    """Into a `torch.utils.tensorboard.SummaryWriter`."""

    def log(scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            writer.add_scalar(name, value, step)

    return log


def to_wandb(run: Any) -> Log:
    """Into a run of Weights & Biases; `wandb.init(mode="offline")` keeps it in a folder."""
    return lambda scalars, step: run.log(dict(scalars), step=step)


def to_trackio(run: Any) -> Log:
    """Into a run of trackio, which keeps it in a local database."""
    return lambda scalars, step: run.log(dict(scalars), step=step)


def to_mlflow(run_id: str, client: Any = None) -> Log:
    """Into a run of MLflow, by its id. Characters that MLflow allows in no name become "_".

    Args:
        run_id: for example `mlflow.active_run().info.run_id`.
        client: an `mlflow.MlflowClient`; None makes one for the tracking store that is set.

    Raises:
        MissingExtraError: mlflow is not installed.
    """
    if client is None:
        client = require("mlflow", extra="integrations", purpose="to_mlflow").MlflowClient()

    def log(scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            name = NOT_IN_MLFLOW.sub("_", name)
            if "noise_scale" in name:
                client.log_metric(run_id, f"{name}_is_infinite", float(math.isinf(value)), step=step)
            if math.isfinite(value):
                client.log_metric(run_id, name, value, step=step)

    return log
