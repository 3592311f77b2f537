"""torch.lstm, torch.gru and the plain recurrent layers: a sample at a time, with its own first state, packed or not.

An LSTM cell by itself is followed through the operations that torch makes it of.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from ...following import Mixed, Rows, Track, is_packed_call, samples_along, track_of
from ..operand import Operand, leaves_of, unexpanded_of
from ..pieces import Lazy, Piece
from ..use import watch
from .generic import any_operation
from .unrolled import Call, Given

if TYPE_CHECKING:
    from ..measuring import Measuring


def recurrent(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
    """func(x, state, parameters, has_biases, layers, dropout, training, bidirectional, batch_first), or, packed,
    func(data, sizes, state, parameters, has_biases, layers, dropout, training, bidirectional)."""
    packed = is_packed_call(func, args)
    drops = len(args) == 9 and args[5 + packed] > 0 and args[6 + packed]
    state = torch.get_rng_state() if drops else None
    out = mode.run(func, args, kwargs)
    distinct = list({id(t): t for t in parameters}.values())
    verdict = track_of(args[0])
    why = None
    if len(args) != 9 or not isinstance(args[2 + packed], (list, tuple)):
        why = "it is called in a way that is not known"
    elif drops and args[0].device.type != "cpu":
        why = "dropout between its layers draws other numbers when a sample runs again"
    elif not (isinstance(verdict, Rows) if packed else isinstance(verdict, Track) and args[0].ndim == 3):
        why = "its samples do not lie along one dimension of its input"
    if why is not None:
        mode.lost([Operand(t, leaves_of(t, mode.session)[0]) for t in distinct], Mixed(f"a recurrent layer: {why}"))
        return out
    assert isinstance(verdict, (Rows, Track))
    n, axis = mode.ledger.n, 0 if isinstance(verdict, Rows) else verdict.axis
    samples = samples_along(verdict, args[0].shape[axis], n, args[0].device)
    states = _states(args[1 + packed])
    of_parameters = [t.requires_grad and track_of(t) is None for t in states]
    bases = [unexpanded_of(t).shape for t in distinct]
    sampled = [t for t, own in zip(states, of_parameters, strict=True) if not own]
    given = Given(args[0], [t.detach() for t in states], [t.detach() for t in args[2 + packed]])
    call = Call(func, args, packed, axis, samples, random_state=state)
    places = [given.places_of(each, args[2 + packed], states) for each in distinct]
    for which, output in enumerate(out):

        def measure(
            b: Tensor, x: Tensor, whole: Tensor, *sampled: Tensor, which: int = which
        ) -> Iterator[tuple[int, Piece]]:
            own = iter(sampled)
            held = given.with_inputs(
                x, [s if learned else next(own) for s, learned in zip(given.states, of_parameters, strict=True)]
            )
            masks = call.masks(held, whole)
            formed: dict[tuple[int, int], list[Tensor]] = {}

            def all_of(start: int, stop: int) -> list[Tensor]:
                if (start, stop) not in formed:
                    formed.clear()
                    rows = [call.gradients(held, places, masks, b, which, k) for k in range(start, stop)]
                    formed[start, stop] = [
                        torch.stack([each.sum_to_size(shape) for each in column])
                        for shape, column in zip(bases, zip(*rows, strict=True), strict=True)
                    ]
                return formed[start, stop]

            size = 8 * sum(given.numel(place) for place in places)
            for index in range(len(places)):

                def form(start: int, stop: int, index: int = index) -> Tensor:
                    return all_of(start, stop)[index]

                yield index, Lazy(n, size, form)

        watch(
            mode,
            "recurrent",
            output,
            distinct,
            (args[0], out[0] if drops else None, *sampled),
            measure,
            unexpanded=True,
        )
    return out


def lstm_cell(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
    """func(x, (h, c), weight_ih, weight_hh, bias_ih, bias_hh)."""
    if args[0].device.type != "cpu":  # a fused kernel there, whose result its parts do not give to the bit
        return any_operation(mode, func, args, kwargs, parameters)
    with mode:
        return _lstm_cell(*args, **kwargs)


def _lstm_cell(
    x: Tensor,
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The operations of torch's own, in its order."""
    h, c = hx
    gates = functional.linear(h, w_hh, b_hh) + functional.linear(x, w_ih, b_ih)
    let_in, forget, cell, out = gates.chunk(4, 1)
    c = torch.sigmoid(forget) * c + torch.sigmoid(let_in) * torch.tanh(cell)
    return torch.sigmoid(out) * torch.tanh(c), c


def _states(given: Any) -> tuple[Tensor, ...]:
    return tuple(given) if isinstance(given, (list, tuple)) else (given,)
