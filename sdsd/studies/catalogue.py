"""All studies. A new one is a module with `STUDIES`, listed here in its group."""

from __future__ import annotations

from collections.abc import Iterable

from . import (
    double_descent,
    edge_of_stability,
    geometry_networks,
    grokking,
    lottery_ticket,
    neural_collapse,
    theory_dynamics,
    theory_functional,
    theory_quotient,
    theory_selection,
)
from ._page import duration
from .registry import Study, find_study

GROUPS: dict[str, tuple[Study, ...]] = {
    "theory": (
        *theory_functional.STUDIES,
        *theory_quotient.STUDIES,
        *theory_dynamics.STUDIES,
        *theory_selection.STUDIES,
    ),
    "geometry": geometry_networks.STUDIES,
    "phenomena": (
        *grokking.STUDIES,
        *neural_collapse.STUDIES,
        *lottery_ticket.STUDIES,
        *double_descent.STUDIES,
        *edge_of_stability.STUDIES,
    ),
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
