"""The `sdsd` command: what it does with a command line, and what it makes of errors.

==================  ============================================================================================
`parser.py`         what a command is; numbers, levels, and the nearest known word in an error
`status.py`         exit codes, and the line that a command ends with
`tables.py`         tables and JSON on the terminal
the others          one file a command, with its `COMMAND`; it is known once it stands in `COMMANDS` here: `gamma.py`,
                    `watch.py`, `map.py`, `geometry.py`, `study.py`, `theory.py`, `claims.py`, `demo.py`, `validate.py`,
                    `completion.py`
==================  ============================================================================================

Nothing here imports torch before a command runs, so that `sdsd --help` does not wait for it. User errors end in one
line and status 2; SDSD_DEBUG=1 shows the traceback as well.
"""

from __future__ import annotations

import errno
import importlib
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Sequence

from .._extras import MissingExtraError
from .._interrupts import work_begins
from .._terminal import spell_what_cannot_be_shown
from . import claims, completion, demo, gamma, geometry, map, study, theory, validate, watch
from .parser import CommandLineError, build_parser, check_command_name, unknown_words
from .status import BAD_INPUT, FELL_SHORT, INTERRUPTED, LOGGER, OK, complain, no_room, show_warning

__all__ = ["BAD_INPUT", "COMMANDS", "FELL_SHORT", "INTERRUPTED", "OK", "main"]

COMMANDS = {
    module.COMMAND.name: module.COMMAND
    for module in (demo, gamma, watch, map, geometry, study, theory, claims, validate, completion)
}
"""In the order of `sdsd --help`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (of the process by default) and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if sys.stdout is None or sys.stderr is None:  # closed by who started us
        nowhere = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, for as long as the process runs
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    spell_what_cannot_be_shown(sys.stdout, sys.stderr)
    LOGGER.info("begins: %s", shlex.join(["sdsd", *arguments]))
    status = answer(arguments)
    LOGGER.info("ends with status %d", status)
    return status


def answer(arguments: list[str]) -> int:
    """Run a command line; an error becomes a line and a status."""
    try:
        with warnings.catch_warnings():
            # Of packages that others have to follow, and nothing that who types a command can change.
            warnings.simplefilter("ignore", DeprecationWarning)
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


def run(arguments: list[str]) -> int:
    parser, subparsers = build_parser(COMMANDS)
    check_command_name(arguments, COMMANDS)
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise CommandLineError(unknown_words(unknown, subparsers.get(known.command, parser)))
    if known.command is None:
        parser.print_help()
        return OK
    known.words, known.commands, known.parsers = arguments, COMMANDS, subparsers
    command = COMMANDS[known.command]
    importlib.import_module(command.loads)
    work_begins()
    try:
        return command.run(known)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if isinstance(error, BrokenPipeError) or error.errno is None or (error.filename is not None and not full):
            raise
        raise OSError(no_room(error.filename or getattr(known, "out", None), error.strerror)) from error
