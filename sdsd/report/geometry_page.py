"""Parts of a page about neurons: the map to turn and point at, and claims with their verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from ..geometry import NeuronMap
from ..geometry.map import OFFLINE_POLICY, plot, plot_library, summary_of

VERDICT_CLASSES = {
    "reproduced": "holds", "direction only": "partly", "not reproduced": "fails", "no effect": "fails",
    "opposite": "fails", "refuted": "fails", "inconclusive": "open", "untestable here": "open",
}  # fmt: skip


@dataclass(frozen=True)
class InteractiveMap:
    """A neuron map in three dimensions; `name` is its id, once a page."""

    neuron_map: NeuronMap
    name: str

    def html(self) -> str:
        return (
            f'<figure class="wide">{plot(self.neuron_map, self.name, 520)}<figcaption>'
            f"{escape(summary_of(self.neuron_map))}. Drag to turn, scroll to zoom, point at a neuron for its nearest "
            "neighbours, click the legend to hide a cluster.</figcaption></figure>"
        )


@dataclass(frozen=True)
class Claim:
    """One claim and what became of it, all as text."""

    claim: str
    verdict: str
    there: str
    here: str
    instead: str
    rule: str


@dataclass(frozen=True)
class Claims:
    """A table a person reads from left to right: claim, verdict, its number, ours, and what holds instead."""

    claims: Sequence[Claim]

    def html(self) -> str:
        rows = "".join(
            f'<tr><th scope="row">{escape(each.claim)}</th>'
            f'<td><span class="verdict {VERDICT_CLASSES.get(each.verdict, "open")}" '
            f'title="{escape(each.rule, quote=True)}">{escape(each.verdict)}</span></td>'
            f"<td>{escape(each.there)}</td>"
            f"<td>{escape(each.here)}<div>{escape(each.instead)}</div></td></tr>"
            for each in self.claims
        )
        return (
            f'<div class="scroll"><table class="claims"><thead><tr><th scope="col">claim</th>'
            f'<th scope="col">verdict</th><th scope="col">document</th><th scope="col">measured</th></tr></thead>'
            f"<tbody>{rows}</tbody></table></div>"
        )


STYLE = """
.claims th, .claims td { white-space: normal; text-align: left; vertical-align: top; }
.claims tbody th { width: 32%; padding-right: 16px; }
.claims td:nth-child(3) { width: 14%; }
.claims td div { color: var(--muted); font-size: 0.88rem; line-height: 1.45; margin-top: 4px; }
.verdict { display: inline-block; padding: 1px 10px; border-radius: 999px; font-weight: 600; font-size: 0.85rem;
  white-space: nowrap; color: #fff; }
.holds { background: #23875c; } .partly { background: #a9690b; } .fails { background: #c23f3e; }
.open { background: #66707d; }
.neuron-map { border: 1px solid var(--grid); border-radius: 10px; }
@media (max-width: 620px) { .claims { min-width: 620px; } }
"""


def head() -> str:
    """What the head of a page needs that holds these parts: a policy that fetches nothing, plotly.js, their style."""
    policy = f'<meta http-equiv="Content-Security-Policy" content="{OFFLINE_POLICY}">'
    return f"{policy}\n<style>{STYLE}</style>\n{plot_library()}"
