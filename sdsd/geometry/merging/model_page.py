"""The page of a consolidated model: each layer's neurons as a strip, beside what their merging cost."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

STRIP = 320
"""Width of a strip, in pixels; a layer with more neurons has several in one pixel."""
KEPT, STANDS, GONE = "kept", "for two", "gone"

STYLE = """
:root { color-scheme: light dark; --kept: #9aa5b1; --stands: #0b6e4f; --gone: #c2410c; --line: #8886; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
caption { text-align: left; padding-bottom: .5rem; }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
tbody th { font-weight: normal; font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
small { display: block; opacity: .8; }
svg { display: block; } svg text { fill: currentColor; }
rect.kept { fill: var(--kept); } rect.stands { fill: var(--stands); } rect.gone { fill: var(--gone); }
"""


def page_of(report: Mapping[str, Any]) -> str:
    """HTML of `ModelConsolidation.to_dict()`."""
    before, after = report["parameters"]
    facts = [f"Parameters {before:,} → {after:,} (−{100 * (1 - after / before):.1f}%), how={report['how']!r}."]
    if report["flops"] is not None:
        facts.append("FLOPs of the example {:,} → {:,}.".format(*report["flops"]))
    if report["evaluated"] is not None:
        facts.append("Evaluated {:.6g} → {:.6g}.".format(*report["evaluated"]))
    facts.append(
        "The smaller network equals the merged one to rounding."
        if report["compared"]
        else "The smaller network was not compared with the merged one."
    )
    whole = None if report["evaluated"] is None else report["evaluated"][0]
    worst = max((row["foretold"] or 0 for row in report["layers"]), default=0)
    rows = "\n".join(_row(row, whole, worst) for row in report["layers"])
    alone = "" if whole is None else '<th scope="col" class="number">evaluated alone, change</th>'
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>A smaller network, layer by layer</title><style>{STYLE}</style></head>
<body><main>
<h1>A smaller network, layer by layer</h1>
<p>{escape(" ".join(facts))}</p>
<p>{_legend()}</p>
<div class="wide" tabindex="0" role="region" aria-label="Layers">
<table>
<caption>Foretold: root mean square change of what the readers get, over what they get.</caption>
<thead><tr><th scope="col">layer</th><th scope="col">neurons, in their order</th>
<th scope="col" class="number">before → after</th><th scope="col" class="number">parameters saved</th>
<th scope="col" class="number">mean cosine</th><th scope="col">foretold</th>{alone}</tr></thead>
<tbody>
{rows}
</tbody>
</table>
</div>
</main></body></html>
"""


def _legend() -> str:
    pieces = []
    for kind, css in ((KEPT, "kept"), (STANDS, "stands"), (GONE, "gone")):
        box = f'<svg width="12" height="12" aria-hidden="true" style="display:inline"><rect class="{css}" width="12" '
        pieces.append(f'{box}height="12"/></svg> {kind}')
    return " · ".join(pieces)


def _row(row: Mapping[str, Any], whole: float | None, worst: float) -> str:
    before, after = row["neurons"]
    writers = f"<small>with {escape(', '.join(row['writers']))}</small>" if row["writers"] else ""
    refused = f"<small>{escape(row['refused'])}</small>" if row["refused"] else ""
    cosine = "–" if row["cosine"] is None else f"{row['cosine']:.3f}"
    foretold = "–" if row["foretold"] is None else f"{row['foretold']:.2%}{_bar(row['foretold'], worst)}"
    alone = ""
    if whole is not None:
        alone = f'<td class="number">{"–" if row["alone"] is None else format(row["alone"] - whole, "+.3g")}</td>'
    return (
        f'<tr><th scope="row">{escape(row["layer"])}{writers}</th><td>{_strip(row)}{refused}</td>'
        f'<td class="number">{before:,} → {after:,}</td><td class="number">{row["parameters"]:,}</td>'
        f'<td class="number">{cosine}</td><td>{foretold}</td>{alone}</tr>'
    )


def _strip(row: Mapping[str, Any]) -> str:
    """One rectangle for each run of neurons of one kind; where neurons share a pixel, what was cut is seen."""
    count = row["neurons"][0]
    kinds = ["kept"] * count
    for first, second in row["pairs"]:
        kinds[first], kinds[second] = "stands", "gone"
    said = f"{count} neurons, {len(row['pairs'])} gone"
    runs: list[list[Any]] = []
    for place, kind in enumerate(kinds):
        if runs and runs[-1][0] == kind:
            runs[-1][2] += 1
        else:
            runs.append([kind, place, 1])
    runs.sort(key=lambda run: ("kept", "stands", "gone").index(run[0]))
    unit = STRIP / max(count, 1)
    boxes = "".join(
        f'<rect class="{kind}" x="{place * unit:.2f}" width="{max(length * unit, 0.5):.2f}" height="14"/>'
        for kind, place, length in runs
    )
    return f'<svg width="{STRIP}" height="14" role="img" aria-label="{said}">{boxes}</svg>'


def _bar(value: float, worst: float) -> str:
    width = 100 * value / worst if worst > 0 else 0
    return f'<svg width="100" height="6" aria-hidden="true"><rect class="stands" width="{width:.1f}" height="6"/></svg>'
