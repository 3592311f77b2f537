"""Addresses, which depend on the clone: from its remote `origin`; in an sdist, from where that was made."""

import re
import subprocess
from email.parser import HeaderParser
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
REMOTE = re.compile(
    r"(?:(?P<scheme>https?)://(?:[^@/]*@)?(?P<web>[^/@]+)|(?:ssh|git)://(?:[^@/]*@)?(?P<ssh>[^/:@]+)(?::\d+)?"
    r"|(?:[^@/:]+@)?(?P<scp>[^/:@]+):(?!/))/?(?P<path>[^?#]+)"
)
PRIVATE = ("corp", "example", "home", "internal", "intranet", "invalid", "lan", "local", "localdomain", "test")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def public_address(remote):
    """Where others find what was cloned from `remote`, without user or password; None where that is this machine."""
    found = REMOTE.fullmatch(remote.strip())
    if not found:
        return None
    host = found["web"] or found["ssh"] or found["scp"]
    labels = host.partition(":")[0].lower().split(".")
    if len(labels) < 2 or not labels[-1].isalpha() or labels[-1] in PRIVATE:
        return None
    return f"{found['scheme'] or 'https'}://{host}/{found['path'].strip('/')}"


def project_address():
    """The address of the repository; None where there is none that others can reach."""
    if (ROOT / "PKG-INFO").exists():
        named = HeaderParser().parsestr((ROOT / "PKG-INFO").read_text(encoding="utf-8")).get_all("Project-URL", [])
        return next((url.split(", ", 1)[1] for url in named if url.startswith("Repository, ")), None)
    if not (ROOT / ".git").exists():
        return None
    command = ["git", "-C", str(ROOT), "config", "--get", "remote.origin.url"]
    try:
        return public_address(subprocess.run(command, capture_output=True, text=True, check=False).stdout)
    except OSError:
        return None


def description(page):
    """README.md as it is read elsewhere: links to files lead to `page`, or name the file where there is none."""

    def elsewhere(link):
        image, text, path, anchor = link.groups()
        if not (ROOT / path).exists():
            return link[0]
        if page is None:
            return text if image else f"{text} ({path})"
        return f"{image}[{text}]({page}/{'raw' if image else 'blob'}/HEAD/{path}{anchor or ''})"

    return LINK.sub(elsewhere, (ROOT / "README.md").read_text(encoding="utf-8"))


address = project_address()
page = address and address.removesuffix(".git")
changes = f"{page}/blob/HEAD/CHANGELOG.md"
setup(
    project_urls={"Homepage": page, "Repository": address, "Changelog": changes} if address else {},
    long_description=description(page),
    long_description_content_type="text/markdown",
)
