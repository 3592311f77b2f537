"""`sdsd validate`."""

from __future__ import annotations

import argparse

from .parser import Command
from .status import FELL_SHORT, OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(arguments: argparse.Namespace) -> int:
    from .. import validate as compare

    return OK if compare().ok else FELL_SHORT


COMMAND = Command(
    "validate",
    "compare every backend on this machine with the definitions",
    "  sdsd validate\n  TRITON_INTERPRET=1 sdsd validate",
    add_arguments,
    run,
)
