"""Parts of a page about neurons: the map to turn and point at, and claims with their verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ..geometry import NeuronMap
from ..geometry.map import HINT, MAP_STYLE, OFFLINE_POLICY, plot, plot_library, summary_of
from .html import table

VERDICT_CLASSES = {
    "reproduced": "holds",
    "direction only": "partly",
    "no effect": "fails",
    "opposite": "fails",
    "refuted": "fails",
    "inconclusive": "open",
    "untestable here": "open",
}


@dataclass(frozen=True)
class InteractiveMap:
    """A neuron map in three dimensions; `name` is its id, once a page."""

    neuron_map: NeuronMap
    name: str

    def html(self) -> str:
        caption = f"{escape(summary_of(self.neuron_map))}. {HINT}"
        return f"<figure>{plot(self.neuron_map, self.name, 520)}<figcaption>{caption}</figcaption></figure>"


@dataclass(frozen=True)
class ClaimRow:
    """One claim and what became of it, all as text."""

    claim: str
    verdict: str
    there: str
    here: str
    instead: str
    rule: str


@dataclass(frozen=True)
class ClaimRows:
    """A table a person reads from left to right: claim, verdict, its number, ours, and what holds instead."""

    claims: Sequence[ClaimRow]

    def html(self) -> str:
        rows = [
            [
                escape(each.claim),
                f'<span class="verdict {VERDICT_CLASSES.get(each.verdict, "open")}">{escape(each.verdict)}</span>',
                escape(each.there),
                f"<div>{escape(each.here)}<small>{escape(each.instead)}</small>"
                f"<details><summary>what decides</summary><small>{escape(each.rule)}</small></details></div>",
            ]
            for each in self.claims
        ]
        return table(("claim", "verdict", "document", "measured"), rows, kind="claims")


STYLE = """
@container (min-width: 601px) { .claims th:first-child { width: 30%; padding-right: 16px; }
  .claims :is(th, td):nth-child(3) { width: 16%; } }
.claims td { vertical-align: top; } .claims tbody th { vertical-align: top; }
.claims small { display: block; color: var(--muted); font-size: 0.88rem; line-height: 1.45; margin-top: 4px; }
.claims summary { color: var(--accent); font-size: 0.88rem; margin-top: 4px; cursor: pointer; padding: 3px 0; }
.verdict { display: inline-block; justify-self: start; padding: 1px 10px; border-radius: 999px; font-weight: 600;
  font-size: 0.85rem; white-space: nowrap; color: #fff; }
.holds { background: #1e7a52; } .partly { background: #965c06; } .fails { background: #b93a39; }
.open { background: #5c6673; }
.neuron-map { border: 1px solid var(--grid); border-radius: 10px; }
"""


def head() -> str:
    """What the head of a page needs that holds these parts: a policy that fetches nothing, plotly.js, their style."""
    policy = f'<meta http-equiv="Content-Security-Policy" content="{OFFLINE_POLICY}">'
    return f"{policy}\n<style>{STYLE}{MAP_STYLE}</style>\n{plot_library()}"
