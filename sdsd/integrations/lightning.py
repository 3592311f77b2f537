"""`GammaCallback` for the Trainer of `lightning` and of `pytorch_lightning`.

Lightning calls `on_before_optimizer_step` once per optimizer step: after the last backward pass of an accumulation,
after unscaling, before clipping. That is where the monitor wants to be asked. With manual optimization it is called by
`step()` of each optimizer; a training step that clips before is refused by the monitor, whose proof fails.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from .._extras import MissingExtraError, require
from ..gamma import GammaMonitor, GammaStats
from ..models import clean, unwrap
from . import scalars
from ._attach import attach_monitor, go_on_from, refuse_deepspeed

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

    Several optimizers (manual optimization), each with a callback of its own::

        generator = GammaCallback("generator", optimizer=0, prefix="gamma/generator/")
        critic = GammaCallback("critic", optimizer=1, prefix="gamma/critic/", batch_size=64)

    (The critic runs on 64 real and on 64 generated samples before its one backward pass: `batch_size` says so.) Toggle
    the optimizers (`toggle_optimizer`), or clear a part's gradients after its step: where the loss of one part adds to
    old gradients of another, the monitor refuses the step.

    Args:
        module: name of the submodule whose forward pass `training_step` calls ("net" for ``self.net(x)``); None where
            it calls ``self(x)``, or where the module has one child that owns all parameters. Only its parameters are
            measured.
        whole_step: `training_step` as a whole is one forward pass of its batch, for one that calls parts of the module
            (an autoencoder's encoder and decoder), or itself more than once, or whose loss has parameters; see
            `GammaMonitor.forward`. For automatic optimization.
        optimizer: index of the optimizer, in the order of `configure_optimizers`, whose steps are measured; of the
            watched parameters those that it holds. None where there is one only.
        log_every: optimizer steps between two lines in the Trainer's loggers; None takes `log_every_n_steps`. Reading
            the numbers waits for the device.
        prefix: put before the names of the logged values.
        options: for `GammaMonitor`. Its scaler and process group are filled in.

    Attributes:
        monitor: the `GammaMonitor` while training runs.
        stats: statistics of the last measured step.

    Raises:
        ValueError: when training starts: several optimizers and none named, one that holds none of the watched
            parameters, two callbacks with one prefix, `whole_step` with manual optimization or twice, DeepSpeed or
            FSDP1, or what `GammaMonitor` refuses.
    """

    def __init__(
        self,
        module: str | None = None,
        *,
        whole_step: bool = False,
        optimizer: int | None = None,
        log_every: int | None = None,
        prefix: str = "gamma/",
        **options: Any,
    ) -> None:
        super().__init__()
        self.module, self.optimizer, self.log_every, self.prefix = module, optimizer, log_every, prefix
        self.whole_step, self.options = whole_step, options
        self.monitor: GammaMonitor | None = None
        self.stats: GammaStats | None = None
        self._state: dict[str, Any] | None = None
        self._seen = self._came = False
        self._steps = 0
        self._restore: Callable[[], None] = _nothing

    @property
    def state_key(self) -> str:
        """Where the callback's state lies in a checkpoint: apart for every module and optimizer."""
        if self.module is None and self.optimizer is None:
            return super().state_key
        return self._generate_state_key(module=self.module, optimizer=self.optimizer)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        refuse_deepspeed(any(kind.__name__ == "DeepSpeedStrategy" for kind in type(trainer.strategy).__mro__))
        others = [each for each in trainer.callbacks if isinstance(each, GammaCallback) and each is not self]
        if any(each.prefix == self.prefix for each in others):
            raise ValueError(
                f"GammaCallback: two of them log under {self.prefix!r}, one over the other. Give each its own prefix."
            )
        self._stepped_by = self._chosen(trainer.optimizers)
        watched = self._watched(pl_module)
        options = {"scaler": getattr(trainer.precision_plugin, "scaler", None), **self.options}
        if self.optimizer is not None:
            options.setdefault("parameters", self._held(watched))
        self.monitor = attach_monitor(watched, options)
        if self._state is not None:
            go_on_from(self.monitor, self._state, self._state["steps"])
        self._handle = watched.register_forward_pre_hook(self._forward_seen)
        self._seen = self._came = False
        if self.whole_step:
            self._take_whole_step(pl_module)

    def _take_whole_step(self, pl_module: Any) -> None:
        """Have `training_step` run as one forward pass, until the callback is detached."""
        if not pl_module.automatic_optimization or "training_step" in vars(pl_module):
            raise ValueError(
                "whole_step: expected automatic optimization and the module's own training_step, got "
                + (
                    "a training_step that somebody has put in its place."
                    if pl_module.automatic_optimization
                    else "manual optimization, whose training_step runs backward, too. Name a submodule instead."
                )
            )
        plain, forward = pl_module.training_step, self.monitor.forward  # type: ignore[union-attr]

        @functools.wraps(plain)
        def training_step(*args: Any, **kwargs: Any) -> Any:
            self._seen = True
            return forward(plain, *args, **kwargs)

        pl_module.training_step = training_step
        self._restore = lambda: delattr(pl_module, "training_step")

    def _chosen(self, optimizers: list[Any]) -> Any:
        """The optimizer whose steps are measured."""
        count = len(optimizers)
        if self.optimizer is None:
            if count == 1:
                return optimizers[0]
            raise ValueError(
                f"GammaCallback measures the steps of one optimizer, this module has {count}. Say which, and the "
                "submodule that it trains: GammaCallback(module=…, optimizer=0); one callback for each, with its own "
                "prefix, measures several."
            )
        if type(self.optimizer) is not int or not 0 <= self.optimizer < count:
            raise ValueError(
                f"optimizer: expected an index from 0 to {count - 1}, for this module has {count}, got "
                f"{self.optimizer!r}."
            )
        return optimizers[self.optimizer]

    def _held(self, watched: nn.Module) -> list[str]:
        """Names of the watched parameters that the chosen optimizer holds."""
        held = {id(parameter) for group in self._stepped_by.param_groups for parameter in group["params"]}
        names = [clean(name) for name, p in unwrap(watched).named_parameters() if p.requires_grad and id(p) in held]
        if not names:
            raise ValueError(
                f"GammaCallback: optimizer {self.optimizer} holds no parameter of the watched module. Name the "
                "submodule that it trains: GammaCallback(module=…)."
            )
        return names

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

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self._came = True

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if self.monitor is None or optimizer is not self._stepped_by:
            return
        if pl_module.automatic_optimization and not self._came:
            return  # training_step gave None: Lightning leaves the step out
        self._came = False
        if not self._seen:
            names = [name for name, child in pl_module.named_children() if any(True for _ in child.parameters())]
            raise ValueError(
                "GammaCallback: training_step did not call the module it watches. Call self(…) there, or name the "
                f"submodule that is called: GammaCallback(module=…), one of {', '.join(names)}. Where it calls "
                "several, or parts of them, take training_step for the forward pass: GammaCallback(whole_step=True)."
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
            self._restore()
            self._restore = _nothing
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


def _nothing() -> None:
    """There is nothing to put back."""
