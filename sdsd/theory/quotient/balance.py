"""The least norm along an orbit of rescalings: a convex problem in the logarithms of the factors.

With t the log factor of each group of neurons, an entry that group i takes in and group j gives out has the square
a·exp(2(tᵢ − tⱼ)), so that squared norms of all groups follow from sums of squares taken once. Where only a norm reads a
group its length is held at 1, which subtracts 2t from what is minimised: convex still. Newton's method finds the
minimum; its systems are solved by conjugate gradients, for which the sums of squares of a layer are one matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .groups import Point, Scaling
from .segments import Slice

STEPS = 500
"""Newton's; some tens are the rule."""
PRODUCTS = 2000
"""Conjugate gradients for one step of Newton's."""
TOLERANCE = 1e-12
"""It ends when no log factor moves by more, or no group is farther from its balance, in parts of its squared norm."""


@dataclass(frozen=True)
class Squares:
    """Sums of squares that move with exp(2(signs · log factors)) of one group or two.

    Attributes:
        values: one for each pair of groups, (rows, columns); or one for each entry, (entries,).
        rows, columns: places of the groups in the vector of all log factors; no columns where one group moves them.
        signs: of each row and column, +1 where a group takes the entries in, −1 where it gives them out.
    """

    values: Tensor
    rows: Tensor
    columns: Tensor | None
    signs: tuple[Tensor, Tensor | None]

    def at(self, logs: Tensor) -> _Bent:
        """The squares at some log factors."""
        left = (2 * self.signs[0] * logs[self.rows]).exp()
        if self.columns is None:
            return _Bent(self, self.values * left, None)
        assert self.signs[1] is not None
        right = (2 * self.signs[1] * logs[self.columns]).exp()
        if self.values.ndim == 1:
            return _Bent(self, self.values * left * right, None)
        return _Bent(self, left, right)


@dataclass(frozen=True)
class _Bent:
    """`Squares` at a point: the entries themselves, or, of a matrix, the factors of its rows and columns."""

    squares: Squares
    left: Tensor
    right: Tensor | None

    def sums(self, of_rows: Tensor, of_columns: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Each row's entries weighted by `of_columns`, and each column's by `of_rows`."""
        if self.right is None:
            if of_columns is None:
                return self.left, None
            return self.left * of_columns, self.left * of_rows
        assert of_columns is not None
        matrix = self.squares.values
        return self.left * (matrix @ (self.right * of_columns)), self.right * (matrix.mT @ (self.left * of_rows))


def balance(scalings: list[Scaling], point: Point) -> float:
    """Rescale the point to the least norm that `scalings` can reach; neurons without in- or output become zero.

    Returns:
        The largest log factor, in size.

    Raises:
        RuntimeError: Newton's method does not converge.
    """
    if not scalings:
        return 0.0
    while any(_silence(scaling, point) for scaling in scalings):
        pass
    starts = [sum(scaling.groups for scaling in scalings[:place]) for place in range(len(scalings) + 1)]
    logs = _least(_squares(scalings, starts, point), starts[-1], next(iter(point.values.values())).device)
    for place, scaling in enumerate(scalings):
        scaling.rescale(point, logs[starts[place] : starts[place + 1]].exp())
    return logs.abs().max().item()


def _least(squares: list[Squares], count: int, device: torch.device) -> Tensor:
    """The log factors at which the squared norm, less 2t of each group whose length is held, is least."""
    logs = torch.zeros(count, dtype=torch.float64, device=device)
    incoming, outgoing = _norms([each.at(logs) for each in squares], count, device)
    held = ((outgoing == 0) & (incoming > 0)).double()
    free = (incoming > 0).double()
    value = _objective(squares, logs, held)
    for _ in range(STEPS):
        bent = [each.at(logs) for each in squares]
        incoming, outgoing = _norms(bent, count, device)
        slope = 2 * free * (incoming - outgoing - held)
        diagonal = 4 * (incoming + outgoing)
        off = (slope / (diagonal + (diagonal == 0))).abs().max().item()
        if 2 * off <= TOLERANCE:
            return logs
        step = _newton(bent, slope, diagonal, free, min(0.1, off))
        # Far from the minimum a step of Newton's overshoots where the exponentials rise.
        step *= min(1.0, 2.0 / max(step.abs().max().item(), 1e-300))
        size, fall = 1.0, slope.dot(step).item()
        while size > 1e-10:
            tried = _objective(squares, logs + size * step, held)
            if tried <= value + 1e-4 * size * fall or (size == 1.0 and off < 1e-7):
                break
            size /= 2
        logs, value = logs + size * step, tried
        if size * step.abs().max().item() <= TOLERANCE:
            return logs
    raise RuntimeError(f"balancing did not converge in {STEPS} steps; groups are still off by {off:.1e}.")


def _norms(bent: list[_Bent], count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What each group takes in and gives out, squared; shape: (count,) each."""
    norms = {sign: torch.zeros(count, dtype=torch.float64, device=device) for sign in (1, -1)}
    for each in bent:
        squares = each.squares
        columns = None if squares.columns is None else torch.ones_like(squares.columns, dtype=torch.float64)
        rows, others = each.sums(torch.ones_like(squares.rows, dtype=torch.float64), columns)
        for sign in (1, -1):
            for groups, signs, sums in zip((squares.rows, squares.columns), squares.signs, (rows, others), strict=True):
                if groups is not None and signs is not None and sums is not None:
                    norms[sign].index_add_(0, groups[signs == sign], sums[signs == sign])
    return norms[1], norms[-1]


def _objective(squares: list[Squares], logs: Tensor, held: Tensor) -> float:
    total = -2 * held.dot(logs).item()
    for each in squares:
        bent = each.at(logs)
        ones = None if each.columns is None else torch.ones_like(each.columns, dtype=torch.float64)
        total += bent.sums(torch.ones_like(each.rows, dtype=torch.float64), ones)[0].sum().item()
    return total


def _newton(bent: list[_Bent], slope: Tensor, diagonal: Tensor, free: Tensor, tolerance: float) -> Tensor:
    """−H⁻¹ slope by conjugate gradients, preconditioned with the diagonal of H, to a part `tolerance` of the slope."""
    scale = free / (diagonal + (diagonal == 0))
    step, rest = torch.zeros_like(slope), -slope
    bound = tolerance**2 * rest.dot(scale * rest).item()
    direction = scale * rest
    size = rest.dot(direction).item()
    for _ in range(PRODUCTS):
        if size <= bound:
            break
        product = free * _product(bent, direction, diagonal)
        curvature = direction.dot(product).item()
        if curvature <= 0:  # a direction along which nothing changes
            break
        step += size / curvature * direction
        rest -= size / curvature * product
        conditioned = scale * rest
        before, size = size, rest.dot(conditioned).item()
        direction = conditioned + size / before * direction
    return step


def _product(bent: list[_Bent], vector: Tensor, diagonal: Tensor) -> Tensor:
    """H·vector."""
    result = diagonal * vector
    for each in bent:
        squares = each.squares
        if squares.columns is None:
            continue
        left, right = squares.signs
        assert right is not None
        rows, columns = each.sums(left * vector[squares.rows], right * vector[squares.columns])
        assert columns is not None
        result.index_add_(0, squares.rows, left * rows, alpha=4)
        result.index_add_(0, squares.columns, right * columns, alpha=4)
    return result


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


def _squares(scalings: list[Scaling], starts: list[int], point: Point) -> list[Squares]:
    """The squares of every parameter that a scaling has a part in."""
    uses: dict[str, list[tuple[int, int, Slice]]] = {}
    for place, scaling in enumerate(scalings):
        for sign, parts in ((1, scaling.incoming), (-1, scaling.outgoing)):
            for part in parts:
                uses.setdefault(part.name, []).append((place, sign, part))
    collected = []
    for name, those in uses.items():
        squares = point.values[name].square()
        axes: dict[int, list[_Laid]] = {}
        for place, sign, part in those:
            _lay(axes.setdefault(part.axis, []), part.units.to(squares.device), starts[place], sign)
        laid = [each for axis in sorted(axes) for each in axes[axis]]
        assert len(laid) <= 2, name
        rest = [axis for axis in range(squares.ndim) if axis not in axes]
        entries = squares.sum(rest) if rest else squares
        if len(laid) == 1:
            mine = laid[0].groups >= 0
            collected.append(Squares(entries[mine], laid[0].groups[mine], None, (laid[0].signs[mine], None)))
        elif len(axes) == 1:  # one axis, two groups: a depthwise convolution
            collected += _of_one_axis(entries, laid)
        else:
            matrix = entries.clone()
            # Between a group and itself nothing changes.
            same = (laid[0].groups[:, None] == laid[1].groups[None]) & (laid[0].signs[:, None] != laid[1].signs[None])
            matrix.masked_fill_(same & (laid[0].groups >= 0)[:, None], 0.0)
            rows, columns = (each.groups >= 0 for each in laid)
            inner = matrix[rows][:, columns].contiguous()
            collected.append(
                Squares(
                    inner, laid[0].groups[rows], laid[1].groups[columns], (laid[0].signs[rows], laid[1].signs[columns])
                )
            )
            if not bool(columns.all()):
                alone = matrix[rows][:, ~columns].sum(1)
                collected.append(Squares(alone, laid[0].groups[rows], None, (laid[0].signs[rows], None)))
            if not bool(rows.all()):
                alone = matrix[~rows][:, columns].sum(0)
                collected.append(Squares(alone, laid[1].groups[columns], None, (laid[1].signs[columns], None)))
    return collected


@dataclass
class _Laid:
    """The group of each entry of an axis, −1 for none, and whether that takes the entries in (+1) or gives them out."""

    groups: Tensor
    signs: Tensor


def _lay(known: list[_Laid], units: Tensor, start: int, sign: int) -> None:
    """Put a part on the first layer of its axis where its entries are free."""
    mine = units >= 0
    for laid in known:
        if not bool((laid.groups[mine] >= 0).any()):
            laid.groups[mine] = start + units[mine]
            laid.signs[mine] = float(sign)
            return
    groups = torch.where(mine, start + units, -1)
    known.append(_Laid(groups, torch.full_like(groups, sign, dtype=torch.float64)))


def _of_one_axis(entries: Tensor, laid: list[_Laid]) -> list[Squares]:
    one, two = laid
    both = (one.groups >= 0) & (two.groups >= 0)
    apart = both & ~((one.groups == two.groups) & (one.signs != two.signs))
    squares = [Squares(entries[apart], one.groups[apart], two.groups[apart], (one.signs[apart], two.signs[apart]))]
    for each in laid:
        alone = (each.groups >= 0) & ~both
        if bool(alone.any()):
            squares.append(Squares(entries[alone], each.groups[alone], None, (each.signs[alone], None)))
    return squares
