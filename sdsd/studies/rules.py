"""The one table of rules that decide verdicts: what each says, since when, and what it replaced.

A rule stands here before a study is run. Who changes one gives it the day of the change and says what it replaced.
"""

from __future__ import annotations

from .engine import Rule

RULES: dict[str, Rule] = {}
"""name of the study, or "study: what of it" → rule."""
