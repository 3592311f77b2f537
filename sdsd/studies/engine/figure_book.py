"""The figures of a page: a PNG each beside it, and its panels in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...report import figures


class FigureBook:
    """Saves each figure as a PNG and hands back what the page shows of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: list[Path] = []

    def save(self, figure: Any, name: str, dpi: int = 144) -> None:
        path = self.folder / f"{name}.png"
        figures.save_png(figure, path, dpi)
        self.written.append(path)

    def add(self, figure: Any, name: str) -> str:
        self.save(figure, name)
        return figures.to_panels(figure, name)
