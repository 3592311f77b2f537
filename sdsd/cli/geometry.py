"""`sdsd geometry`: one network through map, merges and controls."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from .parser import Command, CommandLineError, add_json, natural_number, positive_integer
from .status import INTERRUPTED, OK, complain, complain_of_users_code
from .tables import print_json, print_text, text_width

PLASTICITY_EPOCHS = 5
"""As in the document."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="FILE.py[:FUNCTION]",
        help="a Python file that defines model (or FUNCTION, which makes it), loader, and perhaps loss(model, batch), "
        "accuracy(model) and train(model) (default: networks that learn the built-in digits, an MLP and a CNN)",
    )
    parser.add_argument("--layer", metavar="NAME", help="the Linear layer or convolution to examine")
    parser.add_argument(
        "--data",
        metavar="FILE",
        help="inputs, and classes named y, if not from the file's loader: .npz, .pt, …, or - for standard input",
    )
    parser.add_argument(
        "--samples",
        type=positive_integer,
        default=2048,
        metavar="N",
        help="batches are taken from the loader until there are so many (default: 2048)",
    )
    parser.add_argument(
        "--pairs",
        type=positive_integer,
        default=50,
        metavar="K",
        help="pairs in a cohort, fewer in a small layer (default: 50)",
    )
    parser.add_argument(
        "--plasticity", action="store_true", help="also train on after merging, and compare what is learned"
    )
    parser.add_argument("--seed", type=natural_number, default=0, help="same seed, same numbers (default: 0)")
    parser.add_argument("--quick", action="store_true", help="fewer pairs and pairings, to see that it works")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/geometry"),
        help="folder to write; a run that was stopped goes on from what it holds (default: out/geometry)",
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from ..studies import BUILT_IN_SUBJECTS, ArcConfig, UserCodeError, examine, subject_from_file

    if arguments.model is None and (arguments.layer or arguments.data):
        raise CommandLineError("--layer and --data belong to a network: pass --model FILE.py, too")
    config = ArcConfig(arguments.seed, arguments.pairs, epochs=PLASTICITY_EPOCHS if arguments.plasticity else 0)
    subjects: list[Any] = [lambda make=make: make(arguments.seed) for make in BUILT_IN_SUBJECTS.values()]
    try:
        if arguments.model is not None:
            subjects = [
                subject_from_file(
                    arguments.model, arguments.layer, arguments.data, samples=arguments.samples, seed=arguments.seed
                )
            ]
        examined = examine(
            subjects,
            arguments.out,
            config,
            quick=arguments.quick,
            quiet=arguments.quiet or arguments.json,
            command=shlex.join(["sdsd", *arguments.words]),
        )
    except UserCodeError as error:
        return complain_of_users_code(error)
    if arguments.json:
        print_json({**examined.result.to_dict(), "folder": examined.folder, "resumed": examined.resumed})
    elif not arguments.quiet:
        if examined.resumed:
            print(f"{len(examined.resumed)} steps were finished by an earlier run")
        print("\n".join(examined.result.summary_lines(text_width())))
        print_text(f"written to {arguments.out}: {', '.join(path.name for path in examined.written)}")
    if examined.result.interrupted:
        return complain(f"interrupted; the same command goes on from what {arguments.out} holds", INTERRUPTED)
    return OK


COMMAND = Command(
    "geometry",
    "map a layer's neurons, merge near, random and far pairs, shrink it, hold it against controls",
    "  sdsd geometry\n"
    "  sdsd geometry --model train.py --layer encoder.fc1\n"
    "  sdsd geometry --model nets.py:resnet --layer layer4.0.conv1 --data images.npz\n"
    "  sdsd geometry --quick --out out/try",
    add_arguments,
    run,
)
