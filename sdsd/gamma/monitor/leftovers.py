"""What passes inside `GammaMonitor.paused` leave in .grad, and whether it is still there when a step is measured.

Nobody can see in a gradient what it was added up from. But a parameter's .grad that is the very tensor a paused pass
added to, and that nothing has written to since (its version counter tells) but measured backward passes, holds what
that pass left. Where it was cleared, put back or clipped in between, the counter has moved on, and nothing is said.
No value is read, so no device is waited for, and no gradient is kept alive.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn
from torch.utils.weak import TensorWeakRef


class Leftovers:
    """Which parameters' gradients hold something from a paused pass; where `held` is empty there is nothing to ask."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[nn.Parameter, TensorWeakRef, int]] = {}
        """Name → parameter, its .grad as the paused pass left it, the version of that."""

    @contextmanager
    def watch(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Note the parameters whose .grad a backward pass inside adds to."""
        handles = [
            parameter.register_post_accumulate_grad_hook(lambda parameter, name=name: self._note(name, parameter))
            for name, parameter in parameters.items()
            if parameter.requires_grad
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, name: str, parameter: nn.Parameter) -> None:
        if parameter.grad is not None:
            self.held[name] = parameter, TensorWeakRef(parameter.grad), parameter.grad._version

    def forget_changed(self) -> None:
        """Keep those that nobody touched since; called where a measured backward pass begins."""
        self.held = {
            name: (parameter, left, version)
            for name, (parameter, left, version) in self.held.items()
            if parameter.grad is not None and parameter.grad is left() and parameter.grad._version == version
        }

    def follow(self) -> None:
        """A measured backward pass is over: what it added to leftovers leaves them in there."""
        for name, (parameter, left, _) in self.held.items():
            if parameter.grad is not None:
                self.held[name] = parameter, left, parameter.grad._version

    def names(self) -> list[str]:
        """The parameters whose .grad holds something from a paused pass."""
        self.forget_changed()
        return list(self.held)
