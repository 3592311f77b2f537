"""Exit codes, and what a person reads when a command ends early."""

from __future__ import annotations

import logging
import sys
from typing import Any, Protocol

from .._interrupts import INTERRUPTED as INTERRUPTED

LOGGER = logging.getLogger("sdsd.cli")

OK, FELL_SHORT, BAD_INPUT = 0, 1, 2


def complain(message: str, status: int) -> int:
    """Say in one line why the command ends, and give back its exit status."""
    LOGGER.log(logging.ERROR if status == BAD_INPUT else logging.WARNING, "%s", message)
    print(f"error: {message}" if status == BAD_INPUT else message, file=sys.stderr)
    return status


def no_room(path: object, reason: object, option: str = "--out") -> str:
    """What a write that failed means; the system says neither which file it was nor what to do."""
    if path is None:
        return f"standard output: could not be written ({reason})."
    return f"{path}: could not be written to the end ({reason}). Make room, or choose another with {option}."


class HasTraceback(Protocol):
    """An error in the user's file."""

    traceback: str


def complain_of_users_code(error: HasTraceback) -> int:
    """The traceback of the user's file, then the error in one line."""
    print(error.traceback, end="", file=sys.stderr)
    return complain(str(error), BAD_INPUT)


def show_warning(message: Warning | str, *_: Any) -> None:
    """A warning in one line, without the line of our source that it comes from."""
    text = " ".join(str(message).split())
    LOGGER.warning("%s", text)
    print(f"warning: {text}", file=sys.stderr)
