"""Whole backward passes as the samples: their norms, and the mean gradient they make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ..layers import UnsupportedError
from ..uses import executes, project, square_norm
from .refusals import refuse_uncounted

if TYPE_CHECKING:
    from .session import Session


class Proof(NamedTuple):
    """What the micro-batches of a step add up to.

    projections: parameter → those of what each pass added to its .grad. squares: Σ‖·‖² of that; (parameters,).
    """

    projections: dict[str, list[Tensor]]
    squares: Tensor


class MicroBatches:
    """Norms of what single backward passes add to .grad, taken where it arrives at the parameters.

    With c_k what pass k adds, b_k its samples, B = Σ b_k, M passes: the loss of a micro-batch is a mean over its
    samples divided by the same number in every pass (loss_reduction "mean", g_k = M c_k) or a sum (g_k = c_k / b_k).
    ḡ = Σ b_k g_k / B, and in the unit of the mean size b̄ = B / M

        Tr Var = (Σ (b_k / b̄) ‖g_k‖² − M ‖ḡ‖²) / (M − 1)

    With means over micro-batches of one size, and with sums, ḡ is .grad up to a factor. Means over unequal ones need
    Σ b_k c_k, one buffer of the parameters' size, made when the first odd micro-batch comes.

    Attributes:
        proof: what proves the step that was collected last, or None.
    """

    def __init__(self, session: Session, parameters: dict[str, nn.Parameter]) -> None:
        self._session, self._parameters = session, list(parameters.values())
        self.proof: Proof | None = None
        self._names = list(parameters)
        self.clear()

    def clear(self) -> None:
        """Forget what the backward passes so far brought; one that begins may have been heard of."""
        self._session.origins.arrived.clear()
        self._norms: list[dict[int, Tensor]] = []
        self._weighted: dict[int, Tensor] = {}
        self._projections: dict[str, list[Tensor]] = {}

    def hook(self) -> list[Any]:
        return [
            parameter.register_hook(lambda grad, row=row: self._arrived(row, grad))
            for row, parameter in enumerate(self._parameters)
        ]

    def _arrived(self, row: int, grad: Tensor) -> None:
        session = self._session
        # torch.autograd.grad looks at gradients, and adds nothing to .grad.
        node = torch.autograd.graph.get_gradient_edge(self._parameters[row]).node
        if not session.measuring or not executes(node):
            return
        session.backward_runs(grad)
        if session.directions is not None:
            dense, name = grad.coalesce().to_dense() if grad.is_sparse else grad, self._names[row]
            self._projections.setdefault(name, []).append(project(dense, session.directions(name, dense)))
        before_this = session.sizes[:-1]
        place = len(before_this)
        while len(self._norms) <= place:
            self._norms.append({})
        self._norms[place][row] = _norm(grad).square()
        size = session.sizes[-1]
        first = before_this[0] if before_this else size
        if row in self._weighted:
            self._weighted[row].add_(grad, alpha=size)
        elif any(each != size for each in before_this):
            before = self._parameters[row].grad
            earlier = torch.zeros_like(grad) if before is None else before.detach() * float(first)
            self._weighted[row] = earlier.add_(grad, alpha=size)

    def collect(self, world: int, reduction: str) -> tuple[Tensor, int, float, Tensor | None]:
        """Σ (b_k / b̄)‖g_k‖² of this rank, micro-batches of all ranks, b̄, and ‖ḡ‖² where .grad does not give it."""
        session, norms, weighted, projections = self._session, self._norms, self._weighted, self._projections
        sizes = session.sizes
        refuse_uncounted([], unfinished=bool(session._open), same_samples=False, stale=session.stale)
        if session.batch_size is None:
            session.origins.check()
        session.origins.clear()
        self.clear()
        if reduction == "sum":  # one without samples adds nothing
            norms = [each for each, size in zip(norms, sizes, strict=True) if size]
            sizes = [size for size in sizes if size]
        elif 0 in sizes:
            raise UnsupportedError(
                f"a micro-batch without samples among those of {sizes}: what its loss is divided by is not known. "
                "Leave it out before the forward pass, or make losses sums and pass loss_reduction='sum'."
            )
        if len(set(sizes)) > 1 and world > 1:
            raise UnsupportedError(
                f"micro-batches of unequal size on this rank ({sizes}): with several ranks they have to be equal. Drop "
                "the odd last one, or use mode='exact'."
            )
        count, total = len(sizes), sum(sizes)
        mean = total / max(count, 1)
        device = self._parameters[0].device
        zero = torch.zeros((), dtype=torch.float64, device=device)
        squares = torch.zeros(len(self._parameters), dtype=torch.float64, device=device)
        plain = torch.zeros_like(squares)
        for size, each in zip(sizes, norms, strict=True):
            factor = count**2 if reduction == "mean" else 1 / size**2
            rows = [each.get(row, zero).to(device) for row in range(len(self._parameters))]
            taken = torch.stack(rows)
            squares += taken * (factor * size / mean)
            plain += taken
        self.proof = None if session.directions is None else Proof(projections, plain)
        own = None
        if reduction == "mean" and len(set(sizes)) > 1:
            parts = []
            for row, parameter in enumerate(self._parameters):
                if row in weighted:
                    parts.append(_norm(weighted[row]).to(device) * (count / total))
                elif parameter.grad is not None:  # no odd micro-batch reached it
                    parts.append(_norm(parameter.grad).to(device) * (sizes[0] * count / total))
                else:
                    parts.append(zero)
            own = torch.stack(parts).square()
        return squares, count * world, mean, own


def hooked_in_micro_mode(parameters: dict[str, nn.Parameter]) -> list[str]:
    """Parameters with hooks on their gradient beside the one that `MicroBatches` put there."""
    return [
        name
        for name, parameter in parameters.items()
        if len(parameter._backward_hooks or ()) > 1 or parameter._post_accumulate_grad_hooks  # type: ignore[arg-type]
    ]


def _norm(gradient: Tensor) -> Tensor:
    """‖gradient‖ as a 0-dim float64 tensor, whatever its size."""
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    if values.is_cpu:
        return torch.tensor(square_norm(values), dtype=torch.float64).sqrt()
    return torch.linalg.vector_norm(values, dtype=torch.complex128 if values.is_complex() else torch.float64)
