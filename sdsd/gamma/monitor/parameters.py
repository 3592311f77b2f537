"""The parameters of a model that are measured, and by what."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping

from torch import nn
from torch.nn.parameter import is_lazy

from ...models import clean
from ..layers import UnsupportedError


class Parameters:
    """Parameters by name, those that are measured in a fixed order.

    Attributes:
        root: the user's own module.
        chosen: those to be measured, covered or not.
        everything: all of the model, trained or not.
        excluded: names of those that train and were not chosen.
        coverage: chosen name → what measures it; None where it was left out (strict=False).
        covered: names of those measured; their order is that of every vector of results.
        index: covered name → place in that order.
        kinds: of the last single pass, what measured each; coverage says the same.
    """

    def __init__(self, root: nn.Module, wanted: Iterable[str] | None) -> None:
        self.root = root
        self.chosen = dict(_trainable(root, wanted))
        if not self.chosen:
            raise ValueError("model: expected at least one parameter that requires a gradient, got none to measure.")
        self.everything = {clean(name): parameter for name, parameter in root.named_parameters()}
        self.excluded = {name for name, p in self.everything.items() if p.requires_grad} - set(self.chosen)
        self.device = next(iter(self.chosen.values())).device
        self.set_coverage({})

    def set_coverage(self, rules: Mapping[str, str | None]) -> None:
        """Take what measures each; what no rule names is measured at the operations that read it."""
        self.coverage: dict[str, str | None] = {name: rules.get(name, "at its operations") for name in self.chosen}
        self.kinds: Mapping[str, frozenset[str]] = {}
        self._settle()

    def note_kinds(self, passes: list[dict[str, frozenset[str]]]) -> None:
        """Take what measured each parameter in these passes; that of a single one is kept in `kinds`."""
        every: dict[str, frozenset[str]] = {}
        for kinds in passes:
            for name, seen in kinds.items():
                every[name] = every.get(name, seen) | seen
        for name, seen in every.items():
            if self.coverage.get(name) is not None:
                self.coverage[name] = " + ".join(sorted(seen))
        self.kinds = passes[0] if len(passes) == 1 else {}

    def _settle(self) -> None:
        self.covered = tuple(name for name, rule in self.coverage.items() if rule is not None)
        self.index = {name: row for row, name in enumerate(self.covered)}

    def measured(self) -> dict[str, nn.Parameter]:
        return {name: self.chosen[name] for name in self.covered}

    def leave_out(self, refused: Mapping[str, str]) -> None:
        """From now on these are no part of the result.

        Raises:
            UnsupportedError: nothing would be left.
        """
        if not set(self.covered) - set(refused):
            raise UnsupportedError(
                f"no parameter is left to measure:\n{by_reason(refused, most=len(refused))}\nUse mode='micro'."
            )
        self.coverage.update(dict.fromkeys(refused))
        self._settle()


def by_reason(refused: Mapping[str, str], most: int = 4) -> str:
    """One line a reason, with the names it is of."""
    names: dict[str, list[str]] = {}
    for name, why in refused.items():
        names.setdefault(why, []).append(name)
    lines = []
    for why, of_it in names.items():
        more = f" and {len(of_it) - most} more" if len(of_it) > most else ""
        lines.append(f"  {', '.join(of_it[:most])}{more}: {why}.")
    return "\n".join(lines)


def listed(names: list[str], most: int = 3) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _trainable(root: nn.Module, wanted: Iterable[str] | None) -> list[tuple[str, nn.Parameter]]:
    everything = [(clean(name), p) for name, p in root.named_parameters() if p.requires_grad]
    for name, parameter in everything:
        if is_lazy(parameter):
            raise ValueError(f"model: {name!r} has no size yet. Run the model once, then attach the monitor.")
    if wanted is None:
        return everything
    patterns = list(wanted) if isinstance(wanted, Iterable) and not isinstance(wanted, str) else [wanted]
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(
                f"parameters: expected names or patterns of names, got {type(pattern).__name__}. Names are those of "
                "model.named_parameters(), such as '0.weight'; patterns such as '*.weight'."
            )
        if not any(fnmatch.fnmatchcase(name, pattern) for name, _ in everything):
            raise ValueError(
                f"parameters: {pattern!r} matches none of the parameters that train, for example "
                f"{', '.join(name for name, _ in everything[:5])}."
            )
    return [(name, p) for name, p in everything if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
