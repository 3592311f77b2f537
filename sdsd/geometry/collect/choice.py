"""Which of the values behind a layer is taken: what its readers get, or its own output, with a word."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from .function_names import NONLINEARITIES


class Step(NamedTuple):
    """One function on a path."""

    name: str
    settings: str  # numbers it was given
    curved: bool


Path = tuple[Step, ...]


def is_curved(path: Path) -> bool:
    """Whether there is a nonlinearity on it."""
    return any(step.curved for step in path)


def path_name(path: Path) -> str:
    """From the first activation on: "relu", "sigmoid → mul"."""
    names = [step.name for step in path]
    first = next((place for place, name in enumerate(names) if name in NONLINEARITIES), None)
    if first is None:
        first = next((place for place, step in enumerate(path) if step.curved), 0)
    listed = names[first:]
    return " → ".join(listed if len(listed) <= 5 else [*listed[:2], "…", *listed[-2:]])


@dataclass(eq=False)
class Reading:
    """One call of a layer whose output is followed, and what was seen of it."""

    layer: str
    neuron_dim: int  # of the layer's output
    made: dict[Path, None] = field(default_factory=dict)  # in floating-point numbers
    used: set[Path] = field(default_factory=set)
    read: dict[Path, None] = field(default_factory=dict)
    summed: bool = False  # read by a mean or a sum
    given_back: bool = False  # by the model
    elsewhere: dict[Path, str] = field(default_factory=dict)  # paths read by what is not followed, and by what
    whole: bool = False  # read by a layer as one tensor, and not put together from parts
    pieces: str = ""  # what computes with parts of it
    written: bool = False  # in a way that was not seen
    taken: bool = False


@dataclass(frozen=True)
class Choice:
    """What is taken of a layer: the value at the end of `path`, or its own output where that is None."""

    path: Path | None
    note: str = ""


def choose(layer: str, readings: list[Reading]) -> Choice:
    """What the readers of a layer get, if it is one value behind a nonlinearity."""
    read = list(dict.fromkeys(path for reading in readings for path in reading.read))
    elsewhere = {path: name for reading in readings for path, name in reading.elsewhere.items()}
    ends = [
        path for reading in readings for path in reading.made if path not in reading.used and path not in reading.read
    ]
    candidates = read or list(elsewhere) or list(dict.fromkeys(ends))
    own = f"the map of {layer!r} is of its own output"
    if any(reading.written for reading in readings):
        return Choice(None, f"{own}, and something that was not seen writes into it before it is read")
    if not candidates:
        return Choice(None)
    shortest = min(candidates, key=len)
    curved = is_curved(shortest)
    others = [path for path in candidates if path[: len(shortest)] != shortest or not (curved or path == shortest)]
    if others:
        listed = sorted({_listed(path) for path in candidates}, key=len)
        more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
        return Choice(None, f"{own}, for its readers get it in several ways: {'; '.join(listed[:3])}{more}")
    if curved and not any(shortest in reading.made for reading in readings):
        return Choice(None, f"{own}, and its readers get that {_listed(shortest)}, in no floating-point numbers")
    if curved:
        taken = f"the map of {layer!r} is of its output {_listed(shortest)}"
        if not read and elsewhere:
            reads = elsewhere[shortest]
            return Choice(
                shortest,
                f"{taken}, which {reads!r} reads; behind that it is not followed, and what readers get may differ",
            )
        gated = [path for path in candidates if path[len(shortest) :] and path[len(shortest)].name in ("mul", "div")]
        if gated:
            return Choice(shortest, f"{taken}, as its first readers get it; others get it {_listed(gated[0])}")
        return Choice(shortest)
    if shortest and (read or any(reading.summed for reading in readings)):
        return Choice(None, f"{own}, and its readers get that {_listed(shortest)}")
    if not read and elsewhere:
        behind = f" {_listed(shortest)}" if shortest else ""
        return Choice(
            None,
            f"{own}{behind and ', and its readers get that' + behind}, which {elsewhere[shortest]!r} reads; "
            "behind that it is not followed, and what readers get may differ",
        )
    if not (read or elsewhere or any(reading.summed or reading.given_back for reading in readings)):
        return Choice(None, f"{own}, and nothing was seen that reads it; what its readers get may differ")
    pieces = next((reading.pieces for reading in readings if reading.pieces), "")
    if pieces and read and not any(reading.whole for reading in readings):
        return Choice(None, f"{own}, and its readers get parts of it after {pieces!r}")
    return Choice(None)


def _listed(path: Path) -> str:
    names = [step.name for step in path]
    return f"after {' → '.join(names if len(names) <= 6 else [*names[:3], '…', *names[-2:]])}" if names else "as it is"
