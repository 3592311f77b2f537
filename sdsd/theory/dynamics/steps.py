"""One step: gradients, Hessians and roots of the noise, checked."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .problem import Diffusion, NoiseRoot, Potential

ROUNDING = 1e-10
"""Relative size of a negative eigenvalue or an asymmetry that counts as rounding."""


def per_path(value: float | Tensor, name: str, above: float) -> Tensor:
    """A float64 scalar or one number a path; `above` 0 asks for > 0, −1 for ≥ 0."""
    numbers = torch.as_tensor(value, dtype=torch.float64)
    good = numbers.isfinite() & ((numbers > 0) if above == 0 else (numbers >= 0))
    if not bool(good.all()):
        raise ValueError(
            f"{name}: expected numbers {'> 0' if above == 0 else '≥ 0'}, got {numbers[~good][0].item():g}."
        )
    return numbers


def isotropic(diffusion: Tensor) -> Diffusion:
    return diffusion.item() if diffusion.ndim == 0 else lambda states: diffusion.expand(len(states))


def checked_start(start: Tensor) -> Tensor:
    if not isinstance(start, Tensor) or not start.is_floating_point():
        kind = start.dtype if isinstance(start, Tensor) else type(start).__name__
        raise TypeError(f"start: expected a floating-point torch.Tensor (paths, dim), got {kind}.")
    if start.ndim != 2 or 0 in start.shape:
        raise ValueError(f"start: expected shape (paths, dim), neither 0, got {tuple(start.shape)}.")
    if not bool(start.isfinite().all()):
        raise ValueError("start: expected finite numbers.")
    return start.detach().double()


def loss_and_gradient(potential: Potential, states: Tensor, step: int) -> tuple[Tensor, Tensor]:
    known = getattr(potential, "gradient", None)
    here = states if known else states.detach().requires_grad_()
    loss = potential(here)
    if loss.shape != states.shape[:1]:
        raise ValueError(
            f"potential: expected one loss a path, shape ({len(states)},), got {tuple(loss.shape)}. Sum over dim 1."
        )
    if known:
        gradient = known(states)
    elif loss.requires_grad:
        (gradient,) = torch.autograd.grad(loss, here, torch.ones_like(loss))
        loss = loss.detach()
    else:
        raise TypeError("potential: expected a loss that depends on the states by torch operations, got a constant.")
    # One sum tells in nearly all cases; it may overflow where no part of it does.
    if not math.isfinite((loss.sum() + gradient.sum()).item()):
        finite = loss.isfinite() & gradient.isfinite().all(1)
        if not bool(finite.all()):
            path = int((~finite).nonzero()[0])
            raise ValueError(
                f"potential: not finite on path {path} at step {step}: L = {loss[path].item():g} at state "
                f"{_listed(states[path])}. If paths run away, take a smaller step_size."
            )
    return loss, gradient


def gradient_and_hessian(potential: Potential, states: Tensor) -> tuple[Tensor, Tensor]:
    """(states, dim) and (states, dim, dim). Paths do not meet, so one backward pass serves a column of all Hessians."""
    here = states.detach().requires_grad_()
    loss_and_gradient(potential, states, 0)
    (gradient,) = torch.autograd.grad(potential(here).sum(), here, create_graph=True)
    if not gradient.requires_grad:
        return gradient, gradient.new_zeros(*states.shape, states.shape[1])
    columns = [
        torch.autograd.grad(column.sum(), here, retain_graph=True, materialize_grads=True)[0]
        for column in gradient.unbind(1)
    ]
    return gradient.detach(), torch.stack(columns, 2)


def _listed(state: Tensor) -> str:
    numbers = [f"{value:g}" for value in state[:4].tolist()]
    return f"({', '.join(numbers)}{', …' if len(state) > 4 else ''})"


def root_function(diffusion: Diffusion, dim: int) -> Callable[[Tensor, int], Tensor]:
    """√(2D) as a function of states and step; worked out once where D is the same everywhere."""
    if callable(diffusion):
        return lambda states, step: _root(diffusion(states), states, step)
    fixed = _fixed_root(diffusion, dim)
    return lambda states, step: fixed


def _fixed_root(diffusion: float | Tensor, dim: int) -> Tensor:
    """√(2D) of a D that does not depend on the state: a scalar, or (dim, dim)."""
    matrix = torch.as_tensor(diffusion, dtype=torch.float64)
    if matrix.ndim == 0:
        return _scalar_root(matrix[None], "")[0]
    if matrix.shape != (dim, dim):
        raise ValueError(
            f"diffusion: expected a number, a ({dim}, {dim}) matrix or a function, got {tuple(matrix.shape)}."
        )
    return _matrix_root(matrix[None], "")[0]


def _root(value: Tensor | NoiseRoot, states: Tensor, step: int) -> Tensor:
    """√(2D) at each state: (paths,), (paths, dim, dim) or (paths, dim, k)."""
    paths, dim = states.shape
    where = f" on path {{path}} at step {step}"
    if isinstance(value, NoiseRoot):
        root = value.matrix
        if root.ndim != 3 or root.shape[:2] != (paths, dim):
            raise ValueError(f"diffusion: expected a root of shape ({paths}, {dim}, k), got {tuple(root.shape)}.")
        if not bool(root.isfinite().all()):
            path = int((~root.isfinite()).nonzero()[0, 0])
            raise ValueError(f"diffusion: not finite{where.format(path=path)}.")
        return root.double()
    if value.shape == (paths,):
        return _scalar_root(value.double(), where)
    if value.shape == (paths, dim, dim):
        return _matrix_root(value.double(), where)
    raise ValueError(
        f"diffusion: expected ({paths},), ({paths}, {dim}, {dim}) or a NoiseRoot from the function, "
        f"got shape {tuple(value.shape)}."
    )


def _scalar_root(value: Tensor, where: str) -> Tensor:
    low, high = (bound.item() for bound in value.aminmax())  # NaN passes through and fails the comparison
    if not 0 <= low <= high < math.inf:
        path = int((~(value.isfinite() & (value >= 0))).nonzero()[0])
        raise ValueError(f"diffusion: expected D ≥ 0, got {value[path].item():g}{where.format(path=path)}.")
    return (2 * value).sqrt()


def _matrix_root(matrix: Tensor, where: str) -> Tensor:
    """The symmetric root of 2D for each matrix of (paths, dim, dim)."""
    finite = matrix.isfinite().all(2).all(1)
    if not bool(finite.all()):
        raise ValueError(f"diffusion: not finite{where.format(path=int((~finite).nonzero()[0]))}.")
    size = matrix.abs().amax((1, 2)).clamp_min(torch.finfo(torch.float64).tiny)
    askew = (matrix - matrix.mT).abs().amax((1, 2)) > ROUNDING * size
    if bool(askew.any()):
        raise ValueError(f"diffusion: expected a symmetric D, got none{where.format(path=int(askew.nonzero()[0]))}.")
    eigenvalues, vectors = torch.linalg.eigh(2 * matrix)
    negative = eigenvalues[:, 0] < -ROUNDING * size
    if bool(negative.any()):
        path = int(negative.nonzero()[0])
        raise ValueError(
            f"diffusion: expected a positive semi-definite D, got the eigenvalue {eigenvalues[path, 0].item() / 2:g}"
            f"{where.format(path=path)}."
        )
    return vectors * eigenvalues.clamp_min(0).sqrt()[:, None] @ vectors.mT


def kick(root: Tensor, states: Tensor, generator: torch.Generator) -> Tensor:
    """R z for fresh normal z, as `states`."""
    paths, dim = states.shape
    columns = dim if root.ndim < 2 else root.shape[-1]
    normal = torch.randn(paths, columns, dtype=torch.float64, generator=generator)
    if root.ndim == 0:
        return root * normal
    if root.ndim == 1:
        return root[:, None] * normal
    if root.ndim == 2:
        return normal @ root.mT
    return (root * normal[:, None]).sum(2)  # quicker than thousands of tiny matrix products
