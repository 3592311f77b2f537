"""What all layer rules share: the watcher of one module, the tap on its output, samples out of any layout.

A rule turns a layer's input a and output gradient b into Σ_n ‖g_n‖² for each of its parameters, g_n being the
gradient that sample n contributes, and hands it to the session. Compiled code may not reach out like that: there the
number leaves the backward pass as the gradient of a `probe`, a small leaf tensor that no parameter list knows.

Where a layer is used more than once in a backward pass, or shares a parameter with another, squares do not add. Its
contributions are then kept until the backward pass ends and combined there (`Contribution.per_sample`).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..attachment import compiling

if TYPE_CHECKING:
    from ..session import Session


Plan = tuple[int, int]
"""Number of samples N, and the axis they lie along (their rows lie sample after sample where it is longer)."""


class UnsupportedError(ValueError):
    """A layer or a situation in which per-sample squares cannot be had exactly; the message says what to do."""


@dataclass
class Contribution:
    """What one use of a layer left behind for the end of the backward pass.

    `per_sample(start, stop)` yields (parameter name, per-sample gradients (stop − start, *shape)) for a range of
    samples; `factors`, where the gradient is a sum of outer products, lets a tied pair skip forming it.
    """

    samples: int
    per_sample: Callable[[int, int], Iterator[tuple[str, Tensor]]]
    factors: dict[str, tuple[str, Tensor, Tensor]]
    alone: dict[str, Tensor] = field(default_factory=dict)
    """Σ‖·‖² of this use by itself, where it was found on the way."""


class Watcher:
    """One monitored module: its name, its rule, its probe, and how often it ran in this pass."""

    def __init__(self, session: Session, module: nn.Module, name: str, rule: Rule, names: dict[str, str]) -> None:
        self.session, self.name, self.rule = session, name, rule
        self.names = names
        """Local parameter name → name in the report."""
        self.local = tuple(names)
        self.tied = False
        self.sizes = {local: module.get_parameter(local).numel() for local in names}
        self.calls = 0
        self.ran = False
        self.seen = False
        self.probe = torch.zeros(len(names) + 1, dtype=torch.float64, requires_grad=True)

    def prepare(self, device: torch.device) -> None:
        """Put the probe where the parameters are and let it announce each backward pass."""
        self.probe = torch.zeros(len(self.names) + 1, dtype=torch.float64, device=device, requires_grad=True)
        self.probe.register_hook(self.session.backward_runs)

    def forward(self, module: nn.Module, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """Runs in the place of the module's own forward, which is `plain`."""
        session = self.session
        if not session.measuring:
            return plain(*args, **kwargs)
        if not compiling():
            self.count()
        elif self.tied:
            raise UnsupportedError(
                f"{self.name}: shares a parameter with another layer, which needs an exchange between their backward "
                "passes that torch.compile cannot trace. Use mode='micro', or compile the layers in between."
            )
        if not torch.is_grad_enabled():
            return plain(*args, **kwargs)
        self.ran = True
        return self.rule.forward(self, module, plain, args, kwargs)

    def count(self) -> None:
        """Count a use; a forward pass that checkpointing repeats during backward is not a new one."""
        if self.session.counting and torch._C._current_graph_task_id() == -1:
            self.calls += 1
            self.seen = True

    @property
    def shared(self) -> bool:
        """Whether squares have to wait for the end of the backward pass."""
        return self.tied or self.calls > 1

    def route(self) -> tuple[Tensor | None, Watcher | None]:
        """How a layer's backward pass reports: (probe, None) in code that is being compiled, else (None, self)."""
        return (self.probe, None) if compiling() else (None, self)

    def trainable(self, module: nn.Module) -> tuple[bool, ...]:
        return tuple(module.get_parameter(local).requires_grad for local in self.local)

    def scale(self, local: str) -> Tensor | None:
        """The preconditioner D of a parameter, or None."""
        return self.session.scale(self.names[local])

    def scales(self) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
        """Names of the parameters that have a preconditioner, and those."""
        found = [(local, self.scale(local)) for local in self.local]
        held = [(local, scale) for local, scale in found if scale is not None]
        return tuple(local for local, _ in held), tuple(scale for _, scale in held)

    def plan(self, x: Tensor, features: int) -> Plan:
        """Where the samples of `x` are, whose last `features` dimensions are no sample axis; see `arrange`.

        Settled in the forward pass, where an error can name the layer, and kept for the backward pass.

        Raises:
            UnsupportedError: the sample axis does not have the size of the batch.
        """
        n, axis = self.session.batch, self.session.batch_dim
        leading = x.ndim - features
        if n is None:
            raise UnsupportedError(
                f"{self.name}: ran before the batch size was known. Call the whole model, or pass batch_size to the "
                "monitor."
            )
        if axis < leading and x.shape[axis] == n:
            return n, axis
        if leading == 1 and self.session.rows_allowed and x.shape[0] % n == 0:
            return n, 0
        hint = ""
        if leading == 1 and x.shape[0] % n == 0:
            hint = (
                f" Its {x.shape[0]} rows may be {n} samples of {x.shape[0] // n} positions each: if they lie sample "
                f"after sample, pass batch_size={n} to the monitor."
            )
        raise UnsupportedError(
            f"{self.name}: expected {n} samples along dimension {axis}, got input of shape {tuple(x.shape)}.{hint} "
            "Otherwise pass batch_dim, or use mode='micro', which needs no sample axis."
        )


def arrange(x: Tensor, plan: Plan, features: int) -> Tensor:
    """`x` as (N, T, *features): samples first, all other leading dimensions joined; a view where it can be."""
    n, axis = plan
    return x.movedim(axis, 0).reshape(n, -1, *x.shape[x.ndim - features :])


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


class Tap(torch.autograd.Function):
    """Identity on a layer's output whose backward measures: the layer's own backward stays bit for bit.

    `measure(b, *saved)` returns Σ‖g_n‖² for every parameter that trains, by local name; `keep(b, *saved)` a
    Contribution.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, probe: Tensor | None, watcher: Watcher | None, local: Any, measure: Any, keep: Any,
        *saved: Tensor | None,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(*saved)
        ctx.watcher, ctx.local, ctx.measure, ctx.keep = watcher, local, measure, keep
        return y.detach()

    @staticmethod
    def backward(ctx: Any, b: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        probe = None
        if ctx.watcher is not None and ctx.watcher.shared:
            ctx.watcher.session.keep(ctx.watcher, ctx.keep(b, *saved))
        else:
            probe = report(ctx.measure(b, *saved), ctx.watcher, ctx.local, b)
        return (b, probe, None, None, None, None, *(None for _ in saved))


def report(squares: dict[str, Tensor], watcher: Watcher | None, local: tuple[str, ...], like: Tensor) -> Tensor | None:
    """Hand squares (0-dim, by local name) to the session; without a watcher, return the probe's gradient.

    That has an entry for each name in `local`, and a 1 to count the use.
    """
    if watcher is not None:
        watcher.session.add(watcher, squares)
        return None
    zero, one = like.new_zeros((), dtype=torch.float64), like.new_ones((), dtype=torch.float64)
    return torch.stack([*(squares.get(name, zero).double() for name in local), one])


def tap(watcher: Watcher, y: Tensor, measure: Any, keep: Any, *saved: Tensor | None) -> Tensor:
    """Put a `Tap` on `y`."""
    out: Tensor = Tap.apply(y, *watcher.route(), watcher.local, measure, keep, *saved)  # type: ignore[no-untyped-call]
    return out


SAFE = (1e-20, 1e30)
"""Sums of squares in this range have lost nothing that counts to float32 underflow or overflow."""
FEW = 2**19
"""So many squares may be added up in float32, in eight sums or more, and agree with float64 to about 1e-7."""


def sum_of_squares(gradients: Tensor, scale: Tensor | None) -> Tensor:
    """Σ_n ‖D ∘ g_n‖², gradients (N, *shape), as a 0-dim float64 tensor; squares in float32 or better."""
    wide = gradients if gradients.dtype == torch.float64 else gradients.float()
    if scale is not None:
        wide = wide * scale
    if wide.device.type != "cpu":
        return torch.linalg.vector_norm(wide, dtype=torch.float64).square()
    if wide.numel() <= FEW:
        flat = wide.reshape(-1)
        return torch.dot(flat, flat).double()
    return torch.linalg.vector_norm(wide.reshape(wide.shape[0], -1), dim=1).double().square().sum()
