"""What a long call reports."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (done, total) from time to time, last with done == total."""
