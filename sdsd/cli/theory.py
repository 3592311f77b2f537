"""`sdsd theory`: the studies of one group."""

from __future__ import annotations

import argparse

from .parser import Command
from .study import add_arguments, run_studies


def run(arguments: argparse.Namespace) -> int:
    return run_studies(arguments, group="theory")


COMMAND = Command(
    "theory",
    "the studies of the theory: Γ, curvature, symmetries, dynamics, selection and rank",
    "  sdsd theory --list\n  sdsd theory rank\n  sdsd theory phase well --out out/noise\n  sdsd theory all --quick",
    add_arguments,
    run,
)
