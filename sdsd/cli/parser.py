"""The command line's grammar: what a command is, whole numbers and levels, and errors that name the nearest word."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn


class CommandLineError(ValueError):
    """What was typed cannot be understood."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are ours: one line, with the nearest known word."""

    def error(self, message: str) -> NoReturn:
        raise CommandLineError(f"{message}. See: {self.prog} --help")


@dataclass(frozen=True)
class Command:
    """One subcommand: what it is called, what it takes and what it does; `loads` is imported before it runs."""

    name: str
    summary: str
    examples: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    loads: str = "sdsd.studies"


class HelpText(argparse.RawDescriptionHelpFormatter):
    """Examples stay as they are; what is said in words is wrapped."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = argparse.HelpFormatter._fill_text
        return super()._fill_text(text, width, indent) if "\n" in text else fill(self, text, width, indent)


def build_parser(commands: Mapping[str, Command]) -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(
        prog="sdsd",
        allow_abbrev=False,
        description="Is this gradient signal or noise, and which neurons do the same job?",
        epilog="Run `sdsd COMMAND --help` for its options and examples.",
    )
    parser.add_argument("--version", action=ShowVersion, help="show the versions of sdsd, torch and Python, and exit")
    group = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    subparsers = {}
    for entry in commands.values():
        subparser = group.add_parser(
            entry.name,
            help=entry.summary,
            description=entry.summary[0].upper() + entry.summary[1:] + ".",
            epilog="examples:\n" + entry.examples,
            formatter_class=HelpText,
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


def check_command_name(arguments: Sequence[str], commands: Mapping[str, Command]) -> None:
    if not arguments or arguments[0].startswith("-") or arguments[0] in commands:
        return
    near = difflib.get_close_matches(arguments[0], commands, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Commands: {', '.join(commands)}."
    raise CommandLineError(f"there is no command {arguments[0]!r}. {hint}")


def unknown_words(unknown: Sequence[str], parser: argparse.ArgumentParser) -> str:
    options = re.findall(r"--[a-z][a-z-]*", parser.format_help())
    word = next((word for word in unknown if word.startswith("-")), unknown[0])
    typed = word.split("=")[0]
    begun = [option for option in options if typed.startswith("--") and option.startswith(typed)]
    near = begun or difflib.get_close_matches(typed, options, n=1)
    hint = f"Did you mean {' or '.join(dict.fromkeys(near))}?" if near else f"See: {parser.prog} --help"
    return f"{parser.prog} does not know {word!r}. {hint}"


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json, the same for every command that has it."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="print strict JSON alone: an infinite or missing number is null, and NAME_is beside it says which",
    )


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


def port_number(text: str) -> int:
    value = whole_number(text, 0)
    if value > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text!r}")
    return value


def level(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a level between 0 and 1, for example 0.95, got {text!r}")
    return value
