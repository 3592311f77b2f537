"""`sdsd gamma`: signal and noise of saved gradients, or of a file that trains."""

from __future__ import annotations

import argparse
import math
from typing import Any

from .parser import Command, CommandLineError, add_json, level, positive_integer
from .status import FELL_SHORT, INTERRUPTED, OK, complain_of_users_code, no_room
from .tables import print_json, print_table, print_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help=".npy, .npz, .pt, .pth or .safetensors, or - for one on standard input: n gradients along dimension 0; "
        "or a .py file that defines model, loader and loss(model, batch), and may define optimizer (default: SGD, lr "
        "0.01) and steps: it is trained",
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
    parser.add_argument(
        "--history",
        metavar="FILE.jsonl",
        help="of a .py file: write every measured step there, in total and by parameter; sdsd watch draws it meanwhile",
    )
    add_json(parser)


def run(arguments: argparse.Namespace) -> int:
    from .. import gamma_stats
    from .._tensor_files import load_tensors

    scripts = [path for path in arguments.files if path.endswith(".py")]
    if scripts and len(arguments.files) > 1:
        raise CommandLineError(f"{scripts[0]} is trained by itself: give it alone")
    check_gamma_options(arguments, bool(scripts))
    if scripts:
        return gamma_of_training(scripts[0], arguments)
    listed: list[dict[str, Any]] = []
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
            listed.append({"file": path, **stats.to_dict()})
        else:
            print_gamma(path, stats)
        finite = finite and is_finite(stats)
    if arguments.json:
        print_json(listed)
    return OK if finite else FELL_SHORT


def check_gamma_options(arguments: argparse.Namespace, training: bool) -> None:
    for_training, for_tensors = ("steps", "every", "history"), ("samples_per_gradient", "batch_size", "key")
    for name in for_tensors if training else for_training:
        if getattr(arguments, name) is not None:
            kind = "saved gradients" if training else "a .py file that trains"
            raise CommandLineError(f"--{name.replace('_', '-')} is for {kind}; leave it out")


def gamma_of_training(path: str, arguments: argparse.Namespace) -> int:
    from ..gamma import history
    from ..studies import UserCodeError, train_file

    try:
        run = train_file(
            path,
            steps=arguments.steps,
            every=arguments.every or 1,
            confidence=arguments.confidence,
            population=arguments.population,
            history=arguments.history,
            quiet=arguments.json,
        )
    except UserCodeError as error:
        return complain_of_users_code(error)
    except history.NotWrittenError as error:
        raise OSError(no_room(error.path, error.reason, "--history")) from error
    smoothed = run.stats.smoothed if run.stats is not None else None
    if arguments.json:
        stats = {} if run.stats is None else run.stats.to_dict()
        print_json({"file": path, "steps": run.steps, "measured": run.measured, **stats})
    elif smoothed is not None:
        print_text(f"\n{path}: {run.steps} steps, {run.measured} measured; running averages over about {run.window}")
        print_gamma_table(smoothed)
    return INTERRUPTED if run.interrupted else OK


def print_gamma(path: str, stats: Any) -> None:
    plural = "s" if stats.samples_per_gradient > 1 else ""
    print_text(f"{path}: {stats.n} gradients, each the mean over {stats.samples_per_gradient} sample{plural}")
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
    print_text(gamma_sentence(stats) + "\n")


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


COMMAND = Command(
    "gamma",
    "Γ, noise scale, interval and phase of saved gradients, or of a model while it trains",
    "  sdsd gamma per_sample_grads.npz\n"
    "  sdsd gamma step_*.pt --batch-size 256 --json\n"
    "  sdsd gamma checkpoint.pt --key grads --samples-per-gradient 32\n"
    "  sdsd gamma train.py --steps 500 --every 5\n"
    "  sdsd gamma train.py --history run.jsonl",
    add_arguments,
    run,
    loads="sdsd.gamma",
)
