"""`GammaCallback` for the Trainer of `lightning` and of `pytorch_lightning`.

Lightning calls `on_before_optimizer_step` once per optimizer step: after the last backward pass of an accumulation,
after unscaling, before clipping. That is where the monitor wants to be asked.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from .._extras import MissingExtraError, require
from ..gamma import GammaMonitor, GammaStats
from . import scalars
from ._attach import attach_monitor

# The two packages carry the same class; a Trainer of either takes the other's, so the one in use already will do.
_PURPOSE = "sdsd.integrations.lightning"
if "pytorch_lightning" in sys.modules and "lightning" not in sys.modules:
    _library: Any = require("pytorch_lightning", extra="integrations", purpose=_PURPOSE)
else:
    try:
        _library = require("lightning.pytorch", extra="integrations", purpose=_PURPOSE)
    except MissingExtraError as missing:
        try:
            _library = require("pytorch_lightning", extra="integrations", purpose=_PURPOSE)
        except MissingExtraError:
            raise missing from None


class GammaCallback(_library.Callback):  # type: ignore[misc]
    """Measures signal and noise of every optimizer step and logs them.

    Example::

        from sdsd.integrations.lightning import GammaCallback

        gamma = GammaCallback(every=10)
        Trainer(callbacks=[gamma]).fit(model, loader)
        gamma.stats.smoothed.noise_scale

    Args:
        module: name of the submodule whose forward pass `training_step` calls ("net" for ``self.net(x)``); None where
            it calls ``self(x)``, or where the module has one child that owns all parameters. Only its parameters are
            measured.
        log_every: optimizer steps between two lines in the Trainer's loggers; None takes `log_every_n_steps`. Reading
            the numbers waits for the device.
        prefix: put before the names of the logged values.
        options: for `GammaMonitor`. Its scaler and process group are filled in.

    Attributes:
        monitor: the `GammaMonitor` while training runs.
        stats: statistics of the last measured step.
    """

    def __init__(
        self, module: str | None = None, *, log_every: int | None = None, prefix: str = "gamma/", **options: Any
    ) -> None:
        super().__init__()
        self.module, self.log_every, self.prefix, self.options = module, log_every, prefix, options
        self.monitor: GammaMonitor | None = None
        self.stats: GammaStats | None = None
        self._state: dict[str, Any] | None = None
        self._seen = False
        self._steps = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if len(trainer.optimizers) != 1:
            raise ValueError(
                f"GammaCallback measures the steps of one optimizer, this module has {len(trainer.optimizers)}. Put a "
                "sdsd.GammaMonitor for each part into the training step instead."
            )
        options = {"scaler": getattr(trainer.precision_plugin, "scaler", None), **self.options}
        watched = self._watched(pl_module)
        self.monitor = attach_monitor(watched, options)
        if self._state is not None:
            self.monitor.load_state_dict(self._state)
        self._handle = watched.register_forward_pre_hook(self._forward_seen)
        self._seen = False

    def _watched(self, pl_module: Any) -> nn.Module:
        if self.module is not None:
            return pl_module.get_submodule(self.module)
        children = [child for child in pl_module.children() if any(p.requires_grad for p in child.parameters())]
        own = any(True for _ in pl_module.parameters(recurse=False))
        forward_from = next(kind for kind in type(pl_module).__mro__ if "forward" in vars(kind))
        callable_itself = forward_from.__name__ != "LightningModule"
        return children[0] if len(children) == 1 and not own and not callable_itself else pl_module

    def _forward_seen(self, *_: Any) -> None:
        self._seen = True
        self._handle.remove()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if self.monitor is None:
            return
        if not self._seen:
            names = [name for name, child in pl_module.named_children() if any(True for _ in child.parameters())]
            raise ValueError(
                "GammaCallback: training_step did not call the module it watches. Call self(…) there, or name the "
                f"submodule that is called: GammaCallback(module=…), one of {', '.join(names)}."
            )
        self.stats = self.monitor.step() or self.stats
        self._steps += 1
        if self.stats is not None and self._steps % (self.log_every or trainer.log_every_n_steps) == 0:
            for logger in trainer.loggers:
                logger.log_metrics(scalars(self.stats, self.prefix), step=trainer.global_step)

    def _detach(self) -> None:
        if self.monitor is not None:
            self._state = self.monitor.state_dict()
            self._handle.remove()
            self.monitor.detach()
            self.monitor = None

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._detach()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        state = self.monitor.state_dict() if self.monitor is not None else self._state
        return {"monitor": state, "steps": self._steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._state, self._steps = state_dict["monitor"], state_dict["steps"]
