"""A study's page: what was asked, the figure, each claim with both numbers and its verdict, and how to repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...report import html
from .files import versions
from .result import StudyResult, Verdict
from .study import Study


def study_page(study: Study, result: StudyResult, panels: str) -> str:
    """report.html of a complete `result`, whose figure is `panels` (`figures.to_panels`)."""
    title = study.name.replace("-", " ").capitalize()
    lead = [html.Text(f"{study.summary[0].upper()}{study.summary[1:]}."), html.Text(f"The claim: {study.claim}.")]
    return html.page(
        title,
        [*lead, html.Figure(panels, f"{_how_many(result.seeds)}{', quick' if result.config['quick'] else ''}.")],
        [*map(_verdict_section, result.verdicts), _repeat_section(study, result)],
        f"{study.source}. " + " · ".join(f"{name} {version}" for name, version in versions().items()),
    )


def _how_many(seeds: list[int]) -> str:
    return f"Seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds, {seeds[0]} to {seeds[-1]}"


def _verdict_section(verdict: Verdict) -> html.Section:
    ours = "–" if verdict.our_figure is None else str(verdict.our_figure)
    there_and_here = [(verdict.published, "the document says"), (ours, "measured here")]
    return html.Section(
        f"{verdict.verdict.capitalize()}: {verdict.claim}",
        [html.Cards(there_and_here), html.Note(verdict.corrected), html.Text(f"What decides: {verdict.rule}.")],
    )


def _repeat_section(study: Study, result: StudyResult) -> html.Section:
    options = f" --seed {result.seeds[0]} --seeds {len(result.seeds)}{' --quick' if result.config['quick'] else ''}"
    settings = [(name.replace("_", " "), _setting(value)) for name, value in result.config.items()]
    return html.Section(
        "To repeat it",
        [
            html.Text(f"This takes about {duration(result.seconds)}:"),
            html.Code(f"sdsd study {study.name}{options}"),
            html.settings(settings),
        ],
    )


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{name}: {_setting(entry)}" for name, entry in value.items())
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(map(_setting, value)) + ")"
    return f"{value:g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.1f} min" if seconds < 600 else f"{seconds / 60:.0f} min"
