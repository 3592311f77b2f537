"""The span of all tangents of a model's symmetries at a point, and the projection onto it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .groups import Scaling, Translation
from .mixing import Mixing
from .point import wide

TOLERANCE = 1e-13
"""Of the Gram system's residual, in the norm of its diagonal."""


class Span:
    """The span of all tangents T at a point: Tᵀv, T·c and the least-squares coefficients of a vector."""

    def __init__(self, moves: list[Scaling | Translation | Mixing], values: dict[str, Tensor]) -> None:
        self.moves, self.values = moves, values
        self.shapes = [move.shape(values) for move in moves]
        self.touched = sorted({name for move in moves for name in _parts(move)})

    def project(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """Tᵀv; shape: (tangents,)."""
        return torch.cat([move.project(vectors, self.values).flatten() for move in self.moves])

    def lift(self, coefficients: Tensor) -> dict[str, Tensor]:
        """T·c, by parameter."""
        result = {name: torch.zeros_like(self.values[name]) for name in self.touched}
        pieces = coefficients.split([math.prod(shape) for shape in self.shapes])
        for move, piece, shape in zip(self.moves, pieces, self.shapes, strict=True):
            move.lift(piece.view(shape), self.values, result)
        return result

    def _diagonal(self) -> Tensor:
        """‖T_k‖², to precondition with; at least where a weight does not both write and read."""
        parts = []
        for move, shape in zip(self.moves, self.shapes, strict=True):
            if isinstance(move, Scaling):
                parts.append(sum(move.squared_norms(self.values)))
            elif isinstance(move, Mixing):
                parts.append(move.diagonal(self.values).flatten())
            else:
                size = move.part.neurons // move.groups
                parts.append(torch.full((math.prod(shape),), float(size), dtype=torch.float64))
        device = self.values[self.touched[0]].device
        diagonal = torch.cat([part.to(device) for part in parts])  # type: ignore[union-attr]
        return torch.where(diagonal > 0, diagonal, 1.0)

    def solve(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """c with TᵀT c = Tᵀv, by preconditioned conjugate gradients; T may be rank-deficient.

        Raises:
            RuntimeError: no convergence.
        """
        inverse = 1 / self._diagonal()
        residual = self.project(vectors)
        solution, direction = torch.zeros_like(residual), residual * inverse
        size = wanted = residual.dot(direction).item()
        for _ in range(100 + 10 * len(residual)):
            if size <= TOLERANCE**2 * wanted:
                return solution
            image = self.project(self.lift(direction))
            step = size / direction.dot(image).item()
            solution.add_(direction, alpha=step)
            residual.sub_(image, alpha=step)
            preconditioned = residual * inverse
            previous, size = size, residual.dot(preconditioned).item()
            direction = preconditioned.add_(direction, alpha=size / previous)
        raise RuntimeError(
            f"the tangents' Gram system did not converge ({size / wanted:.1e} of its squared residual left). "
            "canonicalize(model) balances weights of very different size."
        )


def _parts(move: Scaling | Translation | Mixing) -> list[str]:
    if isinstance(move, Translation):
        return [move.part.name]
    return [part.name for part in (*move.incoming, *move.outgoing)]


def checked_vectors(model: nn.Module, vectors: Any) -> dict[str, Tensor]:
    """`vectors` by name in float64; zeros for parameters that do not train and were left out."""
    parameters = dict(model.named_parameters())
    if isinstance(vectors, Tensor):
        raise TypeError("vectors: expected a mapping or a list of tensors, one a parameter, got one tensor.")
    if not isinstance(vectors, Mapping):
        listed = list(vectors)
        if len(listed) != len(parameters):
            raise ValueError(f"vectors: expected {len(parameters)} tensors, one a parameter, got {len(listed)}.")
        vectors = dict(zip(parameters, listed, strict=True))
    unknown = [str(name) for name in vectors if name not in parameters]
    missing = [name for name, p in parameters.items() if name not in vectors and p.requires_grad]
    if unknown or missing:
        raise ValueError(
            f"vectors: expected a tensor for each parameter that trains; missing {missing[:5]}, unknown {unknown[:5]}."
        )
    given = {}
    for name, parameter in parameters.items():
        value = vectors.get(name)
        if value is None and name not in vectors:
            value = torch.zeros_like(parameter)
        if not isinstance(value, Tensor):
            raise TypeError(
                f"vectors[{name!r}]: expected a tensor, got {type(value).__name__}. Pass zeros for no update."
            )
        if value.shape != parameter.shape:
            raise ValueError(
                f"vectors[{name!r}]: expected shape {tuple(parameter.shape)}, that of the parameter, got "
                f"{tuple(value.shape)}."
            )
        given[name] = wide(value.to(parameter.device))
    return given
