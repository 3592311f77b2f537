"""The site: links of its sources, the code they show, pages made from other files, and the check of the built site."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs import check_site, site_pages

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```", re.M | re.S)
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
RUN = [DOCS / "quickstart.md", DOCS / "faq.md", DOCS / "gallery.md", *NOTEBOOKS]


def code_of(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        return "\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "code")
    return "\n".join(CELL.findall(text))


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page, tmp_path):
    pytest.importorskip("sklearn", reason="the pages read scikit-learn's digits")
    pytest.importorskip("matplotlib", reason="the pages draw")
    code = code_of(page)
    assert "import sdsd" in code
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    # matplotlib and its parts warn of things to come while they are imported.
    environment["PYTHONWARNINGS"] = "error::UserWarning,error::RuntimeWarning"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    if page.name == "quickstart.md":
        assert "samples are worth having" in done.stdout
        assert "128 → 108" in done.stdout


def test_the_quickstart_is_fifty_lines():
    assert len(code_of(DOCS / "quickstart.md").splitlines()) <= 50


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_kept_without_what_they_gave(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def test_every_page_is_in_the_contents():
    listed = set(re.findall(r"^([\w./-]+)$", (DOCS / "index.md").read_text(encoding="utf-8"), re.M))
    pages = {
        str(path.relative_to(DOCS).with_suffix(""))
        for path in (*DOCS.rglob("*.md"), *NOTEBOOKS)
        if site_pages.MADE not in path.parts and path.name != "index.md"
    }
    assert pages - listed == set()


def test_claims_by_network_have_every_verdict():
    text = (DOCS / "claims.md").read_text(encoding="utf-8")
    table = site_pages.claims_by_network(text)
    found = [row for row in site_pages.rows(text) if row[1].startswith("geometry-")]
    assert len(found) >= 40
    assert {row[1] for row in found} == set(site_pages.NETWORKS)
    for claim, study, here, verdict in found:
        (line,) = (line for line in table.splitlines() if line.startswith(f"| {claim} |"))
        cells = line.strip("| ").split(" | ")[1:]
        names = table[: table.index("| ---")].splitlines()[-1].strip("| ").split(" | ")[1:]
        cell = cells[names.index(site_pages.NETWORKS[study])]
        assert cell.startswith(f"**{verdict}**")
        assert here.startswith(cell.removeprefix(f"**{verdict}** "))


def test_claims_without_rows_are_refused():
    with pytest.raises(ValueError, match=r"expected rows .*found none.*sdsd claims"):
        site_pages.claims_by_network("# Every claim\n\n| claim | verdict |\n")


SOUND = {
    "index.html": '<a href="api/x.html#f">f</a><a href="https://example.org">far</a><img src="a.png"><p id="top">'
    '<a href="#top">up</a><link rel="stylesheet" href="s.css"><a href="api/">folder</a>',
    "api/x.html": '<h1 id="f">f</h1><a href="../index.html">home</a>',
    "api/index.html": "<p>",
    "a.png": "",
    "s.css": "p { background: url(data:image/png;base64,AA) } i { background: url('a.png') }",
}


def build(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def test_a_sound_site_has_no_fault(tmp_path):
    assert list(check_site.faults(build(tmp_path, SOUND))) == []


@pytest.mark.parametrize(
    ("file", "text", "fault"),
    [
        ("p.html", '<a href="gone.html">x</a>', "links to gone.html, which is not there"),
        ("p.html", '<a href="api/x.html#g">x</a>', "no such anchor"),
        ("p.html", '<a href="#nowhere">x</a>', "no such anchor"),
        ("p.html", '<img src="b.png">', "loads b.png, which is not there"),
        ("p.html", '<img src="https://example.org/b.png">', "from elsewhere"),
        ("p.html", '<script src="//example.org/x"></script>', "from elsewhere"),
        ("p.html", '<link rel="stylesheet" href="https://example.org/x">', "from elsewhere"),
        ("p.html", '<link rel="preconnect" href="https://example.org">', "from elsewhere"),
        ("p.html", "<style>@import 'https://example.org/x';</style>", "from elsewhere"),
        ("p.html", '<p style="background: url(https://example.org/x)">', "from elsewhere"),
        ("p.html", "<script>load('https://example.org/x.js')</script>", "which a script may load"),
        ("p.css", "@font-face { src: url(https://example.org/x.woff2) }", "from elsewhere"),
    ],
)
def test_each_fault_is_found(tmp_path, file, text, fault):
    (found,) = check_site.faults(build(tmp_path, {**SOUND, file: text}))
    assert found.startswith(file)
    assert fault in found


def test_an_empty_site_is_a_fault(tmp_path):
    (found,) = check_site.faults(tmp_path)
    assert "build the site first" in found


def links(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return set(re.findall(r"\]\((?!https?:)([^)\s]+)\)", text))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and Sphinx make them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", title.replace("`", "").lower()).strip().replace(" ", "-") for title in titles}


def test_links_between_the_sources_lead_somewhere():
    """In the repository, too, where pages that the site makes are not there."""
    site_pages.write(DOCS)
    made, wrong = DOCS / "made", []
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")):
        for link in links(page):
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            absent = made in target.parents and made not in page.parents
            if absent or not target.exists() or (anchor and anchor not in anchors(target)):
                wrong.append(f"{page.relative_to(ROOT)}: {link}")
    assert wrong == []
