"""The paths drawn in the doors of packages name functions that are there, and calls enter few others."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import sdsd
import sdsd_kernels
from sdsd_kernels import _backend
from tests import entered

ROOT = Path(__file__).resolve().parent.parent
DRAWN = ("sdsd/gamma", "sdsd/gamma/uses", "sdsd/geometry/merging", "sdsd/studies", "sdsd_kernels")
"""Folders whose __init__ draws a path."""
STEP = re.compile(r"(?<![\w/.])((?:\w+/)*\w+)\.((?:\w+\.)?\w+)(?![\w/])")
LEAST = {"sdsd/gamma": 15, "sdsd/gamma/uses": 6, "sdsd/geometry/merging": 7, "sdsd/studies": 4, "sdsd_kernels": 9}
"""How many steps the paths have; a path that is no longer understood would have none."""
MOST_LINES = {
    "sdsd/gamma": 600,
    "sdsd/gamma/uses": 150,
    "sdsd/geometry/merging": 210,
    "sdsd/studies": 160,
    "sdsd_kernels": 250,
}
"""Lines of the functions on a path, docstrings included: what a newcomer reads to follow it."""
MOST_ENTERED = {
    "gamma_moments": 240,
    "cosine_matrix": 267,
    "step": 1070,
    "rule": 630,
    "biopsy": 1388,
    "study": 807,
}
"""Lines of all functions that a call enters, docstrings included: `python -m tests.entered` lists them."""


def defined(path: Path) -> dict[str, int]:
    """Functions, classes and methods of a file, "f", "C", "C.f", and their lines."""
    lines: dict[str, int] = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        inner = node.body if isinstance(node, ast.ClassDef) else []
        for each in (node, *inner):
            if isinstance(each, (ast.FunctionDef, ast.ClassDef)):
                name = each.name if each is node else f"{node.name}.{each.name}"  # type: ignore[union-attr]
                lines[name] = (each.end_lineno or each.lineno) - each.lineno + 1
    return lines


def steps(folder: Path) -> Iterator[tuple[Path, str]]:
    """The steps "file.function" or "folder/file.Class.function" that a folder's __init__ names."""
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    for place, name in STEP.findall(text):
        if name != "py" and (folder / f"{place}.py").is_file() and not name.startswith("py"):
            yield folder / f"{place}.py", name
        elif "/" in place and name != "py" and place.split("/")[0] != "docs":
            raise AssertionError(f"{folder}: {place}.{name} is in no file")


@pytest.mark.parametrize("folder", DRAWN)
def test_every_step_is_a_function_that_is_there(folder):
    found = list(steps(ROOT / folder))
    assert len(found) >= LEAST[folder]
    assert [f"{path.name}: {name}" for path, name in found if name not in defined(path)] == []


@pytest.mark.parametrize("folder", DRAWN)
def test_a_path_is_read_in_one_sitting(folder):
    path = dict.fromkeys(steps(ROOT / folder))
    lines = sum(defined(file)[name] for file, name in path)
    assert 0 < lines <= MOST_LINES[folder], f"{lines} lines in {len(path)} functions"


@pytest.mark.parametrize("name", entered.CALLS)
def test_a_call_enters_few_lines(name):
    torch.manual_seed(0)
    entered.CALLS[name]()
    functions = entered.CALLS[name]()
    assert 0 < entered.lines(functions) <= MOST_ENTERED[name], entered.counted(functions)


def test_what_a_call_enters_is_counted_once():
    functions = entered.entered(lambda: sdsd_kernels.available_backends("cpu"))
    assert [each.name for each in functions[:2]] == ["available_backends", "unusable"]
    by_hand = [inspect.getsourcelines(each)[0] for each in (_backend.available_backends, _backend.unusable)]
    assert entered.lines(functions[:2]) == sum(map(len, by_hand))
    assert entered.entered(lambda: torch.ones(2) + 1) == []


def test_a_function_within_another_is_read_there():

    functions = entered.entered(lambda: sdsd._progress.sparing(lambda done, total: None)(1, 1))
    assert [each.name for each in functions] == ["sparing"]
    assert entered.lines(functions) == len(inspect.getsourcelines(sdsd._progress.sparing)[0])


def test_a_step_that_is_gone_is_found(tmp_path):
    (tmp_path / "__init__.py").write_text('"""Read sub/one.f, sub/one.C.g and sub/one.h; `sub/one.py` holds them."""')
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "one.py").write_text("def f(): ...\nclass C:\n    def g(self): ...")
    assert [name for path, name in steps(tmp_path) if name not in defined(path)] == ["h"]
    (tmp_path / "__init__.py").write_text('"""Read sub/two.f."""')
    with pytest.raises(AssertionError, match="in no file"):
        list(steps(tmp_path))
