"""The directive `api`: what a module says of itself, and everything it exports, each thing once in the whole site.

Docstrings are plain text: indented lines are formulas, `|x|` and `*x` mean what they say. `as_restructured` makes them
what Sphinx reads.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import re
import sys
import textwrap
import types
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

ORDER = (
    "sdsd",
    "sdsd.gamma",
    "sdsd.geometry",
    "sdsd.theory",
    "sdsd.integrations",
    "sdsd.report",
    "sdsd_kernels",
)
"""What several modules export is described at the first of these."""
SECTION = re.compile(r"(Args|Returns|Yields|Raises|Attributes|Example|Examples|Source|Note|Warning|Warns)::?$")
CODE = re.compile(r"(``.+?``|`[^`]+`|\*\*\w.*?\w?\*\*)")


def public_names(module: types.ModuleType) -> list[str]:
    """`__all__`, or without one what is defined in the module itself."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        return list(listed)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def home_of(value: Any) -> str | None:
    """The first module of `ORDER` that exports `value`."""
    for name in ORDER:
        module = importlib.import_module(name)
        if any(getattr(module, each) is value for each in public_names(module)):
            return name
    return None


def words_on(name: str, value: Any) -> str:
    """The string below the assignment of a constant, in whichever of our modules makes it."""
    for module in list(sys.modules.values()):
        if module.__name__.startswith(("sdsd.", "sdsd_kernels")) and vars(module).get(name) is value:
            body = ast.parse(inspect.getsource(module)).body
            for statement, following in itertools.pairwise(body):
                targets = getattr(statement, "targets", [getattr(statement, "target", None)])
                if not any(isinstance(target, ast.Name) and target.id == name for target in targets):
                    continue
                if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                    return inspect.cleandoc(str(following.value.value))
    return ""


def as_restructured(lines: list[str]) -> list[str]:
    """A docstring's lines as reStructuredText."""
    done: list[str] = []
    literal: int | None = None  # the indent of what introduced the literal block that these lines may be in
    in_sections = False
    for place, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if literal is not None and line.strip() and indent <= literal:
            literal = None
        if literal is None:
            in_sections = in_sections or bool(SECTION.match(line))
            after_blank = place > 0 and not lines[place - 1].strip()
            if after_blank and indent >= 4 and not in_sections:
                done += ["::", ""]
                literal = 0
        doctest = line.lstrip().startswith((">>>", "..."))
        table = bool(re.fullmatch(r"[= ]+", line)) and "=" in line
        done.append(line if literal is not None or doctest or table else _escaped(line))
        if literal is None and line.rstrip().endswith("::") and not SECTION.match(line):
            literal = indent
    return done


def _escaped(line: str) -> str:
    parts = CODE.split(line)
    for place, part in enumerate(parts):
        if place % 2 == 0:
            # reStructuredText ends code where no letter follows; "`NeuronPair`s" needs an empty escape between.
            part = re.sub(r"(?<!\\)([*|])", r"\\\1", part)
            parts[place] = f"\\ {part}" if place and re.match(r"\w", part) else part
    return "".join(parts)


class Api(SphinxDirective):
    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        holder = nodes.section()
        holder.document = self.state.document
        lines = ["```{eval-rst}", *self._lines(self.arguments[0]), "```"]
        self.state.nested_parse(StringList(lines, source=self.env.docname), self.content_offset, holder)
        return list(holder.children)

    def _lines(self, name: str) -> Iterator[str]:
        module = importlib.import_module(name)
        yield from (f".. automodule:: {name}", "   :no-members:", "", f".. py:currentmodule:: {name}", "")
        elsewhere = []
        for each in public_names(module):
            value = getattr(module, each)
            home = home_of(value) or name
            if inspect.ismodule(value):
                continue
            if home != name:
                elsewhere.append(f":py:obj:`{each} <{home}.{each}>`")
            elif inspect.isclass(value):
                yield from (f".. autoclass:: {name}.{each}", "   :members:", "")
            elif inspect.isroutine(value):
                yield from (f".. autofunction:: {name}.{each}", "")
            else:
                said = textwrap.indent(words_on(each, value), "   ").splitlines()
                yield from (f".. py:data:: {each}", f"   :value: {value!r}", "", *said, "")
        if elsewhere:
            yield from ("Described elsewhere: " + ", ".join(elsewhere) + ".", "")


def _restructure(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    lines[:] = as_restructured(lines)


def setup(app: Any) -> dict[str, Any]:
    app.add_directive("api", Api)
    app.connect("autodoc-process-docstring", _restructure, priority=100)  # before napoleon reads the sections
    return {"parallel_read_safe": True}
