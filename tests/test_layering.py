"""Imports run downward only, and the kernels stay apart from what uses them."""

from __future__ import annotations

import ast
import fnmatch
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent

FLOORS = {
    "__main__": 6,
    "cli": 5,
    "studies": 4,
    "integrations": 4,
    "report": 3,
    "theory": 3,
    "gamma": 2,
    "geometry": 2,
    "graphs": 1,
    "models": 0,
}
"""Rooms of `sdsd`, each above what it may import; two of a floor are strangers. `sdsd_kernels` is below them all."""

KERNELS = re.compile(r"(\w+_)?kernel\.py")
"""Kernels pack their arguments by meaning, under one `# fmt: off` a file."""
FORMATTED = ("sdsd", "sdsd_kernels", "tests", "benchmarks", "docs", "examples")
"""Where the formatter wins."""
WITH_TRITON = re.compile(r"(\w+_)?(kernel|config)\.py")
"""A folder's kernel.py may be spread over several <what>_kernel.py. No other file imports Triton, not even late."""


MOST_LINES = 400
MOST_POSITIONAL = 6
DEEPEST = 12
"""Folders of `sdsd`, and files of `sdsd_kernels`, each of which imports from the next."""
BEHIND_DOORS = (
    "sdsd.cli",
    "sdsd.gamma",
    "sdsd.geometry",
    "sdsd.graphs",
    "sdsd.integrations",
    "sdsd.models",
    "sdsd.report",
    "sdsd.studies",
    "sdsd.theory",
)
"""A file in these is imported from its own folder and those below it; others go through a folder's __init__."""
IN_SHAPE = (
    "sdsd.cli",
    "sdsd.gamma.following",
    "sdsd.gamma.layers",
    "sdsd.gamma.monitor",
    "sdsd.geometry",
    "sdsd.graphs",
    "sdsd.integrations",
    "sdsd.models",
    "sdsd.report",
    "sdsd.studies",
    "sdsd.theory",
    "sdsd_kernels",
)
"""Where the lengths of files and of rows of parameters are held."""
AS_TORCH_TAKES_THEM = {
    "sdsd/gamma/following/layers.py": ("batch_norm", "torch_batch_norm"),
    "sdsd/gamma/following/products.py": ("convolution", "transposed_convolution", "general_convolution"),
    "sdsd/gamma/layers/attention.py": ("_attend",),
}
"""Functions that are called with the arguments of a function of torch, positions and names as they came."""
PLAIN_NAMES = (
    "sdsd.cli",
    "sdsd.gamma",
    "sdsd.geometry",
    "sdsd.graphs",
    "sdsd.integrations",
    "sdsd.models",
    "sdsd.report",
    "sdsd.studies",
    "sdsd.theory",
    "sdsd_kernels",
)
"""Where no name is "found"."""


PUBLIC = (
    "torch._dynamo.comptime.ComptimeContext",
    "torch._dynamo.comptime.comptime",
    "torch._dynamo.variables.ConstantVariable",
    "torch._dynamo.variables.TensorVariable",
    "torch.overrides._pop_mode_temporarily",
    "torch.utils._python_dispatch.TorchDispatchMode",
    "torch.utils._pytree",
)
"""Of torch's private names, those that its documentation uses or that nothing public replaces."""


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


class Import(NamedTuple):
    """`target` is "module" for `import module` and "module.name" for `from module import name`."""

    target: str
    line: int
    at_import: bool  # runs when the file is imported, not inside a function
    plain: bool  # `import …`, so that every part of the target is a module
    typing: bool = False  # under `if TYPE_CHECKING`: it never runs


def imports(path: Path, root: Path) -> Iterator[Import]:
    """Every import of a file."""
    name = module_name(path, root)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def visit(node: ast.AST, at_import: bool, typing: bool = False) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, at_import, True, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [base])])
            yield from (Import(f"{base}.{alias.name}", node.lineno, at_import, False, typing) for alias in node.names)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            at_import, typing = False, True
        inner = at_import and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inner, typing)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), True)


def exported(root: Path) -> set[str]:
    """The public names that sdsd_kernels/__init__.py binds."""
    tree = ast.parse((root / "sdsd_kernels" / "__init__.py").read_text(encoding="utf-8"))
    bound: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            bound |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.Assign):
            bound |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            if any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets):
                return set(ast.literal_eval(node.value))
    return {name for name in bound if not name.startswith("_")}


def room(module: str) -> str:
    """The part of `sdsd` a module belongs to: "sdsd.gamma.stats" → "gamma"; "" for `sdsd` itself."""
    return [*module.split("."), ""][1]


def room_violations(path: Path, root: Path) -> Iterator[str]:
    """What a file of `sdsd` imports from floors that are not below its own."""
    here = room(module_name(path, root))
    known = {child.stem for child in (root / "sdsd").iterdir() if child.is_dir() or child.suffix == ".py"}
    if here and here not in FLOORS and not here.startswith("_"):
        yield f"{path.relative_to(root)}: {here!r} has no floor; give it one in FLOORS"
        return
    for target, line, at_import, *_ in imports(path, root):
        where = f"{path.relative_to(root)}:{line}"
        if target.split(".")[0] != "sdsd":
            continue
        there = room(target) if room(target) in known else ""
        if there == here or there.startswith("_"):
            continue
        if here == "":
            if there == "studies" and at_import:
                yield f"{where}: sdsd itself may import studies only inside a function"
        elif here not in FLOORS:
            yield f"{where}: a private helper of sdsd imports {target}"
        elif there == "":
            if FLOORS[here] <= 2:
                yield f"{where}: {here} imports sdsd itself, which stands above it"
        elif FLOORS.get(there, 99) >= FLOORS[here]:
            yield f"{where}: {here} (floor {FLOORS[here]}) imports {there} (floor {FLOORS.get(there)})"


def is_module(name: str, root: Path) -> bool:
    path = root.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or is_folder(name, root)


def is_folder(name: str, root: Path) -> bool:
    return root.joinpath(*name.split("."), "__init__.py").is_file()


def hands_out(folder: str, name: str, root: Path) -> bool:
    """Whether a folder's __init__ binds `name` to what one of its files defines, under the file's own name or not."""
    return any(
        name == (alias.asname or alias.name) for node in from_files(folder, root) if node.module for alias in node.names
    )


def hands_out_file(target: str, root: Path) -> bool:
    """Whether a folder's __init__ hands out the whole file `target`, by `from . import file`."""
    folder, _, name = target.rpartition(".")
    whole = [node for node in from_files(folder, root) if not node.module] if is_folder(folder, root) else []
    return any(name == alias.name for node in whole for alias in node.names)


def from_files(folder: str, root: Path) -> list[ast.ImportFrom]:
    """The `from .file import …` of a folder's __init__."""
    tree = ast.parse(root.joinpath(*folder.split("."), "__init__.py").read_text(encoding="utf-8"))
    return [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.level == 1]


def is_behind(target: str, root: Path) -> bool:
    """Whether `from folder import name` means a file of the folder and not a name that its door hands out."""
    folder, _, name = target.rpartition(".")
    return is_module(target, root) and not (is_folder(folder, root) and hands_out(folder, name, root))


def door_violations(path: Path, root: Path) -> Iterator[str]:
    """Imports that reach into another folder's files, or for another folder's private names."""
    name = module_name(path, root)
    here = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for target, line, *_ in imports(path, root):
        module = target if is_behind(target, root) else target.rpartition(".")[0]
        folder = module if is_folder(module, root) else module.rpartition(".")[0]
        if f"{here}.".startswith(f"{folder}."):
            continue
        where = f"{path.relative_to(root)}:{line}"
        behind = f"{module}.".startswith(tuple(f"{room}." for room in BEHIND_DOORS)) and module != folder
        if behind and not hands_out_file(target, root):
            yield f"{where}: {target} is behind the door of {folder}; export it in its __init__.py"
        private = any(part.startswith("_") for part in target.split(".")[1:])
        if f"{here}.".startswith(tuple(f"{room}." for room in BEHIND_DOORS)) and private and target not in PUBLIC:
            yield f"{where}: {target} is private to {folder}"


def vague_names(path: Path, root: Path) -> Iterator[str]:
    """Variables, parameters and attributes called "found": a word that says nothing of what is in them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        name = getattr(node, {ast.Name: "id", ast.arg: "arg", ast.Attribute: "attr"}.get(type(node), "-"), "")
        if name == "found":
            yield f"{path.relative_to(root)}:{getattr(node, 'lineno', 0)}: call it what it is, not {name!r}"


def unlisted(folder: Path) -> list[str]:
    """Files and folders of a folder that its __init__ does not say anything of; a pattern such as `rules_*.py` may."""
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    listed = re.findall(r"`([\w*]+(?:\.py|/)?)`", text)
    inside = [path for path in folder.iterdir() if path.suffix == ".py" and path.name != "__init__.py"]
    folders = [path for path in folder.iterdir() if (path / "__init__.py").is_file()]
    names = [*(path.name for path in inside), *(f"{path.name}/" for path in folders)]
    known = [*listed, *(f"{name}/" for name in listed)]
    return sorted(name for name in names if not any(fnmatch.fnmatch(name, each) for each in known))


def ragged(folder: Path) -> list[str]:
    """Rows of the tables of an __init__ that run into the margin between columns, which is no table to a parser."""
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    width, rows, wrong = 0, False, list[str]()
    for line in text.splitlines():
        if re.fullmatch(r"=+(  =+)+", line):
            width, rows = line.index(" "), True
        elif not line:
            rows = False
        elif rows and line[width : width + 2].strip():
            wrong.append(line)
    return wrong


def circles(root: Path) -> Iterator[str]:
    """Imports within a room that lead back to where they began, late ones too."""
    ahead: dict[str, set[str]] = {}
    for room in (*BEHIND_DOORS, "sdsd_kernels"):
        for path in sorted(root.joinpath(*room.split(".")).rglob("*.py")):
            here, targets = module_name(path, root), [each.target for each in imports(path, root) if not each.typing]
            modules = {target if is_behind(target, root) else target.rpartition(".")[0] for target in targets}
            ahead[here] = {module for module in modules if f"{module}.".startswith(f"{room}.")} - {here}
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> Iterator[str]:
        if module in way:
            yield f"a circle of imports: {' → '.join([*way[way.index(module) :], module])}"
        elif module not in done:
            for target in sorted(ahead.get(module, ())):
                yield from visit(target, [*way, module])
            done.add(module)

    for module in ahead:
        yield from visit(module, [])


def maker(target: str, root: Path) -> str:
    """The file that makes what is imported: a door is looked through, for it only hands out what its files make."""
    folder, _, name = target.rpartition(".")
    if is_folder(folder, root):
        for node in from_files(folder, root):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    inside = ".".join(filter(None, [folder, node.module]))
                    return f"{inside}.{alias.name}" if node.module is None else maker(f"{inside}.{alias.name}", root)
    return target if is_module(target, root) else folder


def arrows(package: str, root: Path) -> dict[str, set[str]]:
    """File → files of any package that it imports from when it is imported itself; doors have no arrows."""
    ahead: dict[str, set[str]] = {}
    for path in sorted((root / package).rglob("*.py")):
        if path.name != "__init__.py":
            targets = [each.target for each in imports(path, root) if each.at_import]
            ours = [target for target in targets if target.split(".")[0] in ("sdsd", "sdsd_kernels")]
            ahead[module_name(path, root)] = {maker(target, root) for target in ours}
    return ahead


def between_folders(root: Path) -> dict[str, set[str]]:
    """The arrows of `sdsd` between folders. A folder and one below it that lean on each other count as one."""

    def folder_of(module: str) -> str:
        if module.split(".")[0] != "sdsd":
            return module.split(".")[0]
        folder = module if is_folder(module, root) else module.rpartition(".")[0]
        return module if folder == "sdsd" else folder

    ahead: dict[str, set[str]] = {}
    for here, targets in arrows("sdsd", root).items():
        ahead.setdefault(folder_of(here), set()).update(map(folder_of, targets))
    joined = {
        inner: outer
        for inner in ahead
        for outer in ahead
        if inner.startswith(f"{outer}.") and inner in ahead[outer] and outer in ahead[inner]
    }
    together: dict[str, set[str]] = {}
    for here, targets in ahead.items():
        together.setdefault(joined.get(here, here), set()).update(joined.get(each, each) for each in targets)
    return {here: targets - {here} for here, targets in together.items()}


def deepest(ahead: dict[str, set[str]]) -> list[str]:
    """The longest chain of arrows.

    Raises:
        ValueError: arrows that run in a circle.
    """
    longest: dict[str, list[str]] = {}

    def visit(here: str, way: tuple[str, ...]) -> list[str]:
        if here in way:
            raise ValueError(f"a circle of imports: {' → '.join([*way[way.index(here) :], here])}")
        if here not in longest:
            ways = [visit(each, (*way, here)) for each in sorted(ahead.get(here, ()))]
            longest[here] = [here, *max(ways, key=len, default=[])]
        return longest[here]

    return max((visit(here, ()) for here in sorted(ahead)), key=len)


def test_chains_of_imports_are_short():
    folders = deepest(between_folders(ROOT))
    assert len(folders) <= DEEPEST, " → ".join(folders)
    files = deepest(
        {
            here: {each for each in targets if each.startswith("sdsd_kernels.")}
            for here, targets in arrows("sdsd_kernels", ROOT).items()
        }
    )
    assert len(files) <= DEEPEST, " → ".join(files)


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


def shape_violations(path: Path, root: Path) -> Iterator[str]:
    """Long files, and long rows of positional parameters."""
    where = path.relative_to(root)
    if not f"{module_name(path, root)}.".startswith(tuple(f"{room}." for room in IN_SHAPE)):
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    if len(lines) > MOST_LINES:
        yield f"{where}: {len(lines)} lines; make it a folder, or two files"
    if where.parts[0] == "sdsd_kernels":  # operators take what their schemas list
        return
    as_torch = AS_TORCH_TAKES_THEM.get(where.as_posix(), ())
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            names = [each.arg for each in (*node.args.posonlyargs, *node.args.args)]
            count = len([name for name in names if name not in ("self", "cls", "ctx")])
            if count > MOST_POSITIONAL and node.name not in as_torch:
                yield f"{where}:{node.lineno}: {node.name} has {count} positional parameters; name the rest"


def format_violations(path: Path, root: Path) -> Iterator[str]:
    """Comments that keep lines from the formatter, but for the one of a kernel."""
    with tokenize.open(path) as file:
        comments = [token for token in tokenize.generate_tokens(file.readline) if token.type == tokenize.COMMENT]
    kept = [comment for comment in comments if re.match(r"#\s*(fmt|yapf):(?! on$)", comment.string)]
    in_kernel = KERNELS.fullmatch(path.name) and "sdsd_kernels" in path.relative_to(root).parts
    if not (in_kernel and [comment.string for comment in kept] == ["# fmt: off"] and kept[0].start[1] == 0):
        yield from (f"{path.relative_to(root)}:{comment.start[0]}: the formatter wins" for comment in kept)


def sibling_violations(path: Path, root: Path) -> Iterator[str]:
    """What a folder of `sdsd_kernels` imports from an op's; a definition may be in terms of another one."""
    where = path.relative_to(root)
    for target, line, *_ in imports(path, root) if len(where.parts) > 2 else ():
        there = [*target.split("."), "", ""][1]
        definition = path.name == "reference.py" and target.split(".")[2:3] == ["reference"]
        if there != where.parts[1] and (root / "sdsd_kernels" / there / "op.py").is_file() and not definition:
            yield f"{where}:{line}: {target} is one op's; what several need belongs in an engine: pairwise, per_sample"


def violations(root: Path) -> list[str]:
    """Every import under `root` that breaks a rule of the house, as "file:line: what is wrong"."""
    wrong: list[str] = []
    public = exported(root)
    for path in sorted([*(root / "sdsd").rglob("*.py"), *(root / "sdsd_kernels").rglob("*.py")]):
        if f"{module_name(path, root)}.".startswith(tuple(f"{room}." for room in PLAIN_NAMES)):
            wrong += vague_names(path, root)
    for path in sorted((root / "sdsd").rglob("*.py")):
        wrong += [*room_violations(path, root), *door_violations(path, root), *shape_violations(path, root)]
        for target, line, _, plain, _ in imports(path, root):
            package, _, name = target.partition(".")
            if package == "sdsd_kernels" and name and (plain or name not in public):
                wrong.append(f"{path.relative_to(root)}:{line}: {target} is not exported by sdsd_kernels/__init__.py")
            if package == "triton":
                wrong.append(f"{path.relative_to(root)}:{line}: sdsd imports triton")
    wrong += circles(root)
    for path in sorted(path for folder in FORMATTED for path in (root / folder).rglob("*.py")):
        wrong += format_violations(path, root)
    for path in sorted((root / "sdsd_kernels").rglob("*.py")):
        wrong += [*shape_violations(path, root), *sibling_violations(path, root)]
        for target, line, *_ in imports(path, root):
            package = target.split(".")[0]
            if package == "sdsd":
                wrong.append(f"{path.relative_to(root)}:{line}: sdsd_kernels imports {target}")
            if package == "triton" and not WITH_TRITON.fullmatch(path.name):
                wrong.append(f"{path.relative_to(root)}:{line}: only kernels and their configurations import triton")
    return wrong


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
        ("tests/kernel.py", "# fmt: off\nx  = 1\n# fmt: on", "the formatter wins"),
        ("benchmarks/cases.py", "x  = 1  # yapf: disable", "the formatter wins"),
        ("sdsd_kernels/gamma_moments/op.py", "x = 1\n" * 401, "401 lines; make it a folder"),
        ("sdsd/report/html.py", "def f(found): ...", "call it what it is"),
        ("sdsd/studies/digits.py", "found = 1", "call it what it is"),
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
    ],
)
def test_each_violation_is_found(tmp_path, file, line, complaint):
    files = dict(SOUND)
    files[file] = line
    found = violations(build(tmp_path, files))
    assert len(found) == 1
    assert complaint in found[0]
    assert found[0].startswith(file)
