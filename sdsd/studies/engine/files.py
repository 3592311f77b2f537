"""Where a study writes: a folder checked before the work starts, files that are whole or absent."""

from __future__ import annotations

import json
import math
import platform
import tempfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from ..._drafts import draft_of

FLAG = "_is"
"""Ends the name of what says which number stands behind a null."""


def prepare_output(out: str | Path, option: str = "--out") -> Path:
    """Create `out`, which `option` names, and prove that a file can be written there.

    Raises:
        ValueError: it cannot; the message says why.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(_not_writable(folder, error, option)) from error
    return folder


def _not_writable(folder: Path, error: OSError, option: str) -> str:
    return (
        f"output directory {folder}: expected a directory that can be written, but {_why(folder, error)}. "
        f"Choose another with {option}."
    )


def _why(folder: Path, error: OSError) -> str:
    """What keeps a folder from being written."""
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            return f"{path} is a file"
        if path.is_symlink() and not path.exists():
            return f"{path} is a link to what is not there"
    return error.strerror or str(error)


def write_text(path: Path, text: str) -> None:
    """Write `text` so that `path` is never half a file."""
    with draft_of(path) as draft:
        draft.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n")


def plain(value: Any) -> Any:
    """`value` for strict JSON: tuples become lists, paths text, and numbers that are not finite null with a flag.

    Beside `name: null` stands `name_is`: "inf", "-inf" or "nan". Where `name` is a list, `name_is` has a flag for each
    place with such a number: {"1": "inf"}, and {"0.1": "inf"} in a list of lists.
    """
    if isinstance(value, dict):
        plainly = {}
        for name, entry in value.items():
            plainly[str(name)] = plain(entry)
            if flags := _flag(entry):
                plainly[f"{name}{FLAG}"] = flags
        return plainly
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _flag(value: Any) -> Any:
    """What a number that is not finite is; for a list, that of each such number by its place; else None."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if not isinstance(value, (list, tuple)):
        return None
    flags: dict[str, str] = {}
    for place, entry in enumerate(value):
        inside = _flag(entry)
        if isinstance(inside, dict):
            flags |= {f"{place}.{inner}": flag for inner, flag in inside.items()}
        elif inside:
            flags[str(place)] = inside
    return flags or None


def revive(value: Any) -> Any:
    """What `plain` wrote, with its infinite numbers; null, once NaN, stays None."""
    if isinstance(value, list):
        return [revive(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    flags = {name: value[name] for name in value if name.endswith(FLAG) and name.removesuffix(FLAG) in value}
    revived = {name: revive(entry) for name, entry in value.items() if name not in flags}
    for name, flag in flags.items():
        own = name.removesuffix(FLAG)
        revived[own] = _with_numbers(revived[own], flag)
    return revived


def _with_numbers(value: Any, flag: Any) -> Any:
    """`value` with what its flags say in the places of null."""
    if not isinstance(flag, dict):
        return _number(flag)
    for place, inner in flag.items():
        *way, last = map(int, place.split("."))
        inside = value
        for step in way:
            inside = inside[step]
        inside[last] = _number(inner)
    return value


def _number(flag: str) -> float | None:
    return None if flag == "nan" else float(flag)


def versions() -> dict[str, str]:
    """What computed the numbers."""
    used = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("sdsd", "torch", "numpy", "scikit-learn", "matplotlib"):
        with suppress(metadata.PackageNotFoundError):
            used[package] = metadata.version(package)
    return used
