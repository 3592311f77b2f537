"""What layer rules share in code that torch.compile traces: the watcher of one module, the tap on its output.

Eager code is measured at the operation that reads a parameter (`sdsd/gamma/uses`). Compiled code is traced module by
module: a rule turns a layer's input a and output gradient b into Σ_n ‖g_n‖² for each of its parameters, g_n being the
gradient that sample n contributes, and that number leaves the backward pass as the gradient of a `probe`, a small
leaf tensor that no parameter list knows.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...models import compiling
from ..uses import sum_of_squares
from .advice import NO_SAMPLE, WHAT_TO_DO

if TYPE_CHECKING:
    from ..monitor import Session


Samples = tuple[int, int, int, int]
"""Number of samples N, the axis they lie along, and how: index (o·N + n)·inner + i of outer·N·inner is of sample n."""


class UnsupportedError(ValueError):
    """A layer or a situation in which per-sample squares cannot be had exactly; the message says what to do."""


class Watcher:
    """One monitored module: its name, its rule, its probe."""

    def __init__(self, session: Session, module: nn.Module, name: str, rule: Rule | str, names: dict[str, str]) -> None:
        self.session, self.name, self.rule = session, name, rule
        self.names = names
        """Local parameter name → name in the report."""
        self.local = tuple(names)
        self.tied = False
        self.partner: Watcher | None = None
        """Of an embedding and a head with one weight: the other of the two."""
        self.carried: tuple[Tensor, Tensor] | None = None
        """Of such an embedding, while the model runs: what leads back to it, and its ids."""
        self.idle = not session.sharded
        """Whether it has nothing to do where nothing is compiled."""
        self.half = False
        """Whether it was compiled under autocast."""
        self.probe = torch.zeros(2 * len(names) + 1, dtype=torch.float64, requires_grad=True)

    @property
    def ran(self) -> bool:
        """Whether a gradient came to it in this step, in compiled code."""
        return self.probe.grad is not None

    def prepare(self, device: torch.device) -> None:
        """Put the probe where the parameters are and let it announce each backward pass."""
        self.probe = torch.zeros(2 * len(self.names) + 1, dtype=torch.float64, device=device, requires_grad=True)
        self.probe.register_hook(self.session.backward_runs)

    def forward(self, module: nn.Module, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Runs in the place of the module's own forward, which is `plain`."""
        session = self.session
        if not compiling():
            if session.sharded:
                session.learn(module, self.names)
            return plain(*args, **kwargs)
        if not session.measuring or not session.exact or not torch.is_grad_enabled() or not self.names:
            return plain(*args, **kwargs)
        if isinstance(self.rule, str):
            raise UnsupportedError(f"{self.name}: {self.rule}.")
        if self.tied and self.partner is None:
            raise UnsupportedError(
                f"{self.name}: shares a parameter with another layer, which needs an exchange between their backward "
                f"passes that torch.compile cannot trace, but for an embedding and its head. {WHAT_TO_DO}"
            )
        from .traced import comptime, enter, leave

        # Variables that `comptime` sets, or looks at, while this is traced.
        traced, again, lying = False, False, session.lying  # noqa: F841
        comptime(enter)
        if not traced:  # Tracing was given up in the midst of this function.
            return plain(*args, **kwargs)
        if again:
            raise UnsupportedError(
                f"{self.name}: runs more than once in one compiled forward pass, and squares of single uses do not "
                f"add. {WHAT_TO_DO}"
            )
        out = self.rule.forward(self, module, plain, args, kwargs)
        comptime(leave)
        return out

    def expanded(self) -> Samples:
        """What it looked up for all samples together has one copy a sample from here on, along dimension 0."""
        from .traced import comptime, expand

        comptime(expand)
        return self.session.batch or 0, 0, 1, 1

    def trainable(self, module: nn.Module) -> tuple[bool, ...]:
        return tuple(module.get_parameter(local).requires_grad for local in self.local)

    def scale(self, local: str) -> Tensor | None:
        """The preconditioner D of a parameter, or None."""
        return self.session.scale(self.names[local])

    def scales(self) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
        """Names of the parameters that have a preconditioner, and those."""
        every = [(local, self.scale(local)) for local in self.local]
        held = [(local, scale) for local, scale in every if scale is not None]
        return tuple(local for local, _ in held), tuple(scale for _, scale in held)

    def samples_of(self, x: Tensor, features: int) -> Samples:
        """Where the samples of `x` are, whose last `features` dimensions are no sample axis; see `arrange`.

        Raises:
            UnsupportedError: they cannot be followed that far, or lie among the features.
        """
        samples, reason = self.lying(x)
        if samples is None:
            raise UnsupportedError(f"{self.name}: {reason}. {WHAT_TO_DO}")
        if samples[1] >= x.ndim - features:
            raise UnsupportedError(
                f"{self.name}: got input of shape {tuple(x.shape)} whose samples lie along dimension {samples[1]}, one "
                f"of its features. {WHAT_TO_DO}"
            )
        return samples

    def require_samples_first(self, samples: Samples, x: Tensor) -> None:
        """Raise UnsupportedError where the samples are not just the first dimension of `x`."""
        if samples[1:] != (0, 1, 1):
            raise UnsupportedError(
                f"{self.name}: expected a batch of shape (N, channels, …) with samples first, got shape "
                f"{tuple(x.shape)} with samples elsewhere. {WHAT_TO_DO}"
            )

    def lying(self, x: Tensor) -> tuple[Samples | None, str]:
        """Where the samples of `x` are; None, and why that is not known."""
        from .traced import comptime, locate

        n = self.session.batch
        axis = outer = inner = reason = None
        comptime(locate)
        if axis is None or n is None or outer is None or inner is None:
            return None, reason or "no sample is known there"
        return (n, axis, outer, inner), ""


def arrange(x: Tensor, samples: Samples, features: int) -> Tensor:
    """`x` as (N, T, *features): samples first, all other leading dimensions joined; a view where it can be."""
    n, axis, outer, inner = samples
    tail = x.shape[x.ndim - features :]
    if outer == 1:
        return x.movedim(axis, 0).reshape(n, -1, *tail)
    return x.unflatten(axis, (outer, n, inner)).movedim(axis + 1, 0).reshape(n, -1, *tail)


class Rule(abc.ABC):
    """How one kind of layer is measured. Subclasses are stateless but for what they read off the module once."""

    name: str

    def children(self, module: nn.Module) -> tuple[str, ...]:
        """Submodules whose parameters this rule measures too, for the module uses them without calling them."""
        return ()

    @abc.abstractmethod
    def forward(
        self, watcher: Watcher, module: nn.Module, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        """The module's output, with the measurement woven into its backward pass."""


Measures = dict[str, tuple[Tensor, Tensor]]
"""By local name: Σ‖g_n‖² and Σ g_n on waves, both 0-dim."""


class Tap(torch.autograd.Function):
    """Identity on a layer's output whose backward measures: the layer's own backward stays bit for bit.

    `measure(b, *saved)` returns the `Measures` of every parameter that trains.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, probe: Tensor, local: Any, measure: Any, *saved: Tensor | None) -> Tensor:
        ctx.save_for_backward(*saved)
        ctx.local, ctx.measure = local, measure
        return y.detach()

    @staticmethod
    def backward(ctx: Any, b: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        return (b, report(ctx.measure(b, *saved), ctx.local, b), None, None, *(None for _ in saved))


def report(measures: Measures, local: tuple[str, ...], like: Tensor) -> Tensor:
    """The probe's gradient: squares for each name in `local`, then what proves them, and a 1 to count the use."""
    zero, one = like.new_zeros((), dtype=torch.float64), like.new_ones((), dtype=torch.float64)
    given = [measures.get(name, (zero, zero)) for name in local]
    return torch.stack([*(squares.double() for squares, _ in given), *(sums.double() for _, sums in given), one])


def waves(index: Tensor) -> Tensor:
    """cos(i + 1/2) of whole numbers i: what the sum of a layer's samples is projected on, to be compared with .grad."""
    return torch.cos(index.to(torch.float32) + 0.5)


def on_waves(gradient: Tensor, start: int = 0) -> Tensor:
    """Σ_ij G_ij w_i w_j of a gradient whose first row is row `start` of the parameter's, as a 0-dim tensor."""
    wide = gradient if gradient.dtype == torch.float64 else gradient.float()
    matrix = wide if wide.ndim == 2 else wide.reshape(wide.shape[0] if wide.ndim else 1, -1)
    rows, columns = (torch.arange(size, device=matrix.device) for size in matrix.shape)
    # No products of matrices: where autocast is traced it is on in the backward pass, too, and would round them.
    by_row = (matrix * waves(columns).to(matrix.dtype)).sum(1)
    return (by_row * waves(rows + start).to(matrix.dtype)).sum()


def tap(watcher: Watcher, y: Tensor, measure: Any, *saved: Tensor | None) -> Tensor:
    """Put a `Tap` on `y`."""
    out: Tensor = Tap.apply(y, watcher.probe, watcher.local, measure, *saved)  # type: ignore[no-untyped-call]
    return out


__all__ = [
    "NO_SAMPLE",
    "WHAT_TO_DO",
    "Measures",
    "Rule",
    "Samples",
    "UnsupportedError",
    "Watcher",
    "arrange",
    "on_waves",
    "report",
    "sum_of_squares",
    "tap",
    "waves",
]
