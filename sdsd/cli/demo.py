"""`sdsd demo`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .parser import Command, natural_number, positive_integer
from .status import INTERRUPTED, OK, complain, no_room
from .tables import print_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder to write (default: out/demo)")
    parser.add_argument("--seed", type=natural_number, default=0, help="same seed, same numbers (default: 0)")
    parser.add_argument("--epochs", type=positive_integer, default=None, help="passes over the data (default: 30)")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def run(arguments: argparse.Namespace) -> int:
    from ..gamma import history
    from ..studies import DemoConfig, run_demo

    config = DemoConfig(seed=arguments.seed, **({"epochs": arguments.epochs} if arguments.epochs else {}))
    try:
        result = run_demo(arguments.out, config, quiet=arguments.quiet)
    except history.NotWrittenError as error:
        raise OSError(no_room(error.path, error.reason)) from error
    if not arguments.quiet:
        from ..studies import summary_lines

        print_text("\n" + "\n".join(summary_lines(result)))
    if result.interrupted:
        kept = ", ".join(path.name for path in result.written if path.suffix != ".png")
        return complain(f"interrupted; kept in {result.folder}: {kept}", INTERRUPTED)
    return OK


COMMAND = Command(
    "demo",
    "train on real digits, watch signal and noise, map the neurons, merge them",
    "  sdsd demo\n  sdsd demo --out out/second --seed 1\n  sdsd demo --epochs 5 --quiet",
    add_arguments,
    run,
)
