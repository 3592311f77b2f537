"""The process of `sdsd` and of `python -m sdsd`: what Ctrl-C does before a command listens, and after it has ended."""

from __future__ import annotations

import signal
import sys


def start() -> None:
    """Run the command line of the process and exit with its status."""
    try:
        from .cli import main
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    try:
        sys.exit(main())
    finally:
        # What runs at exit, torch's part of it among them, would answer with a traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    start()
