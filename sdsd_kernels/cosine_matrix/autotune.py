"""Measured plans: SDSD_AUTOTUNE=1 times the best few of the wave model once and remembers the fastest on disk.

Without it, or on a CPU, the model's first choice is taken and nothing is read or written. Remembered plans are kept
apart by device, versions, operation and bucket of sizes, in one JSON file a device under the user's cache folder
(SDSD_CACHE_DIR, else XDG_CACHE_HOME/sdsd, else ~/.cache/sdsd). A file that cannot be read or makes no sense is
ignored with a warning; it costs a new measurement, never a wrong result, since every plan computes the same thing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from . import waves

CANDIDATES = 6
"""How many plans are timed, the model's best first."""
ROUNDS = 9

_remembered: dict[Path, dict[str, Any]] = {}


def enabled() -> bool:
    """Whether SDSD_AUTOTUNE asks for measurements."""
    return os.environ.get("SDSD_AUTOTUNE", "0") == "1"


def choose(op: str, problem: waves.Problem, run: Callable[[waves.Plan], Any], device: torch.device) -> waves.Plan:
    """The plan for `problem`: the model's, or the fastest of its best few where measuring is asked for."""
    if device.type != "cuda" or not enabled():
        return waves.choose(problem)
    return remembered(op, problem, lambda plan: seconds(run, plan), torch.cuda.get_device_name(device))


def remembered(op: str, problem: waves.Problem, measure: Callable[[waves.Plan], float], device_name: str) -> waves.Plan:
    """The fastest of the model's best plans by `measure`, from disk where it has been measured before."""
    candidates = waves.candidates(problem)[:CANDIDATES]
    path = cache_file(device_name)
    key = " | ".join([op, *(f"{name}={value}" for name, value in dataclasses.asdict(problem).items())])
    entries = _entries(path)
    known = next((plan for plan in candidates if key in entries and describe(plan) == entries[key]), None)
    if known is None:
        times = [measure(plan) for plan in candidates]
        known = candidates[times.index(min(times))]
        entries[key] = describe(known)
        _write(path, entries)
    return known


def describe(plan: waves.Plan) -> dict[str, Any]:
    """A plan as JSON holds it."""
    return json.loads(json.dumps(dataclasses.asdict(plan)))


def seconds(run: Callable[[waves.Plan], Any], plan: waves.Plan) -> float:
    """Median device time of a plan, after a run that compiles it."""
    run(plan)
    times = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run(plan)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e-3)
    return statistics.median(times)


def cache_file(device_name: str) -> Path:
    """Where plans of a device are remembered."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("SDSD_CACHE_DIR") or Path(home) / "sdsd")
    safe = "".join(letter if letter.isalnum() else "-" for letter in device_name)
    return folder / f"plans-{safe}-{versions()}.json"


def versions() -> str:
    """The versions a measurement depends on."""
    found = [f"torch{torch.__version__}"]
    for package in ("triton", "sdsd"):
        try:
            found.append(f"{package}{metadata.version(package)}")
        except metadata.PackageNotFoundError:
            found.append(f"{package}?")
    return "-".join(found)


def _entries(path: Path) -> dict[str, Any]:
    """What is remembered in `path`, read once a process."""
    if path not in _remembered:
        _remembered[path] = _read(path)
    return _remembered[path]


def _read(path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        warnings.warn(f"Measured plans in {path} cannot be read and are ignored: {error}", stacklevel=2)
        return {}
    if not isinstance(entries, dict):
        warnings.warn(f"{path} holds no measured plans and is ignored. Delete it.", stacklevel=2)
        return {}
    return entries


def _write(path: Path, entries: dict[str, Any]) -> None:
    """Replace the file at once, so that another process never reads half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
            json.dump(entries, file, indent=1)
        os.replace(file.name, path)
    except OSError as error:
        warnings.warn(f"Measured plans cannot be kept in {path}: {error}", stacklevel=2)
