"""The gradients as a backward pass, or a step, left them: whether they were cleared, or written to, since.

A tensor's version counter tells of writes in place, its identity of a tensor put in its place. Values are looked at
only where somebody wrote; then a device is waited for. A parameter that is marked may have been left out since, and is
not among the others any more.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping

from torch import Tensor, nn


class Marks:
    """Which .grad each parameter had, and the version of it."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[weakref.ref[Tensor], int]] = {}

    def set(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Mark all gradients as they are now."""
        self._held = {}
        for name, parameter in parameters.items():
            grad = parameter.grad
            if grad is not None:
                self._held[name] = weakref.ref(grad), grad._version

    def _same(self, name: str, grad: Tensor) -> bool:
        if name not in self._held:
            return False
        reference, version = self._held[name]
        return grad is reference() and grad._version == version

    def stale(self, parameters: Mapping[str, nn.Parameter]) -> str | None:
        """The first parameter with a mark, where its gradient is untouched and not zero."""
        for name in self._held:
            if name in parameters:
                grad = parameters[name].grad
                untouched = grad is not None and self._same(name, grad) and bool(grad.any())
                return name if untouched else None
        return None

    def cleared(self, parameters: Mapping[str, nn.Parameter]) -> bool:
        """Whether .grad no longer holds what earlier passes added."""
        for name, parameter in parameters.items():
            grad = parameter.grad
            if grad is None or (self._held and name not in self._held):
                continue
            if self._same(name, grad):
                return False
            local = grad.to_local() if hasattr(grad, "to_local") else grad
            return not bool(local.any())
        return True

    def written(self, parameters: Mapping[str, nn.Parameter]) -> list[str]:
        """Parameters whose gradient is there, and is not the one that was marked, or was written to since."""
        names = []
        for name, (reference, version) in self._held.items():
            grad = parameters[name].grad if name in parameters else None
            if grad is not None and (grad is not reference() or grad._version != version):
                names.append(name)
        return names
