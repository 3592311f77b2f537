"""Pages of the site that are made from other files: kernels' references, the change log, claims × networks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MADE = "made"
"""The folder of docs/ that these pages lie in; git ignores it."""
NETWORKS = {
    "geometry-digits-mlp": "MLP on digits",
    "geometry-digits-cnn": "CNN on digits",
    "geometry-mnist": "CNN on MNIST",
    "geometry-efficientnet": "EfficientNet-Lite0",
    "geometry-minilm-3": "MiniLM, block 3",
    "geometry-minilm-6": "MiniLM, block 6",
    "geometry-resnet18": "ResNet18 on CIFAR-10",
}
"""Studies of one claim each in another network, and what the table calls it."""
ROW = re.compile(r"^\| (.+?) \| `(.+?)` \| (.+?) \| (.+?) \| \*\*(.+?)\*\* \|$", re.M)


def write(docs: Path) -> list[Path]:
    """Write the pages below `docs`, and return where they are. What did not change keeps its time."""
    pages = {
        "changelog.md": _moved((ROOT / "CHANGELOG.md").read_text(encoding="utf-8")),
        "contributing.md": _moved((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")),
        "claims-by-network.md": claims_by_network((docs / "claims.md").read_text(encoding="utf-8")),
        "kernels/index.md": "# Kernels\n\nMathematics, bytes and operations, numerics and measurements of each.\n\n"
        "```{toctree}\n:maxdepth: 1\n:glob:\n\n*\n```\n",
    }
    for path in sorted((ROOT / "sdsd_kernels").glob("*/README.md")):
        pages[f"kernels/{path.parent.name}.md"] = _moved_readme(path.read_text(encoding="utf-8"))
    written = []
    for name, text in pages.items():
        path = docs / MADE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


def _moved(text: str) -> str:
    """Text of the repository's root, for a page two folders down: links into docs/ hold, others are names of files."""
    text = re.sub(r"\]\(docs/([^)]+)\)", r"](../\1)", text)
    return re.sub(r"\[([^\]]+)\]\((?!\.\./|https?:|#)[^)]+\)", r"\1", text)


def _moved_readme(text: str) -> str:
    text = re.sub(r"\[([^\]]+)\]\(\.\./[\w/]+\.py\)", r"\1", text)
    text = re.sub(r"\]\(\.\./(\w+)/README\.md", r"](\1.md", text)
    return text.replace("](../../docs/", "](../../")


def rows(text: str) -> Iterator[tuple[str, str, str, str]]:
    """claim, study, what was found and verdict, of every row of "Network by network" in docs/claims.md."""
    for claim, study, here, _, verdict in ROW.findall(text):
        yield claim, study, here, verdict


def claims_by_network(text: str) -> str:
    """A claim a row, a network a column, a verdict and its number in each cell."""
    table: dict[str, dict[str, str]] = {}
    for claim, study, here, verdict in rows(text):
        if study in NETWORKS:
            table.setdefault(claim, {})[study] = f"**{verdict}** {here.partition(']')[0]}]"
    if not table:
        raise ValueError(
            "docs/claims.md: expected rows '| claim | `study` | here | p | **verdict** |' of the geometry studies, "
            f"found none of {', '.join(NETWORKS)}. `sdsd claims` writes them."
        )
    used = [study for study in NETWORKS if any(study in cells for cells in table.values())]
    lines = [
        "---",
        "hide-toc: true",
        "---",
        "",
        "# Claims × networks",
        "",
        "The claims about neurons, measured in every network they were tried in: the verdict, and what was found with",
        "its interval over seeds. Units, the published numbers and the rules that decide are in",
        "[the list of claims](../claims.md), which this table is made from.",
        "",
        ":::{container} wide",
        "",
        "| claim | " + " | ".join(NETWORKS[study] for study in used) + " |",
        "| --- " * (len(used) + 1) + "|",
    ]
    lines += [
        f"| {claim} | " + " | ".join(cells.get(study, "–") for study in used) + " |" for claim, cells in table.items()
    ]
    return "\n".join([*lines, "", ":::", ""])
