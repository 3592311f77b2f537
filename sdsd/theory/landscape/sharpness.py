"""The largest eigenvalue of the Hessian, at the representative of least norm.

Rescaling a ReLU network's neurons leaves its function alone and moves this number by any factor (Dinh, Pascanu, Bengio
and Bengio, "Sharp Minima Can Generalize For Deep Nets", arXiv 1703.04933). At the canonical representative it is one
number for the whole orbit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdsd_kernels import checks

from ..._progress import Progress, Report, reporter, sparing
from ..derivatives import LossFunction, undisturbed
from .landscape import Landscape, landscape_at


@dataclass(frozen=True)
class Sharpness:
    """The top eigenvalue of the Hessian.

    Attributes:
        value: the largest (not the largest in size) eigenvalue.
        error: ‖Hv − value·v‖ of the unit vector v found: an eigenvalue lies within this distance of `value`.
        products: Hessian-vector products it took.
        loss: L there.
        canonical: whether it was taken at the canonical representative.
    """

    value: float
    error: float
    products: int
    loss: float
    canonical: bool

    def __str__(self) -> str:
        where = "at the canonical representative" if self.canonical else "at the parameters as they are"
        return f"sharpness {self.value:.5g} ± {self.error:.1g} {where}, {self.products} Hessian-vector products"


def sharpness(
    model: nn.Module,
    data: Any,
    loss_fn: LossFunction,
    *,
    tolerance: float = 1e-4,
    most_products: int = 200,
    canonicalize: bool = True,
    softmax_head: bool = False,
    example_input: Any = None,
    seed: int = 0,
    progress: Progress = False,
) -> Sharpness:
    """The largest eigenvalue of the Hessian of the mean loss, the same for every point of the model's orbit.

    Lanczos' method with full reorthogonalisation, from a random vector: `most_products` vectors of the size of the
    parameters are kept in float64.

    Args:
        model, data, loss_fn, canonicalize, softmax_head, example_input: as in `local_learning_coefficient`; the model
            need not be at a minimum.
        tolerance: stop when the error is below this part of the value, or below the rounding, in the parameters'
            dtype, of the eigenvalue largest in size.
        most_products: stop in any case after so many products.
        seed: of the first vector.
        progress: as in `local_learning_coefficient`.

    Returns:
        `Sharpness`.

    Raises:
        TypeError, ValueError: as `local_learning_coefficient`.
        RuntimeError: the error is not below the tolerance after `most_products`.

    Example:
        >>> class Bowl(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.w = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        >>> stiffness = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
        >>> loss = lambda model, x: (stiffness * model.w.square()).sum() / 2
        >>> round(sharpness(Bowl(), torch.zeros(1), loss, canonicalize=False).value, 6)
        5.0
    """
    checks.check_number(tolerance, "tolerance", "a number above 0", above=0)
    checks.check_count(most_products, "most_products", least=2)
    report = sparing(reporter(progress, "sharpness"))
    landscape = landscape_at(model, loss_fn, data, canonicalize, softmax_head, example_input)
    draw = torch.Generator().manual_seed(checks.check_integer(seed, "seed"))
    first = torch.randn(len(landscape.start), dtype=torch.float64, generator=draw).to(landscape.start.device)
    with undisturbed(landscape.model):
        loss = landscape.checked_loss()
        landscape.move(landscape.start)
        value, error, products, enough = _top_eigenvalue(landscape, first, tolerance, most_products, report)
    if error > enough:
        raise RuntimeError(
            f"sharpness: after {products} products the value {value:.6g} is known to ± {error:.2g}, expected "
            f"± {tolerance:g} of it. Take a larger tolerance or most_products."
        )
    return Sharpness(value, error, products, loss, canonicalize)


def _top_eigenvalue(
    landscape: Landscape, first: Tensor, tolerance: float, most_products: int, report: Report
) -> tuple[float, float, int, float]:
    """Ritz value, its residual, the number of products, and the residual that is small enough."""
    basis = [first / first.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    most = min(most_products, len(first))
    while True:
        product = landscape.curvature(basis[-1])
        if not bool(product.isfinite().all()):
            raise ValueError("loss_fn: its second derivatives hold NaN or infinity.")
        diagonal.append(basis[-1].dot(product).item())
        known = torch.stack(basis)
        for _ in range(2):
            product = product - known.mT @ (known @ product)
        rest = product.norm().item()
        small = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        if beside:
            side = torch.tensor(beside, dtype=torch.float64)
            small = small + torch.diag(side, 1) + torch.diag(side, -1)
        values, vectors = torch.linalg.eigh(small)
        size = values.abs().max().item()
        value, error = values[-1].item(), abs(rest * vectors[-1, -1].item())
        report(len(diagonal), most)
        enough = max(tolerance * abs(value), landscape.rounding * size)
        if error <= enough or len(diagonal) == most or rest <= 1e-14 * max(size, 1e-300):
            report(most, most)
            return value, error, len(diagonal), enough
        beside.append(rest)
        basis.append(product / rest)
