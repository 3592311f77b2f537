"""Imports run downward only, and the kernels stay apart from what uses them."""

from __future__ import annotations

from pathlib import Path

import pytest

from .layering.imports import DEEPEST, ROOT, arrows, between_folders, deepest
from .layering.rules import AS_TORCH_TAKES_THEM, ragged, shape_violations, unlisted, violations


def chain(package: str, root: Path) -> list[str]:
    """The longest of a package's files."""
    ahead = arrows(package, root)
    return deepest({here: {each for each in targets if each in ahead} for here, targets in ahead.items()})


@pytest.mark.parametrize("package", ["sdsd", "sdsd_kernels"])
def test_chains_of_imports_are_short(package):
    files = chain(package, ROOT)
    assert len(files) <= DEEPEST, " → ".join(files)


def test_folders_lean_on_each_other_in_no_circle():
    deepest(between_folders(ROOT))


def test_deep_chains_of_files_are_found(tmp_path):
    files = {f"sdsd/geometry/f{k}.py": f"from .f{k + 1} import x" for k in range(1, 12)}
    files |= {"sdsd/geometry/__init__.py": "from .f1 import x", "sdsd/geometry/f12.py": "x = 1"}
    files |= {"sdsd/studies/digits.py": "from ..geometry import x\ndef f():\n    from ..geometry import y"}
    root = build(tmp_path, {**SOUND, **files})
    wanted = ["sdsd.studies.demo.run", "sdsd.studies.digits", *(f"sdsd.geometry.f{k}" for k in range(1, 13))]
    assert chain("sdsd", root) == wanted


def test_deep_chains_and_circles_of_folders_are_found(tmp_path):
    files = {f"sdsd/geometry/f{k}/g.py": f"from ..f{k + 1} import x" for k in range(12)}
    files |= {f"sdsd/geometry/f{k}/__init__.py": "from .g import x" for k in range(13)}
    files |= {"sdsd/geometry/f12/g.py": "def x():\n    from ...models import y", "sdsd/geometry/__init__.py": ""}
    root = build(tmp_path, {**SOUND, **files})
    assert deepest(between_folders(root)) == [f"sdsd.geometry.f{k}" for k in range(13)]
    build(root, {"sdsd/geometry/f12/g.py": "from ..f0 import x"})
    with pytest.raises(ValueError, match="f11 → sdsd.geometry.f12 → sdsd.geometry.f0"):
        deepest(between_folders(root))


def test_a_door_is_looked_through(tmp_path):
    files = {"sdsd/report/__init__.py": "from ..geometry import merge\nx = merge"}
    files["sdsd/report/page.py"] = "from ..geometry import merge\nfrom ..theory import a as b"
    files["sdsd/theory/__init__.py"] = "from .one import two as a"
    files["sdsd/theory/one.py"] = "two = 2"
    root = build(tmp_path, {**SOUND, **files})
    assert arrows("sdsd", root)["sdsd.report.page"] == {"sdsd.geometry.merging.merge", "sdsd.theory.one"}
    assert between_folders(root)["sdsd.report"] == {"sdsd.geometry.merging", "sdsd.theory"}


def test_circles_are_found(tmp_path):
    files = {**SOUND, "sdsd/studies/engine/study.py": "def f():\n    from .page import draw"}
    files["sdsd/studies/engine/page.py"] = "from .study import f"
    (circle,) = violations(build(tmp_path, files))
    assert circle.endswith("sdsd.studies.engine.study → sdsd.studies.engine.page → sdsd.studies.engine.study")


def test_circles_of_kernels_are_found(tmp_path):
    files = {**SOUND, "sdsd_kernels/pairwise/launch.py": "from .blocks import f"}
    files["sdsd_kernels/pairwise/blocks.py"] = "def f():\n    from .launch import g"
    (circle,) = violations(build(tmp_path, files))
    assert circle.endswith("sdsd_kernels.pairwise.blocks → sdsd_kernels.pairwise.launch → sdsd_kernels.pairwise.blocks")


def test_imports_run_downward_only():
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "name"), [(file, name) for file, names in AS_TORCH_TAKES_THEM.items() for name in names]
)
def test_only_functions_with_the_arguments_of_torch_have_many(tmp_path, file, name):
    text = (ROOT / file).read_text(encoding="utf-8").replace(f"def {name}(", f"def {name}_(")
    (violation,) = shape_violations(build(tmp_path, {file: text}) / file, tmp_path)
    assert f"{name}_ has" in violation


def test_every_door_says_what_is_inside():
    doors = [path.parent for package in ("sdsd", "sdsd_kernels") for path in (ROOT / package).rglob("__init__.py")]
    assert {str(door.relative_to(ROOT)): unlisted(door) for door in doors if unlisted(door)} == {}


def test_tables_of_doors_are_tables(tmp_path):
    doors = [path.parent for package in ("sdsd", "sdsd_kernels") for path in (ROOT / package).rglob("__init__.py")]
    assert {str(door.relative_to(ROOT)): ragged(door) for door in doors if ragged(door)} == {}
    table = "Doors.\n\n=====  ====\n`a.py`  one\nb.py   two\n=====  ====\n\nlonger text"
    assert ragged(build(tmp_path, {"__init__.py": f'"""{table}"""'})) == ["`a.py`  one"]


def test_what_a_door_leaves_out_is_found(tmp_path):
    files = {"a/__init__.py": '"""`one.py` and `rules_*.py`, and `sub/`; `three`, two.py."""'}
    files |= dict.fromkeys(("a/one.py", "a/two.py", "a/three.py", "a/rules_x.py"), "")
    files |= {"a/sub/__init__.py": "", "a/other/__init__.py": ""}
    assert unlisted(build(tmp_path, files) / "a") == ["other/", "three.py", "two.py"]


SOUND = {
    "sdsd/__init__.py": (
        "from .gamma import gamma_stats\ndef __getattr__(name):\n    from .studies import demo\n    return demo"
    ),
    "sdsd/__main__.py": "from .cli import main",
    "sdsd/_extras.py": "import importlib",
    "sdsd/cli/__init__.py": "from sdsd import gamma_stats\nfrom ..studies import demo\nfrom ..report import page",
    "sdsd/cli/demo.py": "from . import parser\nfrom .._extras import need\ndef f():\n    from ..studies import load",
    "sdsd/cli/parser.py": "",
    "sdsd/studies/__init__.py": "from .demo import run_demo\nfrom .digits import load",
    "sdsd/studies/digits.py": "def load(): ...",
    "sdsd/studies/demo/__init__.py": "from .run import run_demo",
    "sdsd/studies/demo/run.py": (
        "from ...report import html, page\nfrom ...gamma import gamma_stats\nfrom ..._extras import need\n"
        "from ..engine import Study\nfrom ..digits import load"
    ),
    "sdsd/studies/engine/__init__.py": "from .study import Study",
    "sdsd/studies/engine/study.py": "from ..._extras import need",
    "sdsd/report/__init__.py": "from . import html\nfrom ..geometry import merge",
    "sdsd/report/html.py": "",
    "sdsd/theory/__init__.py": "from ..gamma import gamma_stats\nfrom ..geometry import merge",
    "sdsd/gamma/__init__.py": "from .stats import gamma_stats",
    "sdsd/gamma/stats.py": "import torch\nfrom sdsd_kernels import gamma_moments",
    "sdsd/geometry/__init__.py": "from .merging import merge",
    "sdsd/geometry/merging/__init__.py": "from .merge import merge",
    "sdsd/geometry/merging/merge.py": "import sdsd_kernels",
    "sdsd_kernels/__init__.py": "from .gamma_moments.op import gamma_moments\n__all__ = ['gamma_moments']",
    "sdsd_kernels/gamma_moments/__init__.py": "",
    "sdsd_kernels/gamma_moments/op.py": "def gamma_moments():\n    from .kernel import launch",
    "sdsd_kernels/gamma_moments/kernel.py": "import triton\nimport triton.language as tl\n# fmt: off\n# fmt: on",
    "sdsd_kernels/gamma_moments/norms_kernel.py": "import triton",
    "sdsd_kernels/gamma_moments/config.py": "def f():\n    import triton",
    "sdsd_kernels/gamma_moments/reference.py": "",
    "sdsd_kernels/pairwise/blocks.py": "",
    "sdsd_kernels/cosine_topk/op.py": "from ..pairwise.blocks import prepare",
    "sdsd_kernels/cosine_topk/reference.py": "from ..gamma_moments.reference import moments",
}


def build(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_sound_house_has_no_violation(tmp_path):
    assert violations(build(tmp_path, SOUND)) == []


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("sdsd/gamma/stats.py", "from ..geometry import merge", "gamma (floor 2) imports geometry"),
        ("sdsd/gamma/stats.py", "def f():\n    import sdsd.geometry.merge", "gamma (floor 2) imports geometry"),
        ("sdsd/geometry/merging/merge.py", "from sdsd.gamma import gamma_stats", "geometry (floor 2) imports gamma"),
        ("sdsd/geometry/merging/merge.py", "from ... import report", "geometry (floor 2) imports report"),
        ("sdsd/geometry/merging/merge.py", "from sdsd import gamma_stats", "imports sdsd itself"),
        ("sdsd/theory/__init__.py", "from ..report import page", "theory (floor 3) imports report"),
        ("sdsd/report/html.py", "from ..studies import demo", "report (floor 3) imports studies"),
        ("sdsd/studies/digits.py", "from .. import cli", "studies (floor 4) imports cli"),
        ("sdsd/studies/demo/run.py", "from ..engine.study import Study", "behind the door of sdsd.studies.engine"),
        (
            "sdsd/studies/demo/run.py",
            "def f():\n    import sdsd.studies.engine.study",
            "behind the door of sdsd.studies",
        ),
        ("sdsd/studies/digits.py", "from .engine.study import Study", "behind the door of sdsd.studies.engine"),
        ("sdsd/studies/digits.py", "from ..report.html import page", "behind the door of sdsd.report"),
        ("sdsd/studies/digits.py", "from ..gamma import stats", "behind the door of sdsd.gamma"),
        ("sdsd/cli/demo.py", "def f():\n    from ..studies.digits import load", "behind the door of sdsd.studies"),
        ("sdsd/studies/digits.py", "x = 1\n" * 401, "401 lines; make it a folder"),
        ("sdsd/studies/digits.py", "def f(a, b, c, d, e, f, g): ...", "f has 7 positional parameters"),
        ("sdsd/gamma/layers/attention.py", "def f(self, a, b, c, d, e, f, g): ...", "f has 7 positional parameters"),
        ("sdsd/cli/demo.py", "x  = 1  # fmt: skip", "the formatter wins"),
        ("sdsd_kernels/gamma_moments/kernel.py", "x  = 1  # fmt: skip", "the formatter wins"),
        ("sdsd_kernels/gamma_moments/kernel.py", "def f():\n    # fmt: off\n    return 1", "the formatter wins"),
        ("sdsd_kernels/gamma_moments/op.py", "# fmt: off", "the formatter wins"),
        ("sdsd/gamma/stats.py", "# fmt: off", "the formatter wins"),
        ("tests/kernels/test_op.py", "x  = 1  # fmt: skip", "the formatter wins"),
        ("tests/kernels/test_op.py", "x = 1\n" * 401, "401 lines; make it a folder"),
        ("tests/kernel.py", "# fmt: off\nx  = 1\n# fmt: on", "the formatter wins"),
        ("benchmarks/cases.py", "x  = 1  # yapf: disable", "the formatter wins"),
        ("sdsd_kernels/gamma_moments/op.py", "x = 1\n" * 401, "401 lines; make it a folder"),
        ("sdsd/report/html.py", "def f(found): ...", "call it what it is"),
        ("sdsd/studies/digits.py", "found = 1", "call it what it is"),
        ("examples/schedule.py", "found = 1", "call it what it is"),
        ("sdsd/__main__.py", "from .cli.parser import Parser", "behind the door of sdsd.cli"),
        (
            "sdsd/studies/digits.py",
            "from ..gamma import _total",
            "sdsd.gamma._total is private to sdsd.gamma",
        ),
        ("sdsd/studies/digits.py", "from ..gamma.stats import total", "is behind the door of sdsd.gamma"),
        ("sdsd/integrations/__init__.py", "from ..studies import demo", "integrations (floor 4) imports studies"),
        ("sdsd/__init__.py", "from .studies import demo", "only inside a function"),
        ("sdsd/_extras.py", "from .gamma import gamma_stats", "a private helper of sdsd imports"),
        ("sdsd/attic/__init__.py", "", "'attic' has no floor"),
        ("sdsd/gamma/stats.py", "from sdsd_kernels.gamma_moments.op import gamma_moments", "is not exported"),
        ("sdsd/_extras.py", "from sdsd_kernels import _checks", "is not exported"),
        ("sdsd/gamma/stats.py", "def f():\n    import sdsd_kernels.gamma_moments", "is not exported"),
        ("sdsd/gamma/stats.py", "import triton", "sdsd imports triton"),
        ("sdsd_kernels/gamma_moments/op.py", "import triton", "only kernels and their configurations"),
        ("sdsd_kernels/gamma_moments/op.py", "try:\n    import triton\nexcept ImportError: ...", "only kernels"),
        ("sdsd_kernels/gamma_moments/op.py", "def f():\n    from triton.testing import do_bench", "only kernels"),
        ("sdsd_kernels/gamma_moments/popkernel.py", "import triton", "only kernels"),
        ("sdsd_kernels/gamma_moments/kernel_of_norms.py", "import triton", "only kernels"),
        ("sdsd_kernels/config/op.py", "import triton", "only kernels"),
        ("sdsd_kernels/gamma_moments/kernel.py", "def f():\n    from sdsd import gamma", "sdsd_kernels imports sdsd"),
        ("sdsd_kernels/cosine_topk/op.py", "def f():\n    from ..gamma_moments.cpu import g", "is one op's"),
        ("sdsd_kernels/cosine_topk/reference.py", "from ..gamma_moments.op import gamma_moments", "is one op's"),
        ("sdsd_kernels/cosine_topk/cpu.py", "from ..gamma_moments.reference import moments", "is one op's"),
        ("sdsd_kernels/pairwise/blocks.py", "from ..gamma_moments import op", "is one op's"),
        ("sdsd_kernels/cosine_topk/op.py", "from ..pairwise.blocks import _prepare", "is private to pairwise"),
    ],
)
def test_each_violation_is_found(tmp_path, file, line, complaint):
    files = dict(SOUND)
    files[file] = line
    found = violations(build(tmp_path, files))
    assert len(found) == 1
    assert complaint in found[0]
    assert found[0].startswith(file)
