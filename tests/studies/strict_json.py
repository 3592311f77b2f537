"""Reading what studies write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULT = {"schema", "study", "status", "config", "seeds", "versions", "seconds", "series", "verdicts", "figures"}
"""What results.json holds."""


def strict_json(path: Path) -> Any:
    """The file's content; NaN and Infinity are no JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
