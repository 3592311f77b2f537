"""The settings of a study are the keyword-only parameters of its `measure`: none is listed that nothing reads."""

from __future__ import annotations

import dis
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import CodeType, MappingProxyType
from typing import Any

UNSET = inspect.Parameter.empty
RESERVED = "quick"
"""The name under which results.json says whether a run was quick."""


@functools.cache
def settings_of(measure: Callable[..., Any]) -> Mapping[str, Any]:
    """Keyword-only parameters of `measure` with their defaults; `UNSET` for one without.

    Raises:
        TypeError: no function (seed, progress, *, settings), or one that takes a setting and does not read it.
    """
    if not inspect.isfunction(measure):
        raise TypeError(f"measure: expected a function of a module, got {type(measure).__name__}.")
    parameters = inspect.signature(measure).parameters.values()
    settings = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
    if [each.name for each in parameters if each.kind is not each.KEYWORD_ONLY] != ["seed", "progress"]:
        shape = f"{measure.__name__}{inspect.signature(measure)}"
        raise TypeError(f"measure: expected the parameters (seed, progress, *, settings …), got {shape}.")
    if RESERVED in settings:
        raise TypeError(f"measure: {RESERVED!r} is no setting; let the study's quick settings make it smaller.")
    read = set(_names_read(measure.__code__))
    if unread := [name for name in settings if name not in read]:
        raise TypeError(
            f"measure: {measure.__module__}.{measure.__name__} takes {', '.join(map(repr, unread))} and never reads "
            "it, so that it would be listed as a setting without being one. Use it, or take it away."
        )
    return MappingProxyType(settings)


def check_names(given: Mapping[str, Any], known: Mapping[str, Any], what: str) -> None:
    """Refuse values for settings that there are not.

    Raises:
        ValueError: `given` has a name that `known` has not.
    """
    if strangers := sorted(set(given) - set(known)):
        raise ValueError(
            f"{what}: expected keyword-only parameters of measure ({', '.join(known) or 'it has none'}), got "
            f"{', '.join(map(repr, strangers))}, which nothing reads."
        )


def _names_read(code: CodeType) -> Iterator[str]:
    """Local variables that a function loads, be it to hand them to a function inside it.

    From Python 3.12 on, a name that a comprehension binds counts as well.
    """
    for instruction in dis.get_instructions(code):
        names = instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)
        if instruction.opname.startswith("STORE_FAST_LOAD"):
            yield names[1]
        elif instruction.opname.startswith("LOAD_") and instruction.opname != "LOAD_FAST_AND_CLEAR":
            yield from (name for name in names if isinstance(name, str))
