"""Every public docstring has a line on each argument, on what comes back and on what is raised."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import itertools
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest

MODULES = (
    "sdsd",
    "sdsd.gamma",
    "sdsd.geometry",
    "sdsd.theory",
    "sdsd.integrations",
    "sdsd.report",
    "sdsd_kernels",
)
SECTION = re.compile(r"^(Args|Returns|Yields|Raises|Attributes|Example|Source|Note)::?$", re.M)
AS_THERE = re.compile(r"(?i)\b(?:as|see|like)(?: in| those of| that of| for)? ((?:`\w+`(?:,? and |, )?)+)")
"""A docstring may refer to another for its arguments and errors: "Arguments and errors as `select_on_line`."."""
MADE_BY_US = ("GammaStats",)
"""Classes of which nobody calls the constructor."""
NO_RESULT = (None, "None", inspect.Signature.empty)


def public() -> Iterator[tuple[str, Any]]:
    """Everything callable that a user can name, once: functions, classes, and their public methods."""
    seen: set[int] = set()
    for name in MODULES:
        module = importlib.import_module(name)
        names = getattr(module, "__all__", None)
        if names is None:
            names = [n for n, v in vars(module).items() if getattr(v, "__module__", None) == name and n[0] != "_"]
        for each in names:
            value = getattr(module, each)
            if not (inspect.isclass(value) or inspect.isroutine(value)) or id(value) in seen:
                continue
            seen.add(id(value))
            yield f"{name}.{each}", value
            if inspect.isclass(value):
                for method, held in vars(value).items():
                    if method.startswith("_"):
                        continue
                    function = held.fget if isinstance(held, property) else getattr(held, "__func__", held)
                    if inspect.isfunction(function):
                        yield f"{name}.{each}.{method}", held


def sections(text: str) -> dict[str, str]:
    """Name → body of the sections of a docstring; what stands before them is ""."""
    parts = SECTION.split(text)
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def described(body: str) -> set[str]:
    """The names that an Args or Attributes section has an entry for: "name:", "one, two:"."""
    entries = re.findall(r"^ {4}([\w*]+(?:, [\w*]+)*)(?: \([^)]*\))?:", body, re.M)
    return {name.strip("* ") for entry in entries for name in entry.split(",")}


def raises(function: Callable[..., Any]) -> bool:
    """Whether a function's own body raises, or calls a check that does."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    except (OSError, TypeError):
        return False
    todo: list[ast.AST] = list(ast.iter_child_nodes(tree.body[0]))
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Raise):
            return True
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func).split(".")[-1]
            if re.match(r"_?check(_|$)", called):
                return True
        if not isinstance(node, (ast.FunctionDef, ast.Lambda)):
            todo += ast.iter_child_nodes(node)
    return False


def unreadable(value: Any, found: dict[str, str]) -> list[str]:
    """What the reference of the site would warn of, and not be built."""
    faults = []
    if "Attributes" in found and set(getattr(value, "_fields", ())) & set(vars(value)):
        faults.append("a string below each field, in the place of Attributes, which would describe them twice")
    for name in ("Args", "Attributes"):
        begun = re.findall(r"^ {4}(?! ).*$", found.get(name, ""), re.M)
        faults += [f"a colon in the line that begins {line.strip()[:30]!r}" for line in begun if ":" not in line]
    return faults


def missing(name: str, value: Any, others: dict[str, Any]) -> list[str]:
    """What the docstring of a public thing lacks."""
    text = inspect.getdoc(value) or ""
    if not text.strip():
        return ["a docstring"]
    if isinstance(value, property):
        return ["what is raised"] if raises(value.fget) and not re.search(r"Raises:|Error", text) else []
    found = sections(text)
    made_of = found
    for other in re.findall(r"\w+", " ".join(AS_THERE.findall(text))):
        referred = others.get(other)
        if referred is not None and referred is not value:
            there = sections(inspect.getdoc(referred) or "")
            made_of = {**there, **made_of, "Args": made_of.get("Args", "") + "\n" + there.get("Args", "")}
    lacking = unreadable(value, found)
    function = value.__init__ if inspect.isclass(value) else getattr(value, "__func__", value)
    record = inspect.isclass(value) and (dataclasses.is_dataclass(value) or hasattr(value, "_fields"))
    if record:
        fields = [f.name for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else value._fields
        known = described(found.get("Attributes", "")) | described(found.get("Args", "")) | words_below(value)
        lacking += [f"a line on {field}" for field in fields if not field.startswith("_") and field not in known]
    elif inspect.isfunction(function) and name.split(".")[-1] not in MADE_BY_US:
        parameters = [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]
        arguments = made_of.get("Args", "")
        known = described(arguments) | set(re.findall(r"`(\w+)`", arguments))
        if len(parameters) == 1 and not known and f"`{parameters[0]}`" in found[""]:
            known = set(parameters)  # one argument may be explained in the sentence itself
        lacking += [f"a line on {parameter}" for parameter in parameters if parameter not in known]
    if not inspect.isclass(value):
        gives = inspect.signature(function).return_annotation not in NO_RESULT
        first = found[""].strip().splitlines()[0] if found[""].strip() else ""
        if (
            gives
            and not {"Returns", "Yields"} & set(made_of)
            and inspect.signature(function).parameters.keys() - {"self", "cls"}
        ):
            lacking.append(f"what is returned ({first})")
    if raises(function) and not record and "Raises" not in made_of and not re.search(r"\w+Error", text):
        lacking.append("what is raised")
    return lacking


def words_below(record: type) -> set[str]:
    """Fields of a record that have a string below them."""
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(record))).body
    except (OSError, TypeError):
        return set()
    body = tree.body  # type: ignore[attr-defined]
    return {
        statement.target.id
        for statement, following in itertools.pairwise(body)
        if isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and isinstance(following, ast.Expr)
        and isinstance(following.value, ast.Constant)
    }


EVERYTHING = dict(public())
BY_NAME = {name.split(".")[-1]: value for name, value in reversed(EVERYTHING.items())}


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_public_docstring_says_it_all(name):
    assert missing(name, EVERYTHING[name], BY_NAME) == []
