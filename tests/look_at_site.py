"""The built site in a real browser: python -m tests.look_at_site FOLDER

Every page is opened at the width of a desk and of a phone: no network is asked, nothing is complained of in the
console, nothing is wider than the window, no table has to be scrolled on a phone, axe finds nothing where it is
installed, and the search finds what is there.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests import axe
from tests.browser import Browser, executable

WIDTHS = (1400, 400)
SOUGHT = "noise_scale"
PHONE = 640
"""Pixels below which rows of tables are cards."""
CUT_TABLES = """
[...document.querySelectorAll(".table-wrapper")].filter((box) => box.scrollWidth > box.clientWidth + 1)
  .map((box) => box.textContent.trim().replace(/\\s+/g, " ").slice(0, 60))
"""


def look(site: Path) -> list[str]:
    """What a reader would stumble over, as "page: what"."""
    found = []
    pages = sorted(site.rglob("*.html"))
    for width in WIDTHS:
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
            Browser(Path(profile), width=width, height=900) as browser,
        ):
            for page in pages:
                browser.open(page)
                wider = browser.evaluate("document.documentElement.scrollWidth - window.innerWidth")
                if wider > 0:
                    found.append(f"{page.relative_to(site)}: {wider} pixels wider than a window of {width}")
                if width < PHONE:
                    cut = browser.evaluate(CUT_TABLES)
                    found += [f"{page.relative_to(site)} at {width}: cut off is the table {each}" for each in cut]
                if axe.there():
                    found += [f"{page.relative_to(site)} at {width}: {each}" for each in axe.violations(browser)]
            browser.call("Page.navigate", url=f"{(site / 'search.html').resolve().as_uri()}?q={SOUGHT}")
            browser.wait_for("document.querySelectorAll('#search-results li a').length > 0", timeout=20)
            found += [
                f"asked for {each}" for each in browser.requests if not each.startswith(("file:", "data:", "blob:"))
            ]
            found += [f"complained: {each}" for each in browser.complaints]
    return found


def main() -> int:
    if executable() is None:
        print("no Chromium or Chrome is here (CHROME names one): the site was not looked at")
        return 2
    if not axe.there():
        print(f"without axe: {axe.MISSING}")
    found = look(Path(sys.argv[1]))
    print(*found, sep="\n")
    print(f"{len(found)} things to stumble over")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
