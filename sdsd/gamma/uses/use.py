"""A use: one operation that joined samples with parameters, and how it learns of its output's gradient.

A hook on the output tells the gradient; nothing is put into the graph, so training computes what it would compute
without. Inputs that the measurement needs are saved as autograd saves its own: through the saved-tensor hooks in
force, so that checkpointing and offloading keep their promise.
"""

from __future__ import annotations

import functools
import operator
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..following import Rows, Single, Track, rows_in_view, track_of
from .grouping import of_samples
from .operand import ANNOUNCED, Operand, leaves_of
from .pieces import Dense, Piece

if TYPE_CHECKING:
    from .measuring import Measuring
    from .plans import Plan

_will_execute = torch._C._will_engine_execute_node
_current_task = torch._C._current_graph_task_id
_keeps_graph = torch._C._autograd._get_current_graph_task_keep_graph
_profiling, _with_gradients = torch.autograd._profiler_enabled, torch.is_grad_enabled
_any_autocast = torch._C._is_any_autocast_enabled
Measure = Callable[..., Iterable[tuple[int, Piece]]]
"""measure(b, *saved) → (index of the operand, its piece); b the output's gradient."""


ROWS = "chosen rows"
"""What `operands_of` calls hidden while rows are the samples: functions that find gradients and squares together, which
ask it, know of whole samples alone."""


class Saved:
    """Tensors kept for the backward pass, by the saved-tensor hooks in force."""

    __slots__ = ("packed", "unpack", "versions")

    def __init__(self, tensors: Iterable[Tensor | None]) -> None:
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
        self.packed: list[Any] = []
        self.versions: list[int] = []
        self.unpack = None if hooks is None else hooks[1]
        for tensor in tensors:
            if tensor is None:
                self.packed.append(None)
                self.versions.append(0)
            else:
                held = tensor.detach()
                self.packed.append(held if hooks is None else hooks[0](held))
                self.versions.append(held._version)

    def load(self) -> list[Tensor | None]:
        if self.unpack is not None:
            return [None if each is None else self.unpack(each) for each in self.packed]
        for tensor, version in zip(self.packed, self.versions, strict=True):
            if tensor is not None and tensor._version != version:
                raise ChangedError
        return self.packed


Kept = tuple[tuple[Tensor, ...], tuple[int, ...]]
"""What a plan saves, where no hooks on saved tensors are in force: detached tensors, and their versions."""
version_of = operator.attrgetter("_version")


class ChangedError(Exception):
    """An input was changed in place after it was used."""


class Use:
    """One operation of one forward pass that joined samples with parameters; one that a plan makes counts itself.

    Attributes:
        alone: of a planned use that is `wanted`, whether squares are all that is asked of it, of all its parameters.
    """

    __slots__ = ("alone", "fired", "hooks", "measure", "mode", "operands", "owners", "part", "place", "plan", "saved")
    fired: int | None
    hooks: Callable[[], Any] | None
    part: Callable[[Tensor], Tensor] | None

    def __init__(
        self,
        mode: Measuring,
        operands: list[Operand],
        measure: Measure | None,
        saved: Saved | Kept | None,
        plan: Plan | None = None,
    ) -> None:
        self.mode, self.operands, self.measure, self.saved, self.plan = mode, operands, measure, saved, plan
        self.fired, self.alone, self.hooks, self.part, self.place = None, False, None, None, 0
        if plan is None:
            self.owners = rows_in_view()
            return
        self.owners = None
        counts, kinds, kind = mode.ledger.counts, mode.ledger.kinds, plan.kind
        for name in plan.names:
            counts[name] = counts.get(name, 0) + 1
            known = kinds.get(name)
            if known is not kind:
                kinds[name] = kind if known is None else known | kind

    @property
    def names(self) -> list[str]:
        return [leaf.name for operand in self.operands for leaf in operand.leaves]

    def of_none(self) -> bool:
        """Whether it is of chosen rows, and none was chosen."""
        return self.owners is not None and not len(self.owners.samples)

    def wanted(self) -> bool:
        """Whether this backward pass is to be measured here: it runs for a batch, and reaches .grad."""
        session, ledger = self.mode.session, self.mode.ledger
        if session.pauses or not session.planned:
            if torch.is_grad_enabled():
                ledger.differentiate(session.direction)
            return False
        reached, counts = False, ledger.counts
        alone = self.plan is not None and ledger.directions is None and not ledger.scaled and ledger.peers is None
        for operand in self.operands:
            leaves = operand.leaves
            if len(leaves) == 1:
                # As Operand.wanted, without its price.
                try:
                    here = _will_execute(leaves[0].node)
                except RuntimeError:
                    here = False
                if here or (operand.tensor.grad_fn is None and leaves[0].reached()):
                    operand.reached, reached = leaves, True
                    alone = alone and counts[leaves[0].name] == 1
                else:
                    operand.reached, alone = [], False
            elif operand.wanted():
                reached = True
        if not reached:
            if torch.is_grad_enabled():
                ledger.differentiate(session.direction)
            return False
        inner = _current_task()
        task = inner if session._outer is None else session._outer
        if task not in session._begun or inner not in session._open or inner not in ledger.open:
            task = session.enter_task(ledger)
        if self.fired is not None and self.fired in ledger.tasks:
            ledger.trouble = "repeated"
            return False
        self.fired, self.alone = task, alone
        ledger.tasks.add(task)
        return True

    def fire(self, b: Tensor) -> None:
        """The gradient of the output has come."""
        hooks = None if self.hooks is None else self.hooks()
        if hooks is not None and len(hooks) > 1 + (ANNOUNCED in hooks):
            self._wait()
            return
        if self.part is not None:
            b = self.part(b)
        if not self.wanted():
            return
        if not _profiling() and not _with_gradients() and not _any_autocast():
            return self._deliver(b)
        with torch.profiler.record_function("GammaMonitor.squares"), torch.no_grad(), without_autocast():
            return self._deliver(b)

    def _wait(self) -> None:
        """Fire after hooks of the user's, which may change the gradient, and before the node of the output runs."""
        hooks, self.hooks = self.hooks, None

        def last(gradients: tuple[Tensor | None, ...]) -> None:
            handle.remove()
            gradient = gradients[self.place]
            if gradient is not None:
                self.fire(gradient)
            self.hooks = hooks

        handle = torch._C._current_autograd_node().register_prehook(last)  # type: ignore[attr-defined]

    def _deliver(self, b: Tensor) -> None:
        ledger = self.mode.ledger
        try:
            assert self.saved is not None
            assert self.measure is not None
            saved: Sequence[Tensor | None]
            if isinstance(self.saved, tuple):
                saved, versions = self.saved
                if tuple(map(version_of, saved)) != versions:
                    raise ChangedError
            else:
                saved = self.saved.load()
            self.saved = self.saved if _keeps_graph() else None
            if self.alone and self.plan is not None and self.plan.squares is not None:
                squares = self.plan.squares(b, *saved)
                if squares is not None:
                    ledger.taken.append((self, b.dtype, squares))
                    return
            ledger.begin(self, b.dtype)
            for index, piece in self.measure(b, *saved):
                operand = self.operands[index]
                if self.owners is not None:
                    piece = of_samples(piece, self.owners.samples, ledger.n, operand.base.shape, ledger.max_bytes)
                operand.deliver(ledger, piece)
        except ChangedError:
            ledger.refuse(self.names, "what it was applied to was changed in place afterwards")
        except Exception as error:
            self.failed(error)

    def failed(self, error: Exception) -> None:
        """Measuring failed: training goes on, and the step says what happened."""
        self.mode.ledger.refuse(self.names, f"its samples could not be measured ({type(error).__name__}: {error})")


def operands_of(mode: Measuring, tensors: list[Tensor], unexpanded: bool = False) -> tuple[list[Operand], str | None]:
    """Operands, and the operation through which samples reached one of them unseen, or None."""
    operands, hidden = [], None
    for tensor in tensors:
        operand = mode.session.operand_of(tensor) if tensor.grad_fn is None else None
        if operand is None:
            leaves, through = leaves_of(tensor, mode.session)
            operand = Operand(tensor, leaves, unexpanded)
            hidden = hidden or through
        operands.append(operand)
    if rows_in_view() is not None:
        hidden = hidden or ROWS
    return operands, hidden


def register(mode: Measuring, operands: list[Operand], kind: str) -> Use:
    """Count a use of the parameters behind `operands`."""
    use = Use(mode, operands, None, None)
    if mode.repeats:
        return use
    counts, kinds = mode.ledger.counts, mode.ledger.kinds
    for operand in operands:
        # Inside a reentrant checkpoint only parameters as they are were counted when it first ran.
        uses = 1 if not mode.inside_backward else 0 if operand.direct else 2
        for leaf in operand.leaves:
            counts[leaf.name] = counts.get(leaf.name, 0) + uses
            known = kinds.get(leaf.name)
            if known is None:
                kinds[leaf.name] = alone(kind)
            elif kind not in known:
                kinds[leaf.name] = known | {kind}
    return use


def joined(mode: Measuring, weight: Tensor, bias: Tensor | None, kind: str) -> Use | None:
    """The use of a weight and a bias by an operation whose own backward measures; None where that cannot be."""
    operands, hidden = operands_of(mode, [weight] if bias is None or not bias.requires_grad else [weight, bias])
    if hidden is not None or not operands[0].leaves:
        return None
    mode.note_checkpoint()
    return register(mode, operands, kind)


@contextmanager
def without_autocast() -> Iterator[None]:
    """Sums of samples are not rounded to half precision where a backward pass is called inside of autocast."""
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast casts `x` to; None where it is off, and of float64, which it leaves alone."""
    device = x.device.type
    casts = torch.is_autocast_enabled(device) and x.dtype != torch.float64
    return torch.get_autocast_dtype(device) if casts else None


@functools.cache
def alone(kind: str) -> frozenset[str]:
    """A set of one kind, the same object every time."""
    return frozenset([kind])


def watch(
    mode: Measuring,
    kind: str,
    out: Tensor,
    tensors: list[Tensor],
    saved: Iterable[Tensor | None],
    measure: Measure,
    *,
    unexpanded: bool = False,
) -> list[Operand]:
    """Measure an operation with output `out` that read `tensors`, computed from parameters alone.

    `unexpanded`: the pieces are of what the tensors are expansions of. Where the samples of `out` cannot be told apart,
    the parameters are refused by name. Returns the operands, if there is something to measure.
    """
    if not out.requires_grad:
        return []
    operands, hidden = operands_of(mode, tensors, unexpanded)
    if hidden is ROWS:
        hidden = None
    for operand in operands:
        if operand.leaves:
            break
    else:
        return []
    track = track_of(out)
    if hidden is not None or not isinstance(track, (Track, Rows, Single)):
        mode.lost(operands, f"samples go through {hidden}, which is not followed" if hidden else track)
        return []
    mode.note_checkpoint()
    use = register(mode, operands, kind)
    use.measure, use.saved = _of_no_rows(operands) if use.of_none() else measure, Saved(saved)
    if not mode.repeats:
        hook_on(out, use)
    return operands


def _of_no_rows(operands: list[Operand]) -> Measure:
    """What no rows bring to operands, in the place of a measure that may fail for want of a row."""
    return lambda *_: ((k, Dense(each.base.detach().new_zeros(0, 1))) for k, each in enumerate(operands))


def hook_on(out: Tensor, use: Use) -> None:
    """Let `use` hear of the gradient of `out`."""
    whole, use.part = _written(out)
    whole.register_hook(use.fire)
    use.hooks, use.place = weakref.ref(whole._backward_hooks), whole.output_nr  # type: ignore[type-var]


def _written(out: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor] | None]:
    """The tensor through which the gradient of `out` comes, and how to cut it out of that one's.

    Of a view, as einsum returns, that is what it is a view of: once somebody writes into the view, or another of the
    same memory, no gradient comes through the view itself any more. Into an expansion nobody can write.
    """
    base = out._base
    return (out, None) if base is None or base.grad_fn is None else _through(base, out)


def _through(base: Tensor, out: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor] | None]:
    whole, shape, strides = base.stride(), out.shape, out.stride()
    # What lies in memory without gaps, in any order of its dimensions, is made again just so.
    if torch.empty_like(base, device="meta").stride() != whole or 0 in strides:
        return out, None
    offset = out.storage_offset() - base.storage_offset()

    def cut(grad: Tensor) -> Tensor:
        if grad.stride() != whole:
            grad = torch.empty_strided(grad.shape, whole, dtype=grad.dtype, device=grad.device).copy_(grad)
        # A gradient that is one of several in a row begins anywhere in their memory.
        return grad.as_strided(shape, strides, grad.storage_offset() + offset)

    return base, cut
