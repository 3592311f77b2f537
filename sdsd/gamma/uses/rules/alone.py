"""An operation of one sample alone and parameters: run again, what comes back to a parameter is that sample's gradient.

It needs no rule: there is no other sample that it could be told from. As in `generic.py`, one torch function runs
again, which has no state and draws no random numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ...following import WRITING, Mixed, Single, is_packed_call, track_of
from ..operand import Operand, leaves_of
from ..use import autocast_dtype, watch
from .again import DRAWING, in_dtype, run_again

if TYPE_CHECKING:
    from ..measuring import Measuring

_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_IN_PARTS = {torch.lstm_cell}
"""Functions whose own rule is to follow the operations that they are made of, each of them of one sample then."""


def one_by_one(func: Any, met: list[Any], others: Any) -> Any:
    """The rule of an operation that met samples taken one by one, whole ones (None), and perhaps what is of several.

    None: the function's own.
    """
    if others or len({each.sample if isinstance(each, Single) else each for each in met}) != 1:
        return _of_several
    return None if func in _IN_PARTS else _of_one


def _of_several(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
    out = mode.run(func, args, kwargs)
    why = "it meets samples that were taken one by one, and others, in one operation"
    mode.lost([Operand(t, leaves_of(t, mode.session)[0]) for t in parameters], why)
    return out


def _of_one(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
    name = getattr(func, "__name__", str(func))
    values, structure = pytree.tree_flatten((args, kwargs))
    into = args[0] if func in WRITING and not any(args[0] is t for t in parameters) else None
    given = [(value, value._version) for value in values if isinstance(value, Tensor) and value is not into]
    before = None if into is None else into.detach().clone()
    state = torch.get_rng_state()
    out = mode.run(func, args, kwargs)
    outputs = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)] if into is None else [into]
    distinct = list({id(t): t for t in parameters}.values())
    why = None
    recurrent = name.startswith(_RECURRENT)
    draws = name.startswith(DRAWING) and not recurrent
    if recurrent and len(args) == 9:
        draws = args[5 + is_packed_call(func, args)] > 0 and args[6 + is_packed_call(func, args)]
    if not outputs:
        why = f"torch's {name} writes a sample into what parameters gave; put them together by torch.cat or torch.stack"
    elif any(t._version != version for t, version in given):
        why = f"torch's {name} changes what it is given in place"
    elif draws or not torch.equal(state, torch.get_rng_state()):
        why = f"torch's {name} draws random numbers, and cannot be run again"
    elif any(each is value for each in outputs for value, _ in given):
        why = f"torch's {name} gives back what it was given"
    verdict = track_of(outputs[0]) if outputs else None
    if why is not None or not isinstance(verdict, Single):
        mode.lost([Operand(t, leaves_of(t, mode.session)[0]) for t in distinct], Mixed(why) if why else verdict)
        return out
    sample = verdict.sample
    of_samples = [k for k, value in enumerate(values) if isinstance(value, Tensor) and track_of(value) is not None]
    saved = [before if values[k] is into else values[k] for k in of_samples]
    constants = [value.detach() if isinstance(value, Tensor) else value for value in values]
    for k in of_samples:
        constants[k] = None
    places = [[k for k, value in enumerate(values) if value is t] for t in distinct]

    cast = distinct[0].dtype if autocast_dtype(distinct[0]) is not None else None
    for which, output in enumerate(outputs):
        operands: list[Operand] = []

        def measure(b: Tensor, *sampled: Tensor, which: int = which, operands: list[Operand] = operands) -> tuple[()]:
            held = list(constants)
            for k, value in zip(of_samples, sampled, strict=True):
                held[k] = value if into is None else in_dtype(value.clone(), cast)
            leaves = [constants[where[0]].detach().requires_grad_() for where in places]
            for leaf, where in zip(leaves, places, strict=True):
                for k in where:
                    held[k] = leaf
            with torch.enable_grad():
                result = run_again(func, held, structure, cast)
                results = [held[0]] if into is not None else pytree.tree_leaves(result)
                output = [t for t in results if isinstance(t, Tensor)][which]
                gradients = torch.autograd.grad(output, leaves, b.to(output.dtype), allow_unused=True)
            for operand, gradient in zip(operands, gradients, strict=True):
                if gradient is not None:
                    operand.deliver_one(mode.ledger, sample, gradient.to_dense())
            return ()

        operands += watch(mode, f"of one sample ({name})", output, distinct, saved, measure)
    return out
