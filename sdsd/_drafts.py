"""Files that are whole or not there: written beside their place, and moved into it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """Where to write what takes the place of `path` once it is whole; errors name `path`, and leave nothing."""
    try:
        yield (draft := path.with_name(path.name + ".part"))
        os.replace(draft, path)
    except BaseException as error:
        _give_up(draft, path, error)
        raise


def _give_up(draft: Path, path: Path, error: BaseException) -> None:
    with suppress(OSError):
        draft.unlink()
    if isinstance(error, OSError) and error.errno is not None:
        raise OSError(error.errno, error.strerror, str(path)) from error
