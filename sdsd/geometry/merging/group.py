"""The group that a layer's neurons belong to: what writes them, changes them, reads them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from ...graphs import (
    BETWEEN,
    IS_OUTPUT,
    MERGING,
    READER,
    READING,
    REMOVAL,
    TIED,
    WRITER,
    Attribute,
    Norm,
    Obstacle,
    Part,
)

CANNOT = {MERGING: "merge", READING: "change readers", REMOVAL: "remove"}


class Touched(NamedTuple):
    """A module with entries for single neurons.

    Entry k of axis `dim` of its tensors belongs to neuron `neurons[k]`, or to something else where that is −1.
    """

    name: str
    kind: str
    dim: int
    neurons: Tensor


@dataclass(frozen=True)
class Consumers:
    """The group that a layer's neurons belong to. Made by `consumers`; prints as a list.

    A neuron here is what can be merged or removed by itself: a feature of a Linear layer, a channel of a convolution,
    a head of an attention layer, or several features that other layers couple.

    Attributes:
        layer: the layer's name.
        kind: its class, "Linear" or "Conv2d" for example.
        neurons: how many.
        rows: the neuron of each of the layer's rows: output features, or channels.
        parts: every tensor with entries for single neurons, by its name: what writes them, changes them, reads them.
        obstacles: what stands in the way of changing readers, or of removing neurons: where, why, what to do.
        attributes: numbers that modules hold and that change with the number of neurons.
        kinds: name → class of modules.
        statistics: norms that take mean or variance over the neurons.
    """

    layer: str
    kind: str
    neurons: int
    rows: Tensor
    parts: tuple[Part, ...]
    obstacles: tuple[Obstacle, ...]
    attributes: tuple[Attribute, ...]
    kinds: dict[str, str]  # of modules, by name
    statistics: tuple[Norm, ...] = ()

    def of(self, *roles: str) -> tuple[Part, ...]:
        """The parts that play one of these roles.

        Args:
            roles: as in `Part.role`.

        Returns:
            Some of `parts`, in their order.
        """
        return tuple(part for part in self.parts if part.role in roles)

    @property
    def writers(self) -> tuple[Touched, ...]:
        """Modules whose rows make the neurons' values; several where elementwise operations join them."""
        return self._modules(WRITER)

    @property
    def norms(self) -> tuple[Touched, ...]:
        """Modules on the way with entries for single neurons: BatchNorm, PReLU, depthwise convolutions."""
        writing = {writer.name for writer in self.writers}
        return tuple(each for each in self._modules(BETWEEN) if each.name not in writing)

    @property
    def readers(self) -> tuple[Touched, ...]:
        """Modules that read the neurons: `neurons[k]` is the neuron whose value input k is, −1 for another's."""
        return self._modules(READER)

    def _modules(self, role: str) -> tuple[Touched, ...]:
        modules: dict[tuple[str, int], Touched] = {}
        for part in self.of(role):
            name, _, local = part.name.rpartition(".")
            if local in ("running_mean", "running_var", "bias") and any(key[0] == name for key in modules):
                continue
            modules.setdefault((name, part.dim), Touched(name, self.kinds[name], part.dim, part.units))
        return tuple(modules.values())

    @property
    def _is_read(self) -> bool:
        return bool(self.of(READER, TIED))

    @property
    def is_output(self) -> bool:
        """Whether the neurons are what the model gives."""
        return any(obstacle.reason == IS_OUTPUT for obstacle in self.obstacles)

    @property
    def changeable(self) -> bool:
        """Whether every reader is known and can be changed, as how="act" and how="absorb" need."""
        return self._is_read and not any(obstacle.blocks != REMOVAL for obstacle in self.obstacles)

    @property
    def removable(self) -> bool:
        """Whether neurons can be removed without another change to what the network computes."""
        return self._is_read and not self.obstacles

    def __str__(self) -> str:
        each = len(self.rows) // self.neurons
        lines = [f"{self.layer!r} ({self.kind}, {self.neurons} neurons{f' of {each} rows' if each > 1 else ''})"]
        lines += [f"  with {w.name!r} ({w.kind})" for w in self.writers if w.name != self.layer]
        lines += [f"  through {norm.name!r} ({norm.kind})" for norm in self.norms]
        for reader in self.readers:
            columns = int((reader.neurons >= 0).sum()) // self.neurons
            lines.append(f"  read by {reader.name!r} ({reader.kind}), {columns} column{'s'[: columns > 1]} a neuron")
        for part in self.of(TIED):
            name = part.name.rpartition(".")[0]
            lines.append(f"  written and read by {name!r} ({self.kinds[name]})")
        lines += [f"  cannot {CANNOT[o.blocks]}: {o}" for o in self.obstacles]
        return "\n".join(lines)

    def table(self) -> list[dict[str, Any]]:
        """One row a tensor: its name, role ("writer", "between", "reader" or "writer and reader"), axis, entries in all
        and a neuron."""
        return [
            {"tensor": part.name, "role": part.role, "axis": part.dim, "entries": len(part.units), "each": part.each}
            for part in self.parts
        ]

    def picture(self) -> str:
        """Writers on the left, readers on the right, and what lies between, as text."""
        columns = [
            [f"{each.name} [{len(each.neurons)}]" for each in side] for side in (self.writers, self.norms, self.readers)
        ]
        widths = [max(map(len, column), default=0) for column in columns]
        height = max(map(len, columns))
        lines = []
        for row in range(height):
            cells = [column[row] if row < len(column) else "" for column in columns]
            joints = ["─┬→ " if row == 0 and height > 1 else "──→ " if row == 0 else " │  "] * 2
            parts = [
                f"{cell:<{width}} {joint}" for cell, width, joint in zip(cells, widths, [*joints, ""], strict=True)
            ]
            lines.append((parts[0] + (parts[1] if widths[1] else "") + parts[2]).rstrip(" │"))
        return "\n".join(lines)

    def require_known(self) -> None:
        """ValueError where it is not known which norms have entries for the neurons."""
        unknown = next((obstacle for obstacle in self.obstacles if obstacle.blocks == MERGING), None)
        if unknown is not None:
            raise ValueError(f"Merging is not possible for layer {self.layer!r}:\n- {unknown}")

    def require(self, purpose: str, removal: bool) -> None:
        """ValueError unless readers can be changed, and with `removal` neurons removed.

        Args:
            purpose: what for, in the error's words.
            removal: whether neurons are to be removed, and not only merged.
        """
        if not self._is_read and not self.obstacles:
            raise ValueError(f"{purpose} needs a layer that reads {self.layer!r}, and none does.")
        if not (self.removable if removal else self.changeable):
            listed = "\n".join(f"- {o}" for o in self.obstacles if removal or o.blocks != REMOVAL)
            raise ValueError(f"{purpose} is not possible for layer {self.layer!r}:\n{listed}")
