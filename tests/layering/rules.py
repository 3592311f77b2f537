"""The rules of the house, each as a function that lists what breaks it."""

from __future__ import annotations

import ast
import fnmatch
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from .imports import (
    BEHIND_DOORS,
    circles,
    exported,
    hands_out_file,
    imports,
    is_behind,
    is_folder,
    is_module,
    module_name,
)

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

AS_TORCH_TAKES_THEM = {
    "sdsd/gamma/following/layers.py": ("batch_norm", "torch_batch_norm"),
    "sdsd/gamma/following/products.py": ("convolution", "transposed_convolution", "general_convolution"),
    "sdsd/gamma/layers/attention.py": ("_attend",),
}
"""Functions that are called with the arguments of a function of torch, positions and names as they came."""


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


def shape_violations(path: Path, root: Path) -> Iterator[str]:
    """Long files, and long rows of positional parameters."""
    where = path.relative_to(root)
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


def long_tests(root: Path) -> Iterator[str]:
    """Tests that are longer than a file may be."""
    for path in sorted((root / "tests").rglob("*.py")):
        where, lines = path.relative_to(root), len(path.read_text(encoding="utf-8").splitlines())
        if lines > MOST_LINES:
            yield f"{where}: {lines} lines; make it a folder, a file for each kind of promise"


def format_violations(path: Path, root: Path) -> Iterator[str]:
    """Comments that keep lines from the formatter, but for the one of a kernel."""
    with tokenize.open(path) as file:
        comments = [token for token in tokenize.generate_tokens(file.readline) if token.type == tokenize.COMMENT]
    kept = [comment for comment in comments if re.match(r"#\s*(fmt|yapf):(?! on$)", comment.string)]
    in_kernel = KERNELS.fullmatch(path.name) and "sdsd_kernels" in path.relative_to(root).parts
    if not (in_kernel and [comment.string for comment in kept] == ["# fmt: off"] and kept[0].start[1] == 0):
        yield from (f"{path.relative_to(root)}:{comment.start[0]}: the formatter wins" for comment in kept)


def sibling_violations(path: Path, root: Path) -> Iterator[str]:
    """What a folder of `sdsd_kernels` imports from an op's, or of another's private names.

    A definition may be in terms of another one.
    """
    where = path.relative_to(root)
    for target, line, *_ in imports(path, root) if len(where.parts) > 2 else ():
        there = [*target.split("."), "", ""][1]
        definition = path.name == "reference.py" and target.split(".")[2:3] == ["reference"]
        if there != where.parts[1] and (root / "sdsd_kernels" / there / "op.py").is_file() and not definition:
            yield f"{where}:{line}: {target} is one op's; what several need belongs in an engine: pairwise, per_sample"
        name = target.rpartition(".")[2]
        if there not in ("", where.parts[1]) and name.startswith("_") and not is_module(target, root):
            yield f"{where}:{line}: {target} is private to {there}"


def violations(root: Path) -> list[str]:
    """Every import under `root` that breaks a rule of the house, as "file:line: what is wrong"."""
    wrong: list[str] = []
    public = exported(root)
    for folder in ("sdsd", "sdsd_kernels", "examples"):
        for path in sorted((root / folder).rglob("*.py")):
            wrong += vague_names(path, root)
    for path in sorted((root / "sdsd").rglob("*.py")):
        wrong += [*room_violations(path, root), *door_violations(path, root), *shape_violations(path, root)]
        for target, line, _, plain, _ in imports(path, root):
            package, _, name = target.partition(".")
            if package == "sdsd_kernels" and name and (plain or name not in public):
                wrong.append(f"{path.relative_to(root)}:{line}: {target} is not exported by sdsd_kernels/__init__.py")
            if package == "triton":
                wrong.append(f"{path.relative_to(root)}:{line}: sdsd imports triton")
    wrong += [*circles(root), *long_tests(root)]
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
