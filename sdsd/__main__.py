"""The process of `sdsd` and of `python -m sdsd`; `_interrupts.py` says what Ctrl-C does in it."""

from __future__ import annotations

import sys

from ._interrupts import end_at_once_until_work_begins, ignore


def start() -> None:
    """Run the command line of the process and exit with its status."""
    end_at_once_until_work_begins()
    from .cli import main

    try:
        sys.exit(main())
    finally:
        ignore()


if __name__ == "__main__":
    start()
