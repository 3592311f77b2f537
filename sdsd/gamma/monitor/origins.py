"""Through which forward passes of the model a backward pass came, and so of how many samples it is.

The gradients of a forward pass's outputs say so, each to a hook that knows how many samples the pass had. Code that is
compiled has no such hooks; there the last forward pass counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..layers import UnsupportedError

if TYPE_CHECKING:
    from .session import Session

Forward = tuple[int, int]
"""The number of a forward pass, and its samples."""


class Origins:
    """Forward passes by the backward passes (outermost graph tasks) that came through them.

    Attributes:
        arrived: the backward passes that brought gradients of parameters, and were not cleared since.
        compiled: whether forward passes ran in compiled code, so that they cannot be heard.
    """

    def __init__(self) -> None:
        self.compiled = False
        self._passes = 0
        self.clear()

    def clear(self) -> None:
        """Forget the backward passes so far."""
        self._heard: dict[int, set[Forward]] = {}
        self.arrived: list[int] = []

    def begin(self, samples: int | None) -> Forward:
        """A forward pass."""
        self._passes += 1
        return self._passes, samples or 0

    def come(self, session: Session, forward: Forward, grad: Tensor) -> None:
        """The gradient of an output of this forward pass comes in the backward pass that runs."""
        session._announce(grad)
        if session._outer is not None and not session.pauses:
            self._heard.setdefault(session._outer, set()).add(forward)

    def arrive(self, task: int, last: int | None) -> int:
        """Gradients of parameters came in a backward pass that had brought none before: of so many samples.

        last: those of the last forward pass.
        """
        self.arrived.append(task)
        return next((size for _, size in self._heard.get(task, ())), last or 0)

    def check(self) -> None:
        """Whether each backward pass that brought gradients is a micro-batch, of as many samples as was said.

        Raises:
            UnsupportedError: a backward pass that came through no forward pass, or through several of unlike size, or
                several that came through the same.
        """
        if self.compiled:
            return
        counted: set[Forward] = set()
        for task in self.arrived:
            heard = self._heard.get(task, set())
            if not heard:
                raise UnsupportedError(
                    "a backward pass added to .grad without coming through a forward pass of the model (a penalty on "
                    "parameters, say, or a part of the model called by itself), and would count as a micro-batch. Add "
                    "such a penalty to the loss of a micro-batch, or compute it under `with monitor.paused():` after "
                    "step(); call the model as a whole; or pass batch_size."
                )
            if heard & counted:
                raise UnsupportedError(
                    "one forward pass was followed by several backward passes, and each would count as a micro-batch. "
                    "Add the losses and call backward once, or put the others into `with monitor.paused():`."
                )
            samples = {size for _, size in heard}
            if len(samples) > 1:
                raise UnsupportedError(
                    f"one backward pass came through forward passes of {sorted(samples)} samples, so that the size of "
                    "the micro-batch is not known. Call backward after each, or pass batch_size."
                )
            counted |= heard
