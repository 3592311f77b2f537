"""`GammaHistory`: what the measured steps of a training run gave, as rows, a file that grows, a table, a picture."""

from __future__ import annotations

import atexit
import csv
import logging
import math
import os
import tempfile
import time
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdsd_kernels import checks

from .._drafts import draft_of
from .._extras import require
from .rows import COLUMNS, TOTAL, Row, Values, line_of, row_of, row_of_line
from .stats import GammaStats

if TYPE_CHECKING:
    from .monitor import GammaMonitor

LOGGER = logging.getLogger("sdsd.gamma")
WAITING = 64
"""Measured steps whose numbers stay on their device: they are copied together, for a copy waits for the device."""
SECONDS = 5.0
"""After which waiting steps are written to a file all the same, so that who watches it sees them."""
SMOOTHED = ("smoothed_noise_scale", "noise_scale_low", "noise_scale_high", "phase")
_BEGINNING = b'{"step": '  # of every line of a file
_STEP, _PARAMETER = COLUMNS.index("step"), COLUMNS.index("parameter")
LAST = 10
"""Rows that a notebook shows."""


class GammaHistory(Sequence[Row]):
    """The measured steps of a monitor, in order: a row for the total, and one for each parameter where asked for.

    A row has

    - `step`: which call of `monitor.step()`, from 1; `parameter`: its name, or "total"; `batch_size`, in samples;
    - `signal`, `noise`, `gamma`, `gamma_unbiased`, `noise_scale` of the step's gradients, as in `GammaStats`;
    - `smoothed_gamma`, `smoothed_noise_scale`, `noise_scale_low`, `noise_scale_high`, `confidence`, `phase`: the
      unbiased Γ of one sample, the noise scale in samples, its interval, its level (None without an interval, and in
      files of older releases), and the phase at `batch_size`, from the running averages;
    - `recommended_batch` in samples and `verdict`, as `recommend_batch` gives them, None where the data cannot tell;
      `advice`: its sentence, in rows of the total.

    With a path every row is a line of JSON there, NaN and infinity written as null beside "<column>_is": "nan" or
    "inf". A file that is there already is gone on with: rows from the first step on that comes again, after a restart
    from an older checkpoint, are replaced. Rows are written when `WAITING` steps or `SECONDS` have passed, by `flush`,
    when the monitor is detached, and when nobody holds the history any more or Python ends, by Ctrl-C or an error, too.
    Let one rank of several write. `sdsd watch` shows such a file while it grows.

    A file belongs to one run: where somebody else changes it meanwhile, a warning says so and rows stay in memory from
    there on; a file that is taken away is written anew, with all rows. Copies and pickles hold rows, without the file.

    Args:
        path: the file, or None to keep rows in memory alone.
        parameters: rows of parameters, too.

    Raises:
        ValueError: a file that holds something else than such rows, a directory, a folder that is not there.
        OSError: a file that cannot be read or written.

    Example:
        >>> import torch, sdsd
        >>> model = torch.nn.Linear(3, 2)
        >>> monitor = sdsd.GammaMonitor(model, history=sdsd.GammaHistory())
        >>> for _ in range(3):
        ...     model(torch.randn(8, 3)).square().mean().backward()
        ...     _ = monitor.step()
        ...     model.zero_grad()
        >>> [row["step"] for row in monitor.history]
        [1, 2, 3]
    """

    path: Path | None = None

    def __init__(self, path: str | Path | None = None, *, parameters: bool = False) -> None:
        self.path = None if path is None else Path(path)
        self.parameters = parameters
        self._waiting: list[tuple[int, GammaStats]] = []
        self._rows: list[Values] = []
        self._unwritten: list[Values] = []
        self._written = time.monotonic()
        self._size: int | None = 0
        """Of the file as this history left it, in bytes; None where that is not known."""
        self._process, self._cut = os.getpid(), False
        if self.path is not None:
            _check_writable(self.path)
            for other in list(_OPEN):  # a run before, in this process, that would put its last rows among these
                if other.path is not None and other.path.resolve() == self.path.resolve():
                    other._close()
        if self.path is not None and self.path.exists():
            self._rows, self._cut = _read(self.path)
            LOGGER.info("%s: %d rows of an earlier run are gone on with", self.path, len(self._rows))
            if self._cut:  # the first write mends it: until then the file may be another run's, which is writing it
                LOGGER.warning("%s: the last line is cut off", self.path)
            self._size = self.path.stat().st_size
        _OPEN.add(self)

    def __call__(self, monitor: GammaMonitor, stats: GammaStats) -> None:
        """Take a measured step: what `GammaMonitor.add_observer` calls."""
        self.append(monitor.steps, stats)

    def append(self, step: int, stats: GammaStats) -> None:
        """Take the statistics of step number `step`; rows of it and of later steps, of an earlier run, are dropped.

        Args:
            step: which step of the run, 0 or more.
            stats: what the monitor gave for it.

        Raises:
            ValueError: no whole number.
            OSError: the file cannot be written; the step is kept, and written with the next ones.
        """
        step = checks.check_count(step, "step", least=0)
        last = self._waiting[-1][0] if self._waiting else self._rows[-1][_STEP] if self._rows else 0
        if step <= last:
            self._collect()
            kept = [row for row in self._rows if row[_STEP] < step]
            LOGGER.info("step %d comes again: %d rows from it on are replaced", step, len(self._rows) - len(kept))
            self._rows = kept
            self._waiting.append((step, stats))
            if self._is_ours():
                self._write_all()
        else:
            self._waiting.append((step, stats))
        late = self.path is not None and time.monotonic() - self._written >= SECONDS
        if late or len(self._waiting) >= WAITING:
            self.flush()

    def flush(self) -> None:
        """Copy the numbers of waiting steps from their device, and write their rows.

        Raises:
            OSError: the file cannot be written; its rows stay in memory, and the next call writes them.
        """
        self._collect()
        self._written = time.monotonic()
        if (self._unwritten or self._size is None) and self._is_ours():
            self._write()

    def _collect(self) -> None:
        """Make rows of the steps that wait: reading needs no file, nor room in one."""
        waiting, self._waiting = self._waiting, []
        fresh = [tuple(row.values()) for step, stats in waiting for row in self._rows_of(step, stats)]
        self._rows += fresh
        if self.path is not None:
            self._unwritten += fresh

    def _is_ours(self) -> bool:
        """Whether there is a file to write to: not one that somebody else has changed, which is left to them."""
        if self.path is None:
            return False
        if self._size is None or not self.path.exists() or self.path.stat().st_size == self._size:
            return True
        text = (
            f"{self.path} has changed since this run wrote to it: another run writes to the same file. This run's rows "
            "stay in memory from here on; name a file for each run."
        )
        LOGGER.warning("%s", text)
        warnings.warn(text, RuntimeWarning, stacklevel=4)
        self.path, self._unwritten = None, []
        return False

    def _write(self) -> None:
        assert self.path is not None
        if self._size is None or self._cut or not self.path.exists():
            self._write_all()
            return
        self._size = None  # what a write that fails leaves there is not known
        with _naming(self.path), self.path.open("a", encoding="utf-8") as file:
            file.writelines(line_of(_row(values)) for values in self._unwritten)
        self._now_written()

    def _close(self) -> None:
        """Write what waits, if nobody did: a forked process does not, for its rows are those of this one."""
        if self.path is not None and self._process == os.getpid() and (self._waiting or self._unwritten):
            try:
                self.flush()
            except Exception as error:  # a device that failed, a folder that is gone: nobody can mend it any more
                warnings.warn(f"{self.path}: the last rows could not be written: {error}", RuntimeWarning, stacklevel=2)

    def __del__(self) -> None:
        self._close()

    def __getstate__(self) -> dict[str, Any]:
        self._collect()
        return self.__dict__ | {"path": None, "_rows": list(self._rows), "_waiting": [], "_unwritten": []}

    def __len__(self) -> int:
        self._collect()
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        self._collect()
        taken = self._rows[index]
        return [_row(values) for values in taken] if isinstance(index, slice) else _row(taken)

    def __iter__(self) -> Iterator[Row]:
        self._collect()
        return map(_row, self._rows)

    def __repr__(self) -> str:
        where = "" if self.path is None else f" in {self.path}"
        return f"GammaHistory({len(self)} rows{where})"

    def _repr_html_(self) -> str:
        """What notebooks show: the last rows of the total, and the latest advice."""
        self._collect()
        of_total = [values for values in self._rows if values[_PARAMETER] == TOTAL]
        rows = [_row(values) for values in of_total[-LAST:]]
        shown = ("step", "batch_size", "noise_scale", *SMOOTHED)
        lines = [f"<tr>{''.join(f'<th>{name}</th>' for name in shown)}</tr>"] + [
            f"<tr>{''.join(f'<td>{_shown(row[name])}</td>' for name in shown)}</tr>" for row in rows
        ]
        said = f"{len(of_total)} measured steps, in total; the last {len(rows)}."
        if rows and rows[-1]["advice"]:
            said += f" {rows[-1]['advice']}"
        return f"<table><caption>{escape(said)}</caption>{''.join(lines)}</table>"

    def column(self, name: str, parameter: str = TOTAL) -> list[Any]:
        """One column of the rows of one parameter, or of the total.

        Args:
            name: one of `COLUMNS`.
            parameter: a parameter's name, or "total".

        Returns:
            The values, oldest first.

        Raises:
            ValueError: an unknown column, or a parameter that has no rows.
        """
        if name not in COLUMNS:
            raise ValueError(f"name: expected one of {', '.join(COLUMNS)}, got {name!r}.")
        self._collect()
        place = COLUMNS.index(name)
        values = [row[place] for row in self._rows if row[_PARAMETER] == parameter]
        if not values and self._rows:
            known = list(dict.fromkeys(row[_PARAMETER] for row in self._rows))
            hint = " Pass parameters=True to keep those of parameters." if known == [TOTAL] else ""
            raise ValueError(f"parameter: expected one of {', '.join(known)}, got {parameter!r}.{hint}")
        return values

    def dataframe(self) -> Any:
        """A pandas DataFrame, a line a row.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        pandas = require("pandas", extra="report", purpose="a DataFrame")
        return pandas.DataFrame(list(self), columns=list(COLUMNS))

    def save_csv(self, path: str | Path) -> Path:
        """Write all rows as comma-separated values, under a line with the columns' names. Returns the path.

        Args:
            path: the file, which is written anew.

        Returns:
            The path.

        Raises:
            OSError: the file cannot be written; what was there stays.
        """
        rows, path = list(self), Path(path)
        with _naming(path), draft_of(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        return path

    def plot(self, parameter: str = TOTAL, *, axes: Any = None) -> tuple[Any, Any]:
        """Draw the noise scale with its interval, and the batch size, over steps; both axes are in steps and samples.

        Args:
            parameter: whose; "total" for all together.
            axes: matplotlib axes to draw into; None makes a figure.

        Returns:
            The figure and the axes.

        Raises:
            ValueError: there is no row yet, or none of this parameter.
            MissingExtraError: matplotlib is not installed.
        """
        from .plots import plot_history

        return plot_history(self, parameter, axes)

    def _rows_of(self, step: int, stats: GammaStats) -> Iterator[Row]:
        yield row_of(step, TOTAL, stats)
        if self.parameters:
            for name, part in stats.parameters.items():
                yield row_of(step, name, part)

    def _write_all(self) -> None:
        assert self.path is not None
        self._size = None  # a file that stays as it was has rows that are replaced
        target = self.path.resolve()  # a link stays one
        with _naming(self.path), draft_of(target) as draft, draft.open("w", encoding="utf-8") as file:
            file.writelines(line_of(_row(values)) for values in self._rows)
        self._now_written()

    def _now_written(self) -> None:
        assert self.path is not None
        self._unwritten, self._cut = [], False
        self._size = self.path.stat().st_size


_OPEN: weakref.WeakSet[GammaHistory] = weakref.WeakSet()
"""Histories, of which those with a file may have rows to write."""


@atexit.register
def _close_all() -> None:
    for history in list(_OPEN):
        history._close()


class NotWrittenError(OSError):
    """A history's file cannot be written. Rows stay in memory. `path` and `reason` say where and why."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(
            f"{path}: the history could not be written there ({reason}). Its rows are in memory: make room and call "
            "flush() again, or save_csv() elsewhere."
        )


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Have errors of a file system, which name no file where a disk is full, say which it was."""
    try:
        yield
    except OSError as error:
        raise NotWrittenError(path, error.strerror or str(error)) from error


def _row(values: Values) -> Row:
    return dict(zip(COLUMNS, values, strict=True))


def _shown(value: Any) -> str:
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return "–" if missing else f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def _check_writable(path: Path) -> None:
    """Refuse now what would stop a run at its first row."""
    folder = path.resolve().parent
    if path.is_dir():
        raise ValueError(f"{path}: expected a file for the history, got a directory. Name a file in it.")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: expected a file for the history, got a device or a pipe. Name an ordinary file.")
    if not folder.is_dir():
        raise ValueError(f"{path}: expected a file in a folder that is there, and {folder} is not. Make it first.")
    try:
        with path.open("a") if path.exists() else tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"{path}: expected a file that can be written, and it cannot be ({error.strerror}). "
            "Name one in a folder of yours."
        ) from error


def _read(path: Path) -> tuple[list[Values], bool]:
    """The rows of a file, and whether its last line was cut off: what is no row is left out then."""
    rows: list[Values] = []
    words: dict[Any, Any] = {}  # each text once: names, phases and advice come again and again
    with path.open("rb") as file:
        line = b"\n"
        for number, line in enumerate(file, start=1):
            try:
                row = row_of_line(line.decode("utf-8"))
            except ValueError as error:
                if _is_cut(line):
                    break
                what = f", line {number}: {error} Name another file, or move this one away."
                if isinstance(error, UnicodeError):
                    what = ": expected a history, which is text, got other bytes. Name another file."
                raise ValueError(f"{path}{what}") from error
            rows.append(tuple(words.setdefault(v, v) if type(v) is str else v for v in row.values()))
    return rows, not line.endswith(b"\n")


def _is_cut(line: bytes) -> bool:
    """Whether this is the beginning of a row, or zeros that a crash left: of another file nothing is taken away."""
    return not line.endswith(b"\n") and (_BEGINNING.startswith(line[: len(_BEGINNING)]) or not line.strip(b"\0"))
