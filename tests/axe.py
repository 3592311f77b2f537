"""axe-core, which finds what keeps a page from people: from npm, in the environment of the tests if it is there.

AXE names another place of axe.min.js.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .browser import Browser

PLACE = Path(os.environ.get("AXE", Path(sys.prefix) / "node_modules" / "axe-core" / "axe.min.js"))
MISSING = f"no axe-core at {PLACE}: npm install --prefix {sys.prefix} --no-save axe-core, or name axe.min.js in AXE"


def there() -> bool:
    """Whether pages can be looked at."""
    return PLACE.is_file()


def violations(page: Browser) -> list[str]:
    """What axe finds wrong with the open page: a rule, how often, and the first place."""
    page.evaluate(f"(() => {{ {PLACE.read_text(encoding='utf-8')}; return true; }})()")
    return page.evaluate(
        "axe.run({resultTypes: ['violations'], preload: false}).then((found) => found.violations.map((each) =>"
        " `${each.id} (${each.nodes.length}): ${each.nodes[0].html.slice(0, 200)}`))"
    )
