"""Call sites: a use that comes again and looks the same is made as it was made before, without being looked into.

What a rule decides about a call hangs on the function and its constants, on where its tensors carry samples, on their
shapes, strides, types and device, on which parameters they are, on autocast and on what serves kernels, and on nothing
else. `Measuring` puts all of that into the call's site. Where a rule keeps a `Plan` under it, the next call with that
site is run by the plan; the first difference leads back to the rule. A use has a site where one tensor with samples
meets parameters and no other tensor; not inside checkpoints and other hooks on saved tensors, and not of chosen rows.
Nothing is kept of operands that are computed, or where parameters are shards.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from torch import Tensor

from ..following import Track, Verdict
from .operand import SAMPLES, marked
from .use import Kept, Measure, Use, alone, hook_on, version_of

if TYPE_CHECKING:
    from .measuring import Measuring
    from .operand import Operand

MOST_PLANS = 5_000

Squares = Callable[..., "tuple[Tensor | float, ...] | None"]
"""squares(b, *saved) → Σ‖g_n‖² of every operand, found at once; None where the general way has to be gone."""


class Plan:
    """A use of `operands`, each a parameter, by an operation whose output carries samples along `track`.

    rows: of `Pass.norms`, one an operand.
    """

    __slots__ = ("kind", "names", "operands", "rows", "squares", "track")
    rows: list[int]

    def __init__(self, kind: str, operands: list[Operand], track: Verdict) -> None:
        self.kind, self.operands, self.track = alone(kind), operands, track
        self.names = [leaf.name for operand in operands for leaf in operand.leaves]
        self.squares: Squares | None = None

    def run(self, mode: Measuring, func: Any, args: Any, kwargs: Any) -> Tensor:
        """The operation, followed and measured."""
        raise NotImplementedError


class Watched(Plan):
    """An operation that stays as it is, with a hook on its output.

    save: the operation → its output and the tensors that `measure` needs; None: it is called, and its first argument
    saved. measure: of `Use`; it and `save` hold no tensors but parameters.
    """

    __slots__ = ("measure", "save")

    def __init__(
        self,
        kind: str,
        operands: list[Operand],
        track: Verdict,
        measure: Measure,
        save: Callable[..., tuple[Tensor, tuple[Tensor, ...]]] | None = None,
        squares: Squares | None = None,
    ) -> None:
        super().__init__(kind, operands, track)
        self.measure, self.save, self.squares = measure, save, squares

    def run(self, mode: Measuring, func: Any, args: Any, kwargs: Any) -> Tensor:
        if self.save is None:
            out, x = func(*args, **kwargs), args[0]
            kept: Kept = (x.detach(),), (x._version,)
        else:
            out, saved = self.save(*args, **kwargs)
            kept = tuple(map(Tensor.detach, saved)), tuple(map(version_of, saved))
        mode.ledger.tracks.held[id(out)] = (ref(out), self.track, False)
        use = Use(mode, self.operands, self.measure, kept, self)
        if out._base is None and out._backward_hooks is None:
            # What Tensor.register_hook does.
            node: Any = out.grad_fn
            hooks: Any = OrderedDict(sdsd=use.fire)
            out._backward_hooks = hooks
            use.hooks = ref(hooks)
            node._register_hook_dict(out)
            node.metadata[SAMPLES] = True
            return out
        hook_on(out, use)
        return marked(out)  # type: ignore[no-any-return]


class Joined(Plan):
    """An operation by a function of ours whose backward measures.

    call: (use, x) → its output, x the operation's argument number `place` in `dtype`, that of autocast, or in its own;
    it holds no tensors but parameters.
    """

    __slots__ = ("call", "dtype", "place")

    def __init__(
        self,
        kind: str,
        operands: list[Operand],
        track: Verdict,
        call: Callable[[Use, Tensor], Tensor],
        place: int = 0,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(kind, operands, track)
        self.call, self.place, self.dtype = call, place, dtype

    def run(self, mode: Measuring, func: Any, args: Any, kwargs: Any) -> Tensor:
        x = args[self.place]
        if self.dtype is not None:
            x = x.to(self.dtype)
        out = self.call(Use(mode, self.operands, None, None, self), x)
        mode.ledger.tracks.held[id(out)] = (ref(out), self.track, False)
        out.grad_fn.metadata[SAMPLES] = True  # type: ignore[union-attr, index]
        return out


def keep(mode: Measuring, plan: Plan) -> None:
    """Let the plan serve where the call that now runs comes again."""
    session, site = mode.session, mode.site
    if site is None or session.sharded or mode.hidden or type(plan.track) is not Track:
        return
    held = session.operands
    if all(len(each.leaves) == 1 and held.get(id(each.tensor)) is each for each in plan.operands):
        if len(session.plans) >= MOST_PLANS:
            session.plans.clear()
        plan.rows = [mode.ledger.rows[name] for name in plan.names]
        session.plans[site] = plan
