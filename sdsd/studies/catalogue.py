"""All studies, group by group. A new one is a file with `STUDIES`, listed in the `__init__` of its group's folder."""

from __future__ import annotations

from collections.abc import Iterable

from . import geometry, phenomena, theory
from .engine import Study, duration, find_study

GROUPS: dict[str, tuple[Study, ...]] = {
    "theory": theory.STUDIES,
    "geometry": geometry.STUDIES,
    "phenomena": phenomena.STUDIES,
}
"""Studies in the order of the list, under the name by which `sdsd study` runs a whole group."""

CATALOGUE: dict[str, Study] = {study.name: study for studies in GROUPS.values() for study in studies}


def choose_studies(names: Iterable[str], group: str | None = None) -> list[Study]:
    """The studies named; a name may also be a group's, or "all". With `group`, of this group only.

    Raises:
        ValueError: there is no such name; the nearest is suggested.
    """
    known = {study.name: study for study in GROUPS[group]} if group else CATALOGUE
    chosen: dict[str, Study] = {}
    for name in names:
        if name == "all":
            chosen |= known
        elif name in GROUPS and not group:
            chosen |= {study.name: study for study in GROUPS[name]}
        else:
            chosen[name] = find_study(name, known)
    return list(chosen.values())


def list_lines(group: str | None = None) -> list[str]:
    """One line for each study, under the name of its group: name, expected time, the claim it tests."""
    lines, width = [], max(map(len, CATALOGUE))
    for name, studies in GROUPS.items():
        if group in (None, name):
            total = duration(sum(study.expected_seconds for study in studies))
            lines += [f"{name} ({len(studies)} studies, {total})"]
            lines += [f"  {each.name:<{width}}  {duration(each.expected_seconds):>8}  {each.claim}" for each in studies]
    return lines
