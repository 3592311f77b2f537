"""A recurrent layer run again for one sample: its own sequences, first states and dropped entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Given(NamedTuple):
    """What a call was given, without history: its input, first states and weights."""

    x: Tensor
    states: list[Tensor]
    weights: list[Tensor]

    def with_inputs(self, x: Tensor, states: list[Tensor]) -> Given:
        return Given(x, states, self.weights)

    def places_of(self, tensor: Tensor, weights: Sequence[Tensor], states: Sequence[Tensor]) -> tuple[str, list[int]]:
        """Where `tensor` stands: among the weights, where one may stand twice, or among the states."""
        where = [k for k, each in enumerate(weights) if each is tensor]
        if where:
            return "weights", where
        return "states", [k for k, each in enumerate(states) if each is tensor]

    def numel(self, place: tuple[str, list[int]]) -> int:
        return (self.weights if place[0] == "weights" else self.states)[place[1][0]].numel()


class Call:
    """One call of a recurrent layer of torch.

    axis: of its input, along which `samples` says whose each entry is. random_state: before dropout between its layers
    drew numbers, or None where nothing is dropped.
    """

    def __init__(
        self,
        func: Any,
        args: Sequence[Any],
        packed: bool,
        axis: int,
        samples: Tensor,
        random_state: Tensor | None,
    ) -> None:
        self._func, self._packed, self._axis, self._samples = func, packed, axis, samples
        self._random = random_state
        settings = args[3 + packed :]
        self._biased, self._layers, self._dropout = settings[:3]
        self._directions, self._last = 1 + bool(settings[4]), tuple(settings[3:])
        self._several = isinstance(args[1 + packed], (list, tuple))
        self._sizes = args[1] if packed else None
        self._batch = samples
        if packed:
            self._times = torch.repeat_interleave(torch.arange(len(args[1])), args[1])
            self._batch = samples[: int(args[1][0])]

    def masks(self, given: Given, whole: Tensor) -> list[Tensor]:
        """What dropout multiplied the output of each layer but the last by, of the whole batch; none without it.

        Raises:
            RuntimeError: the same numbers are not drawn again.
        """
        if self._random is None:
            return []
        masks: list[Tensor] = []
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.set_rng_state(self._random)

            def drop(x: Tensor) -> Tensor:
                # Torch drops in tensors that have the time first.
                turned = self._axis == 0 and not self._packed
                ones = torch.ones_like(x.transpose(0, 1).contiguous() if turned else x)
                mask = functional.dropout(ones, self._dropout, True)
                masks.append(mask.transpose(0, 1) if turned else mask)
                return x * masks[-1]

            out = self._by_layers(given, self._sizes, drop)[0]
        if not torch.allclose(out, whole, rtol=1e-3, atol=1e-5):
            raise RuntimeError("dropout between its layers draws other numbers when it runs again")
        return masks

    def gradients(
        self,
        given: Given,
        places: Sequence[tuple[str, list[int]]],
        masks: Sequence[Tensor],
        b: Tensor,
        which: int,
        sample: int,
    ) -> list[Tensor]:
        """Of one sample, of the tensors at `places`, each in its whole shape; b: the gradient of output `which`."""
        entries = (self._samples == sample).nonzero().flatten()
        sequences = (self._batch == sample).nonzero().flatten()
        whole = [(given.weights if kind == "weights" else given.states)[where[0]] for kind, where in places]
        if not len(entries):
            return [torch.zeros_like(each) for each in whole]
        sizes = None
        if self._packed:
            sizes = torch.bincount(self._times[entries.cpu()])
        weights = list(given.weights)
        cast = weights[0].dtype  # where autocast was on, the others may be of a smaller one, and it is off by now
        states = [each.index_select(1, sequences).to(cast) for each in given.states]
        own: list[Tensor] = []
        # cuDNN's backward wants its own kind of forward; the plain implementation serves a single sample.
        with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
            for kind, where in places:
                held = weights if kind == "weights" else states
                own.append(held[where[0]].clone().requires_grad_())
                for each in where:
                    held[each] = own[-1]
            part = Given(given.x.index_select(self._axis, entries).to(cast), states, weights)
            mine = iter([mask.index_select(self._axis, entries) for mask in masks])
            if masks:
                out = self._by_layers(part, sizes, lambda x: x * next(mine))
            else:
                out = self._run(part, sizes, self._layers)
            b = b.index_select(self._axis, entries) if which == 0 else b.index_select(1, sequences)
            pulled = torch.autograd.grad(out[which], own, b.to(out[which].dtype), allow_unused=True)
        return [
            self._placed(gradient, full, sequences if kind == "states" else None)
            for gradient, full, (kind, _) in zip(pulled, whole, places, strict=True)
        ]

    def _placed(self, gradient: Tensor | None, whole: Tensor, sequences: Tensor | None) -> Tensor:
        if gradient is None:
            return torch.zeros_like(whole)
        return gradient if sequences is None else torch.zeros_like(whole).index_copy_(1, sequences, gradient)

    def _run(self, given: Given, sizes: Tensor | None, layers: int) -> Any:
        state = given.states if self._several else given.states[0]
        leading = (given.x,) if sizes is None else (given.x, sizes)
        return self._func(*leading, state, given.weights, self._biased, layers, 0.0, *self._last)

    def _by_layers(self, given: Given, sizes: Tensor | None, between: Any) -> list[Tensor]:
        """The outputs, with `between` after each layer but the last."""
        x, states = given.x, []
        each, wide = len(given.weights) // self._layers, self._directions
        for layer in range(self._layers):
            own = [s[layer * wide : (layer + 1) * wide] for s in given.states]
            x, *after = self._run(Given(x, own, given.weights[layer * each : (layer + 1) * each]), sizes, 1)
            states.append(after)
            if layer < self._layers - 1:
                x = between(x)
        return [x, *(torch.cat(parts) for parts in zip(*states, strict=True))]
