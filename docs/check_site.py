"""Whether a built site holds together: python -m docs.check_site FOLDER

Every link inside the site leads to a page that is there, and to an anchor on it. Nothing is loaded from elsewhere: no
script, style, font, picture or frame. Exit status 1, with a line for each fault, where that is not so.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"src", "srcset", "data", "poster"}
"""Attributes whose address a browser fetches by itself."""
LOADING_RELATIONS = {"stylesheet", "icon", "preload", "prefetch", "modulepreload", "manifest", "preconnect"}
IN_STYLES = re.compile(r"@import\s+(?:url\()?[\"']?([^\"')\s;]+)|url\(\s*[\"']?([^\"')]+)")
FONTS_AND_SCRIPTS = re.compile(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"'<>)]*\.(?:js|mjs|css|woff2?|ttf)\b")


class Page(HTMLParser):
    """What one page links to, what it loads, and the anchors it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self._styled = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attrs}
        self.anchors |= {known[name] for name in ("id", "name") if name in known}
        self._styled = tag == "style"
        if tag in ("a", "area") and "href" in known:
            self.links.append(known["href"])
        if tag == "link" and set(known.get("rel", "").split()) & LOADING_RELATIONS:
            self.loads.append(known.get("href", ""))
        self.loads += [value for name, value in known.items() if name in LOADED and tag != "a"]
        self.loads += _addresses(known.get("style", ""))

    def handle_data(self, data: str) -> None:
        if self._styled:
            self.loads += _addresses(data)

    def handle_endtag(self, tag: str) -> None:
        self._styled = False


def _addresses(style: str) -> list[str]:
    return [first or second for first, second in IN_STYLES.findall(style)]


def faults(site: Path) -> Iterator[str]:
    """Every fault of the site, as "page: what is wrong"."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    if not pages:
        yield f"{site}: no page is there; build the site first"
    for path, page in pages.items():
        name = path.relative_to(site)
        for address in page.loads:
            parts = urlsplit(address)
            if parts.scheme == "data":
                continue
            if parts.scheme or parts.netloc:
                yield f"{name}: loads {address} from elsewhere"
            elif address and not (path.parent / unquote(parts.path)).exists():
                yield f"{name}: loads {address}, which is not there"
        for address in page.links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target = target / "index.html"
            if not target.exists():
                yield f"{name}: links to {address}, which is not there"
            elif parts.fragment and target.suffix == ".html":
                known = pages.get(target) or pages.get(site / target.relative_to(site.resolve()))
                if known is not None and unquote(parts.fragment) not in known.anchors:
                    yield f"{name}: links to {address}, and there is no such anchor"
    for path in sorted(site.rglob("*.css")):
        for address in _addresses(path.read_text(encoding="utf-8")):
            if urlsplit(address).netloc:
                yield f"{path.relative_to(site)}: loads {address} from elsewhere"
    for path in sorted(site.rglob("*.html")):
        for address in FONTS_AND_SCRIPTS.findall(re.sub(r"<a\s[^>]*>", "", path.read_text(encoding="utf-8"))):
            yield f"{path.relative_to(site)}: names {address}, which a script may load"


def main() -> int:
    site = Path(sys.argv[1])
    found = list(faults(site))
    print(*found, sep="\n")
    print(f"{len(list(site.rglob('*.html')))} pages, {len(found)} faults")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
