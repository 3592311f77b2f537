"""What can only be said when everything has run: whether pieces of an axis keep their share of it."""

from __future__ import annotations

import numpy as np

from .atoms import Atoms
from .walk import Piece, Walk


def settle(walk: Walk) -> None:
    """After everything has run: pieces of an axis keep their share of it if every unit has its share in them."""
    atoms = walk.atoms
    _couple_chunks(walk)
    for piece in walk.pieces:
        if not _in_proportion(atoms, piece):
            atoms.note(piece.whole, piece.obstacle)
    for whole, blocks, obstacle in walk.blocks:
        roots = atoms.roots(blocks)
        if (roots != roots[:, :1]).any():
            atoms.note(whole, obstacle)
    for ids, axis, obstacle in walk.same_size:
        if not np.array_equal(np.sort(atoms.roots(ids)), np.sort(atoms.roots(axis))):
            atoms.note(ids, obstacle)
            atoms.note(axis, obstacle)


def _in_proportion(atoms: Atoms, piece: Piece) -> bool:
    units, counts = np.unique(atoms.roots(piece.whole), return_counts=True)
    inside = dict(zip(*np.unique(atoms.roots(piece.part), return_counts=True), strict=True))
    share = len(piece.part) / len(piece.whole)
    return all(inside.get(unit, 0) == count * share for unit, count in zip(units, counts, strict=True))


def _couple_chunks(walk: Walk) -> None:
    """Where an axis is cut into equal pieces that have different units, what has the same place in each goes
    together, so that the pieces stay equal; unless that makes one unit of all of them."""
    atoms = walk.atoms
    able = walk.chunks
    while able:
        kept = atoms.kept()
        _couple(atoms, able)
        roots = [set(atoms.roots(chunk[0].whole).tolist()) for chunk in able]
        single = set[int]().union(*(each for each in roots if len(each) == 1))
        left = [chunk for chunk, each in zip(able, roots, strict=True) if not each & single]
        if len(left) == len(able):
            return
        atoms.put_back(kept)
        able = left


def _couple(atoms: Atoms, chunks: list[list[Piece]]) -> None:
    changed = True
    while changed:
        changed = False
        for first, *others in chunks:
            if all(_in_proportion(atoms, piece) for piece in (first, *others)):
                continue
            for piece in others:
                changed |= not np.array_equal(atoms.roots(first.part), atoms.roots(piece.part))
                atoms.unite(first.part, piece.part)
