"""Symmetries of architectures people train: each that is found, held against the network's own function.

python -m tests.zoo.theory [parts of names …]
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
import warnings
from dataclasses import dataclass
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TOKENIZERS_PARALLELISM="false")

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sdsd.graphs import Plain, Step, Walk, call_of, outputs, run
from sdsd.theory import canonicalize, random_representative, symmetries

from .architectures.base import Architecture
from .geometry_page import TABLE
from .runner import LIMIT, limit, nudged, without_chance
from .verdict import float64_default

ROUNDING = 1e-9
SINGLE = 2e-5
"""In models that round to float32 inside."""
SPREAD = 0.5
HEADING = "# Coverage: symmetries"
INTRODUCTION = f"""\
{HEADING}

What `sdsd.theory.symmetries` finds in the same tiny random networks, in eval mode and float64, all parameters nudged
off special values. *Tangents*: directions of parameter space that leave the function alone. *Orders*: groups of neurons
that can change places, and *heads*: of attentions whose whole heads can. *Keys*: entries of biases of keys that can be
shifted. *Mixed*: sets of neurons that any invertible matrix may mix. *Changes*: the most by which an output differs, at
a random point of the orbit and at the canonical one, in parts of the largest; models that round to float32 inside are
held to 2e-5, the others to 1e-9. `make test-zoo` writes this part, too."""
COLUMNS = ("architecture", "parameters", "tangents", "orders", "heads", "keys", "mixed", "changes")


@dataclass
class Row:
    """What was found of one network."""

    family: str
    name: str
    moves: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)  # tangents, orders, heads, keys, sets that mix
    parameters: int = 0
    off: float = 0.0
    seconds: float = 0.0
    wrong: str = ""


def examine(family: str, name: str, architecture: Architecture) -> Row:
    """Symmetries in eval mode and float64, and the function at a random point of the orbit and at the canonical one."""
    row = Row(family, name)
    try:
        with limit(LIMIT), warnings.catch_warnings(), float64_default():
            warnings.simplefilter("ignore")
            _look(row, architecture)
    except Exception as error:
        row.wrong = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return row


def _look(row: Row, architecture: Architecture) -> None:
    torch.manual_seed(0)
    model = nudged(without_chance(architecture.make())).double().eval()
    for module in model.modules():  # grouped products of experts know no float64
        if hasattr(getattr(module, "config", None), "_experts_implementation"):
            module.config._experts_implementation = "eager"
    batch = pytree.tree_map(
        lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x,
        architecture.batch(*architecture.sizes[0]),
    )
    example = call_of(model, lambda: architecture.loss(model, batch))
    assert example is not None, "the loss does not call the model"
    began = time.perf_counter()
    found = symmetries(model, example)
    row.seconds = time.perf_counter() - began
    heads = sum(each.what == "heads" for each in found.permutations)
    row.moves = (
        found.tangents,
        len(found.permutations) - heads,
        heads,
        sum(each.width for each in found.translations if each.kind == "shift of keys"),
        sum(len(mixing.sets) for mixing in found.mixings),
    )
    row.parameters = sum(parameter.numel() for parameter in model.parameters())
    if not any(row.moves):
        return
    before = _given(model, example)
    moved = random_representative(model, example_input=example, spread=SPREAD, seed=1)
    for other in (moved, canonicalize(model, example_input=example)):
        for one, two in zip(before, _given(other, example), strict=True):
            scale = one.abs().max().item() or 1.0
            off = (one - two).abs().max().item() / scale
            row.off = off if not off <= row.off else row.off  # NaN stays
    if not row.off <= (SINGLE if _rounds(model, example) else ROUNDING):
        row.wrong = f"the function changes by {row.off:.1e} of itself"


class _Dtypes(Walk[Any]):
    """Looks for results in float32."""

    single = False

    def follow(self, step: Step) -> None:
        """One operation."""
        results = (each for each in pytree.tree_leaves(step.out) if isinstance(each, Tensor))
        self.single |= any(each.dtype == torch.float32 for each in results)


def _rounds(model: nn.Module, example: Any) -> bool:
    """Whether a model in float64 goes through float32, as norms of Llama and its kin do."""
    walk = _Dtypes({})
    run(model, example, walk, beside=(Plain(),))
    return walk.single


@torch.no_grad()
def _given(model: nn.Module, example: Any) -> list[Tensor]:
    torch.manual_seed(0)
    given = model(*example.args, **example.kwargs)
    return [each.double() for each in outputs(given) if isinstance(each, Tensor) and each.is_floating_point()]


def section(rows: list[Row]) -> str:
    """The part of docs/coverage.md."""
    moving = [row for row in rows if row.wrong or any(row.moves)]
    right = sum(not row.wrong for row in moving)
    total = f"{right} of {len(moving)} keep their function; nothing is found in {len(rows) - len(moving)} more."
    lines = [*INTRODUCTION.splitlines(), "", total]
    for family in dict.fromkeys(row.family for row in rows):
        lines += ["", f"## {family}: symmetries", "", "| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
        for row in rows:
            if row.family == family:
                off = f"< 1e{math.ceil(math.log10(max(row.off, 1e-14)))}" if any(row.moves) else "–"
                cells = (row.name, row.parameters, *row.moves, f"**{row.wrong}**" if row.wrong else off)
                lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    from .architectures.catalogue import FAMILIES

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; all without")
    wanted = parser.parse_args().names
    rows = []
    for family, architectures in FAMILIES.items():
        for name, architecture in architectures.items():
            if wanted and not any(part.lower() in f"{family} {name}".lower() for part in wanted):
                continue
            row = examine(family, name, architecture)
            rows.append(row)
            tangents, orders, heads, keys, sets = row.moves
            print(
                f"{name:<40.40} {row.seconds:6.2f} s  {tangents:6d} tangents of {row.parameters:8d}, {orders:3d} "
                f"orders, {heads:3d} of heads, {keys:4d} keys, {sets:3d} mixed sets, off {row.off:.0e}  {row.wrong}",
                flush=True,
            )
    wrong = sum(bool(row.wrong) for row in rows)
    print(f"{wrong} wrong")
    if not wanted:
        text = TABLE.read_text()
        TABLE.write_text(text.partition(f"\n{HEADING}\n")[0].rstrip() + "\n\n" + section(rows))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
