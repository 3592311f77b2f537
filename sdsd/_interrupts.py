"""Ctrl-C in the process of a command: it always ends it, also where Python would lose the exception.

A `KeyboardInterrupt` that is raised while a module is imported, or in a finalizer, can be swallowed: compiled modules
clear errors, a package falls back to something else, `__del__` prints and goes on. So there are two handlers. While
nothing has been done yet the process ends at once; afterwards the exception waits for the import or finalizer to end.
Before Python has read this file, in the first hundredths of a second, its own start-up (`site`) ends with a traceback.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from types import FrameType

INTERRUPTED = 130
LONGEST_WAIT, LOOK_AGAIN = 5.0, 0.01
"""In seconds: how long an import may hold an interrupt up, and how often it is looked at meanwhile."""


def end_at_once(number: int, frame: FrameType | None) -> None:
    """The handler while nothing has been read or written: one line, and no more Python."""
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(INTERRUPTED)


def end_at_once_until_work_begins() -> None:
    """The first handler; where SIGINT is ignored, or is somebody else's, it stays so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)


def work_begins() -> None:
    """The second handler: Ctrl-C raises KeyboardInterrupt, so that what was measured can be kept."""
    if signal.getsignal(signal.SIGINT) is end_at_once:
        signal.signal(signal.SIGINT, Patient())


class Patient:
    """The handler that raises KeyboardInterrupt where it is not lost."""

    def __init__(self) -> None:
        self.since: float | None = None
        self.again: threading.Timer | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.again is not None:
            self.again.cancel()
            self.again = None
        now = time.monotonic()
        self.since = now if self.since is None else self.since
        if would_be_lost(frame) and now - self.since < LONGEST_WAIT:
            self.again = threading.Timer(LOOK_AGAIN, interrupt_main_thread)
            self.again.daemon = True
            self.again.start()
            return
        self.since = None
        raise KeyboardInterrupt


def interrupt_main_thread() -> None:
    """As Ctrl-C does: a call that waits (a sleep, a pipe) is woken up, which `_thread.interrupt_main` leaves alone."""
    main = threading.main_thread().ident
    if sys.platform != "win32" and main is not None:
        signal.pthread_kill(main, signal.SIGINT)
    else:
        _thread.interrupt_main()


def would_be_lost(frame: FrameType | None) -> bool:
    """Whether an exception in `frame` passes through an import or a finalizer."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__del__" or code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def ignore() -> None:
    """For the end of the process: what runs at exit, torch's part of it among them, would answer with a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
