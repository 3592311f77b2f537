"""Which functions of the two packages a call enters, and how many lines they have: what one reads to follow it.

python -m tests.entered                       every call of CALLS: functions, files and lines
python -m tests.entered gamma_moments biopsy  the functions of these, in the order in which they are entered
"""

from __future__ import annotations

import ast
import functools
import os
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TRITON_INTERPRET", "1")

import torch
from torch import Tensor, nn

import sdsd
import sdsd_kernels
from sdsd.studies import CATALOGUE
from sdsd.studies.engine import Progress, run_study

ROOT = Path(sdsd.__file__).parent.parent
PACKAGES = tuple(f"{Path(package.__file__ or '').parent}{os.sep}" for package in (sdsd, sdsd_kernels))


class Function(NamedTuple):
    """A function, method or lambda, and its lines in the file."""

    file: str
    name: str
    first: int
    last: int

    def holds(self, other: Function) -> bool:
        return self.file == other.file and self.first <= other.first and other.last <= self.last


def entered(call: Callable[[], Any]) -> list[Function]:
    """Functions of sdsd and sdsd_kernels in the order in which `call` enters them, each once.

    One within another that is entered, too, belongs to that one, for it is read there. Bodies of modules and classes
    are none.
    """
    codes: dict[types.CodeType, None] = {}

    def note(frame: types.FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGES):
            codes.setdefault(frame.f_code)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(before)
    known = [in_file(code.co_filename).get(code.co_firstlineno) for code in codes]
    functions = list(dict.fromkeys(each for each in known if each is not None))
    return [each for each in functions if not any(other.holds(each) for other in functions if other != each)]


@functools.cache
def in_file(path: str) -> dict[int, Function]:
    """First line → the outermost function that begins there."""
    functions: dict[int, Function] = {}
    where = str(Path(path).relative_to(ROOT))

    def visit(node: ast.AST, owner: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = owner
            if isinstance(child, (ast.FunctionDef, ast.ClassDef, ast.Lambda)):
                name = ".".join(filter(None, [owner, getattr(child, "name", "lambda")]))
            if isinstance(child, (ast.FunctionDef, ast.Lambda)):
                first = min([child.lineno, *(each.lineno for each in getattr(child, "decorator_list", []))])
                functions.setdefault(first, Function(where, name, first, child.end_lineno or first))
            visit(child, name)

    visit(ast.parse(Path(path).read_text(encoding="utf-8")), "")
    return functions


def lines(functions: list[Function]) -> int:
    """Lines of the functions, docstrings included."""
    return len({(each.file, line) for each in functions for line in range(each.first, each.last + 1)})


def of_gamma_moments() -> list[Function]:
    grads = torch.randn(64, 300)
    return entered(lambda: sdsd_kernels.gamma_moments(grads))


def of_cosine_matrix() -> list[Function]:
    rows = torch.randn(64, 300)
    return entered(lambda: sdsd_kernels.cosine_matrix(rows))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


BATCH = torch.randn(32, 8), torch.randint(0, 3, (32,))


def of_step() -> list[Function]:
    """A step like most: the first ones look at each kind of call, and prove themselves."""
    model = network()
    monitor = sdsd.GammaMonitor(model)

    def step() -> None:
        model.zero_grad()
        loss_of(model, BATCH).backward()
        monitor.step()

    for _ in range(4):
        step()
    return entered(step)


def of_rule() -> list[Function]:
    """What a rule does: of the first step of a monitor of one layer, what lies in `sdsd/gamma/uses`."""
    model = nn.Linear(8, 3)
    with sdsd.GammaMonitor(model):
        functions = entered(lambda: loss_of(model, BATCH).backward())
    return [each for each in functions if each.file.startswith("sdsd/gamma/uses/")]


def of_biopsy() -> list[Function]:
    model = network()
    activations = model[:2](BATCH[0]).detach()

    def biopsy() -> None:
        sdsd.biopsy(model, "0", ([BATCH], loss_of), 5, activations=activations)

    biopsy()  # looks at the model, which is kept
    return entered(biopsy)


def of_study() -> list[Function]:
    with tempfile.TemporaryDirectory() as folder:
        return entered(lambda: run_study(CATALOGUE["selection"], folder, Progress(), quick=True))


CALLS = {name[3:]: call for name, call in list(globals().items()) if name.startswith("of_")}


def counted(functions: list[Function]) -> str:
    files = {each.file for each in functions}
    whole = sum(len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in files)
    return f"{len(functions)} functions in {len(files)} files: {lines(functions)} of their {whole} lines"


def main(names: list[str]) -> None:
    for name in names or CALLS:
        torch.manual_seed(0)
        CALLS[name]()  # what is done once in a process is no part of a call
        functions = CALLS[name]()
        print(f"{name}: {counted(functions)}")
        for each in functions if names else ():
            print(f"{each.last - each.first + 1:5d}  {each.file}:{each.first}  {each.name}")


if __name__ == "__main__":
    main(sys.argv[1:])
