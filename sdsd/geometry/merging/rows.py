"""What may go of a whole model: its groups of layers and its mixtures of experts, before any data are read."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ...graphs import DENSE, READER, WRITER, Groups, look
from ...models import quantised
from .consumers import consumers
from .cutting import to_remove
from .edits import part_tensor
from .expert_removal import chosen_of, router_of
from .experts import count_of, holder_of
from .group import Consumers
from .layer_plan import EXPERTS, NEURONS
from .merger import How, Merger
from .norms import Norms

Patterns = str | Sequence[str]


class Row(NamedTuple):
    """A group or a mixture, and what is known of it before the data is read."""

    layer: str
    writers: tuple[str, ...]
    kind: str
    units: int
    each: float  # parameters saved by one fewer
    most: int  # may go
    refused: str
    group: Any = None
    fewer: Any = None

    @property
    def features(self) -> int:
        """Rows of the layer that make one neuron, or what these and the readers' columns for it are multiples of."""
        return math.gcd(len(self.group.rows) // self.units, *(part.each for part in self.group.of(READER)))

    @staticmethod
    def of(model: nn.Module, group: Consumers, exclude: Patterns, how: How, norms: Norms) -> Row:
        writers = tuple(writer.name for writer in group.writers if writer.name != group.layer)
        names = (group.layer, *writers, *(part.name for part in group.of(WRITER)))
        refused, fewer = "", group
        if any(_matches(name, exclude) for name in names):
            refused = "left out"
        else:
            try:
                fewer = to_remove(model, group, norms)
                Merger(model, group, how, lambda _pairs: torch.zeros(0))
            except ValueError as error:
                refused = _last_line(error)
        each = _saved(model, fewer)
        return Row(group.layer, writers, NEURONS, group.neurons, each, group.neurons // 2, refused, group, fewer)


def _last_line(error: ValueError) -> str:
    """The reason: the first of those that are listed below a headline, or all that is said."""
    lines = str(error).splitlines()
    return lines[1].removeprefix("- ") if len(lines) > 1 else lines[0]


def _saved(model: nn.Module, group: Consumers) -> float:
    """Parameters that one neuron fewer saves."""
    tensors = [(part_tensor(model, part), part) for part in group.parts]
    return sum(t.numel() / len(part.units) * part.each for t, part in tensors if isinstance(t, nn.Parameter))


def _listed(patterns: Patterns) -> list[str]:
    return [patterns] if isinstance(patterns, str) else list(patterns)


def _matches(name: str, patterns: Patterns) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _listed(patterns))


def matching_groups(model: nn.Module, layers: Patterns, exclude: Patterns, example_input: Any) -> list[Consumers]:
    """Each group that a matching layer belongs to, once."""
    names = _names(model, look(model, example_input))
    for pattern in _listed(exclude):
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"exclude: no layer that runs and has a weight matches {pattern!r}.")
    groups: list[Consumers] = []
    seen: set[frozenset[str]] = set()
    for name in names:
        if _matches(name, layers):
            group = consumers(model, name, example_input)
            writers = frozenset(part.name for part in group.of(WRITER)) or frozenset([name])
            if writers not in seen:
                seen.add(writers)
                groups.append(group)
    if not groups:
        asked = ", ".join(map(repr, _listed(layers)))
        packed = any(map(quantised, model.modules()))
        hint = " Its weights are packed: pass the model as it was before quantisation." if packed else ""
        raise ValueError(f"layers: no layer that runs and has a weight matches {asked}.{hint}")
    return groups


def _names(model: nn.Module, looks: list[Groups]) -> list[str]:
    """Layers by name, and parameters by name where a module multiplies by several."""
    names = []
    for path, module in model.named_modules():
        inside = f"{path}." if path else ""
        if isinstance(module, DENSE) and "weight" in module._parameters:
            if looks[0].used(f"{inside}weight"):
                names.append(path)
            continue
        own = {
            inside + name: looks[0].rows_of(inside + name)
            for name, each in module.named_parameters(recurse=False)
            if each.ndim > 1 and not isinstance(module, nn.Embedding)
        }
        written = [name for name, dims in own.items() if len(dims) == 1]
        single = len(written) == 1 and path and not isinstance(module, DENSE)
        names += [path] if single else written
    return names


def matching_mixtures(model: nn.Module, experts: Patterns) -> list[str]:
    names = [name for name, _ in model.named_modules() if name]
    mixtures = []
    for pattern in _listed(experts):
        matching = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not matching:
            raise ValueError(f"experts: no module matches {pattern!r}.")
        mixtures += matching
    return list(dict.fromkeys(mixtures))


def mixture(model: nn.Module, name: str) -> Row:
    holder = holder_of(model, name)
    count, most, refused, each = count_of(holder), 0, "", 0.0
    try:
        router = router_of(model, name, count)
        most = count - max(1, chosen_of(dict(model.named_modules(remove_duplicate=False)), name, router))
        sizes = (parameter.numel() for part in (name, router) for parameter in model.get_submodule(part).parameters())
        each = sum(sizes) / count
        if most == 0:
            refused = f"each token goes to all {count} experts"
    except ValueError as error:
        refused = str(error)
    return Row(name, (), EXPERTS, count, each, min(most, count // 2), refused)
