"""`sdsd study`, and what `sdsd theory` shares with it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .parser import Command, CommandLineError, add_json, natural_number, positive_integer
from .status import FELL_SHORT, INTERRUPTED, OK, complain
from .tables import print_json, print_text, text_width


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="studies to run, or all; --list names them")
    parser.add_argument("--list", action="store_true", help="what there is, what it tests, how long it takes")
    parser.add_argument(
        "--out", type=Path, help="folder to write, one in it for each study (default: out/studies, or out/quick)"
    )
    parser.add_argument("--seed", type=natural_number, default=0, help="the first seed; same seed, same numbers")
    parser.add_argument("--seeds", type=positive_integer, metavar="N", help="how many repetitions, from --seed on")
    parser.add_argument("--quick", action="store_true", help="smaller and rougher, seconds instead of minutes")
    parser.add_argument("--fresh", action="store_true", help="measure again what earlier runs have finished")
    parser.add_argument("--jobs", type=positive_integer, default=1, metavar="N", help="seeds measured at a time")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    return run_studies(arguments)


def run_studies(arguments: argparse.Namespace, group: str | None = None) -> int:
    """`sdsd study`, for all studies or those of a group."""
    from ..studies import GROUPS, Runner, choose_progress, choose_studies, list_lines

    if arguments.list:
        if arguments.json:
            groups = GROUPS if group is None else {group: GROUPS[group]}
            print_json([list_entry(name, each) for name, studies in groups.items() for each in studies])
        else:
            print_text("\n".join(list_lines(group)))
        return OK
    if not arguments.names:
        raise CommandLineError(f"name a study, or all. See: sdsd {group or 'study'} --list")
    chosen = choose_studies(arguments.names, group)
    progress = choose_progress(arguments.quiet or arguments.json)
    runner = Runner(
        arguments.out or Path("out/quick" if arguments.quick else "out/studies"),
        progress,
        first=arguments.seed,
        count=arguments.seeds,
        quick=arguments.quick,
        fresh=arguments.fresh,
        jobs=arguments.jobs,
    )
    finished: list[dict[str, Any]] = []
    interrupted = None
    for each, result in runner.run(chosen):
        folder = runner.folder(each)
        finished.append({**result.to_dict(), "folder": folder})
        if result.interrupted:
            progress.say(f"{len(result.seeds)} of {each.name}'s seeds are finished and kept; the same command goes on.")
            interrupted = f"interrupted; kept in {folder}: results.json"
            break
        written = ", ".join((*result.figures, "report.html", "results.json"))
        progress.say("\n".join((*result.summary_lines(text_width()), f"written to {folder}: {written}\n")))
    if arguments.json:
        print_json(finished)
    if interrupted is not None:
        return complain(interrupted, INTERRUPTED)
    return OK if len(finished) == len(chosen) else FELL_SHORT


def list_entry(group: str, study: Any) -> dict[str, str]:
    return {"name": study.name, "group": group, "summary": study.summary, "claim": study.claim, "source": study.source}


COMMAND = Command(
    "study",
    "run studies of the framework's claims: figure, page, results.json and a verdict each; resumable",
    "  sdsd study --list\n  sdsd study rank\n  sdsd study phase well --seeds 5 --out out/noise\n"
    "  sdsd study theory --quick\n  sdsd study all --jobs 2",
    add_arguments,
    run,
)
