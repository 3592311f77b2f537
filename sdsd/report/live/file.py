"""A growing file of a `GammaHistory`, read on from where it was left."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ...gamma import history

MOST_BYTES = 4 << 20
"""Read at a time."""
PROOF = 256
"""Last bytes read that have to stand where they stood, else it is another file."""


@dataclass
class Part:
    """What came since the last reading.

    Attributes:
        rows: whole lines of the file.
        anew: the file is another one than before: what came earlier does not count.
        there: whether there is a file.
        behind: bytes that are there and not read yet, but for the last line while it is being written.
        changed: when the file was last written, in seconds since 1970; None without one.
    """

    rows: list[history.Row] = field(default_factory=list)
    anew: bool = False
    there: bool = True
    behind: int = 0
    changed: float | None = None


class HistoryFile:
    """Reads a file on, whole lines only; notices that it was replaced, cut or taken away, and begins anew then."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._forget()

    def _forget(self) -> None:
        self._offset = self._lines = 0
        self._last = b""

    def read(self, most: int = MOST_BYTES) -> Part:
        """What came since the last call, at most `most` bytes of it.

        Raises:
            ValueError: a whole line that is no row of a history.
            OSError: the file cannot be read.
        """
        part = Part()
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            part.there, part.anew = False, self._offset > 0
            self._forget()
            return part
        with file:
            facts = os.fstat(file.fileno())
            if not self._goes_on(file):
                part.anew = True
                self._forget()
            part.changed = facts.st_mtime
            file.seek(self._offset)
            block = file.read(most)
        whole = block[: block.rfind(b"\n") + 1]
        if not whole and len(block) == most:
            raise ValueError(f"{self.path}, line {self._lines + 1}: expected a row of a GammaHistory, got no line end.")
        for number, line in enumerate(whole.splitlines(keepends=True), start=self._lines + 1):
            try:
                part.rows.append(history.row_of_line(line.decode("utf-8")))
            except ValueError as error:
                raise ValueError(f"{self.path}, line {number}: {error}") from error
        self._lines += len(part.rows)
        self._offset += len(whole)
        self._last = (self._last + whole)[-PROOF:]
        part.behind = max(0, facts.st_size - self._offset) if len(block) == most else 0
        return part

    def _goes_on(self, file: BinaryIO) -> bool:
        file.seek(self._offset - len(self._last))
        return file.read(len(self._last)) == self._last
