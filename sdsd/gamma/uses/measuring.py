"""The mode that is on while the measured model runs forward: it sees every torch call, follows samples, finds uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.overrides import TorchFunctionMode, _pop_mode_temporarily

from ..following import (
    COMPOSITE,
    ENTRYWISE,
    PROPERTIES,
    SHAPE_ONLY,
    WRITING,
    Mixed,
    Part,
    Summed,
    Track,
    about_to_write,
    body,
    follow,
    layers_of,
    set_track,
    stated,
    take_over,
    track_of,
    using,
)
from .ledger import Pass
from .operand import SAMPLES, Operand, expanded, leaves_of, looked_up, unexpanded_of
from .rules import RULES, any_operation

if TYPE_CHECKING:
    from ..session import Session

_NOTHING = object()
_EXPANDING = {Tensor.expand, Tensor.expand_as, torch.broadcast_to, Tensor.broadcast_to}


class Measuring(TorchFunctionMode):
    """Follows one forward pass.

    Attributes:
        repeats: a non-reentrant checkpoint runs again: what it saves has to be saved alike, and nothing counts.
        inside_backward: a reentrant checkpoint runs again, and this time with gradients.
    """

    def __init__(self, session: Session, ledger: Pass, repeats: bool = False, inside_backward: bool = False) -> None:
        super().__init__()
        self.session, self.ledger = session, ledger
        self.repeats, self.inside_backward = repeats, inside_backward

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _LOOKS or (name == "__get__" and func.__self__.__name__ not in PROPERTIES):
            return func(*args, **kwargs)
        only: Tensor | None = None
        sampled = False
        apart: Mixed | Summed | Part | None = None
        parameters: list[Tensor] = []
        for tensor in _tensors(args[:1], {}) if name in SHAPE_ONLY else _tensors(args, kwargs):
            track = track_of(tensor)
            if track is None and tensor.requires_grad and tensor.grad_fn is not None and not stated(tensor):
                track = self._unseen(tensor)
            if track is None:
                if tensor.requires_grad:
                    parameters.append(tensor)
            elif isinstance(track, Track):
                only = None if sampled else tensor
                sampled = True
                grad_fn = tensor.grad_fn
                if grad_fn is not None and type(grad_fn).__name__ == "CheckpointFunctionBackward":
                    self._enter_reentrant(grad_fn)
            else:
                apart = track
        if torch._C._are_functorch_transforms_active():
            return self._transformed(func, args, kwargs)
        if func in WRITING and args:
            about_to_write(args[0])
        if not sampled and apart is None:
            out = func(*args, **kwargs)
            if parameters:
                self._note_source(func, args, kwargs, out)
            # Without gradients too, for this may be the inside of a user's function, whose output will have a history.
            if parameters or not torch.is_grad_enabled():
                follow(func, args, kwargs, out, self.ledger.n)
            return out
        if func in COMPOSITE:
            with self:
                return body(func)(*args, **kwargs)
        if not parameters:
            out = func(*args, **kwargs)
            if (
                apart is None
                and only is not None
                and func in ENTRYWISE
                and "out" not in kwargs
                and type(out) is Tensor
                and out.shape == only.shape
            ):
                take_over(out, only)  # the commonest case, spared the rules
                if out.grad_fn is not None:
                    out.grad_fn.metadata[SAMPLES] = True  # type: ignore[index]
                return out
            return self._follow(func, args, kwargs, out)
        if not torch.is_grad_enabled():
            self._count_hidden(parameters)
            return self._follow(func, args, kwargs, func(*args, **kwargs))
        if apart is not None:
            out = self._follow(func, args, kwargs, func(*args, **kwargs))
            if any(t.requires_grad for t in _tensors((out,), {})):
                self.lost([Operand(t, leaves_of(t, self.session)[0]) for t in parameters], apart)
            return out
        return self._use(func, args, kwargs, parameters)

    def _unseen(self, tensor: Tensor) -> Mixed | None:
        """Of a tensor with a history that no call of this pass wrote: samples may be in it, or are not."""
        hidden = leaves_of(tensor, self.session, unseen=True)[1]
        if hidden is not None:
            return Mixed(f"{hidden}, a function whose inside PyTorch does not show")
        set_track(tensor, None)
        return None

    def _transformed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Within vmap and the like samples are not followed, and no parameter that meets them is measured."""
        inputs = [layer for tensor in _tensors(args, kwargs) for layer in layers_of(tensor)]
        parameters = [t for t in inputs if t.requires_grad and track_of(t) is None]
        out = self._follow(func, args, kwargs, func(*args, **kwargs))
        if parameters and any(track_of(t) is not None for t in inputs):
            self.lost([Operand(t, leaves_of(t, self.session)[0]) for t in parameters], "a transform of torch.func")
        return out

    def _use(self, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
        """An operation of samples and parameters, by its rule. Whatever the rule does, the operation's result comes."""
        self.result: Any = _NOTHING
        rule = RULES.get(func, any_operation)
        try:
            return rule(self, func, args, kwargs, parameters)
        except torch.utils.checkpoint._StopRecomputationError:
            raise
        except Exception as error:
            if self.result is _NOTHING:
                # Either the operation itself is at fault, and says so again, or the rule is.
                self.result = func(*args, **kwargs)
            kind = getattr(func, "__name__", str(func))
            track = Mixed(f"torch's {kind} could not be measured ({type(error).__name__}: {error})")
            for tensor in _tensors((self.result,), {}):
                set_track(tensor, track)
            self.lost([Operand(t, leaves_of(t, self.session)[0]) for t in parameters], track)
            self._watch_mixing(list(_tensors((self.result,), {})), track)
            return self.result

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The operation itself, its output followed."""
        self.result = func(*args, **kwargs)
        return self._follow(func, args, kwargs, self.result)

    def _follow(self, func: Any, args: Any, kwargs: Any, out: Any) -> Any:
        try:
            mixed = follow(func, args, kwargs, out, self.ledger.n)
        except Exception as error:
            mixed = Mixed(f"torch's {getattr(func, '__name__', func)} with arguments that are not followed ({error})")
            for tensor in [args[0]] if out is None and args else _tensors((out,), {}):
                set_track(tensor, mixed)
        tensors = [args[0]] if out is None and args else list(_tensors((out,), {}))
        for tensor in tensors:
            if isinstance(tensor, Tensor) and track_of(tensor) is not None:
                node = tensor.grad_fn
                if node is not None:
                    node.metadata[SAMPLES] = True  # type: ignore[index]
        if mixed is not None:
            self._watch_mixing(tensors, mixed)
        return out

    def _watch_mixing(self, tensors: list[Tensor], mixed: Mixed) -> None:
        """Samples mix here: where a gradient comes back through it, no row before it is one sample's alone."""
        if self.repeats:
            return
        ledger, before = self.ledger, list(self.ledger.counts)
        for tensor in tensors:
            # A write into a view comes back through the whole tensor.
            for each in (tensor, tensor._base) if isinstance(tensor, Tensor) else ():
                if each is not None and each.grad_fn is not None:
                    each.register_hook(lambda grad: ledger.mixes(before, mixed.reason))

    def lost(self, operands: list[Operand], track: Any) -> None:
        """Samples cannot be told apart at an operation that reads these operands."""
        if isinstance(track, Summed):
            reason = f"it is joined with what no longer is of single samples (after {track.reason})"
        else:
            reason = (
                track.reason
                if isinstance(track, (Mixed, Part))
                else track
                if isinstance(track, str)
                else "no samples there"
            )
        for operand in operands:
            self.ledger.refuse([leaf.name for leaf in operand.leaves], reason)

    def _count_hidden(self, parameters: list[Tensor]) -> None:
        """Parameters read without gradients: a reentrant checkpoint will read them again, with."""
        if self.repeats or self.inside_backward:
            return
        for tensor in parameters:
            for leaf in leaves_of(tensor, self.session)[0]:
                self.ledger.count(leaf)

    @staticmethod
    def _note_source(func: Any, args: Any, kwargs: Any, out: Any) -> None:
        if (func in _EXPANDING and isinstance(out, Tensor)) or (
            func in (Tensor.repeat, torch.tile, Tensor.tile) and isinstance(out, Tensor) and _expands(args[0], out)
        ):
            expanded(out, unexpanded_of(args[0]))
        elif func is torch.nn.functional.embedding and isinstance(out, Tensor):
            ids, table = args[:2] if len(args) > 1 else (args[0], kwargs["weight"])
            padding = args[2] if len(args) > 2 else kwargs.get("padding_idx")
            frequency = args[5] if len(args) > 5 else kwargs.get("scale_grad_by_freq", False)
            if not frequency:
                padding = padding + table.shape[0] if padding is not None and padding < 0 else padding
                looked_up(out, table, ids, padding)

    def through_compiled(self, plain: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A compiled part of the model, into which no mode can look: it is measured module by module.

        Its samples are taken to lie in its outputs as they do in its first input that carries some.
        """
        carried = [(t, track_of(t)) for t in _deep_tensors((args, kwargs)) if track_of(t) is not None]
        for tensor, _ in carried:
            set_track(tensor, None)
        try:
            with _pop_mode_temporarily():
                out = plain(*args, **kwargs)
        finally:
            for tensor, track in carried:
                set_track(tensor, track)
        if carried:
            first, track = carried[0]
            for tensor in _deep_tensors(out):
                fits = isinstance(track, Track) and tensor.ndim > track.axis
                if fits and tensor.shape[track.axis] == first.shape[track.axis]:  # type: ignore[union-attr, index]
                    set_track(tensor, track)
                else:
                    set_track(tensor, Mixed("compiled code, whose output lies otherwise than its input"))
                if tensor.grad_fn is not None:
                    tensor.grad_fn.metadata[SAMPLES] = True  # type: ignore[index]
        return out

    def note_checkpoint(self) -> None:
        """Inside a non-reentrant checkpoint: let its second run be followed, so that it saves what the first saved."""
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
        if hooks is None or not getattr(hooks[0], "__qualname__", "").startswith("_checkpoint_hook"):
            return
        names = hooks[0].__code__.co_freevars
        if "frame" not in names:
            return
        frame = hooks[0].__closure__[names.index("frame")].cell_contents  # type: ignore[index]
        plain = frame.recompute_fn
        if getattr(plain, "_sdsd_followed", False):
            return
        session, ledger = self.session, self.ledger

        def followed(*args: Any, **kwargs: Any) -> Any:
            with carrying(ledger), Measuring(session, ledger, repeats=True):
                return plain(*args, **kwargs)

        followed._sdsd_followed = True  # type: ignore[attr-defined]
        frame.recompute_fn = followed

    def _enter_reentrant(self, node: Any) -> None:
        """A reentrant checkpoint runs its function again inside backward: let that run be measured."""
        plain = node.run_function
        if getattr(plain, "_sdsd_followed", False):
            return
        session, ledger = self.session, self.ledger
        inputs = list(node.inputs)
        for place, tensor in zip(node.tensor_indices, node.saved_tensors, strict=True):
            inputs[place] = tensor
        tracks = [track_of(each) if isinstance(each, Tensor) else None for each in inputs]

        def followed(*args: Any) -> Any:
            with carrying(ledger):
                for each, track in zip(args, tracks, strict=True):
                    if track is not None:
                        set_track(each, track)
                with Measuring(session, ledger, inside_backward=True):
                    return plain(*args)

        followed._sdsd_followed = True  # type: ignore[attr-defined]
        node.run_function = followed

    def outputs(self, out: Any) -> Iterator[Tensor]:
        """Tensors in what the model returned that train, with what is behind them taken note of."""
        for tensor in _deep_tensors(out):
            if tensor.grad_fn is not None and type(tensor.grad_fn).__name__ == "CheckpointFunctionBackward":
                self._enter_reentrant(tensor.grad_fn)
            if tensor.grad_fn is not None:
                yield tensor


@contextmanager
def carrying(ledger: Pass) -> Iterator[None]:
    """Inside, the model's inputs say where they carry samples."""
    with using(ledger.tracks):
        for place, (tensor, track) in enumerate(ledger.inputs):
            set_track(tensor, track, second=place > 0)
        yield


_LOOKS = frozenset(
    [
        "size",
        "dim",
        "stride",
        "numel",
        "is_contiguous",
        "element_size",
        "storage_offset",
        "data_ptr",
        "get_device",
        "is_floating_point",
        "is_complex",
        "nelement",
        "ndimension",
        "__len__",
        "_set_grad_enabled",
        "item",
        "tolist",
        "numpy",
        "__bool__",
        "__repr__",
        "__hash__",
        "__int__",
        "__float__",
        "__index__",
        "register_hook",
        "register_post_accumulate_grad_hook",
        "retain_grad",
        "backward",
        "is_pinned",
        "__contains__",
        "__format__",
        "is_inference",
        "requires_grad_",
        "has_names",
        "is_nonzero",
        "is_same_size",
    ]
)
"""Functions that only look at a tensor, by name."""


def _expands(base: Tensor, out: Tensor) -> bool:
    """Whether repeating `base` to `out` is what expanding it would be."""
    sizes = [1] * (out.ndim - base.ndim) + list(base.shape)
    return all(before in (1, after) for before, after in zip(sizes, out.shape, strict=True))


def _tensors(args: Any, kwargs: Any) -> Iterator[Tensor]:
    for value in args:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value, {})
    for value in kwargs.values():
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value, {})


def _deep_tensors(value: Any) -> Iterator[Tensor]:
    """Tensors in nested containers and in plain objects such as a ModelOutput."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _deep_tensors(each)
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _deep_tensors(each)
    elif hasattr(value, "__dict__") and not isinstance(value, (type, torch.nn.Module, Callable)):  # type: ignore[arg-type]
        for each in vars(value).values():
            if isinstance(each, (Tensor, dict, tuple, list)):
                yield from _deep_tensors(each)
