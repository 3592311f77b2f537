"""Which layers of a model names and patterns stand for."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence

from torch import nn


def select_layers(model: nn.Module, layers: str | Sequence[str]) -> tuple[dict[str, nn.Module], set[str]]:
    """The modules that names and patterns stand for, in the model's order; and which of them were named outright."""
    wanted = [layers] if isinstance(layers, str) or not isinstance(layers, Iterable) else list(layers)
    if not wanted or not all(isinstance(name, str) for name in wanted):
        names = [name for name, module in model.named_modules() if name and any(each is module for each in wanted)]
        hint = f" Their names: {', '.join(map(repr, names))}." if names else ""
        raise TypeError(f"layers: expected the name of a layer, or a sequence of names, got {layers!r}.{hint}")
    modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    leaves = [name for name, module in model.named_modules() if name and not any(module.children())]
    named, by_pattern = set(), set()
    for name in wanted:
        if name in modules:
            named.add(name)
        elif any(character in name for character in "*?["):
            matched = fnmatch.filter(leaves, name)
            if not matched:
                raise ValueError(f"layers: no layer matches the pattern {name!r}. {_known(leaves)}")
            by_pattern.update(matched)
        else:
            near = difflib.get_close_matches(name, modules, n=1, cutoff=0.0)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"layers: the model has no layer {name!r}.{hint} {_known(leaves)}")
    return {name: module for name, module in modules.items() if name in named | by_pattern}, named


def _known(names: Sequence[str]) -> str:
    return f"Its layers: {', '.join(names[:12])}{', …' if len(names) > 12 else ''}."
