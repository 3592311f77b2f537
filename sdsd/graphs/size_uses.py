"""Numbers that a model takes from the sizes of its tensors, and whether removing neurons would change them."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import fx

CLEAN, CHANGES, UNCLEAR = "clean", "changes", "unclear"


class ShapeOf(NamedTuple):
    """The whole shape of a tensor that has the neurons along `axis`, counted from the last, −1."""

    axis: int
    ndim: int | None


Count = str | ShapeOf
"""What is known of a number, or of a tuple of numbers: CLEAN, CHANGES (with the number of neurons), UNCLEAR (that
depends on how many dimensions there are), or the shape it can be picked from."""


def count_of(node: fx.Node, name: str, shape: ShapeOf) -> Count:
    """What a function of sizes takes from a tensor of that shape."""
    if name in ("size", "sym_size"):
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        return shape if dim is None else _at(shape, dim)
    if name == "getattr":
        return shape if node.args[1] == "shape" else CLEAN
    if name in ("numel", "nelement"):
        return CHANGES
    return _at(shape, 0) if name == "len" else CLEAN


def derived_count(node: fx.Node, name: str, counts: dict[fx.Node, Count]) -> Count:
    """What arithmetic makes of numbers."""
    source = node.args[0] if node.args else None
    found = counts.get(source) if isinstance(source, fx.Node) else None
    if name == "getitem" and isinstance(found, ShapeOf):
        return _at(found, node.args[1])
    known = [counts.get(each, CLEAN) for each in node.all_input_nodes]
    if any(count == CHANGES or isinstance(count, ShapeOf) for count in known):
        return CHANGES
    return UNCLEAR if UNCLEAR in known else CLEAN


def _at(shape: ShapeOf, index: Any) -> Count:
    if shape.ndim is not None:
        if not isinstance(index, (int, slice)):
            return UNCLEAR
        places = range(-shape.ndim, 0)
        try:
            picked = places[index]
        except IndexError:
            return UNCLEAR
        return CHANGES if shape.axis == picked or (isinstance(picked, range) and shape.axis in picked) else CLEAN
    if isinstance(index, int) and index < 0:
        return CHANGES if index == shape.axis else CLEAN
    if isinstance(index, slice) and index.step is None and isinstance(index.stop, int) and index.stop < 0:
        return CLEAN if shape.axis >= index.stop else UNCLEAR
    return UNCLEAR
