"""torch.lstm, torch.gru and the plain recurrent layers: a sample at a time, with its own initial state.

An LSTM cell by itself is followed through the operations that torch makes it of.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from ...following import Mixed, Track, track_of
from ..operand import Operand, leaves_of
from ..pieces import Lazy, Piece
from ..use import watch
from .generic import any_operation

if TYPE_CHECKING:
    from ..measuring import Measuring


def recurrent(mode: Measuring, func: Any, args: Any, kwargs: Any, parameters: list[Tensor]) -> Any:
    """func(x, state, parameters, has_biases, layers, dropout, training, bidirectional, batch_first)."""
    out = mode.run(func, args, kwargs)
    x = args[0]
    track = track_of(x)
    distinct = list({id(t): t for t in parameters}.values())
    why = None
    if not isinstance(args[2], (list, tuple)) or len(args) != 9:
        why = "packed sequences join samples of different length"
    elif args[5] > 0 and args[6]:
        why = "dropout between its layers draws other numbers when a sample runs again"
    elif any(t.requires_grad and track_of(t) is None for t in _states(args[1])):
        why = "its first state is computed from parameters"
    elif not isinstance(track, Track) or x.ndim != 3:
        why = "its samples do not lie along one dimension of its input"
    if why is not None:
        mode.lost([Operand(t, leaves_of(t, mode.session)[0]) for t in distinct], Mixed(f"a recurrent layer: {why}"))
        return out
    assert isinstance(track, Track)
    n, axis = mode.ledger.n, track.axis
    states = _states(args[1])
    several = isinstance(args[1], (list, tuple))
    weights, settings = [t.detach() for t in args[2]], tuple(args[3:])
    places = [next(k for k, t in enumerate(args[2]) if t is each) for each in distinct]

    def forward(own: list[Tensor], x: Tensor, states: tuple[Tensor, ...], which: int) -> Tensor:
        all_weights = list(weights)
        for place, tensor in zip(places, own, strict=True):
            all_weights[place] = tensor
        result = func(x, states if several else states[0], all_weights, *settings)
        return result[which]

    def own_rows(tensor: Tensor, dim: int, k: int) -> Tensor:
        """Those of sample k along the batch dimension."""
        return tensor.unflatten(dim, (track.outer, n, track.inner)).select(dim + 1, k).flatten(dim, dim + 1)

    # cuDNN's backward wants its own kind of forward; the plain implementation serves a single sample.
    for which, output in enumerate(out):
        where = axis if which == 0 else 1

        def measure(
            b: Tensor, x: Tensor, *states: Tensor, which: int = which, where: int = where
        ) -> Iterator[tuple[int, Piece]]:
            formed: dict[tuple[int, int], list[Tensor]] = {}

            def all_of(start: int, stop: int) -> list[Tensor]:
                if (start, stop) not in formed:
                    formed.clear()
                    rows = []
                    for k in range(start, stop):
                        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
                            own = [weights[place].clone().requires_grad_() for place in places]
                            one = forward(
                                own,
                                own_rows(x, axis, k),
                                tuple(own_rows(s, 1, k).contiguous() for s in states),
                                which,
                            )
                            b_of_k = own_rows(b, where, k)
                            rows.append(torch.autograd.grad(one, own, b_of_k, allow_unused=True))
                    formed[start, stop] = [
                        torch.stack([torch.zeros_like(weights[place]) if each is None else each for each in column])
                        for place, column in zip(places, zip(*rows, strict=True), strict=True)
                    ]
                return formed[start, stop]

            size = 8 * sum(weights[place].numel() for place in places)
            for index in range(len(places)):

                def form(start: int, stop: int, index: int = index) -> Tensor:
                    return all_of(start, stop)[index]

                yield index, Lazy(n, size, form)

        watch(mode, "recurrent", output, distinct, (x, *states), measure)
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
