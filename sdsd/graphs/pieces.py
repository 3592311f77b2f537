"""Pieces of axes, and what has to hold of them when all of a model has run, so that they stay what they are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .atoms import INNER, Atoms, Ids, Obstacle


class Piece(NamedTuple):
    """Part of an axis, taken by its place."""

    whole: Ids
    part: Ids
    obstacle: Obstacle


class Pieces:
    """Those of one run.

    Attributes:
        parts: of an axis each.
        chunks: all parts of one axis, as long as each other.
        blocks: axes of which every so many entries are taken; `part` has them in rows.
        same_size: two axes that have the same length in the model's forward.
        fixed: axes that have a length written into it, which stands in the way unless they lie inside a unit.
    """

    def __init__(self, atoms: Atoms) -> None:
        self.atoms = atoms
        self.parts: list[Piece] = []
        self.chunks: list[list[Piece]] = []
        self.blocks: list[Piece] = []
        self.same_size: list[Piece] = []
        self.fixed: list[tuple[Ids, Obstacle]] = []

    def settle(self) -> None:
        """Pieces of an axis keep their share of it if every unit has its share in them; an obstacle where not."""
        self._couple_chunks()
        for piece in self.parts:
            if not self._in_proportion(piece):
                self.atoms.note(piece.whole, piece.obstacle)
        for whole, blocks, obstacle in self.blocks:
            roots = self.atoms.roots(blocks)
            if (roots != roots[:, :1]).any():
                self.atoms.note(whole, obstacle)
        for one, other, obstacle in self.same_size:
            if not np.array_equal(np.sort(self.atoms.roots(one)), np.sort(self.atoms.roots(other))):
                self.atoms.note(one, obstacle)
                self.atoms.note(other, obstacle)
        for axis, obstacle in self.fixed:
            if not self.atoms.has(axis, INNER):
                self.atoms.note(axis, obstacle)

    def _in_proportion(self, piece: Piece) -> bool:
        units, counts = np.unique(self.atoms.roots(piece.whole), return_counts=True)
        inside = dict(zip(*np.unique(self.atoms.roots(piece.part), return_counts=True), strict=True))
        share = len(piece.part) / len(piece.whole)
        return all(inside.get(unit, 0) == count * share for unit, count in zip(units, counts, strict=True))

    def _couple_chunks(self) -> None:
        """Where an axis is cut into equal pieces that have different units, what has the same place in each goes
        together, so that the pieces stay equal; unless that makes one unit of all of them."""
        able = self.chunks
        while able:
            kept = self.atoms.kept()
            self._couple(able)
            roots = [set(self.atoms.roots(chunk[0].whole).tolist()) for chunk in able]
            single = set[int]().union(*(each for each in roots if len(each) == 1))
            left = [chunk for chunk, each in zip(able, roots, strict=True) if not each & single]
            if len(left) == len(able):
                return
            self.atoms.put_back(kept)
            able = left

    def _couple(self, chunks: list[list[Piece]]) -> None:
        changed = True
        while changed:
            changed = False
            for first, *others in chunks:
                if all(self._in_proportion(piece) for piece in (first, *others)):
                    continue
                for piece in others:
                    changed |= not np.array_equal(self.atoms.roots(first.part), self.atoms.roots(piece.part))
                    self.atoms.unite(first.part, piece.part)
