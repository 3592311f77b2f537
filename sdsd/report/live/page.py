"""The page of a live run: what stands in it before the first data come, and how it looks."""

from __future__ import annotations

from html import escape
from string import Template

from .. import html

PAGE = Template(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$name – sdsd watch</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/live.css">
<script src="/live.js" defer></script>
</head>
<body>
<main>
<h1>$name</h1>
<p class="status"><span id="state" class="badge waiting" role="status">waiting</span> <span id="about"></span></p>
<noscript><p class="note">This page draws with JavaScript, which is switched off here.</p></noscript>
<p class="note" id="note" hidden></p>
<div id="run" hidden>
<div class="cards">
<div class="card"><div class="value" id="scale"></div><div class="label" id="scale-label"></div></div>
<div class="card"><div class="value" id="gamma"></div><div class="label" id="gamma-label"></div></div>
<div class="card"><div class="value" id="batch"></div><div class="label">samples: the batch in use</div></div>
<div class="card"><div class="value" id="recommended"></div>
<div class="label">samples: the batch worth having</div></div>
</div>
<p id="advice" class="note"></p>
<div class="steps"><label for="step">Step</label> <input type="range" id="step" min="0" max="0" value="0" step="1">
<output id="step-value" for="step"></output> <button type="button" id="newest">newest</button></div>
<section aria-labelledby="noise-title"><h2 id="noise-title">Noise scale</h2>
<p class="hint">Samples whose mean gradient holds as much signal as noise, from the running averages, with its interval.
Dashes: the batch in use.</p>
<svg id="noise-chart" role="img" aria-labelledby="noise-title"></svg></section>
<section aria-labelledby="gamma-title"><h2 id="gamma-title" class="batch-gamma">Γ of a batch</h2>
<p class="hint">Signal over noise in the gradient of a batch. Above 1 a step mostly follows the signal, below 1 chance.
The table chooses which parameters are drawn.</p>
<svg id="gamma-chart" role="img" aria-labelledby="gamma-title"></svg></section>
<section aria-labelledby="table-title"><h2 id="table-title">By parameter</h2>
<p class="hint" id="left-out"></p>
<div class="table"><table role="table" class="numbers"><thead role="rowgroup"><tr role="row">
<th scope="col" role="columnheader">parameter</th>
<th scope="col" role="columnheader" class="batch-gamma">Γ of a batch</th>
<th scope="col" role="columnheader">noise scale</th><th scope="col" role="columnheader">interval</th>
<th scope="col" role="columnheader">phase, newest</th><th scope="col" role="columnheader">draw</th></tr></thead>
<tbody role="rowgroup" id="parameters"></tbody></table></div></section>
</div>
<footer>Drawn on this machine from the file alone; nothing leaves it. Ctrl-C ends sdsd watch.</footer>
</main>
</body>
</html>
"""
)

STYLE = (
    html.COLOURS
    + html.STYLE
    + """
main { max-width: 1080px; }
h2 { margin-top: 40px; }
.status { color: var(--muted); font-size: 1rem !important; }
.badge { display: inline-block; padding: 1px 12px; border-radius: 999px; font-weight: 600; font-size: 0.9rem;
  color: #fff; background: #5c6673; }
.badge.writing { background: #1e7a52; } .badge.broken, .badge.lost { background: #b63534; }
.hint { color: var(--muted); font-size: 0.92rem; margin: 0 0 8px; }
.steps { display: flex; align-items: center; gap: 12px; position: sticky; top: 0; z-index: 1;
  background: var(--paper); padding: 10px 0; border-bottom: 1px solid var(--grid); }
.steps input { flex: 1 1 60px; min-width: 0; accent-color: var(--accent); min-height: 28px; }
.steps output { min-width: 3em; font-variant-numeric: tabular-nums; }
button { font: inherit; color: var(--ink); background: var(--surface); border: 1px solid var(--grid);
  border-radius: 8px; padding: 4px 12px; min-height: 32px; cursor: pointer; }
section > svg { display: block; width: 100%; height: 300px; touch-action: pan-y; font-size: 12px; }
svg text { fill: var(--muted); } svg .axis { stroke: var(--grid); fill: none; }
svg .batch { stroke: #c9701a; stroke-dasharray: 6 4; stroke-width: 2; fill: none; }
svg .one { stroke: var(--muted); stroke-width: 1.2; } svg .here { stroke: var(--ink); stroke-width: 1; }
svg .curve { fill: none; stroke-width: 1.6; stroke-linejoin: round; } svg .total { stroke: var(--accent);
  stroke-width: 2.4; }
svg .band { fill: var(--accent); opacity: 0.18; stroke: none; }
td input { width: 22px; height: 22px; margin: 0; accent-color: var(--accent); }
.swatch { display: inline-block; width: 14px; height: 4px; border-radius: 2px; margin: 0 8px 4px 0; }
[hidden] { display: none !important; }
@media (max-width: 620px) { section > svg { height: 240px; } .badge { margin-right: 6px; } }
"""
)


def page(name: str) -> str:
    """The document for a file called `name`."""
    return PAGE.substitute(name=escape(name))
