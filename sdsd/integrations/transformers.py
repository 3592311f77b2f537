"""`GammaCallback` for the Trainer of Hugging Face.

The Trainer clips gradients before any callback of the step is called (`on_pre_optimizer_step` comes after it), and a
clipped gradient is another gradient. So the callback measures where the last backward pass of a step ends: at the end
of each pass it asks accelerate whether gradients are due for a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .._extras import require
from ..gamma import GammaMonitor, GammaStats
from . import scalars
from ._attach import attach_monitor, refuse_deepspeed

_library: Any = require("transformers", extra="integrations", purpose="sdsd.integrations.transformers")
require("accelerate", extra="integrations", purpose="sdsd.integrations.transformers")


class GammaCallback(_library.TrainerCallback):  # type: ignore[misc]
    """Measures signal and noise of every optimizer step, before clipping.

    Example::

        from sdsd.integrations.transformers import GammaCallback

        trainer = Trainer(model=model, args=args, train_dataset=data)
        gamma = GammaCallback(log=trainer.log, every=10)
        trainer.add_callback(gamma)
        trainer.train()
        gamma.stats.smoothed.noise_scale

    Args:
        log: called with a dictionary of floats every `logging_steps`; `trainer.log` sends them to the log history and
            to everything the Trainer reports to. None logs nothing. Reading the numbers waits for the device.
        prefix: put before the names of the logged values.
        options: for `GammaMonitor`. Its scaler and process group are filled in.

    Attributes:
        monitor: the `GammaMonitor` while training runs.
        stats: statistics of the last measured step.
    """

    def __init__(
        self, log: Callable[[dict[str, float]], Any] | None = None, *, prefix: str = "gamma/", **options: Any
    ) -> None:
        self.log, self.prefix, self.options = log, prefix, options
        self.monitor: GammaMonitor | None = None
        self.stats: GammaStats | None = None
        self._hooks: list[Any] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        refuse_deepspeed(getattr(args, "deepspeed", None))
        self._detach()
        model: nn.Module = given["model"]
        options = {"scaler": getattr(given.get("optimizer"), "scaler", None), **self.options}
        self.monitor = attach_monitor(model, options)
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._gradient_arrived)
            for parameter in model.parameters()
            if parameter.requires_grad
        ]
        self._waiting = self._measured = False

    def _gradient_arrived(self, parameter: torch.Tensor) -> None:
        from accelerate.state import GradientState

        if not self._waiting and GradientState().sync_gradients:
            self._waiting = True
            _when_backward_ends(lambda: _when_backward_ends(self._backward_ended))

    def _backward_ended(self) -> None:
        self._waiting = False
        assert self.monitor is not None
        self.stats = self.monitor.step() or self.stats
        self._measured = True

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if self.monitor is not None and not self._measured:
            raise RuntimeError(
                "GammaCallback saw no backward pass before this optimizer step. Put sdsd.GammaMonitor into a training "
                "loop of your own."
            )
        self._measured = False

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if self.log is not None and self.stats is not None and state.global_step % state.logging_steps == 0:
            self.log(scalars(self.stats, self.prefix))

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._detach()

    def _detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        if self.monitor is not None:
            self.monitor.detach()
            self.monitor = None


def _when_backward_ends(call: Callable[[], None]) -> None:
    """Queue `call` behind everything that is queued for the end of this backward pass, reductions over ranks too."""
    torch.autograd.Variable._execution_engine.queue_callback(call)
