"""What commands print: running text and tables that fit the terminal, and JSON."""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from .._terminal import as_shown

LEAST_NAME = 16
"""Columns that names in a table have at least."""


def text_width(most: int = 110) -> int:
    """Columns for running text: those of the terminal, at most `most`; `most` where there is none."""
    return max(40, min(most, shutil.get_terminal_size((most, 24)).columns))


def print_text(text: str) -> None:
    """Print lines, wrapped on a terminal."""
    print(wrapped(text))


def wrapped(text: str) -> str:
    """`text` as it fits the terminal, if there is one; what follows two spaces or more hangs below itself."""
    if not sys.stdout.isatty():
        return text
    width, lines = text_width(), []
    for line in text.split("\n"):
        before = re.match(r".*\S {2,}", line)
        hang = len(before[0]) if before and len(before[0]) < width // 2 else 0
        lines.append(textwrap.fill(line, width, subsequent_indent=" " * hang, break_on_hyphens=False))
    return "\n".join(lines)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Columns aligned with spaces, the first to the left and numbers to the right.

    On a terminal that is too narrow heads take several lines, and a long name one of its own.
    """
    heads = [[as_shown(cell, sys.stdout)] for cell in header]
    lines = [[as_shown(cell, sys.stdout) for cell in line] for line in rows]
    cells = [max((len(line[column]) for line in lines), default=0) for column in range(len(header))]
    widths = [max(len(heads[column][0]), cells[column]) for column in range(len(header))]
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else sum(widths) + 2 * len(widths)
    if sum(widths) + 2 * len(widths) - 2 > room:
        heads = [textwrap.wrap(head[0], max(width, 11)) or [""] for head, width in zip(heads, cells, strict=True)]
        widths = [max(cells[column], *map(len, head)) for column, head in enumerate(heads)]
        widths[0] = max(LEAST_NAME, min(widths[0], room - sum(widths[1:]) - 2 * (len(widths) - 1)))
    tall = max(map(len, heads))
    for row in range(tall):
        print_line([head[row - tall + len(head)] if row >= tall - len(head) else "" for head in heads], widths)
    print("  ".join("─" * width for width in widths))
    for line in lines:
        if len(line[0]) > widths[0]:
            print(line[0])
            line[0] = ""
        print_line(line, widths)


def print_line(cells: Sequence[str], widths: Sequence[int]) -> None:
    numbers = (cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))
    print("  ".join([cells[0].ljust(widths[0]), *numbers]).rstrip())


def print_json(value: Any) -> None:
    """Strict JSON: see `sdsd.studies.plain`."""
    from ..studies import plain

    print(json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False))
