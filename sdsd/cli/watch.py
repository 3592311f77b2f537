"""`sdsd watch`: a page of a run while it trains."""

from __future__ import annotations

import argparse
from pathlib import Path

from .parser import Command, CommandLineError, port_number
from .status import OK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", help="the file of a GammaHistory, which may still be written, or not be there yet"
    )
    parser.add_argument(
        "--port", type=port_number, default=0, metavar="N", help="where to listen (default: a free one)"
    )


def run(arguments: argparse.Namespace) -> int:
    from ..report.live import LiveServer

    path = Path(arguments.file)
    if arguments.file == "-":
        raise CommandLineError("FILE: a file that grows is watched, and standard input is none; name the file")
    if path.is_dir():
        raise CommandLineError(f"{path}: expected a file, got a directory. Name the history in it")
    if not path.parent.is_dir():
        raise CommandLineError(f"{path}: there is no folder {path.parent}")
    try:
        server = LiveServer(path, arguments.port)
    except OSError as error:
        raise CommandLineError(f"--port {arguments.port}: {error.strerror}. Leave it out for a free one") from error
    with server:
        server.live.update()
        if server.live.problem is not None:
            raise CommandLineError(server.live.problem)
        print(f"{server.address}  shows {path} while it grows, on this machine alone. Ctrl-C ends it.", flush=True)
        try:
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            print("ended", flush=True)
    return OK


COMMAND = Command(
    "watch",
    "a page of a run while it trains: Γ in total and by layer, noise scale, the batch worth having",
    "  sdsd watch out/demo/history.jsonl\n  sdsd watch run.jsonl --port 8000",
    add_arguments,
    run,
    loads="sdsd.report.live",
)
