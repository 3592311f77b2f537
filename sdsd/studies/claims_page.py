"""Claims as tables in docs/, and as one HTML page.

In a Markdown file of docs/ what stands between `<!-- claims: WHAT -->` and `<!-- end of claims -->` is written by
`sdsd claims`; WHAT is a group of studies, "without a study", "networks", "details", "rules", "count", "family" or
"in short".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from ..report import html
from .claims import DIRECTED, Claim, Claims, Row, groups
from .engine import SIGNIFICANT, VERDICTS, Verdict, holm, versions, write_text
from .rules import RULES

MARKED = re.compile(r"(<!-- claims: ([a-z ]+) -->\n).*?(<!-- end of claims -->)", re.DOTALL)


def write_claims(claims: Claims, docs: Path, page: Path) -> list[Path]:
    """Fill the marked parts of docs/*.md, write claims.md there if it is new, and the HTML page; all that was written.

    Raises:
        ValueError: a mark that names nothing.
    """
    start = docs / "claims.md"
    if not start.exists():
        docs.mkdir(parents=True, exist_ok=True)
        write_text(start, new_page())
    written = []
    for path in sorted(docs.glob("*.md")):
        before = path.read_text(encoding="utf-8")
        after = fill(before, claims)
        if MARKED.search(before):
            write_text(path, after)
            written.append(path)
    write_text(page, claims_page(claims))
    return [*written, page]


def fill(text: str, claims: Claims) -> str:
    """`text` with its marked parts written anew.

    Raises:
        ValueError: a mark that names nothing.
    """
    parts = {group: _table(claims.rows(group)) for group in groups()}
    parts |= {"details": "\n".join(map(_details, claims.rows())), "count": _count(claims)}
    parts |= {"networks": _networks(claims.rows()), "rules": _rules(), "in short": _in_short(claims)}
    parts |= {"family": _family(claims.rows())}

    def part(match: re.Match[str]) -> str:
        if match[2] not in parts:
            raise ValueError(f"claims: {match[2]!r} is none of {', '.join(parts)}.")
        return f"{match[1]}{parts[match[2]]}\n{match[3]}"

    return MARKED.sub(part, text)


def _table(rows: Iterable[Row]) -> str:
    lines = ["| claim | there | here | verdict | study |", "|---|---|---|---|---|"]
    for row in rows:
        verdict = row.verdict
        lines += [_line(verdict.claim, verdict.published, _ours(verdict), f"**{verdict.verdict}**", row.study)]
    return "\n".join(lines)


def _line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


def _ours(verdict: Verdict) -> str:
    return "–" if verdict.our_figure is None else str(verdict.our_figure)


def _in_short(claims: Claims) -> str:
    """Claims under their verdicts."""
    lines = []
    for word in VERDICTS:
        rows = [row for row in claims.rows() if row.verdict.verdict == word]
        if rows:
            lines += ["", f"## {word.capitalize()}", ""]
        for row in rows:
            figure = "" if row.verdict.our_figure is None else f": {_ours(row.verdict)}"
            lines.append(f"- {row.verdict.claim}{figure}" + (f" ({row.study})" if row.claims[0].study else ""))
    return "\n".join(lines[1:])


def _networks(rows: Iterable[Row]) -> str:
    """Claims that were tested on several networks, network by network."""
    lines = ["| claim | study | here | p, corrected | verdict |", "|---|---|---|---|---|"]
    for row in rows:
        for claim in row.claims if len(row.claims) > 1 else ():
            p = "–" if claim.corrected_p is None else f"{claim.corrected_p:.2g}"
            word = f"**{claim.verdict.verdict}**"
            lines += [_line(claim.verdict.claim, f"`{claim.study}`", _ours(claim.verdict), p, word)]
    return "\n".join(lines)


def _rules() -> str:
    lines = ["| rule of | since | what decides | what it replaced |", "|---|---|---|---|"]
    return "\n".join(
        [*lines, *(_line(name, each.fixed, each.text, each.replaced or "–") for name, each in RULES.items())]
    )


def _details(row: Row) -> str:
    verdict = row.verdict
    lines = [f"**{verdict.claim}** – {verdict.verdict}", f"({verdict.source}.)", verdict.corrected]
    lines += [f"What decides{_since(verdict)}: {verdict.rule}."]
    if len(row.claims) > 1:
        for claim in row.claims:
            lines += [f"- `{claim.study}`: {claim.verdict.verdict}. {claim.verdict.corrected}"]
            lines += [f"  {_seeds(claim)}: `{claim.command}`"]
    elif row.claims[0].command:
        lines += [f"{_seeds(row.claims[0])}: `{row.claims[0].command}`"]
    return "\n".join(("- " if place == 0 else "  ") + line for place, line in enumerate(lines))


def _since(verdict: Verdict) -> str:
    return f", since {verdict.fixed}" if verdict.fixed else " (undated)"


def _seeds(claim: Claim) -> str:
    return "1 seed" if claim.seeds == 1 else f"{claim.seeds} seeds"


def _count(claims: Claims) -> str:
    rows = claims.rows()
    numbers = Counter(row.verdict.verdict for row in rows)
    text = ", ".join(f"{numbers[verdict]} {verdict}" for verdict in VERDICTS if numbers[verdict])
    repeated = [row for row in rows if len(row.claims) > 1]
    tests = sum(len(row.claims) for row in repeated)
    several = f" {len(repeated)} of them were tested on several networks, {tests} times in all." if repeated else ""
    absent = f" No results yet from: {', '.join(claims.missing)}." if claims.missing else ""
    return f"{len(rows)} claims: {text}.{several}{absent}"


def _family(rows: Iterable[Row]) -> str:
    """Which effects are left if all p-values that an effect is judged by are of one family."""
    judged = [row.verdict for row in rows if row.verdict.effect is not None]
    tested = [each for each in judged if each.our_figure is not None and each.our_figure.p is not None]
    named = [verdict for verdict in tested if verdict.verdict in DIRECTED]
    if not named:
        return "No effect was found by an interval that has a p-value."
    p_values = [verdict.our_figure.p for verdict in tested if verdict.our_figure is not None]
    corrected = dict(zip(map(id, tested), holm([p for p in p_values if p is not None]), strict=True))
    weak = [verdict for verdict in named if corrected[id(verdict)] > SIGNIFICANT]
    least = "" if not weak else ": " + "; ".join(f"{each.claim} ({corrected[id(each)]:.2g})" for each in weak)
    return (
        f"{len(tested)} claims are judged by an interval that has a p-value, and {len(named)} of them are said to have "
        f"an effect. Corrected for all {len(tested)} at once (Holm), {len(named) - len(weak)} stay below "
        f"{SIGNIFICANT:g}" + (f", and {len(weak)} do not{least}." if weak else ".")
    )


@dataclass(frozen=True)
class ClaimTable:
    """Claims with everything about them; text wraps, and the study's page is a link."""

    rows: Sequence[Row]

    def html(self) -> str:
        header = ("claim", "there", "here", "verdict and why")
        return f"<style>{STYLE}</style>" + html.table(header, list(map(self._row, self.rows)), kind="claims")

    @staticmethod
    def _row(row: Row) -> list[str]:
        verdict = row.verdict
        named = [claim for claim in row.claims if claim.command]
        repeat = "".join(
            f'<br><a href="{escape(claim.study)}/report.html">{escape(claim.study)}</a>'
            f"{f' ({escape(claim.verdict.verdict)})' if len(named) > 1 else ''}, {_seeds(claim)}: "
            f"<code>{escape(claim.command)}</code>"
            for claim in named
        )
        return [
            f"{escape(verdict.claim)}<br><small>{escape(verdict.source)}</small>",
            escape(verdict.published),
            escape(_ours(verdict)),
            f"<div><strong>{escape(verdict.verdict)}</strong>: {escape(verdict.corrected)}"
            f"<br><small>What decides{_since(verdict)}: {escape(verdict.rule)}.{repeat}</small></div>",
        ]


def claims_page(claims: Claims) -> str:
    """claims.html, to lie beside the studies' folders."""
    named = [group for group in groups() if claims.rows(group)]
    return html.page(
        "Every claim, and what was found",
        [html.Text(_count(claims))],
        [html.Section(group.capitalize(), [ClaimTable(claims.rows(group))]) for group in named],
        " · ".join(f"{name} {version}" for name, version in versions().items()),
    )


STYLE = """
main { max-width: 1180px; }
.claims :is(th, td) { vertical-align: top; }
@container (min-width: 601px) { .claims th:first-child { width: 26%; } .claims th:last-child { width: 42%; } }
@container (max-width: 600px) { table.claims:not(.short) td:last-child { display: block; }
  table.claims td:last-child::before { display: block; margin-bottom: 2px; } }
.claims small { color: var(--muted); }
"""

NEW_PAGE = Template(
    """# Every claim, and what was found

`sdsd claims` writes this page from the `results.json` of the studies: nothing in the tables is typed. An interval is
over seeds, or over independent trials where the study has many; points along one run are not independent and count as
one. A claim tested on several networks is one claim, and its interval is over networks, among them two layers of one
(MiniLM); over three of them it says little, and they have to be read one by one. Two claims rest on the same twelve
networks (`after-merging`: that merging by geometry does not help to learn on, and that the peak is lower), and networks
that learned digits come back in many rows. A claim that did not hold stands beside the statement that does.

<!-- claims: count -->
<!-- end of claims -->

| verdict | means |
|---|---|
| reproduced | the effect is there, and where the document gives a number, ours is half to twice that |
| direction only | the effect is there, and the number is another |
| inconclusive | the data allow both that there is an effect and that there is none |
| no effect | the interval leaves room for none that would matter |
| opposite | there is an effect, and it goes the other way |
| refuted | a statement about all cases or an exact threshold, and cases that contradict it |
| untestable here | what the claim is about was not measured |

Each verdict follows from a rule. The rules are listed below with the day since which they stand and what they replaced:
some were changed after figures under the rule before had been seen, and then it says so. A rule that asks for something
“with every seed” of three asks little of a number that is a matter of chance: with no effect at all it is met in one
direction once in eight times. So read the interval beside such a verdict, and run more seeds where it matters
(`--seeds 10`). “Reproduced” is said of what was measured, small networks and toy problems, and not of all networks.
Where many networks test one claim, p-values are corrected for their number; verdicts of different claims are not.

<!-- claims: family -->
<!-- end of claims -->

$tables
## Network by network

p-values are two-sided, of Student's t over seeds, and corrected for the number of networks (Holm).

<!-- claims: networks -->
<!-- end of claims -->

## Rules

<!-- claims: rules -->
<!-- end of claims -->

## In words, and how to repeat it

<!-- claims: details -->
<!-- end of claims -->
"""
)


def new_page() -> str:
    """claims.md before it is filled."""
    parts = (f"## {group.capitalize()}\n\n<!-- claims: {group} -->\n<!-- end of claims -->\n" for group in groups())
    return NEW_PAGE.substitute(tables="\n".join(parts))
