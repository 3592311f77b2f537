"""The part of docs/coverage.md that `tests.zoo.geometry` writes: what of every architecture can be taken out."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from .runner import _cell

TABLE = Path(__file__).resolve().parents[2] / "docs" / "coverage.md"
HEADING = "# Coverage: functional geometry"
INTRODUCTION = f"""\
{HEADING}

What can be taken out of the same tiny random networks, in float64. *Groups*: layers whose neurons belong together count
once. *Cut*: groups of which one neuron (channel, head, neuron of all experts) was removed, and the smaller network
equals the whole one with that neuron's readers blinded. *MLPs and convolutions*: layers of these groups that are no
projection of attention, no router, and no writer of a residual stream behind a norm over all neurons; cut, of those
there are. *Streams behind norms*: groups that such a norm stands in the way of; cut with `norms="repeat"`, and
equal to the merged network, of a model that gives its stream out as one that gives on its answers alone. *One way*:
activations → map → biopsy → mass consolidation → consolidation, compared with the merged network in float64 → pickle
and state_dict → a training step → torch.export, and for transformers save_pretrained → from_pretrained. `make test-zoo`
writes this part, too."""


@dataclass
class Row:
    family: str
    name: str
    layers: int = 0
    groups: int = 0
    cut: int = 0
    wanted: tuple[int, int] = (0, 0)
    streams: tuple[int, int] = (0, 0)
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    way: str = "–"


COLUMNS = "architecture | layers | groups | cut | MLPs and convolutions | streams behind norms | refused | one way"


def section(rows: list[Row]) -> str:
    """The part of docs/coverage.md."""
    cut, wanted = (sum(row.wanted[k] for row in rows) for k in (0, 1))
    streams, behind = (sum(row.streams[k] for row in rows) for k in (0, 1))
    total = _total(cut, wanted, streams, behind)
    lines = [*INTRODUCTION.splitlines(), "", f"{len(rows)} architectures; {total}"]
    for family in dict.fromkeys(row.family for row in rows):
        lines += ["", f"## {family}: geometry", "", f"| {COLUMNS} |", "|" + " --- |" * len(COLUMNS.split("|"))]
        for row in rows:
            if row.family == family:
                lines.append(_line(row))
    return "\n".join(lines) + "\n"


def _total(cut: int, wanted: int, streams: int, behind: int) -> str:
    return f"{cut} of {wanted} MLPs and convolutions cut, {streams} of {behind} streams behind norms."


TOTAL = re.compile(r"\d+ of \d+ MLPs and convolutions cut")


def _line(row: Row) -> str:
    refused = "; ".join(f"{count} {why}" for why, count in row.refused.most_common()) or "–"
    way = f"**{row.wrong[0]}**" if row.wrong else row.way
    parts = [f"{some} of {all_}" for some, all_ in (row.wanted, row.streams)]
    cells = (row.name, row.layers, row.groups, row.cut, *parts, refused, way)
    return "| " + " | ".join(_cell(str(cell)) for cell in cells) + " |"


def with_rows(text: str, rows: list[Row]) -> str:
    """The document with the rows of some architectures in place of those it had."""
    before, _, after = text.partition(f"\n{HEADING}\n")
    part, symmetries, rest = after.partition("\n# Coverage: symmetries\n")
    lines, family = part.splitlines(), ""
    for k, line in enumerate(lines):
        family = line[3:].removesuffix(": geometry") if line.startswith("## ") else family
        mine = [row for row in rows if row.family == family and line.startswith(f"| {row.name} |")]
        lines[k] = _line(mine[0]) if mine else line
    counts = [
        [sum(int(number) for number in column) for column in zip(*pairs, strict=True)] for pairs in _counts(lines)
    ]
    (cut, wanted), (streams, behind) = counts
    place = next(k for k, line in enumerate(lines) if TOTAL.search(line))
    total = lines[place].partition("; ")[0] + "; " + _total(cut, wanted, streams, behind)
    part = "\n".join(["", *INTRODUCTION.splitlines(), "", total, *lines[place + 1 :]])
    return before + part + "\n" + symmetries + rest


def _counts(lines: list[str]) -> list[list[tuple[str, str]]]:
    """Of every row what was cut, of how many: MLPs and convolutions, and streams."""
    matched = [re.match(r"\|[^|]+\|[^|]+\|[^|]+\|[^|]+\| (\d+) of (\d+) \| (\d+) of (\d+) \|", line) for line in lines]
    numbers = [each.groups() for each in matched if each]
    return [[(one[0], one[1]) for one in numbers], [(one[2], one[3]) for one in numbers]]


def with_section(text: str, new: str) -> str:
    """The document with this part in place of what it had, before that of `tests.zoo.theory`."""
    before, _, after = text.partition(f"\n{HEADING}\n")
    _, heading, symmetries = after.partition("\n# Coverage: symmetries\n")
    return before.rstrip() + "\n\n" + new + heading + symmetries
