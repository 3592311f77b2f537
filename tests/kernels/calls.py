"""Counts what a call costs in Python before the device has its work, under Triton's interpreter."""

from __future__ import annotations

import collections
import os
import sys

import pytest
import triton
from triton.runtime.interpreter import GridExecutor

from tests.launches import unwatched

TRITON = os.path.dirname(triton.__file__)


class Calls:
    """How many Python functions are called before each kernel launch; what a launch itself calls is not counted.

    Nor are functions in files whose path begins with one of `left_out`: by default what the interpreter does to make
    ready for a launch, which a compiled kernel does not.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, left_out: tuple[str, ...] = (TRITON,)) -> None:
        self._left_out = left_out
        self.names: collections.Counter[str] = collections.Counter()
        self.at_launch: list[int] = []
        self._launching = False
        # What a call of a launched kernel enters, in every version of Triton.
        monkeypatch.setattr(GridExecutor, "__call__", self._counted(GridExecutor.__call__))
        unwatched(monkeypatch)

    def _counted(self, run):
        def counted(*arguments, **options):
            self._launching = True
            self.names.subtract([f"{__file__}:counted"])
            self.at_launch.append(sum(self.names.values()))
            try:
                return run(*arguments, **options)
            finally:
                self._launching = False

        return counted

    def _event(self, frame, event: str, _) -> None:
        place = frame.f_code.co_filename
        if event == "call" and not self._launching and not place.startswith(self._left_out):
            self.names[f"{place}:{frame.f_code.co_name}"] += 1

    def before_last_launch(self, call) -> int:
        """Of the second call of its shape."""
        call()
        self.names.clear()
        self.at_launch.clear()
        before = sys.getprofile()
        sys.setprofile(self._event)
        try:
            call()
        finally:
            sys.setprofile(before)
        return self.at_launch[-1]
