"""One self-contained HTML page: no script, no network, light and dark, wide screens and phones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from string import Template
from typing import Protocol


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str

    def html(self) -> str:
        return f"<p>{escape(self.text)}</p>"


@dataclass(frozen=True)
class Note:
    """A paragraph set apart: a result in words, or a warning."""

    text: str

    def html(self) -> str:
        return f'<p class="note">{escape(self.text)}</p>'


FIGURES = 16
"""Characters up to which a headline is a figure, set large."""


@dataclass(frozen=True)
class Cards:
    """A row of headline numbers: (value, what it is)."""

    cards: Sequence[tuple[str, str]]

    def html(self) -> str:
        inside = "".join(
            f'<div class="card"><div class="value{" words" if len(value) > FIGURES else ""}">{escape(value)}</div>'
            f'<div class="label">{escape(label)}</div></div>'
            for value, label in self.cards
        )
        return f'<div class="cards">{inside}</div>'


@dataclass(frozen=True)
class Code:
    """A command to copy, or a few."""

    text: str

    def html(self) -> str:
        return f"<pre><code>{escape(self.text)}</code></pre>"


@dataclass(frozen=True)
class Figure:
    """A figure with a caption. `svg` comes from `figures.to_svg` or `to_panels`, which escape their text."""

    svg: str
    caption: str
    title: str = ""

    def html(self) -> str:
        title = f"<strong>{escape(self.title)}</strong> " if self.title else ""
        label = escape(self.title or self.caption, quote=True)
        return (
            f'<figure><div class="canvas" role="img" aria-label="{label}">{self.svg}</div>'
            f"<figcaption>{title}{escape(self.caption)}</figcaption></figure>"
        )


@dataclass(frozen=True)
class SideBySide:
    """Two figures in a row where there is room, one under the other where there is not."""

    figures: Sequence[Figure]

    def html(self) -> str:
        return f'<div class="pair">{"".join(figure.html() for figure in self.figures)}</div>'


@dataclass(frozen=True)
class Table:
    """A table; columns after the first are set as numbers. Where it is narrow, each row is a card."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    kind: str = "numbers"

    def html(self) -> str:
        return table(self.header, [[escape(cell) for cell in row] for row in self.rows], self.caption, self.kind)


def settings(rows: Sequence[tuple[str, str]], caption: str = "") -> Table:
    """A table of names with their values beside them."""
    return Table(("setting", "value"), rows, caption, "settings")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "", kind: str = "") -> str:
    """A <table> of cells that are HTML already. Roles and labels stay where style makes cards of its rows."""
    names = [escape(name) for name in header]
    head = "".join(f'<th scope="col" role="columnheader">{name or EMPTY}</th>' for name in names)
    body = "".join(
        '<tr role="row">'
        + "".join(
            f'<th scope="row" role="rowheader">{cell}</th>'
            if place == 0
            else f'<td role="cell" data-label="{escape(header[place], quote=True)}">{cell}</td>'
            for place, cell in enumerate(row)
        )
        + "</tr>"
        for row in rows
    )
    kind += " short" if len(header) <= 2 else ""
    words = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="table"><table role="table" class="{kind}">{words}<thead role="rowgroup"><tr role="row">{head}'
        f'</tr></thead><tbody role="rowgroup">{body}</tbody></table></div>'
    )


EMPTY = '<span class="unseen">number</span>'
"""What a column without a head is called where it is read aloud."""


class Block(Protocol):
    """A part of a page."""

    def html(self) -> str: ...


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str

    def html(self) -> str:
        return f"<h3>{escape(self.text)}</h3>"


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Block] = field(default_factory=tuple)

    def html(self) -> str:
        return f"<section><h2>{escape(self.title)}</h2>{''.join(block.html() for block in self.blocks)}</section>"


def page(title: str, lead: Sequence[Block], sections: Sequence[Section], footer: str = "", head: str = "") -> str:
    """The whole document as text. Everything but figures and `head` is escaped; they are inlined as they are.

    Args:
        title: of the page and its first heading.
        lead: what stands under the title, before the first section.
        sections: in reading order.
        footer: one line at the end.
        head: elements for the document's head: what blocks from elsewhere need.
    """
    return PAGE.substitute(
        title=escape(title),
        lead="".join(block.html() for block in lead),
        sections="".join(section.html() for section in sections),
        footer=escape(footer),
        head=head,
        colours=COLOURS,
        style=STYLE,
    )


COLOURS = """
:root { color-scheme: light dark; --paper: #ffffff; --surface: #f5f6f8; --ink: #1b2430; --muted: #5c6673;
  --grid: #dde2e8; --accent: #2a65cc; }
@media (prefers-color-scheme: dark) { :root { --paper: #12161c; --surface: #1b212a; --ink: #e6eaf0; --muted: #98a3b1;
  --grid: #323b47; --accent: #6ea0f5; } }
"""

STYLE = """
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.6;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 860px; margin: 0 auto; padding: 40px 24px 72px; }
h1 { font-size: clamp(1.7rem, 4.6vw, 2.35rem); line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 16px;
  overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; line-height: 1.3; letter-spacing: -0.01em; margin: 56px 0 12px; }
h3 { font-size: 1.08rem; margin: 32px 0 8px; }
p { margin: 12px 0; max-width: 72ch; }
main > p:first-of-type { font-size: 1.1rem; }
a { color: var(--accent); }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
pre { background: var(--surface); border-radius: 8px; padding: 12px 16px; margin: 16px 0; white-space: pre-wrap;
  overflow-wrap: anywhere; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 0.9em; }
.note { border-left: 4px solid var(--accent); background: var(--surface); border-radius: 0 8px 8px 0;
  padding: 12px 18px; margin: 20px 0; max-width: none; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 26px 0; }
.card { background: var(--surface); border-radius: 10px; padding: 14px 16px; }
.value { font-size: 1.55rem; font-weight: 650; line-height: 1.25; letter-spacing: -0.01em; overflow-wrap: anywhere; }
.value.words { font-size: 1.1rem; line-height: 1.4; letter-spacing: 0; }
.label { color: var(--muted); font-size: 0.88rem; line-height: 1.4; margin-top: 4px; }
figure { margin: 24px 0; }
.canvas { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); gap: 16px 20px; }
.canvas svg { display: block; width: 100%; height: auto; }
.canvas svg text { font-family: inherit !important; }
.phone { display: none; }
figcaption { color: var(--muted); font-size: 0.92rem; line-height: 1.5; margin-top: 8px; max-width: 78ch; }
figcaption strong { color: var(--ink); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 28px; }
.pair figure { margin: 12px 0; }
.table { container-type: inline-size; margin: 20px 0; }
table { border-collapse: collapse; width: 100%; font-size: 0.93rem; font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; text-align: left; color: var(--muted); font-size: 0.92rem; padding-top: 8px; }
th, td { padding: 7px 12px; border-bottom: 1px solid var(--grid); text-align: left; vertical-align: baseline;
  overflow-wrap: break-word; }
th:first-child { padding-left: 0; font-weight: 500; }
thead th { color: var(--muted); font-weight: 600; }
.numbers td, .numbers thead th:not(:first-child) { text-align: right; }
.numbers td { white-space: nowrap; }
.settings { width: auto; } .settings th { padding-right: 24px; } .settings td { overflow-wrap: anywhere; }
footer { color: var(--muted); font-size: 0.85rem; border-top: 1px solid var(--grid); margin-top: 56px;
  padding-top: 16px; }
@container (max-width: 600px) {
  table:not(.short), table:not(.short) :is(tbody, tr, th, td, caption) { display: block; width: auto; }
  table:not(.short) thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  table:not(.short) tbody tr { background: var(--surface); border-radius: 10px; padding: 10px 14px;
    margin: 0 0 10px; }
  table:not(.short) caption { padding: 0 0 10px; }
  table:not(.short) tbody th { border: 0; padding: 0 0 4px; font-weight: 650; }
  table:not(.short) td { display: grid; grid-template-columns: minmax(6em, 42%) 1fr; gap: 12px; border: 0;
    padding: 3px 0; text-align: left; white-space: normal; overflow-wrap: anywhere; }
  table:not(.short) td::before { content: attr(data-label); color: var(--muted); }
}
@media (max-width: 620px) { main { padding: 24px 16px 48px; } .desk { display: none; } .phone { display: block; } }
@media print { main { max-width: none; } section { break-inside: avoid; } }
"""

PAGE = Template(
    """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$colours$style</style>
$head
</head>
<body>
<main>
<h1>$title</h1>
$lead
$sections
<footer>$footer</footer>
</main>
</body>
</html>
"""
)
