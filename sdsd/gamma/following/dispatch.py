"""`follow`: from the samples of a call's inputs to those of its outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import (  # noqa: F401  (they enter their rules)
    bags,
    indexing,
    layers,
    occurring,
    products,
    reductions,
    shapes,
    singles,
    tracks,
)
from .constants import as_constants, constant_from_here_on, made_like, written
from .elementwise import copied, elementwise, fill, first, fresh, set_data
from .independence import tested
from .packed import sequences
from .reductions import chosen
from .rows import chosen as chosen_rows
from .rows import of_one_row, on_rows, sorted_offsets
from .shapes import cat, expand, together, view
from .sums import linear_in
from .table import ALIASES, RULES, SECOND_ALLOWED, Call, called, name_of
from .tracks import (
    Mixed,
    Named,
    Occurring,
    Owners,
    Part,
    Rows,
    Single,
    Summed,
    Track,
    Verdict,
    batch_of,
    is_second,
    known,
    newly_mixed,
    rows_in_view,
    set_track,
    set_written,
    tensors_in,
    track_of,
)

NOTHING = {type(None)}
SAMPLES_ALONE = {type(None), Track}

WRITERS = {torch.Tensor.__setitem__, torch.Tensor.data.__set__}  # type: ignore[attr-defined]
"""Functions that return nothing and write into their first argument."""

WITHOUT_TENSORS = {bool, int, float, complex, str, torch.Size, torch.dtype, torch.device}

UNWRITTEN = {torch.empty, torch.empty_like, torch.empty_strided, torch.empty_permuted} | {
    torch.Tensor.new_empty,
    torch.Tensor.new_empty_strided,
}
"""Memory that holds nothing yet; what fills it may be out of sight."""

NOT_FIRST = {"condition", "sorted_sequence"}
"""Arguments that come before one that is called input."""
REGROUPING = {indexing.getitem, indexing.index_select, layers.recurrent, bags.bag}
PACKING = {torch._pack_padded_sequence, torch._pad_packed_sequence}

READS: dict[Any, slice] = {
    **dict.fromkeys((first, view, expand), slice(0, 1)),
    **dict.fromkeys((copied, fill, set_data), slice(1, None)),
    fresh: slice(0, 0),
}
"""Which arguments' values a rule's functions read, where it is not all of them."""


class Seen(NamedTuple):
    """A call that was seen and ran, the rule of its function if there is one, and the samples in the batch."""

    rule: Any
    func: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    out: Any
    n: int


def _by_place(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The arguments of a call, `input` first where it is given by name and comes first."""
    if args or "input" not in kwargs or kwargs.keys() & NOT_FIRST:
        return args, kwargs
    return (kwargs["input"],), {name: each for name, each in kwargs.items() if name != "input"}


def follow(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None, out: Any, n: int) -> Mixed | None:
    """Set where each tensor of `out` carries the samples, from the tensors among the arguments.

    func, args, kwargs: a call that a `TorchFunctionMode` saw and ran; out: what it returned; n: samples in the batch.
    To be called for every call with an argument that depends on samples, is mixed, or has a history. A `Track` is set
    only where every entry depends on the sample that its index says and on no other.

    Returns:
        `Mixed` where this call is the one that mixes samples, or mixes more of them.
    """
    if type(out) in WITHOUT_TENSORS or func in UNWRITTEN:
        return None
    args, kwargs = _by_place(args, kwargs or {})
    if torch._C._are_functorch_transforms_active():
        return transformed(func, args, kwargs, out)
    rule = RULES.get(func)
    if rule is None:
        rule = rule_of_overload(func)
    inputs: list[Tensor] = []
    for a in args[READS[rule]] if args and rule in READS else args:
        if isinstance(a, Tensor):
            inputs.append(a)
        elif isinstance(a, (tuple, list, dict)):
            inputs += tensors_in(a)
    if kwargs and (rule not in READS or not args):
        inputs += tensors_in({name: value for name, value in kwargs.items() if name != "out"})
    verdicts = [known(x) for x in inputs]
    own = type(out) is Tensor and not (args and out is args[0]) and "out" not in kwargs
    verdict: Any = simple(inputs, verdicts, out) if rule is elementwise and own else None
    if verdict is None or not fits(verdict, out, n):
        kinds = {type(v) for v in verdicts}
        seen = Seen(rule, func, args, kwargs, out, n)
        if Named in kinds or (Occurring in kinds and occurring.indexes(func, args)):
            named = [(x, v) for x, v in zip(inputs, verdicts, strict=True) if isinstance(v, (Named, Occurring))]
            with as_constants(x for x, _ in named):
                mixed = follow(func, args, kwargs, out, n)
            occurring.name_outputs(out, named[0][1].reason)
            return mixed
        if Single in kinds:
            return state(seen, singles.met(rule, func, args, kwargs, out, n, inputs=inputs))
        if func is torch._grouped_mm and Mixed in kinds and (offsets := sorted_offsets(args, kwargs)) is not None:
            with as_constants([offsets]):
                return follow(func, args, kwargs, out, n)
        if (rule in REGROUPING or func in PACKING) and (regrouped := regroup(seen, kinds)) is not None:
            return state_regrouped(seen, regrouped, inputs, verdicts)
        if kinds <= NOTHING:
            state(seen, None)
            return None
        anew = True
        verdict = occurring.occurrences(rule, args, verdicts) if Mixed in kinds else None
        if Occurring in kinds and Mixed not in kinds:
            verdict = occurring.used(rule, func, args, inputs, out)
        if verdict is not None:
            anew = type(verdict) is Mixed
        elif Rows in kinds:
            verdict = on_rows(rule, func, args, kwargs, n, verdicts)
            if type(verdict) is Owners:
                with batch_of(verdict):
                    return follow(func, args, kwargs, out, len(verdict.samples))
        else:
            verdict = chosen_rows(rule, func, args, out, n)
        if verdict is None and not kinds <= SAMPLES_ALONE:
            verdict, anew = apart(func, args, kwargs, out, inputs, verdicts)
        if verdict is None:
            of = decided if not own or rows_in_view() is None else of_rows
            verdict = of(seen, inputs, verdicts)
        if not own or type(verdict) is not Track or not fits(verdict, out, n):
            second = all(is_second(x) for x, v in zip(inputs, verdicts, strict=True) if v is not None)
            mixed = state(seen, verdict, second)
            return mixed if anew else None
    second = False
    for x, v in zip(inputs, verdicts, strict=True):
        if v is not None:
            second = is_second(x)
            if not second:
                break
    set_track(out, verdict, second)
    return None


def regroup(seen: Seen, kinds: set[type]) -> Any:
    """The verdict of a call that packs, cuts or orders samples anew; None where it is none."""
    rule, func, args, kwargs, out, n = seen
    if rule is not bags.bag:
        return sequences(rule, func, args, kwargs, out, n)
    cut = bags.with_offsets(func, args, kwargs)
    return None if cut is None or kinds <= NOTHING or track_of(cut.weight) is not None else bags.cut(cut, n)


def state_regrouped(seen: Seen, verdict: Any, inputs: Sequence[Tensor], verdicts: Sequence[Verdict]) -> Mixed | None:
    second = all(is_second(x) for x, v in zip(inputs, verdicts, strict=True) if v is not None)
    mixed = state(seen, verdict, second)
    return None if type(verdict) is list else mixed


def fits(track: Track, out: Tensor, n: int) -> bool:
    """Whether the output has the size that its track says: else samples were broadcast or dropped."""
    axis, outer, inner = track
    shape = out.shape
    return 0 <= axis < len(shape) and shape[axis] == outer * n * inner


def simple(inputs: Sequence[Tensor], verdicts: Sequence[Verdict], out: Tensor) -> Verdict:
    """The track of an operation entry by entry; None where its rule has to look."""
    common: Track | None = None
    ndim = out.dim()
    for x, track in zip(inputs, verdicts, strict=True):
        if type(track) is Track:
            shift = ndim - x.dim()
            if shift:
                track = Track(track[0] + shift, track[1], track[2])
            if common is None:
                common = track
            elif common != track:
                return None
        elif track is not None:
            return None
    return common


def apart(
    func: Any, args: Any, kwargs: Any, out: Any, inputs: Sequence[Tensor], verdicts: Sequence[Verdict]
) -> tuple[Verdict, bool]:
    """The verdict where an input is mixed, summed, or a part of the samples, and whether this call mixes anew."""
    mixed: Mixed | None = None
    part: Part | None = None
    sampled = anew = False
    sums: list[Tensor] = []
    for x, verdict in zip(inputs, verdicts, strict=True):
        if type(verdict) is Track:
            sampled = True
        elif type(verdict) is Mixed:
            mixed = mixed or verdict
            anew = anew or newly_mixed(x)
        elif type(verdict) is Summed:
            sums.append(x)
        elif type(verdict) is Part:
            part = verdict
    if mixed is not None:
        return mixed, anew or sampled or bool(sums) or part is not None
    if part is not None:
        joined = together(func, args, kwargs, out)
        return (joined if joined is not None else Mixed(part.reason)), True
    if sums:
        over = track_of(sums[0])
        assert isinstance(over, Summed)
        if sampled:
            return Mixed(f"{over.reason}, joined with samples again by {name_of(func)}"), True
        if not linear_in(func, args, sums):
            return Mixed(f"{over.reason}, followed by {name_of(func)}, which is not linear"), True
        return over, True
    return None, False


def transformed(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> Mixed | None:
    """Within vmap, grad, and the like tensors are wrapped and have other dimensions: samples are not followed."""
    inputs = [y for x in tensors_in((args, list(kwargs.values()))) for y in layers_of(x)]
    verdicts = [track_of(x) for x in inputs]
    if not any(v is not None for v in verdicts) or RULES.get(func) is fresh:
        return None
    mixed = next((v for v in verdicts if isinstance(v, Mixed)), None)
    reason = mixed or Mixed("a transform of torch.func, such as vmap")
    for x in tensors_in(args[0] if func in WRITERS else out):
        for y in layers_of(x):
            set_written(y, None, reason)
    return reason if any(v is not None and not isinstance(v, Mixed) for v in verdicts) else None


def layers_of(x: Tensor) -> list[Tensor]:
    """A tensor within a transform of torch.func, and those that it wraps."""
    wrapped = [x]
    while torch._C._functorch.is_functorch_wrapped_tensor(wrapped[-1]):
        wrapped.append(torch._C._functorch.get_unwrapped(wrapped[-1]))
    return wrapped


def of_rows(seen: Seen, inputs: Sequence[Tensor], verdicts: Sequence[Verdict]) -> Any:
    """The same of chosen rows."""
    verdict = decided(seen, inputs, verdicts)
    return of_one_row(verdict, seen.out, seen.n) if seen.n < 2 else verdict


def decided(seen: Seen, inputs: Sequence[Tensor], verdicts: Sequence[Verdict]) -> Any:
    """The rule's verdict; without a rule that of the trial of independence.

    Where a further input of the model does not lie as the samples do, it is a constant to what allows that, and from
    there on.
    """
    if seen.rule is None:
        return tested(seen.func, seen.args, seen.kwargs, seen.out, seen.n)
    verdict = asked_of(seen, inputs, verdicts)
    if type(verdict) is Mixed and seen.rule in SECOND_ALLOWED:
        place, name = SECOND_ALLOWED[seen.rule]
        allowed = seen.args[place : place + 1] if place is not None else list(seen.args)
        allowed = [*allowed, *(value for key, value in seen.kwargs.items() if name in (key, None))]
        masks = [x for x in tensors_in(allowed) if is_second(x) and not x.requires_grad]
        rest = [(x, v) for x, v in zip(inputs, verdicts, strict=True) if not any(x is m for m in masks)]
        if seen.rule is cat and masks and rest and all(v is None for _, v in rest):  # rows for all samples and others
            constant_from_here_on(masks)
            return None
        if masks and any(v is not None for _, v in rest):
            with as_constants(masks):
                verdict = asked_of(seen, [x for x, _ in rest], [v for _, v in rest])
            if type(verdict) is not Mixed:
                constant_from_here_on(masks)
    return verdict


def asked_of(seen: Seen, inputs: Sequence[Tensor], verdicts: Sequence[Verdict]) -> Any:
    """What a rule says. One that did not ask where an argument carries its samples did not reckon with it: mixed."""
    rule, func, args, kwargs, out, n = seen
    named = {ALIASES.get(key, key): value for key, value in kwargs.items() if key != "out"} if kwargs else {}
    call = Call(func, args[0] if func in WRITERS else out, n)
    asked: set[int] = set()
    tracks.here.asked = asked
    try:
        verdict = rule(call, *args, **named)
    except Exception as error:  # Whatever the arguments were, training goes on.
        why = str(error).partition("\n")[0]
        if "data-dependent" in why or "_local_scalar_dense" in why:  # torch 2.9 says no more than the operation
            return call.mixed("with an index or a mask whose values are not there yet while code is compiled")
        return call.mixed(f"with arguments that could not be read ({why})")
    finally:
        tracks.here.asked = None
    if rule in READS or rule is chosen or type(verdict) is Mixed:
        return verdict
    for x, v in zip(inputs, verdicts, strict=True):
        if v is not None and id(x) not in asked:
            return call.mixed(f"with samples in an argument of shape {tuple(x.shape)} that is not followed")
    return call.mixed("with samples in an argument that is not followed") if verdict is None else verdict


def has_rule(func: Any) -> bool:
    """Whether there is a rule for a function, so that it need not be tried."""
    return func in RULES or func in UNWRITTEN or rule_of_overload(func) is not None


def entrywise(func: Any) -> bool:
    """Whether a function works entry by entry, on tensors that are broadcast to its output."""
    return RULES.get(func) is elementwise


def rule_of_overload(func: Any) -> Any:
    """The rule of torch.ops.aten.name is that of torch.name, whose arguments are the same."""
    packet = func.overloadpacket if isinstance(func, torch._ops.OpOverload) else func
    if not isinstance(packet, torch._ops.OpOverloadPacket) or not str(packet).startswith("aten."):
        return None
    for holder in (torch._C._VariableFunctions, torch.Tensor, torch._C._nn):
        function = getattr(holder, packet.__name__, None)
        if function in RULES:
            return RULES[function]
    return None


def state(seen: Seen, verdict: Any, second: bool = False) -> Mixed | None:
    """State the verdict of every output; `Mixed` if one of them is."""
    rule, func, args, kwargs, out, n = seen
    target = args[0] if args and isinstance(args[0], Tensor) else None
    outputs = list(tensors_in(target if func in WRITERS else out))
    verdicts = verdict if isinstance(verdict, list) else [verdict] * len(outputs)
    if len(verdicts) != len(outputs):
        verdicts = [Mixed(f"{name_of(func)} with an output of unexpected form")] * len(outputs)
    given = list(tensors_in(kwargs["out"])) if "out" in kwargs else []
    mixed: Mixed | None = None
    for x, v in zip(outputs, verdicts, strict=True):
        if type(v) is Track and not fits(v, x, n):
            v = Mixed(f"{name_of(func)}, which broadcasts or drops samples into shape {tuple(x.shape)}")
        if type(v) is Rows and not fits(v.track, x, len(v.owners.samples)):
            v = Mixed(f"{name_of(func)}, which broadcasts or drops chosen rows into shape {tuple(x.shape)}")
        if x is target or any(x is g for g in given):
            before = track_of(x)
            v = (singles.write(x, v) if Single in (type(before), type(v)) else set_written(x, before, v)) or v
            if type(v) is Track:
                written(x, v, second)
        elif rule is not fresh:  # Memory that a function out of sight may write into is not called a constant.
            set_track(x, v, second and v is not None)
        elif called(func).endswith("_like"):
            made_like(x, args[0])
        if type(v) is Mixed:
            mixed = v
    return mixed
