"""Call sites: a use that comes again and looks the same is made as it was made before, without being looked into.

What a rule decides about a call hangs on the function and its constants, on where its tensors carry samples, on their
shapes, strides, types and devices, on which parameters they are, on autocast and on what serves kernels, and on nothing
else. `site_of` holds all of that. Where a rule keeps a `Plan` under it, the next call with the same site is run by the
plan; the first difference leads back to the rule. Nothing is kept inside checkpoints and other hooks on saved tensors,
of rows, of operands that are computed, or where parameters are shards.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from torch import Tensor, nn

from ..following import Track, Verdict, rows_in_view
from .use import Measure, Saved, Use, alone, hook_on

if TYPE_CHECKING:
    from .ledger import Pass
    from .measuring import Measuring
    from .operand import Operand

MOST_PLANS = 5_000
_WHOLE = frozenset([Tensor, nn.Parameter])
_saving = torch._C._autograd._top_saved_tensors_default_hooks

Squares = Callable[..., "tuple[Tensor | float, ...] | None"]
"""squares(b, *saved) → Σ‖g_n‖² of every operand, found at once; None where the general way has to be gone."""


def site_of(call: tuple[Any, ...], values: Sequence[Any], parameters: list[Tensor], ledger: Pass) -> Any:
    """What decides how a call of samples and `parameters` is measured; None where no plan may.

    call: function, constants, tracks and shapes; values: its arguments, parameters among them.
    """
    if _saving(True) is not None or rows_in_view() is not None:
        return None
    site: list[Any] = [call]
    tensors = 0
    device = None
    for value in values:
        if isinstance(value, Tensor):
            if type(value) not in _WHOLE or value.layout is not torch.strided:
                return None
            tensors += 1
            if device is None:
                device = value.device
            elif device != value.device:
                return None
            site.append((value.dtype, value.stride()))
    if device is None or tensors != len(parameters) + 1:
        return None
    kind = device.type
    site.append(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None)
    site.append(ledger.backends.get(device) or ledger.backend_on(device))
    site.append(device)
    site.extend(map(id, parameters))
    return tuple(site)


class Plan:
    """A use of `operands`, each a parameter, by an operation whose output carries samples along `track`."""

    __slots__ = ("kind", "names", "operands", "squares", "track")

    def __init__(self, kind: str, operands: list[Operand], track: Verdict) -> None:
        self.kind, self.operands, self.track = alone(kind), operands, track
        self.names = [leaf.name for operand in operands for leaf in operand.leaves]
        self.squares: Squares | None = None

    def current(self, held: dict[int, Operand]) -> bool:
        """Whether the parameters still have the nodes that they had."""
        for operand in self.operands:
            if held.get(id(operand.tensor)) is not operand:
                break
        else:
            return True
        return False

    def run(self, mode: Measuring, func: Any, args: Any, kwargs: Any) -> Tensor:
        """The operation, followed and measured."""
        raise NotImplementedError

    def _begin(self, mode: Measuring, measure: Measure | None, saved: Saved | None) -> Use:
        ledger = mode.ledger
        counts, kinds, kind = ledger.counts, ledger.kinds, self.kind
        for name in self.names:
            counts[name] = counts.get(name, 0) + 1
            known = kinds.get(name)
            if known is not kind:
                kinds[name] = kind if known is None else known | kind
        return Use(mode, self.operands, measure, saved, self)


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
            out, saved = func(*args, **kwargs), args[:1]
        else:
            out, saved = self.save(*args, **kwargs)
        mode.result = out
        mode.ledger.tracks.held[id(out)] = (ref(out), self.track, False)
        use = self._begin(mode, self.measure, Saved(saved))
        if out._base is None and out._backward_hooks is None:
            # What Tensor.register_hook does.
            hooks: Any = OrderedDict(sdsd=use.fire)
            out._backward_hooks = hooks
            out.grad_fn._register_hook_dict(out)  # type: ignore[union-attr]
        else:
            hook_on(out, use)
        return out


class Joined(Plan):
    """An operation by a function of ours whose backward measures.

    call: (use, x) → its output, x the operation's argument number `place`; it holds no tensors but parameters.
    """

    __slots__ = ("call", "place")

    def __init__(
        self, kind: str, operands: list[Operand], track: Verdict, call: Callable[[Use, Tensor], Tensor], place: int = 0
    ) -> None:
        super().__init__(kind, operands, track)
        self.call, self.place = call, place

    def run(self, mode: Measuring, func: Any, args: Any, kwargs: Any) -> Tensor:
        out = self.call(self._begin(mode, None, None), args[self.place])
        mode.ledger.tracks.held[id(out)] = (ref(out), self.track, False)
        return out


def keep(mode: Measuring, plan: Plan) -> None:
    """Let the plan serve where the call that now runs comes again."""
    session, site = mode.session, mode.site
    if site is None or session.sharded or mode.hidden or type(plan.track) is not Track:
        return
    if all(len(operand.leaves) == 1 for operand in plan.operands) and plan.current(session.operands):
        if len(session.plans) >= MOST_PLANS:
            session.plans.clear()
        session.plans[site] = plan
