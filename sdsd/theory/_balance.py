"""The least norm along an orbit of rescalings: a convex problem in the logarithms of the factors.

With t the log factor of each group of neurons, an entry that group i takes in and group j gives out has the square
a·exp(2(tᵢ − tⱼ)), so that squared norms of all groups follow from sums of squares taken once (Sinkhorn's iteration, in
squares). Where only a norm reads a group its length is held at 1, which subtracts 2t from what is minimised: convex
still.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._segments import Slice
from ._symmetry_groups import Point, Scaling

SWEEPS = 10_000
TOLERANCE = 1e-12
"""Sweeps end when no factor differs from 1 by more; they converge linearly."""


class Term(NamedTuple):
    """Sums of squares that a scaling has a part in."""

    squares: Tensor  # (entries,)
    own: Tensor  # the scaling's own group of each entry
    other: Tensor  # place of the other group in the vector of all log factors; its last place is always 0
    sign: int  # +1 where the scaling's neurons take the entry in, −1 where they give it out


def balance(scalings: list[Scaling], point: Point) -> None:
    """Rescale the point to the least norm that `scalings` can reach; neurons without in- or output become zero.

    Raises:
        RuntimeError: the sweeps do not converge.
    """
    if not scalings:
        return
    while any(_silence(scaling, point) for scaling in scalings):
        pass
    starts = [sum(scaling.groups for scaling in scalings[:place]) for place in range(len(scalings) + 1)]
    logs = torch.zeros(starts[-1] + 1, dtype=torch.float64, device=next(iter(point.values.values())).device)
    terms = _terms(scalings, starts, point)
    order = list(range(len(scalings)))
    change = 0.0
    for _ in range(SWEEPS):
        change = 0.0
        for place in order:
            steps = _step(scalings[place], terms[place], logs, starts[place])
            change = max(change, steps.abs().max().item())
        if change <= TOLERANCE:
            break
        order.reverse()
    else:
        raise RuntimeError(f"balancing did not converge in {SWEEPS} sweeps; log factors still change by {change:.1e}.")
    for place, scaling in enumerate(scalings):
        scaling.rescale(point, logs[starts[place] : starts[place + 1]].exp())


def _step(scaling: Scaling, terms: list[Term], logs: Tensor, start: int) -> Tensor:
    """Bring one scaling to its least norm with all others held; returns the change of its log factors."""
    own = logs[start : start + scaling.groups]
    together = _step_together(terms, logs, own, start) if scaling.loops and not scaling.norms else 0.0
    sums = {sign: torch.zeros_like(own) for sign in (1, -1)}
    for term in terms:
        sums[term.sign].index_add_(0, term.own, term.squares * (logs[term.other] * (-2 * term.sign)).exp())
    incoming, outgoing = sums[1].log() + 2 * own, sums[-1].log() - 2 * own
    # A weight that both writes and reads a neuron counts on both sides: half of the step never overshoots.
    steps = torch.where(sums[-1] > 0, (outgoing - incoming) * (0.125 if scaling.loops else 0.25), incoming * -0.5)
    steps = torch.where(sums[1] > 0, steps, 0.0)
    own += steps
    return steps + together


def _step_together(terms: list[Term], logs: Tensor, own: Tensor, start: int) -> float:
    """Bring all groups of a scaling, moved as one, to the least norm; returns the change of their log factors.

    Weights between its own neurons do not feel that, so where these are heavy, steps neuron by neuron hardly move it.
    """
    sums = {1: 0.0, -1: 0.0}
    for term in terms:
        outside = (term.other < start) | (term.other >= start + len(own))
        powers = (own[term.own] - logs[term.other]) * (2 * term.sign)
        sums[term.sign] += (term.squares * powers.exp())[outside].sum().item()
    if sums[1] == 0 or sums[-1] == 0:
        return 0.0
    step = math.log(sums[-1] / sums[1]) / 4
    own += step
    return step


def _silence(scaling: Scaling, point: Point) -> bool:
    """Set groups to zero on both sides that are zero on one; whether there were any."""
    incoming, outgoing = scaling.squared_norms(point.values)
    if not scaling.outgoing:
        return False
    silent = (incoming == 0) != (outgoing == 0)
    if scaling.norms:  # a norm hears what nothing else reads
        silent &= incoming == 0
    if not bool(silent.any()):
        return False
    for part in (*scaling.incoming, *scaling.outgoing):
        value = point.values[part.name]
        value.masked_fill_(scaling.along(part, value, silent), 0.0)
    return True


def _terms(scalings: list[Scaling], starts: list[int], point: Point) -> list[list[Term]]:
    """The terms of each scaling."""
    uses: dict[str, list[tuple[int, int, Slice]]] = {}
    for place, scaling in enumerate(scalings):
        for sign, parts in ((1, scaling.incoming), (-1, scaling.outgoing)):
            for part in parts:
                uses.setdefault(part.name, []).append((place, sign, part))
    terms: list[list[Term]] = [[] for _ in scalings]
    for name, those in uses.items():
        squares = point.values[name].square()
        axes = sorted({part.axis for _, _, part in those})
        rest = [axis for axis in range(squares.ndim) if axis not in axes]
        entries = squares.sum(rest) if rest else squares
        groups = []
        for place, _, part in those:
            shape = [-1 if axis == part.axis else 1 for axis in axes]
            groups.append(scalings[place].blocks(part, squares).view(shape).expand_as(entries).flatten())
        for index, (place, sign, _) in enumerate(those):
            other = torch.full_like(groups[index], starts[-1])
            if len(those) == 2:
                other = groups[1 - index] + starts[those[1 - index][0]]
            terms[place].append(Term(entries.flatten(), groups[index], other, sign))
    return terms
