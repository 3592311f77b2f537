"""The mode that is on while the measured model runs forward: it sees every torch call, follows samples, finds uses."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch.utils.checkpoint
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..following import (
    SHAPE_ONLY,
    Mixed,
    Named,
    Occurring,
    Part,
    Rows,
    Single,
    Summed,
    Track,
    about_to_write,
    as_constants,
    batch_of,
    body,
    follow,
    here,
    indexes,
    is_packed_call,
    set_track,
    sorted_offsets,
    stated,
    track_of,
    with_offsets,
)
from . import checkpoints
from .calls import (
    BY_FIRST,
    CONSTANTS,
    IS_COMPOSITE,
    LOOKS_ONLY,
    PLAIN,
    QUICK,
    SEQUENCES,
    SORTS,
    WHOLE,
    WRITES,
    name_of,
    sort_of,
    spread,
)
from .ledger import Pass
from .opaque import hide_from_dynamo, transformed, user_function, within_another
from .operand import SAMPLES, Operand, leaves_of, marked, note_source
from .rules import RULES, any_operation, meets_a_likeness, one_by_one, spread_to_samples, spread_together, spreads
from .tensors import tensors_in

if TYPE_CHECKING:
    from ..monitor import Session

_NOTHING = object()
_saving = torch._C._autograd._top_saved_tensors_default_hooks
_any_autocast, _STRIDED = torch._C._is_any_autocast_enabled, torch.strided
MOST_CALLS = 20_000
"""So many calls are remembered by what they look like."""


class Measuring(TorchFunctionMode):
    """Follows one forward pass.

    Attributes:
        repeats: a non-reentrant checkpoint runs again: what it saves has to be saved alike, and nothing counts.
        inside_backward: a reentrant checkpoint runs again, and this time with gradients.
        hidden: parameters were read without gradients, as a reentrant checkpoint does when it first runs.
        call: what the call that now runs looks like, where that alone decides where its output carries samples.
        site: of the use that now runs, what a plan of it may be kept under.
    """

    def __init__(self, session: Session, ledger: Pass, repeats: bool = False, inside_backward: bool = False) -> None:
        self.session, self.ledger = session, ledger
        self.repeats, self.inside_backward = repeats, inside_backward
        self.hidden = inside_backward or repeats
        self.call: Any = None
        self.site: Any = None
        self.result: Any = _NOTHING

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        how = SORTS.get(func) or sort_of(func)
        if how is LOOKS_ONLY:
            return func(*args, **(kwargs or {}))
        kwargs = kwargs or {}
        if here.now is not self.ledger.tracks:
            return within_another(self, func, args, kwargs, how)
        if (
            how not in QUICK
            or "out" in kwargs
            or self.ledger.tracks.written
            or torch._C._are_functorch_transforms_active()
        ):
            return self._any_call(func, args, kwargs, how)
        # The common call, without Python calls of its own: where samples are is kept under what the call looks like.
        key: list[Any] = [func]
        values = args
        if kwargs:
            values = (*args, *kwargs.values())
            key.extend(kwargs)
        for value in values:
            if type(value) in SEQUENCES and (type(value) is slice or not WHOLE.issuperset(map(type, value))):
                values = spread(values)
                break
        held = self.ledger.tracks.held
        carriers = others = 0
        parameters: list[Tensor] = []
        for value in values:
            if isinstance(value, Tensor):
                if (how is BY_FIRST and len(key) > 1) or value.layout is not _STRIDED:
                    return self._any_call(func, args, kwargs, how)
                if type(value) not in PLAIN:
                    others += 1
                entry = held.get(id(value))
                if entry is None or entry[0]() is not value:
                    if value.requires_grad:
                        if value.grad_fn is not None:
                            return self._any_call(func, args, kwargs, how)
                        parameters.append(value)
                    else:
                        others += 1
                    track = None
                elif entry[2]:
                    return self._any_call(func, args, kwargs, how)
                else:
                    track = entry[1]
                    if track is None:
                        if value.requires_grad:
                            parameters.append(value)
                        else:
                            others += 1
                    elif type(track) is Track:
                        carriers += 1
                    else:
                        return self._any_call(func, args, kwargs, how)
                key.append((track, value.shape, value.stride(), value.dtype, type(value)))
            elif type(value) in CONSTANTS:
                # True and 1 are equal, and mean different things.
                key.append((bool, value) if type(value) is bool else value)
            elif type(value) in SEQUENCES:
                key.append((type(value), *value))
            else:
                return self._any_call(func, args, kwargs, how)
        if not carriers and not parameters and torch.is_grad_enabled():
            return func(*args, **kwargs)
        if not carriers or self.hidden or (parameters and not torch.is_grad_enabled()):
            return self._any_call(func, args, kwargs, how)
        call = (self.ledger.n, *key)
        if parameters:
            self.call = call
            if carriers > 1 or others or _saving(True) is not None or here.through is not None:
                return self._use(func, args, kwargs, parameters)
            # What decides, beside the call, how a use is made: see plans.py.
            device = parameters[0].device
            casts = _any_autocast() and torch.is_autocast_enabled(device.type)
            autocast = torch.get_autocast_dtype(device.type) if casts else None
            backend = self.ledger.backends.get(device) or self.ledger.backend_on(device)
            site = (call, autocast, backend, device, *map(id, parameters))
            plan = self.session.plans.get(site)
            if plan is None:
                self.site = site
                return self._use(func, args, kwargs, parameters)
            try:
                return plan.run(self, func, args, kwargs)
            except Exception as error:
                return self._unmeasured(func, args, kwargs, parameters, error)
        out = func(*args, **kwargs)
        known = self.session.calls.get(call)
        if known is None:
            self.call = call
            return self.follow(func, args, kwargs, out)
        if type(known) is Track:
            held[id(out)] = (ref(out), known, False)
        else:
            for tensor, track in zip(out, known, strict=True):
                held[id(tensor)] = (ref(tensor), track, False)
        return out

    def _any_call(self, func: Any, args: Any, kwargs: Any, how: str) -> Any:
        """Any call that is more than a look at a tensor."""
        self.call = None
        sampled = False
        apart: Mixed | Summed | Part | None = None
        parameters: list[Tensor] = []
        rows: list[Any] = []
        named: list[tuple[Tensor, Named]] = []
        for tensor in tensors_in(args[:1], {}) if name_of(func) in SHAPE_ONLY else tensors_in(args, kwargs):
            track = track_of(tensor)
            if track is None and tensor.requires_grad and tensor.grad_fn is not None and not stated(tensor):
                track = self._unseen(tensor)
            if tensor.requires_grad and (track is None or type(track) is Named):
                parameters.append(tensor)
            if isinstance(track, Track):
                sampled = True
                rows.append(None)
            elif isinstance(track, (Rows, Single)):
                sampled = True
                rows.append(track.owners if isinstance(track, Rows) else track)
            elif isinstance(track, Named):
                named.append((tensor, track))
            elif isinstance(track, Occurring):
                if not indexes(func, args):
                    apart = Mixed(track.reason)
            elif track is not None:
                apart = track
        if torch._C._are_functorch_transforms_active():
            return transformed(self, func, args, kwargs)
        if how is WRITES and args and torch.is_grad_enabled():
            about_to_write(args[0])
        if func is Tensor.expand_as and parameters and spreads(args):
            return spread_to_samples(self, *args)
        if not sampled and apart is None and not (parameters and meets_a_likeness(func, args)):
            out = func(*args, **kwargs)
            if parameters:
                note_source(func, args, kwargs, out)
            # Of what parameters became, too: this may be the inside of a user's function, whose output has a history.
            if parameters or (not torch.is_grad_enabled() and any(map(stated, tensors_in(args, kwargs)))):
                follow(func, args, kwargs, out, self.ledger.n)
            return out
        if how is IS_COMPOSITE:
            with self:
                return body(func)(*args, **kwargs)
        if not parameters:
            return self.follow(func, args, kwargs, func(*args, **kwargs))
        if not torch.is_grad_enabled():
            self._count_hidden(parameters)
            return self.follow(func, args, kwargs, func(*args, **kwargs))
        if Single in map(type, rows):
            return self._use(func, args, kwargs, parameters, one_by_one(func, rows, named or apart))
        if func is torch._grouped_mm and isinstance(apart, Mixed) and sorted_offsets(args, kwargs) is not None:
            apart = None
        if named and None in rows:
            apart = Mixed(f"{named[0][1].reason}, and what belongs to that meets samples which it may not occur in")
        if with_offsets(func, args, kwargs) is not None or is_packed_call(func, args):
            return self._use(func, args, kwargs, parameters)
        if apart is not None:
            out = marked(self.follow(func, args, kwargs, func(*args, **kwargs)))
            if any(t.requires_grad for t in tensors_in((out,), {})):
                self.lost([Operand(t, leaves_of(t, self.session)[0]) for t in parameters], apart)
            return out
        if any(owners is not None for owners in rows):
            with as_constants(tensor for tensor, _ in named):
                return self._use_of_rows(func, args, kwargs, parameters, rows)
        return self._use(func, args, kwargs, parameters)

    def _use_of_rows(self, func: Any, args: Any, kwargs: Any, parameters: list[Tensor], owners: list[Any]) -> Any:
        """An operation of chosen rows and parameters: that of a batch of rows, whose gradients are added by sample."""
        if any(each is not owners[0] for each in owners):
            out = marked(self.follow(func, args, kwargs, func(*args, **kwargs)), args)
            self.lost([Operand(t, leaves_of(t, self.session)[0]) for t in parameters], "it meets rows chosen otherwise")
            return out
        n = self.ledger.n
        self.ledger.n = len(owners[0].samples)
        try:
            with batch_of(owners[0]):
                return self._use(func, args, kwargs, parameters)
        finally:
            self.ledger.n = n

    def _unseen(self, tensor: Tensor) -> Mixed | None:
        """Of a tensor with a history that no call of this pass wrote: samples may be in it, or are not."""
        leaves, hidden = leaves_of(tensor, self.session, unseen=True)
        if hidden is not None:
            return Mixed(f"{hidden}, a function whose inside PyTorch does not show")
        node: Any = tensor.grad_fn
        own = self.inside_backward or isinstance(node, torch.autograd.function.BackwardCFunction)
        if not own and node._sequence_nr() >= self.ledger.began:
            why = f"{node.name()} of code that PyTorch does not show while it runs (TorchScript, C++)"
            self.ledger.refuse([leaf.name for leaf in leaves], why)
            return Mixed(why)
        set_track(tensor, None)
        return None

    def _use(self, func: Any, args: Any, kwargs: Any, parameters: list[Tensor], rule: Any = None) -> Any:
        """An operation of samples and parameters, by its rule. Whatever the rule does, the operation's result comes."""
        if func is torch.broadcast_tensors:  # joins nothing
            return spread_together(self, args)
        try:
            out = (rule or RULES.get(func, any_operation))(self, func, args, kwargs, parameters)
            if type(out) is not Tensor or out._base is not None:
                return marked(out, args)
            if out.grad_fn is not None:
                out.grad_fn.metadata[SAMPLES] = True  # type: ignore[index]
            return out
        except torch.utils.checkpoint._StopRecomputationError:
            raise
        except Exception as error:
            return self._unmeasured(func, args, kwargs, parameters, error)
        finally:
            self.site = None
            self.result = _NOTHING  # the graph holds this mode: with its output in here, neither would ever be freed

    def _unmeasured(self, func: Any, args: Any, kwargs: Any, parameters: list[Tensor], error: Exception) -> Any:
        """The operation's result, where measuring it failed."""
        # Either the operation itself is at fault, and says so again, or what measures it is.
        result = func(*args, **kwargs) if self.result is _NOTHING else self.result
        self.call = None
        track = Mixed(f"torch's {name_of(func) or func} could not be measured ({type(error).__name__}: {error})")
        for tensor in tensors_in((result,), {}):
            set_track(tensor, track)
        self.lost([Operand(t, leaves_of(t, self.session)[0]) for t in parameters], track)
        self.watch_mixing(list(tensors_in((result,), {})), track)
        return marked(result, args)

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The operation itself, its output followed."""
        self.result = func(*args, **kwargs)
        return self.follow(func, args, kwargs, self.result)

    def follow(self, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
        call, self.call = self.call, None
        known = None if call is None else self.session.calls.get(call)
        if known is not None:
            held = self.ledger.tracks.held
            for tensor, track in ((out, known),) if type(known) is Track else zip(out, known, strict=True):
                held[id(tensor)] = (ref(tensor), track, False)
            return out
        try:
            mixed = follow(func, args, kwargs, out, self.ledger.n)
        except Exception as error:
            mixed = Mixed(f"torch's {getattr(func, '__name__', func)} with arguments that are not followed ({error})")
            for tensor in [args[0]] if out is None and args else tensors_in((out,), {}):
                set_track(tensor, mixed)
        if mixed is not None:
            written = bool(args) and (out is None or out is args[0])
            tensors = [args[0]] if written else list(tensors_in((out,), {}))
            seen = {id(base) for t in tensors_in(args, kwargs) for base in (t, t._base)} if not written else set()
            self.watch_mixing(tensors, mixed, seen)
        elif call is not None:
            self._remember(call, out)
        return out

    def _remember(self, call: Any, out: Any) -> None:
        """Keep where a call put the samples, for the next one that looks the same."""
        tensors = [out] if type(out) is Tensor else list(out) if type(out) in (tuple, list) else []
        if tensors and all(type(t) is Tensor for t in tensors):
            tracks = [track_of(t) for t in tensors]
            if all(type(track) is Track for track in tracks):
                if len(self.session.calls) > MOST_CALLS:
                    self.session.calls.clear()
                self.session.calls[call] = tracks[0] if type(out) is Tensor else tracks

    def watch_mixing(self, tensors: list[Tensor], mixed: Mixed, seen: Collection[int] = ()) -> None:
        """Samples mix here: where a gradient comes back through it, no row before it is one sample's alone.

        seen: ids of tensors that were there before, and that a view of them says nothing of.
        """
        if self.repeats:
            return
        if not torch.is_grad_enabled():
            self._note_reentrant()
        ledger, before = self.ledger, list(self.ledger.counts)
        for tensor in tensors:
            # After a write into a view gradients come back through the whole tensor.
            for each in (tensor, tensor._base) if isinstance(tensor, Tensor) else ():
                if each is not None and each.grad_fn is not None and (each is tensor or id(each) not in seen):
                    each.register_hook(lambda grad: ledger.mixes(before, mixed.reason))

    def lost(self, operands: list[Operand], track: Any) -> None:
        """Samples cannot be told apart at an operation that reads these operands."""
        if isinstance(track, Summed):
            reason = f"it is joined with what no longer is of single samples (after {track.reason})"
        elif isinstance(track, (Mixed, Part)):
            reason = track.reason
        else:
            reason = track if isinstance(track, str) else "no samples there"
        for operand in operands:
            self.ledger.refuse([leaf.name for leaf in operand.leaves], reason)

    def _count_hidden(self, parameters: list[Tensor]) -> None:
        """Parameters read without gradients: a reentrant checkpoint will read them again, with."""
        self.hidden = True
        self._note_reentrant()
        if self.repeats or self.inside_backward:
            return
        for tensor in parameters:
            for leaf in leaves_of(tensor, self.session)[0]:
                self.ledger.count(leaf)
                if leaf.name not in self.session.within and (function := user_function()) is not None:
                    self.session.within[leaf.name] = function

    def note_checkpoint(self) -> None:
        """Inside a non-reentrant checkpoint: let its second run be followed, so that it saves what the first saved."""
        checkpoints.follow_second_run(self.ledger, lambda: Measuring(self.session, self.ledger, repeats=True))

    def _note_reentrant(self) -> None:
        """Without gradients: reentrant checkpoints run their function again inside backward, to be measured there."""
        session, ledger = self.session, self.ledger
        if not self.repeats:
            checkpoints.follow_reentrant(ledger, lambda: Measuring(session, ledger, inside_backward=True))


hide_from_dynamo(Measuring.__torch_function__)
