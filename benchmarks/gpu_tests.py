"""A pytest plugin for `benchmarks.gpu`: tests in order of worth, taken by several processes, failures named at once.

Every process collects all tests and takes the next one from a common queue; one whose GPU context is lost ends itself,
and another goes on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

import pytest
import torch

from .gpu_work import DEVICE_LOST, Place, die_with_parent, one_line

FIRST = 8
"""So many tests of the definition of each kernel come before anything else."""
CACHED_BYTES = 2 << 30
"""A process that keeps more of the GPU's memory than this after a test gives it back: the others need it too."""

SLOW = re.compile(
    r"distributed|sharded|[cC]ompile|random_|TestCoverage|intervals?_cover|biops|neuron_map|any_stream|any_cut"
)
DEFINITION = re.compile(r"definition|shapes_and_dtypes|every_backend_holds|test_layers|test_gpt")
RANGES = re.compile(
    r"nan|bad_value|non_finite|scale|tiny|large|small|digits|zero|stride|layout|half|halves|float64|cancel|offset|views"
    r"|deterministic|same_bits|same_numbers|dtypes|equal|precision|split|product|direction|mean"
)
OTHER_BACKEND = re.compile(r"\[(?:.*-)?(?:torch|cpu)(?:-.*)?\]")
REFUSALS = re.compile(
    r"BadInput|bad_(?:input|activations|options|bins|thresholds|kind|arguments|settings|batches|others)|error|refus"
    r"|meta_tensors|where_there_is_none"
)

TIERS = (
    "definitions of the kernels, some of each",
    "definitions of the kernels",
    "ranges, NaN, strides",
    "the other tests of the kernels",
    "the monitor",
    "geometry",
    "other backends, refusals",
    "slow ones",
)


def tier(name: str) -> int:
    """Which of TIERS a test belongs to by its name; 0 only through `in_order`."""
    kernels = name.startswith("tests/kernels/") or name.startswith("tests/test_validate")
    if SLOW.search(name):
        return 7
    if OTHER_BACKEND.search(name) or REFUSALS.search(name):
        return 6
    if kernels:
        return 1 if DEFINITION.search(name) else 2 if RANGES.search(name) else 3
    return 5 if "geometry" in name else 4


def spread(names: list[str], count: int) -> list[str]:
    """`count` of the names, evenly, the first among them."""
    step = max(1, len(names) // count)
    return names[::step][:count]


def by_turns(groups: Iterable[list[Any]]) -> list[Any]:
    """The first of every group, then the second of every group …"""
    groups = list(groups)
    longest = max(map(len, groups), default=0)
    return [group[place] for place in range(longest) for group in groups if place < len(group)]


def in_order(units: Iterable[list[str]]) -> list[list[str]]:
    """Units (tests that stay together) by worth; within a tier the files take turns, so that each gets its share."""
    tiers: list[dict[str, list[list[str]]]] = [{} for _ in TIERS]
    for unit in units:
        tiers[max(map(tier, unit))].setdefault(unit[0].split("::")[0], []).append(unit)
    for file, found in tiers[1].items():
        names = {unit[0]: unit for unit in found}
        chosen = spread(list(names), FIRST)
        tiers[0][file] = [names[name] for name in chosen]
        tiers[1][file] = [unit for unit in found if unit[0] not in chosen]
    return [unit for found in tiers for unit in by_turns(found.values())]


def shares_a_fixture(item: pytest.Item) -> bool:
    """Whether a fixture of our tests is made once for several tests, this one among them."""
    found = getattr(item, "_fixtureinfo", None)
    definitions = [each for some in found.name2fixturedefs.values() for each in some] if found else []
    return any(each.scope != "function" and each.baseid.startswith("tests") for each in definitions)


def as_units(items: Iterable[pytest.Item]) -> list[list[str]]:
    """Every test by itself; those of a file that share a fixture together, in their order."""
    units: dict[str, list[str]] = {}
    for item in items:
        key = item.nodeid.split("::")[0] if shares_a_fixture(item) else item.nodeid
        units.setdefault(key, []).append(item.nodeid)
    return list(units.values())


def device_is_lost() -> bool:
    """Whether the GPU context of this process answers no more, as after an illegal access."""
    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def reason_of(report: Any) -> str:
    """One line: what was raised, or why it was skipped."""
    if isinstance(report.longrepr, tuple):
        return one_line(str(report.longrepr[2]))
    crash = getattr(report.longrepr, "reprcrash", None)
    lines = report.longreprtext.splitlines()
    return one_line(crash.message if crash else lines[-1].removeprefix("E  ") if lines else "")


class Plugin:
    def __init__(self, place: Place) -> None:
        self.place, self.log, self.queue = place, place.log(), place.queue()
        self.outcome, self.reason, self.seconds = "passed", "", 0.0
        self.done = False

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.failed:
            return
        with_reason = (report.nodeid, f"could not be collected: {reason_of(report)}")
        if self.place.worker == 1:  # every process meets it
            self.log.write("planned", items=[report.nodeid])
            self.log.write("end", item=report.nodeid, outcome="failed", seconds=0.0, reason=with_reason[1])
            self.place.failed(*with_reason, report.longreprtext)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        self.queue.agree(in_order(as_units(session.items)))
        while (unit := self.queue.claim()) is not None:
            for name, following in zip(unit, [*unit[1:], None], strict=True):
                upcoming = items[following] if following else None
                items[name].config.hook.pytest_runtest_protocol(item=items[name], nextitem=upcoming)
        self.done = True
        return True

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.outcome, self.reason, self.seconds = "passed", "", 0.0
        self.log.write("begin", item=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds += report.duration
        if report.failed:
            self.outcome, self.reason = "failed", reason_of(report)
            self.place.failed(report.nodeid, self.reason, report.longreprtext)
        elif report.skipped and self.outcome == "passed":
            self.outcome, self.reason = "skipped", getattr(report, "wasxfail", None) or reason_of(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self.log.write("end", item=nodeid, outcome=self.outcome, seconds=round(self.seconds, 3), reason=self.reason)
        if self.outcome == "failed" and device_is_lost():
            os._exit(DEVICE_LOST)
        if torch.cuda.is_available() and torch.cuda.memory_reserved() > CACHED_BYTES:
            torch.cuda.empty_cache()

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.done:
            session.exitstatus = 0  # failures are in the log; another status means that this process broke down


def pytest_configure(config: pytest.Config) -> None:
    die_with_parent()
    config.pluginmanager.register(Plugin(Place.from_environment()), "benchmarks.gpu")
