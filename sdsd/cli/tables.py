"""What commands print: tables aligned with spaces, and JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from .._terminal import as_shown


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns aligned with spaces, the first to the left and numbers to the right."""
    lines = [[as_shown(cell, sys.stdout) for cell in line] for line in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for index, line in enumerate(lines):
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        print("  ".join(cells).rstrip())
        if index == 0:
            print("  ".join("─" * width for width in widths))


def print_json(value: Any) -> None:
    from ..studies import plain

    print(json.dumps(plain(value), indent=1, ensure_ascii=False))
