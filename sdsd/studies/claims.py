"""Every claim of the source documents beside what the studies found: tables in docs/, and one HTML page.

In a Markdown file of docs/ what stands between `<!-- claims: WHAT -->` and `<!-- end of claims -->` is written by
`sdsd claims`; WHAT is a group of studies, "without a study", "details", "count" or "in short".
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from ..report import html
from .catalogue import GROUPS
from .documents import MOVES
from .engine import VERDICTS, StudyResult, Verdict, versions, write_text

WITHOUT_A_STUDY = "without a study"
MARKED = re.compile(r"(<!-- claims: ([a-z ]+) -->\n).*?(<!-- end of claims -->)", re.DOTALL)


def _untestable(claim: str, source: str, stated: str, why: str) -> Verdict:
    rule = "what the claim is about is not measured by any of the studies"
    return Verdict(
        claim=claim,
        source=f"{MOVES}, {source}",
        verdict="untestable here",
        rule=rule,
        seed_figure=stated,
        our_figure=None,
        corrected=why,
    )


UNTESTABLE = (
    _untestable(
        "Agency is what a system does on the flat part of its loss",
        "Abstract",
        "a reading",
        "The studies selection and rank test the mechanism; what it means for minds is not theirs to say.",
    ),
)


@dataclass(frozen=True)
class Claim:
    """A verdict, and where it comes from.

    Attributes:
        group: of the study.
        study: its name; "" without one.
        verdict: what was found.
        seeds: how many repetitions it rests on.
        command: repeats it; "" without a study.
    """

    group: str
    study: str
    verdict: Verdict
    seeds: int = 0
    command: str = ""


@dataclass(frozen=True)
class Claims:
    """All claims, and the studies that have no complete results."""

    claims: tuple[Claim, ...]
    missing: tuple[str, ...]

    def of(self, group: str) -> list[Claim]:
        """Those of one group."""
        return [claim for claim in self.claims if claim.group == group]


def read_claims(out: Path) -> Claims:
    """The verdicts of all studies whose complete results.json is in a folder of `out`.

    Raises:
        ValueError: a results.json of another format.
    """
    claims, missing = [], []
    for group, studies in GROUPS.items():
        for study in studies:
            path = out / study.name / "results.json"
            result = _read(path) if path.exists() else None
            if result is None or result.interrupted:
                missing.append(study.name)
                continue
            command = f"sdsd study {study.name} --seeds {len(result.seeds)}{' --quick' * result.config['quick']}"
            claims += [Claim(group, study.name, each, len(result.seeds), command) for each in result.verdicts]
    claims += [Claim(WITHOUT_A_STUDY, "", each) for each in UNTESTABLE]
    return Claims(tuple(claims), tuple(missing))


def _read(path: Path) -> StudyResult:
    try:
        return StudyResult.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected the results of a study ({error}); run the study again.") from error


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
    parts = {group: _table(claims.of(group)) for group in groups()}
    parts |= {
        "details": "\n".join(map(_details, claims.claims)),
        "count": _count(claims),
        "in short": _in_short(claims),
    }

    def part(match: re.Match[str]) -> str:
        if match[2] not in parts:
            raise ValueError(f"claims: {match[2]!r} is none of {', '.join(parts)}.")
        return f"{match[1]}{parts[match[2]]}\n{match[3]}"

    return MARKED.sub(part, text)


def _table(claims: Iterable[Claim]) -> str:
    rows = ["| claim | there | here | verdict | study |", "|---|---|---|---|---|"]
    for claim in claims:
        verdict = claim.verdict
        study = f"`{claim.study}`" if claim.study else "–"
        cells = (verdict.claim, verdict.seed_figure, _ours(claim), f"**{verdict.verdict}**", study)
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(rows)


def _in_short(claims: Claims) -> str:
    """Distinct claims under their verdicts, each once for all networks it was tried on."""
    lines = []
    for word in VERDICTS:
        found: dict[str, list[Claim]] = {}
        for claim in claims.claims:
            if claim.verdict.verdict == word:
                found.setdefault(claim.verdict.claim, []).append(claim)
        if found:
            lines += ["", f"## {word.capitalize()}", ""]
        for text, same in found.items():
            studies = ", ".join(f"`{claim.study}`" for claim in same if claim.study)
            figure = f": {_ours(same[0])}" if len(same) == 1 and same[0].verdict.our_figure else ""
            lines.append(f"- {text}{figure}" + (f" ({studies})" if studies else ""))
    return "\n".join(lines[1:])


def _ours(claim: Claim) -> str:
    return "–" if claim.verdict.our_figure is None else str(claim.verdict.our_figure)


def _details(claim: Claim) -> str:
    verdict = claim.verdict
    lines = [f"**{verdict.claim}** – {verdict.verdict}", f"({verdict.source}.)", verdict.corrected]
    lines += [f"What decides: {verdict.rule}."]
    if claim.command:
        lines += [f"{_seeds(claim)}: `{claim.command}`"]
    return "\n".join(("- " if place == 0 else "  ") + line for place, line in enumerate(lines))


def _seeds(claim: Claim) -> str:
    return "1 seed" if claim.seeds == 1 else f"{claim.seeds} seeds"


def _count(claims: Claims) -> str:
    numbers = Counter(claim.verdict.verdict for claim in claims.claims)
    text = ", ".join(f"{numbers[verdict]} {verdict}" for verdict in VERDICTS if numbers[verdict])
    absent = f" No results yet from: {', '.join(claims.missing)}." if claims.missing else ""
    return f"{len(claims.claims)} claims: {text}.{absent}"


@dataclass(frozen=True)
class ClaimTable:
    """Claims with everything about them; text wraps, and the study's page is a link."""

    claims: Sequence[Claim]

    def html(self) -> str:
        header = ("claim", "there", "here", "verdict and why")
        return f"<style>{STYLE}</style>" + html.table(header, list(map(self._row, self.claims)), kind="claims")

    @staticmethod
    def _row(claim: Claim) -> list[str]:
        verdict = claim.verdict
        link = f'<a href="{escape(claim.study)}/report.html">{escape(claim.study)}</a>' if claim.study else ""
        repeat = f"<br>{link}, {_seeds(claim)}: <code>{escape(claim.command)}</code>" if claim.command else ""
        return [
            f"{escape(verdict.claim)}<br><small>{escape(verdict.source)}</small>",
            escape(verdict.seed_figure),
            escape(_ours(claim)),
            f"<div><strong>{escape(verdict.verdict)}</strong>: {escape(verdict.corrected)}"
            f"<br><small>What decides: {escape(verdict.rule)}.{repeat}</small></div>",
        ]


def claims_page(claims: Claims) -> str:
    """claims.html, to lie beside the studies' folders."""
    named = [group for group in groups() if claims.of(group)]
    return html.page(
        "Every claim, and what was found",
        [html.Text(_count(claims))],
        [html.Section(group.capitalize(), [ClaimTable(claims.of(group))]) for group in named],
        " · ".join(f"{name} {version}" for name, version in versions().items()),
    )


STYLE = """
main { max-width: 1180px; }
.claims :is(th, td) { vertical-align: top; }
@container (min-width: 601px) { .claims th:first-child { width: 26%; } .claims th:last-child { width: 42%; } }
.claims small { color: var(--muted); }
"""

NEW_PAGE = Template(
    """# Every claim, and what was found

`sdsd claims` writes this page from the `results.json` of the studies: nothing in the tables is typed. An interval is
over seeds, or over independent trials where the study has many; a verdict follows from a rule that was fixed before,
and a claim that did not hold stands beside the statement that does.

<!-- claims: count -->
<!-- end of claims -->

$tables
## In words, and how to repeat it

<!-- claims: details -->
<!-- end of claims -->
"""
)


def new_page() -> str:
    """claims.md before it is filled."""
    parts = (f"## {group.capitalize()}\n\n<!-- claims: {group} -->\n<!-- end of claims -->\n" for group in groups())
    return NEW_PAGE.substitute(tables="\n".join(parts))


def groups() -> tuple[str, ...]:
    """Of claims, in the order of the pages."""
    return (*GROUPS, WITHOUT_A_STUDY)
