"""The `sdsd` command.

A subcommand is a function marked with `@command`, which adds its arguments in a second function; nothing else has to
know about it. User errors end in one line and status 2; SDSD_DEBUG=1 shows the traceback instead.
"""

from __future__ import annotations

import argparse
import difflib
import json
import math
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from .._extras import MissingExtraError
from .._terminal import as_shown, spell_what_cannot_be_shown

OK, FELL_SHORT, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130


class CommandLineError(ValueError):
    """What was typed cannot be understood."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are ours: one line, with the nearest known word."""

    def error(self, message: str) -> NoReturn:
        raise CommandLineError(f"{message}. See: {self.prog} --help")


@dataclass(frozen=True)
class Command:
    """One subcommand: what it is called, what it takes and what it does."""

    name: str
    summary: str
    examples: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


COMMANDS: dict[str, Command] = {}


def command(
    name: str, summary: str, examples: str, arguments: Callable[[argparse.ArgumentParser], None]
) -> Callable[[Callable[[argparse.Namespace], int]], Callable[[argparse.Namespace], int]]:
    """Register the decorated function, which returns the exit status, as the subcommand `name`."""

    def register(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
        COMMANDS[name] = Command(name, summary, examples, arguments, run)
        return run

    return register


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (of the process by default) and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    spell_what_cannot_be_shown(sys.stdout, sys.stderr)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning  # type: ignore[assignment]
            return run(arguments)
    except KeyboardInterrupt:
        return complain("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has seen enough; nothing may be flushed into the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (ValueError, TypeError, OSError, MissingExtraError) as error:
        if os.environ.get("SDSD_DEBUG") == "1":
            traceback.print_exc()
        return complain(" ".join(str(error).split()), BAD_INPUT)


def show_warning(message: Warning | str, *_: Any) -> None:
    """A warning in one line, without the line of our source that it comes from."""
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def complain(message: str, status: int) -> int:
    print(f"error: {message}" if status == BAD_INPUT else message, file=sys.stderr)
    return status


def run(arguments: list[str]) -> int:
    parser, subparsers = build_parser()
    check_command_name(arguments)
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise CommandLineError(unknown_words(unknown, subparsers.get(known.command, parser)))
    if known.command is None:
        parser.print_help()
        return OK
    return COMMANDS[known.command].run(known)


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(
        prog="sdsd",
        allow_abbrev=False,
        description="Is this gradient signal or noise, and which neurons do the same job?",
        epilog="Run `sdsd COMMAND --help` for its options and examples.",
    )
    parser.add_argument("--version", action=ShowVersion, help="show the versions of sdsd, torch and Python, and exit")
    group = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    subparsers = {}
    for entry in COMMANDS.values():
        subparser = group.add_parser(
            entry.name,
            help=entry.summary,
            description=entry.summary[0].upper() + entry.summary[1:] + ".",
            epilog="examples:\n" + entry.examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        entry.arguments(subparser)
        subparsers[entry.name] = subparser
    return parser, subparsers


class ShowVersion(argparse.Action):
    """--version, which alone of a parser's own options has to wait for torch."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        import torch

        from .. import __version__

        print(f"sdsd {__version__} (torch {torch.__version__}, Python {sys.version.split()[0]})")
        parser.exit()


def check_command_name(arguments: Sequence[str]) -> None:
    if not arguments or arguments[0].startswith("-") or arguments[0] in COMMANDS:
        return
    near = difflib.get_close_matches(arguments[0], COMMANDS, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Commands: {', '.join(COMMANDS)}."
    raise CommandLineError(f"there is no command {arguments[0]!r}. {hint}")


def unknown_words(unknown: Sequence[str], parser: argparse.ArgumentParser) -> str:
    options = re.findall(r"--[a-z][a-z-]*", parser.format_help())
    word = next((word for word in unknown if word.startswith("-")), unknown[0])
    near = difflib.get_close_matches(word.split("=")[0], options, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"See: {parser.prog} --help"
    return f"{parser.prog} does not know {word!r}. {hint}"


def whole_number(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = None
    if value is None or value < least:
        raise argparse.ArgumentTypeError(f"expected a whole number, at least {least}, got {text!r}")
    return value


def positive_integer(text: str) -> int:
    return whole_number(text, 1)


def natural_number(text: str) -> int:
    return whole_number(text, 0)


def level(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a level between 0 and 1, for example 0.95, got {text!r}")
    return value


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


def demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="folder to write (default: out/demo)")
    parser.add_argument("--seed", type=natural_number, default=0, help="same seed, same numbers (default: 0)")
    parser.add_argument("--epochs", type=positive_integer, default=None, help="passes over the data (default: 30)")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


@command(
    "demo",
    "train on real digits, watch signal and noise, map the neurons, merge them",
    "  sdsd demo\n  sdsd demo --out out/second --seed 1\n  sdsd demo --epochs 5 --quiet",
    demo_arguments,
)
def demo(arguments: argparse.Namespace) -> int:
    from ..studies.demo import DemoConfig, run_demo

    config = DemoConfig(seed=arguments.seed, **({"epochs": arguments.epochs} if arguments.epochs else {}))
    result = run_demo(arguments.out, config, quiet=arguments.quiet)
    if not arguments.quiet:
        from ..studies.demo_report import summary_lines

        print("\n" + "\n".join(summary_lines(result)))
    if result.interrupted:
        kept = ", ".join(path.name for path in result.written if path.suffix != ".png")
        return complain(f"interrupted; kept in {result.folder}: {kept}", INTERRUPTED)
    return OK


def gamma_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help=".npy, .npz, .pt, .pth or .safetensors: n gradients along dimension 0; or a .py file that defines model, "
        "loader and loss(model, batch), and may define optimizer (default: SGD, lr 0.01) and steps: it is trained",
    )
    parser.add_argument("--confidence", type=level, default=0.95, help="level of the intervals (default: 0.95)")
    parser.add_argument(
        "--samples-per-gradient",
        type=positive_integer,
        default=None,
        metavar="B",
        help="over how many samples each gradient is a mean (default: 1)",
    )
    parser.add_argument(
        "--batch-size",
        type=positive_integer,
        default=None,
        metavar="B",
        help="the training batch the phase is for (default: all samples of the file)",
    )
    parser.add_argument(
        "--population",
        type=positive_integer,
        default=None,
        metavar="N",
        help="samples that batches are drawn from without replacement (default: independent samples)",
    )
    parser.add_argument("--key", metavar="NAME", help="take only this entry, or this group of entries, of the file")
    parser.add_argument(
        "--steps", type=positive_integer, metavar="N", help="steps to train a .py file (default: its steps, or 200)"
    )
    parser.add_argument("--every", type=positive_integer, metavar="K", help="measure each K-th step (default: 1)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


@command(
    "gamma",
    "Γ, noise scale, interval and phase of saved gradients, or of a model while it trains",
    "  sdsd gamma per_sample_grads.npz\n"
    "  sdsd gamma step_*.pt --batch-size 256 --json\n"
    "  sdsd gamma checkpoint.pt --key grads --samples-per-gradient 32\n"
    "  sdsd gamma train.py --steps 500 --every 5",
    gamma_arguments,
)
def gamma(arguments: argparse.Namespace) -> int:
    from .. import gamma_stats
    from .._tensor_files import load_tensors

    scripts = [path for path in arguments.files if path.endswith(".py")]
    if scripts and len(arguments.files) > 1:
        raise CommandLineError(f"{scripts[0]} is trained by itself: give it alone")
    check_gamma_options(arguments, bool(scripts))
    if scripts:
        return gamma_of_training(scripts[0], arguments)
    found: list[dict[str, Any]] = []
    finite = True
    for path in arguments.files:
        grads = load_tensors(path, arguments.key)
        try:
            stats = gamma_stats(
                grads,
                samples_per_gradient=arguments.samples_per_gradient or 1,
                batch_size=arguments.batch_size,
                population=arguments.population,
                confidence=arguments.confidence,
            )
        except (ValueError, TypeError) as error:
            raise type(error)(f"{path}: {error}") from error
        if arguments.json:
            found.append({"file": path, **stats.to_dict()})
        else:
            print_gamma(path, stats)
        finite = finite and is_finite(stats)
    if arguments.json:
        print_json(found)
    return OK if finite else FELL_SHORT


def check_gamma_options(arguments: argparse.Namespace, training: bool) -> None:
    for_training, for_tensors = ("steps", "every"), ("samples_per_gradient", "batch_size", "key")
    for name in for_tensors if training else for_training:
        if getattr(arguments, name) is not None:
            kind = "saved gradients" if training else "a .py file that trains"
            raise CommandLineError(f"--{name.replace('_', '-')} is for {kind}; leave it out")


def gamma_of_training(path: str, arguments: argparse.Namespace) -> int:
    from ..studies.train_file import UserCodeError, train_file

    try:
        run = train_file(
            path,
            steps=arguments.steps,
            every=arguments.every or 1,
            confidence=arguments.confidence,
            population=arguments.population,
            quiet=arguments.json,
        )
    except UserCodeError as error:
        print(error.traceback, end="", file=sys.stderr)
        return complain(str(error), BAD_INPUT)
    smoothed = run.stats.smoothed if run.stats is not None else None
    if arguments.json:
        stats = {} if run.stats is None else run.stats.to_dict()
        print_json({"file": path, "steps": run.steps, "measured": run.measured, **stats})
    elif smoothed is not None:
        print(f"\n{path}: {run.steps} steps, {run.measured} measured; running averages over about {run.window}")
        print_gamma_table(smoothed)
    return INTERRUPTED if run.interrupted else OK


def print_gamma(path: str, stats: Any) -> None:
    plural = "s" if stats.samples_per_gradient > 1 else ""
    print(f"{path}: {stats.n} gradients, each the mean over {stats.samples_per_gradient} sample{plural}")
    print_gamma_table(stats)


def print_gamma_table(stats: Any) -> None:
    from ..report.figures import plain_number

    def bounds(interval: tuple[float, float] | None) -> str:
        return "–" if interval is None else " – ".join(map(plain_number, interval))

    rows = [(name, part) for name, part in stats.parameters.items()] + [("total", stats)]
    level_name = f"{100 * stats.confidence:g}% interval"
    of = "one sample" if stats.samples_per_gradient == 1 else f"{stats.samples_per_gradient} samples"
    print_table(
        ("", f"Γ of {of}", "noise scale", level_name, f"phase at batch {stats.batch_size}"),
        (
            (
                name,
                plain_number(part.gamma_unbiased),
                plain_number(part.noise_scale),
                bounds(part.noise_scale_interval),
                part.phase or "–",
            )
            for name, part in rows
        ),
    )
    print(gamma_sentence(stats) + "\n")


def is_finite(stats: Any) -> bool:
    return math.isfinite(stats.signal + stats.noise)


def gamma_sentence(stats: Any) -> str:
    """What the total means, in words."""
    from ..report.figures import plain_number

    if not is_finite(stats):
        return "The gradients hold NaN or infinity: no verdict."
    if stats.noise == 0:
        return "The gradients do not differ at all: no noise."
    if math.isinf(stats.noise_scale):
        return "No signal can be told from the noise with so few gradients."
    sentence = f"The mean over about {plain_number(stats.noise_scale)} samples holds as much signal as noise"
    if stats.noise_scale_interval is None or math.isinf(stats.noise_scale_interval[1]):
        return sentence + ", but the interval is open above: more gradients would tell."
    return sentence + "."


def map_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a layer's activations: .npy, .npz, .pt, .pth or .safetensors")
    parser.add_argument(
        "--neuron-dim",
        type=int,
        default=None,
        metavar="D",
        help="the dimension that counts neurons (default: the last; 1 from four dimensions up)",
    )
    parser.add_argument("--center", action="store_true", help="subtract each neuron's mean first (correlation)")
    parser.add_argument("--k", type=positive_integer, default=10, help="how many pairs to list (default: 10)")
    parser.add_argument("--key", metavar="NAME", help="which entry of the file")
    parser.add_argument("--out", type=Path, default=Path("out/map"), help="folder to write (default: out/map)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


@command(
    "map",
    "cosine matrix, nearest and farthest neurons, dead neurons of saved activations",
    "  sdsd map activations.npy\n"
    "  sdsd map features.pt --key layer3 --center --k 20\n"
    "  sdsd map conv1d.safetensors --neuron-dim 1 --out out/conv",
    map_arguments,
)
def map_activations(arguments: argparse.Namespace) -> int:
    from .._tensor_files import load_tensor
    from ..studies._files import prepare_output
    from ..studies.map import run_map

    activations = load_tensor(arguments.file, arguments.key)
    prepare_output(arguments.out)
    try:
        found = run_map(
            activations,
            arguments.out,
            neuron_dim=arguments.neuron_dim,
            center=arguments.center,
            pairs=arguments.k,
            source=arguments.file,
        )
    except (ValueError, TypeError) as error:
        raise type(error)(f"{arguments.file}: {error}") from error
    neuron_map = found.neuron_map
    if arguments.json:
        print_json(found.results)
        return OK
    strange = set(neuron_map.not_finite)
    dead = [neuron for neuron in neuron_map.dead if neuron not in strange]
    counts = [f"{int(neuron_map.alive.sum())} alive", f"{len(dead)} dead"]
    if strange:
        counts.append(f"{len(strange)} with NaN or infinity")
    if neuron_map.silhouette is not None:
        counts.append(f"{len(set(neuron_map.clusters))} clusters (silhouette {neuron_map.silhouette:.2f})")
    print(f"{arguments.file}: {len(neuron_map.alive)} neurons, {', '.join(counts)}")
    for words, neurons in (("dead", dead), ("NaN or infinity", sorted(strange))):
        if neurons:
            print(f"{words}: {', '.join(map(str, neurons[:20]))}{' …' if len(neurons) > 20 else ''}")
    for note in neuron_map.notes:
        print(note)
    pairs = zip(neuron_map.nearest, neuron_map.farthest, strict=False)
    print_table(
        ("", "nearest", "cosine", "farthest", "cosine"),
        (
            (
                str(index),
                f"{near.first} – {near.second}",
                f"{near.cosine:.4f}",
                f"{far.first} – {far.second}",
                f"{far.cosine:.4f}",
            )
            for index, (near, far) in enumerate(pairs, start=1)
        ),
    )
    print(f"written to {arguments.out}: {', '.join(path.name for path in found.written)}")
    return OK


def geometry_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        metavar="FILE.py[:FUNCTION]",
        help="a Python file that defines model (or FUNCTION, which makes it), loader, and perhaps loss(model, batch), "
        "accuracy(model) and train(model) (default: networks that learn the built-in digits, an MLP and a CNN)",
    )
    parser.add_argument("--layer", metavar="NAME", help="the Linear layer or convolution to examine")
    parser.add_argument(
        "--data", metavar="FILE", help="inputs, and classes named y, if not from the file's loader: .npz, .pt, …"
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


@command(
    "geometry",
    "map a layer's neurons, merge near, random and far pairs, shrink it, hold it against controls",
    "  sdsd geometry\n"
    "  sdsd geometry --model train.py --layer encoder.fc1\n"
    "  sdsd geometry --model nets.py:resnet --layer layer4.0.conv1 --data images.npz --plasticity\n"
    "  sdsd geometry --quick --out out/try",
    geometry_arguments,
)
def geometry(arguments: argparse.Namespace) -> int:
    from ..studies.geometry import examine
    from ..studies.geometry_arc import ArcConfig
    from ..studies.geometry_file import subject_from_file
    from ..studies.geometry_subject import DIGITS
    from ..studies.train_file import UserCodeError

    if arguments.model is None and (arguments.layer or arguments.data):
        raise CommandLineError("--layer and --data belong to a network: pass --model FILE.py, too")
    config = ArcConfig(arguments.seed, arguments.pairs, epochs=PLASTICITY_EPOCHS if arguments.plasticity else 0)
    subjects: list[Any] = [lambda make=make: make(arguments.seed) for make in DIGITS.values()]
    try:
        if arguments.model is not None:
            subjects = [
                subject_from_file(
                    arguments.model, arguments.layer, arguments.data, samples=arguments.samples, seed=arguments.seed
                )
            ]
        found = examine(subjects, arguments.out, config, quick=arguments.quick, quiet=arguments.quiet)
    except UserCodeError as error:
        print(error.traceback, end="", file=sys.stderr)
        return complain(str(error), BAD_INPUT)
    if not arguments.quiet:
        if found.resumed:
            print(f"{len(found.resumed)} steps were finished by an earlier run")
        print("\n".join(found.result.summary_lines()))
        print(f"written to {arguments.out}: {', '.join(path.name for path in found.written)}")
    if found.result.interrupted:
        return complain(f"interrupted; the same command goes on from what {arguments.out} holds", INTERRUPTED)
    return OK


PLASTICITY_EPOCHS = 5
"""As in the document."""


def study_arguments(parser: argparse.ArgumentParser) -> None:
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


@command(
    "study",
    "run studies of the framework's claims: figure, page, results.json and a verdict each; resumable",
    "  sdsd study --list\n  sdsd study rank\n  sdsd study phase well --seeds 5 --out out/noise\n"
    "  sdsd study theory --quick\n  sdsd study all --jobs 2",
    study_arguments,
)
def study(arguments: argparse.Namespace) -> int:
    return run_studies(arguments)


@command(
    "theory",
    "the studies of the theory: Γ, curvature, symmetries, dynamics, selection and rank",
    "  sdsd theory --list\n  sdsd theory rank\n  sdsd theory phase well --out out/noise\n  sdsd theory all --quick",
    study_arguments,
)
def theory(arguments: argparse.Namespace) -> int:
    return run_studies(arguments, group="theory")


def run_studies(arguments: argparse.Namespace, group: str | None = None) -> int:
    """`sdsd study`, for all studies or those of a group."""
    from ..studies._progress import choose_progress
    from ..studies.catalogue import choose_studies, list_lines
    from ..studies.runner import Runner

    if arguments.list:
        print("\n".join(list_lines(group)))
        return OK
    if not arguments.names:
        raise CommandLineError(f"name a study, or all. See: sdsd {group or 'study'} --list")
    chosen = choose_studies(arguments.names, group)
    progress = choose_progress(arguments.quiet)
    runner = Runner(
        arguments.out or Path("out/quick" if arguments.quick else "out/studies"),
        progress,
        first=arguments.seed,
        count=arguments.seeds,
        quick=arguments.quick,
        fresh=arguments.fresh,
        jobs=arguments.jobs,
    )
    finished = 0
    for each, result in runner.run(chosen):
        finished += 1
        folder = runner.folder(each)
        if result.interrupted:
            progress.say(f"{len(result.seeds)} of {each.name}'s seeds are finished and kept; the same command goes on.")
            return complain(f"interrupted; kept in {folder}: results.json", INTERRUPTED)
        written = ", ".join((*result.figures, "report.html", "results.json"))
        progress.say("\n".join((*result.summary_lines(), f"written to {folder}: {written}\n")))
    return OK if finished == len(chosen) else FELL_SHORT


def claims_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--read", action="store_true", help="run nothing: only what earlier runs have finished")
    parser.add_argument("--quick", action="store_true", help="from the quick studies, into out/quick and not into docs")
    parser.add_argument("--out", type=Path, help="the studies' folder (default: out/studies, or out/quick)")
    parser.add_argument("--docs", type=Path, help="folder of claims.md (default: docs, or out/quick)")
    parser.add_argument("--jobs", type=positive_integer, default=1, metavar="N", help="seeds measured at a time")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


@command(
    "claims",
    "one table of every claim, its figure, ours and the verdict: runs the studies that have no results yet",
    "  sdsd claims --read\n  sdsd claims --jobs 2\n  sdsd claims --quick",
    claims_arguments,
)
def claims(arguments: argparse.Namespace) -> int:
    from ..studies._progress import choose_progress
    from ..studies.catalogue import choose_studies
    from ..studies.claims import read_claims, write_claims
    from ..studies.runner import Runner

    out = arguments.out or Path("out/quick" if arguments.quick else "out/studies")
    docs = arguments.docs or (out if arguments.quick else Path("docs"))
    progress = choose_progress(arguments.quiet)
    if not arguments.read:
        runner = Runner(out, progress, quick=arguments.quick, jobs=arguments.jobs)
        for _, result in runner.run(choose_studies(["all"])):
            if result.interrupted:
                return complain(f"interrupted; the same command goes on from what {out} holds", INTERRUPTED)
    found = read_claims(out)
    if found.missing and len(found.missing) == len(choose_studies(["all"])):
        raise CommandLineError(f"{out} holds no finished study. Leave out --read, or name another folder with --out")
    for path in write_claims(found, docs, out / "claims.html"):
        progress.say(f"written: {path}")
    if found.missing:
        progress.say(f"no results yet from: {', '.join(found.missing)}")
    return OK


def validate_arguments(parser: argparse.ArgumentParser) -> None:
    pass


@command(
    "validate",
    "compare every backend on this machine with the definitions",
    "  sdsd validate\n  TRITON_INTERPRET=1 sdsd validate",
    validate_arguments,
)
def validate(arguments: argparse.Namespace) -> int:
    from .. import validate as compare

    return OK if compare().ok else FELL_SHORT


def print_json(value: Any) -> None:
    from ..studies._files import plain

    print(json.dumps(plain(value), indent=1, ensure_ascii=False))


if __name__ == "__main__":
    raise SystemExit(main())
