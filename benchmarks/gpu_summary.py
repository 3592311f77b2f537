"""What a run of `benchmarks.gpu` has found, from the files it leaves: the table, the failures, what was left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import regressions, tables
from .cases import OURS
from .gpu_cases import CEILINGS, ops, rows_of
from .gpu_work import Record, one_line
from .harness import ENVIRONMENT, RESULTS, Row, plain_name, read_folder

SHOWN = 11_500
"""Characters of a summary at most: of what a command prints, often only the end is kept."""
NAMES = 14
"""Failures, and cases left out, that are named in the summary; files name all."""
WIDTH = 140

Left = list[tuple[str, str]]


def not_timed(rows: Iterable[Row]) -> Left:
    """(case and provider, reason) of every provider without a time."""
    return [
        (f"{row.op} {tables.case_text(row)}, {row.provider}", f"{row.status}, {row.note}")
        for row in rows
        if row.metric == "time" and row.status != "ok"
    ]


def own_lines(group: Sequence[Row], known: dict[tuple[object, ...], regressions.Change]) -> list[list[str]]:
    """Our time in one comparison, and whatever else of ours has a goal or has become worse."""
    lines = []
    for row in group:
        change = known.get(regressions.key(row))
        found = "" if change is None else change.found
        plain = row.provider == OURS and row.metric == "time"
        if not (plain or row.goals or found in regressions.BAD):
            continue
        what = ", ".join([row.provider, *(["memory"] if row.metric == "peak_memory" else [])])
        text = tables.bytes_text if row.metric == "peak_memory" else tables.seconds_text
        lines.append(
            [
                tables.case_text(row) if plain else f"  {what.removeprefix(OURS + ', ')}",
                row.status if row.median is None else text(row.median),
                "" if row.ratio is None else f"{row.ratio:.2f}",
                "" if change is None else change.before.split(" × ")[0],
                found,
                tables.goals_text([row]),
            ]
        )
    return lines


def results_table(rows: Sequence[Row], changes: Sequence[regressions.Change]) -> str:
    """A block an op: our time, its ratio to the baseline, now and in the committed results, and goals."""
    known = {regressions.key(change.row): change for change in changes}
    blocks = []
    for op in ops():
        groups = tables.comparisons(row for row in rows if row.op == op)
        lines = [line for group in groups for line in own_lines(group, known)]
        if lines:
            header = [op, "sdsd", f"/ {groups[0][0].baseline}", "was", "", "goal"]
            blocks.append(tables.aligned_text([header, *lines], (0, 4, 5)))
    return "\n\n".join(blocks)


def named(lines: Sequence[str], file: str) -> list[str]:
    """The first of the lines, and where the others are."""
    more = [f"  … and {len(lines) - NAMES} more, in {file}"] if len(lines) > NAMES else []
    return [*(f"  {one_line(line, WIDTH)}" for line in lines[:NAMES]), *more]


@dataclass
class Summary:
    """What is known of a run.

    Attributes:
        text: for the end of the terminal, at most `SHOWN` characters.
        left_out: every test not reached, case not measured and provider not timed, with the reason.
        status: the exit status, see benchmarks.gpu.
    """

    text: str
    left_out: dict[str, Left]
    status: int


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def committed_results(device: str, results: Path = RESULTS) -> list[Row]:
    """The committed results of the same GPU."""
    return read_folder(results / plain_name(device))


def summarise(out: Path, results: Path = RESULTS) -> Summary:
    """The summary of the files that a run has left in `out`."""
    machine = read(out / ENVIRONMENT)
    tests, cases = Record.of(out / "tests.jsonl"), Record.of(out / "cases.jsonl")
    rows = rows_of(list(cases.ended.values()))
    committed = committed_results(machine.get("device", "unknown"), results)
    changes = regressions.changes(committed, rows)
    worse = [change for change in changes if change.found in regressions.BAD]

    counts = Counter(event["outcome"] for event in tests.ended.values())
    broken = tests.lost + cases.lost
    failed_tests, failed_cases = tests.with_outcome("failed"), cases.with_outcome("failed")
    skipped = [(event["item"], f"skipped: {event['reason']}") for event in tests.with_outcome("skipped")]
    left_out = {
        "tests not reached": tests.left_out(),
        "tests skipped": skipped,
        "cases not measured": cases.left_out(),
        "providers not timed": not_timed(rows),
    }
    nothing = [what for what, record in (("test", tests), ("case", cases)) if not record.planned]

    said = [f"{count} {outcome}" for outcome, count in sorted(counts.items())]
    said.append(f"{len(left_out['tests not reached'])} not reached")
    parts = [
        [f"{machine.get('device', 'an unknown device')}, commit {machine.get('commit', 'unknown')}"],
        [f"  {name}: {value / 1e12:.2f} × 10¹²" for name, value in machine.get(CEILINGS, {}).items()],
        [results_table(rows, changes)] if rows else [],
        ["", f"tests, of {len(tests.planned)}: {', '.join(said)}"],
        named([f"FAILED {event['item']}: {event['reason']}" for event in failed_tests], "failures.txt"),
        [f"cases, of {len(cases.planned)}: {len(cases.with_outcome('ok'))} measured, {len(failed_cases)} failed"],
        named([f"FAILED {event['item']}: {event['reason']}" for event in failed_cases], "failures.txt"),
        [f"processes that broke down: {len(broken)}"] if broken else [],
        named(broken, "failures.txt"),
        *(
            [f"{what}: {len(items)}", *(named([f"{item}: {why}" for item, why in items], "left_out.txt"))]
            for what, items in left_out.items()
            if items and what == "cases not measured"
        ),
        [f"left out, named in left_out.txt: {sum(map(len, left_out.values()))}"],
        [f"no {what} was planned: its part never began" for what in nothing],
        [f"{len(changes)} numbers held against committed results of this device, {len(worse)} worse"]
        if committed
        else ["no results of this device are committed: nothing to be held against"],
    ]
    text = "\n".join(line for part in parts for line in part)
    if failed_tests or failed_cases or broken or worse or nothing:
        status = 1
    else:
        status = 3 if left_out["tests not reached"] or left_out["cases not measured"] else 0
    return Summary(text if len(text) <= SHOWN else "…" + text[1 - SHOWN :], left_out, status)


def write_left_out(left_out: dict[str, Left], path: Path) -> None:
    lines = []
    for what, items in left_out.items():
        lines += [f"{what}: {len(items)}", *(f"  {item}: {why}" for item, why in items), ""]
    path.write_text("\n".join(lines), encoding="utf-8")
