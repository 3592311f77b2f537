"""`sdsd validate`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

from .parser import Command, add_json
from .status import FELL_SHORT, OK
from .tables import print_json, print_table, print_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from .. import validate as compare

    report = compare(verbose=False)
    if arguments.json:
        rows = [{**asdict(row), "ok": row.ok} for row in report.rows]
        print_json({"device": report.device, "ok": report.ok, "rows": rows})
    else:
        print_report(report)
    return OK if report.ok else FELL_SHORT


def print_report(report: Any) -> None:
    """The worst of each function, backend and dtype; in full what falls short; the count of all."""
    groups: dict[tuple[str, str, str], list[Any]] = {}
    for row in report.rows:
        groups.setdefault((row.op, row.backend, row.dtype), []).append(row)
    worst = [
        (*names, str(len(rows)), f"{max(map(share, rows)):.2f}".replace("inf", "∞"), word(all(row.ok for row in rows)))
        for names, rows in groups.items()
    ]
    print_table(("function", "backend", "dtype", "cases", "worst error / allowed", ""), worst)
    short = [row for row in report.rows if not row.ok]
    for row in short:
        print_text(
            f"{word(False)}: {row.op}, {row.backend}, {row.case}, {'×'.join(map(str, row.shape))}, {row.dtype}: error "
            f"{row.error:.1e}, allowed {row.bound:.1e}"
        )
    print_text(f"{report.summary}. All: --json")


def share(row: Any) -> float:
    """The error as a share of what is allowed; infinite where it is none."""
    ratio = row.error / row.bound if row.bound else (0.0 if row.error == 0 else float("inf"))
    return ratio if ratio == ratio else float("inf")


def word(ok: bool) -> str:
    return "ok" if ok else "FALLS SHORT"


COMMAND = Command(
    "validate",
    "compare every backend on this machine with the definitions",
    "  sdsd validate\n  TRITON_INTERPRET=1 sdsd validate\n  sdsd validate --json",
    add_arguments,
    run,
    loads="sdsd_kernels",
)
