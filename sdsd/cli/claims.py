"""`sdsd claims`: every claim beside what was measured."""

from __future__ import annotations

import argparse
from pathlib import Path

from .parser import Command, CommandLineError, positive_integer
from .status import INTERRUPTED, OK, complain
from .tables import wrapped


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--read", action="store_true", help="run nothing: only what earlier runs have finished")
    parser.add_argument("--quick", action="store_true", help="from the quick studies, into out/quick and not into docs")
    parser.add_argument("--out", type=Path, help="the studies' folder (default: out/studies, or out/quick)")
    parser.add_argument("--docs", type=Path, help="folder of claims.md (default: docs, or out/quick)")
    parser.add_argument("--jobs", type=positive_integer, default=1, metavar="N", help="seeds measured at a time")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def run(arguments: argparse.Namespace) -> int:
    from ..studies import Runner, choose_progress, choose_studies, prepare_output, read_claims, write_claims

    out = arguments.out = arguments.out or Path("out/quick" if arguments.quick else "out/studies")
    docs = arguments.docs or (out if arguments.quick else Path("docs"))
    progress = choose_progress(arguments.quiet)
    if not arguments.read:
        prepare_output(docs, "--docs")  # before half an hour of work, not after it
        runner = Runner(out, progress, quick=arguments.quick, jobs=arguments.jobs)
        for _, result in runner.run(choose_studies(["all"])):
            if result.interrupted:
                return complain(f"interrupted; the same command goes on from what {out} holds", INTERRUPTED)
    claims = read_claims(out)
    if claims.missing and len(claims.missing) == len(choose_studies(["all"])):
        raise CommandLineError(f"{out} holds no finished study. Leave out --read, or name another folder with --out")
    prepare_output(docs, "--docs")
    for path in write_claims(claims, docs, out / "claims.html"):
        progress.say(f"written: {path}")
    if claims.missing:
        progress.say(wrapped(f"no results yet from: {', '.join(claims.missing)}"))
    return OK


COMMAND = Command(
    "claims",
    "one table of every claim, its figure, ours and the verdict: runs the studies that have no results yet",
    "  sdsd claims --read\n  sdsd claims --jobs 2\n  sdsd claims --quick",
    add_arguments,
    run,
)
