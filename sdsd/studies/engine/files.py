"""Where a study writes: a folder checked before the work starts, files that are whole or absent."""

from __future__ import annotations

import json
import math
import os
import platform
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any


def prepare_output(out: str | Path) -> Path:
    """Create `out` and prove that a file can be written there.

    Raises:
        ValueError: it cannot; the message says why.
    """
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        blocking = next((path for path in (folder, *folder.parents) if path.exists() and not path.is_dir()), None)
        why = f"{blocking} is a file" if blocking else (error.strerror or str(error))
        raise ValueError(
            f"output directory {folder}: expected a directory that can be written, but {why}. "
            f"Choose another with --out."
        ) from error
    return folder


def write_text(path: Path, text: str) -> None:
    """Write `text` so that `path` is never half a file."""
    draft = path.with_name(path.name + ".part")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n")


def plain(value: Any) -> Any:
    """`value` for strict JSON: NaN becomes null, the infinities "inf" and "-inf", tuples lists, paths text."""
    if isinstance(value, dict):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, Path):
        return str(value)
    return value


def revive(value: Any) -> Any:
    """What `plain` wrote as "inf" and "-inf" as numbers again; null, once NaN, stays None."""
    if isinstance(value, dict):
        return {name: revive(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [revive(entry) for entry in value]
    return float(value) if value in ("inf", "-inf") else value


def versions() -> dict[str, str]:
    """What computed the numbers."""
    used = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("sdsd", "torch", "numpy", "scikit-learn", "matplotlib"):
        try:
            used[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return used
