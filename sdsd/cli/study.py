"""`sdsd study`, and what `sdsd theory` shares with it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .parser import Command, CommandLineError, add_json, natural_number, positive_integer
from .status import FELL_SHORT, INTERRUPTED, OK, complain, complain_of_users_code
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
    parser.add_argument(
        "--model",
        type=Path,
        metavar="FILE.py",
        help="measure on a network of yours: a file that defines model, loader and loss(model, batch); studies "
        "that train networks of their own refuse it",
    )
    parser.add_argument(
        "--layer",
        metavar="NAME",
        help="with --model: the layer whose neurons merge-cost and redundancy merge; WRITER:READER for orbit",
    )
    parser.add_argument(
        "--samples",
        type=positive_integer,
        metavar="N",
        help="with --model: batches are taken from the loader until there are so many (default: 256)",
    )
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
    if arguments.model is not None:
        return _run_own(arguments)
    if arguments.layer or arguments.samples:
        raise CommandLineError("--layer and --samples belong to a network: pass --model FILE.py, too")
    chosen = choose_studies(arguments.names, group)
    progress = choose_progress(arguments.quiet or arguments.json)
    arguments.out = arguments.out or Path("out/quick" if arguments.quick else "out/studies")
    runner = Runner(
        arguments.out,
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


def _run_own(arguments: argparse.Namespace) -> int:
    """What studies measure, on the network of a file."""
    from ..studies import CATALOGUE, OWN, UserCodeError, check_own, choose_progress, run_own

    if arguments.seeds or arguments.fresh or arguments.jobs > 1:
        raise CommandLineError("--seeds, --fresh and --jobs belong to networks that a study makes, not to --model")
    names = list(OWN) if arguments.names == ["all"] else [check_own(name, CATALOGUE) for name in arguments.names]
    progress = choose_progress(arguments.quiet or arguments.json)
    out = arguments.out = arguments.out or Path("out/own")
    finished = []
    try:
        for name in dict.fromkeys(names):
            result = run_own(
                name,
                arguments.model,
                out,
                progress,
                layer=arguments.layer,
                samples=arguments.samples or 256,
                seed=arguments.seed,
                quick=arguments.quick,
            )
            finished.append({**result.to_dict(), "folder": out / name})
            progress.say("\n".join((f"{name}, {arguments.model}", *(f"  {line}" for line in result.lines))))
            progress.say(f"written to {out / name}: {', '.join(result.written)}\n")
    except UserCodeError as error:
        return complain_of_users_code(error)
    if arguments.json:
        print_json(finished)
    return OK


def list_entry(group: str, study: Any) -> dict[str, str]:
    return {"name": study.name, "group": group, "summary": study.summary, "claim": study.claim, "source": study.source}


COMMAND = Command(
    "study",
    "run studies of the framework's claims: figure, page, results.json and a verdict each; resumable",
    "  sdsd study --list\n  sdsd study rank\n  sdsd study phase well --seeds 5 --out out/noise\n"
    "  sdsd study theory --quick\n  sdsd study all --jobs 2\n  sdsd study quotient flatness --model train.py",
    add_arguments,
    run,
)
