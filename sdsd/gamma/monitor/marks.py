"""The gradients as a backward pass, or a step, left them: whether they were cleared, or written to, since.

A tensor's version counter tells of writes in place, its identity of a tensor put in its place. Values are looked at
only where somebody wrote; then a device is waited for. A parameter that is marked may have been left out since, and is
not among the others any more.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_NONE: tuple[Any, int] = (lambda: None, 0)


class Marks:
    """Which .grad each parameter had, and the version of it.

    present: parameters that had one when the step's first gradients came back, or None where that was not seen.
    before: the same of the step before.
    hooks: of each parameter then, on its gradient as it comes and after it was added; hooked: those that have any.
    came: of each parameter that is watched, how gradients came to be added to its .grad: their memory, the writes to
        it, and whether they were views.
    always: whether all are watched from the first gradients on, and not only where these are added to others.
    elsewhere: whether gradients may be kept in another place than .grad, as those that FSDP2 has not shared out yet.
    begun: to be called once, when gradients are watched for the first time: no step has said yet how they come.
    """

    def __init__(self) -> None:
        self.came: dict[str, set[tuple[int, int, bool]]] = {}
        self.always = self.elsewhere = False
        self.begun: Callable[[], None] | None = None
        self._watched: dict[str, tuple[Any, Any]] = {}
        self._held: dict[str, tuple[weakref.ref[Tensor], int]] = {}
        self.present: dict[str, None] | None = None
        self.before: dict[str, None] | None = None
        self.hooks: dict[str, tuple[int, int]] = {}
        self.hooked: list[str] = []

    def begin(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Note which gradients and hooks are there, before anything is added to gradients."""
        self.present, self.hooked = {}, []
        self.came.clear()
        for name, parameter in parameters.items():
            of_parameter, after = parameter._backward_hooks, parameter._post_accumulate_grad_hooks
            self.hooks[name] = len(of_parameter or ()), len(after or ())  # type: ignore[arg-type]
            if of_parameter or after:
                self.hooked.append(name)
            if parameter.grad is not None:
                self.present[name] = None
        if self.present or self.always:
            self.watch(parameters)

    def watch(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Note how gradients come: what is added to a .grad that is there leaves no other trace in it."""
        for name, parameter in parameters.items():
            if name not in self._watched and parameter.requires_grad:
                node = torch.autograd.graph.get_gradient_edge(parameter).node
                # Held, or the node would be made anew for every pass, without what it has to call.
                self._watched[name] = node, node.register_prehook(partial(_note, self.came, name))

        if self.begun is not None:
            self.begun()
            self.begun = None

    def unwatch(self) -> None:
        for _, handle in self._watched.values():
            handle.remove()
        self._watched.clear()

    def set(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Mark all gradients as they are now."""
        self._held = {}
        for name, parameter in parameters.items():
            grad = parameter.grad
            if grad is not None:
                self._held[name] = weakref.ref(grad), grad._version

    def stale(self, parameters: Mapping[str, nn.Parameter]) -> str | None:
        """A parameter whose gradient was not zero where a first backward pass began, or None.

        Looked at are those that nobody touched, and those that had none where the step before began.
        """
        appearing = self.present is not None and self.before is not None
        for name in self._held if self.present is None else self.present:
            grad = parameters[name].grad if name in parameters and parameters[name].requires_grad else None
            if grad is None:
                continue
            reference, version = self._held.get(name, _NONE)
            untouched = grad is reference() and grad._version == version
            if (untouched or (appearing and name not in self.before)) and bool(local(grad).any()):  # type: ignore[operator]
                return name
        return None

    def rewritten(self, parameters: Mapping[str, nn.Parameter]) -> list[str] | None:
        """Parameters whose gradient is not as it was marked, written to, replaced or gone; None: all were cleared."""
        names: list[str] = []
        changed: list[Tensor] = []
        untouched: list[Tensor] = []
        for name, parameter in parameters.items():
            grad, (reference, version) = parameter.grad, self._held.get(name, _NONE)
            if grad is None:
                if name in self._held:
                    names.append(name)
            elif grad is reference() and grad._version == version:
                untouched.append(grad)
            else:
                names.append(name)
                if not self._held or name in self._held:
                    changed.append(grad)
        if not names and (untouched or (self.elsewhere and not self._held)):
            return names
        # Of those that were written to, one stands for all; a device is waited for.
        cleared = not any(bool(local(grad).any()) for grad in (*changed[:1], *untouched))
        return None if cleared else names

    def written(self, parameters: Mapping[str, nn.Parameter]) -> list[str]:
        """Parameters whose gradient is there, and is not the one that was marked, or was written to since."""
        names = []
        for name, (reference, version) in self._held.items():
            grad = parameters[name].grad if name in parameters else None
            if grad is not None and (grad is not reference() or grad._version != version):
                names.append(name)
        return names


def _note(came: dict[str, set[tuple[int, int, bool]]], name: str, gradients: tuple[Tensor | None, ...]) -> None:
    gradient = gradients[0]
    if gradient is not None:
        memory = gradient.data_ptr() if type(gradient) is Tensor and gradient.layout is torch.strided else 0
        came.setdefault(name, set()).add((memory, gradient._version, gradient._is_view()))


def local(grad: Tensor) -> Tensor:
    """The numbers of a gradient, of a sharded one those of this rank."""
    if grad.is_sparse:
        return grad._values()
    return grad.to_local() if hasattr(grad, "to_local") else grad  # type: ignore[no-any-return]
