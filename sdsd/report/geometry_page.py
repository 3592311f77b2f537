"""Parts of a page about neurons: the map to turn and point at, and claims with their verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources

from ..geometry import NeuronMap
from ..geometry.map import OFFLINE_POLICY, plot, plot_library, summary_of
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


BUTTONS = {
    "left": "turn left",
    "right": "turn right",
    "up": "tilt up",
    "down": "tilt down",
    "nearer": "closer",
    "farther": "farther",
}


@dataclass(frozen=True)
class InteractiveMap:
    """A neuron map in three dimensions; `name` is its id, once a page."""

    neuron_map: NeuronMap
    name: str

    def html(self) -> str:
        buttons = "".join(f'<button type="button" data-way="{way}">{words}</button>' for way, words in BUTTONS.items())
        return (
            f'<figure>{plot(self.neuron_map, self.name, 520)}<div class="map-controls" id="{self.name}-controls">'
            f'<label>Neuron <select><option value="">choose</option></select></label> {buttons}'
            f'<output aria-live="polite"></output></div><script>mapControls("{self.name}")</script>'
            f"<figcaption>{escape(summary_of(self.neuron_map))}. Drag to turn, scroll or pinch to zoom, point at a "
            "neuron for its nearest neighbours or choose it below the map, click the legend to hide a cluster."
            "</figcaption></figure>"
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
.map-controls { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; margin-top: 10px; }
.map-controls output { flex-basis: 100%; }
.map-controls :is(button, select) { font: inherit; font-size: 0.9rem; color: var(--ink); background: var(--surface);
  border: 1px solid var(--grid); border-radius: 8px; padding: 4px 10px; min-height: 32px; cursor: pointer; }
"""


def head() -> str:
    """What the head of a page needs that holds these parts: a policy that fetches nothing, plotly.js, their style."""
    policy = f'<meta http-equiv="Content-Security-Policy" content="{OFFLINE_POLICY}">'
    controls = resources.files(__package__).joinpath("map_controls.js").read_text(encoding="utf-8")
    return f"{policy}\n<style>{STYLE}</style>\n{plot_library()}\n<script>{controls}</script>"
