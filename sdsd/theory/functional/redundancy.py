"""H_G, the symmetry redundancy of a layer: smooth, to the letter, and as a number of directions."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sdsd_kernels import cosine_matrix

from .rows import ROUNDING, check_angle, live_rows, unit_rows


def orbit_entropy(rows: Tensor, mass: Tensor | None = None) -> Tensor:
    """H_G, the von Neumann entropy of the mass-weighted cosine matrix, in nats.

        H = −Tr M log M,    M_ij = √(p_i p_j) cos(r_i, r_j),    p = mass / Σ mass

    0 when all neurons point one way (or opposite ways), log n when n equal ones are orthogonal; unchanged when one
    neuron is split into copies that share its mass. Σ p_j û_j û_jᵀ has the same non-zero eigenvalues, so the smaller of
    (n, n) and (d, d) is taken: for n ≤ d `sdsd_kernels.cosine_matrix` makes it. Differentiable in both arguments;
    eigenvalues below the rounding of the dtype count as zero and have no gradient.

    Args:
        rows: one neuron a row, any scale; float64, float32, float16 or bfloat16.  # shape: (n, d)
        mass: what each neuron weighs, ≥ 0, any scale; all the same by default. A neuron without mass or without a
            direction counts as absent.  # shape: (n,)

    Returns:
        A scalar, float64, between 0 and log min(n, d).

    Raises:
        TypeError: not floating-point tensors.
        ValueError: wrong shapes, a negative or non-finite number, no neuron with mass and direction.

    Example:
        >>> orbit_entropy(torch.eye(4, dtype=torch.float64)).exp().item()
        4.0
    """
    rows, share = live_rows(rows, mass)
    if rows.shape[0] <= rows.shape[1]:
        root = share.sqrt()
        matrix = cosine_matrix(rows, neuron_dim=0).double() * torch.outer(root, root)
    else:
        matrix = (unit_rows(rows) * share[:, None]).mT @ unit_rows(rows)
    eigenvalues = torch.linalg.eigvalsh(matrix)
    precision = torch.finfo(torch.promote_types(rows.dtype, torch.float32)).eps
    kept = eigenvalues[eigenvalues > precision]
    return -(kept * kept.log()).sum()


def log_orbit_count(rows: Tensor, angle: float) -> float:
    """H_G to the letter: the log of how many distinct arrangements permuting the neurons makes, for each neuron.

        H_orb = log(n! / ∏_c n_c!) / n

    n! permutations fall together where neurons are interchangeable, n_c! for a cluster of n_c (orbit–stabiliser
    theorem). Neurons belong to one cluster when a chain of neighbours closer than `angle` joins them. Not smooth, and
    blind to anything that happens farther out than `angle`.

    Args:
        rows: one neuron a row, any scale; rows of zeros are left out.  # shape: (n, d)
        angle: radians, in (0, π/2]; below some 1e-6 only rows of one direction belong together.

    Returns:
        Nats a neuron, 0 when all are in one cluster, log(n!)/n when none is with another.

    Raises:
        TypeError, ValueError: as `orbit_entropy`; an angle out of range.
    """
    check_angle(angle)
    unit = unit_rows(live_rows(rows, None)[0].detach())
    near = unit @ unit.mT >= math.cos(angle) - ROUNDING
    near.fill_diagonal_(True)
    cluster = torch.arange(len(unit), device=unit.device)
    while True:
        joined = torch.where(near, cluster, len(unit)).amin(1)
        if torch.equal(joined, cluster):
            break
        cluster = joined
    sizes = torch.bincount(cluster).tolist()
    return (math.lgamma(len(unit) + 1) - sum(math.lgamma(size + 1) for size in sizes)) / len(unit)


def participation_ratio(rows: Tensor, mass: Tensor | None = None) -> Tensor:
    """1 / Tr M²: over how many directions the mass is spread; 1 for one direction, n for n equal orthogonal ones.

    Arguments and errors as `orbit_entropy`, which it follows with less arithmetic; differentiable, float64.
    """
    rows, share = live_rows(rows, mass)
    unit = unit_rows(rows)
    if rows.shape[0] <= rows.shape[1]:
        return 1 / (share @ (unit @ unit.mT).square() @ share)
    return 1 / ((unit * share[:, None]).mT @ unit).square().sum()
