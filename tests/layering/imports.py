"""Who imports what: files, folders, circles, chains."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]

DEEPEST = 12
"""Files of a package each of which imports from the next."""

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
