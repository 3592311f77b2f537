"""One forward pass and what its backward pass gave: the account of one batch.

A batch is a forward pass. Its uses of parameters are counted while it runs forward; while it runs backward each hands
over its piece, which is squared at once where the parameter has one use, and kept until all have come where it has
more, for squares do not add.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..following import Track, Tracks
from .operand import Leaf
from .pieces import Piece, combine


class Pass:
    """The account of one forward pass of `n` samples.

    Attributes:
        refused: parameter → why its samples cannot be told apart.
        tasks: the backward passes (outermost graph tasks) that gradients came from.
        open: graph tasks that began, and have not ended; one that stays was ended by an exception.
        inputs: the model's inputs that carry samples, and where.
        tracks: where every tensor of the pass carries them.
        directions: parameter → (u, v) of the projection that proves the step; None where this one is not proved.
    """

    def __init__(
        self, n: int, max_bytes: int, scale: Callable[[str], Tensor | None],
        directions: Callable[[str, Tensor], tuple[Tensor, Tensor]] | None,
    ) -> None:  # fmt: skip
        self.n, self.max_bytes, self.scale, self.directions = n, max_bytes, scale, directions
        self.inputs: list[tuple[Tensor, Track]] = []
        self.tracks = Tracks()
        self.counts: dict[str, int] = {}
        self.refused: dict[str, str] = {}
        self.kinds: dict[str, frozenset[str]] = {}
        self.peers: list[Pass] = [self]
        self.open: set[int] = set()
        self.clear()

    def clear(self) -> None:
        """Forget what backward passes gave so far: .grad was cleared."""
        self.tasks: set[int] = set()
        self.squares: dict[str, list[Tensor]] = {}
        self.kept: dict[str, list[Piece]] = {}
        self.projections: dict[str, list[Tensor]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self.trouble: str | None = None
        self._owner: dict[str, object] = {}
        self._current: object = None

    def count(self, leaf: Leaf, uses: int = 1) -> None:
        self.counts[leaf.name] = self.counts.get(leaf.name, 0) + uses

    def shared(self, leaf: Leaf) -> bool:
        """Whether squares have to wait for other uses of the parameter."""
        return sum(peer.counts.get(leaf.name, 0) for peer in self.peers) > 1

    def refuse(self, names: list[str], reason: str) -> None:
        for name in names:
            self.refused.setdefault(name, reason)

    def mixes(self, names: list[str], reason: str) -> None:
        """A gradient came back through an operation that mixes samples, after these parameters were used."""
        self.refuse(names, f"samples are mixed, or lost, after it: {reason}")

    def begin(self, use: object, dtype: torch.dtype) -> None:
        """The pieces that come next are of `use`."""
        self._current, self._dtype = use, dtype

    def receive(self, leaf: Leaf, piece: Piece, part: bool = False) -> None:
        """Take gradients of the parameter; `part`: of some of the samples, the others come in further calls."""
        name = leaf.name
        known = self.dtypes.get(name)
        if known is None or torch.finfo(self._dtype).eps > torch.finfo(known).eps:
            self.dtypes[name] = self._dtype
        if self.directions is not None:
            direction = self.directions(name, leaf.tensor)
            self.projections.setdefault(name, []).append(piece.projection(direction, self.max_bytes))
        if self.shared(leaf):
            self.kept.setdefault(name, []).append(piece)
            return
        if self._owner.setdefault(name, self._current) is not self._current:
            self.refuse([name], "another use of it turned up after the first had been squared")
        self.squares.setdefault(name, []).append(piece.squares(self.scale(name), self.max_bytes))

    def settle(self) -> None:
        """Square what was kept; nothing of the graph is held any longer."""
        kept, self.kept = self.kept, {}
        for name, pieces in kept.items():
            if name in self.squares:
                self.refuse([name], "another use of it turned up after the first had been squared")
            elif len({piece.n for piece in pieces}) > 1:
                self.refuse([name], "its uses saw batches of different size")
            else:
                self.squares[name] = [combine(pieces, self.scale(name), self.max_bytes)]
