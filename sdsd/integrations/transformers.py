"""`GammaCallback` for the Trainer of Hugging Face.

The Trainer clips gradients before any callback of the step is called (`on_pre_optimizer_step` comes after it), and a
clipped gradient is another gradient. So the callback measures where the last backward pass of a step ends: at the end
of each pass it asks accelerate whether gradients are due for a step.

The gradient of what the model returned begins a pass, and says that it is the outermost: checkpoints run others inside.
Where nobody can hear it (compiled code, a loss of other tensors) the first gradient that comes to a parameter does. It
is heard at the node that brings it, for a hook on the parameter would have every step prove itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._extras import require
from ..gamma import GammaMonitor, GammaStats
from . import scalars
from ._attach import attach_monitor, go_on_from, refuse_deepspeed

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

    Steps are the Trainer's `global_step`, and checkpoints hold the running averages (in trainer_state.json): training
    that resumes from one goes on with both, and with the file of a `history`. It needs no
    `restore_callback_states_from_checkpoint`.

    Args:
        log: called with a dictionary of floats whenever the Trainer logs (`logging_strategy`, `logging_steps`);
            `trainer.log` sends them to the log history and to everything the Trainer reports to. None logs nothing.
            Reading the numbers waits for the device.
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
        self._nodes: list[Any] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        refuse_deepspeed(getattr(args, "deepspeed", None))
        self._detach()
        model: nn.Module = given["model"]
        options = {"scaler": getattr(given.get("optimizer"), "scaler", None), **self.options}
        self.monitor = attach_monitor(model, options)
        if state.global_step > 0:
            saved = state.stateful_callbacks.get(self._key)
            go_on_from(self.monitor, None if saved is None else _from_json(saved), state.global_step)
        self._hooks = [model.register_forward_hook(self._forward_ended)]
        for parameter in model.parameters():
            if parameter.requires_grad:
                if hasattr(parameter, "device_mesh"):  # FSDP2 brings its gradients otherwise, and calls such hooks
                    self._hooks.append(parameter.register_post_accumulate_grad_hook(self._gradient_arrived))
                else:
                    node = torch.autograd.graph.get_gradient_edge(parameter).node
                    self._nodes.append(node)  # held, or another one would bring the gradient
                    self._hooks.append(node.register_prehook(self._gradient_arrived))
        self._waiting = self._measured = False

    @property
    def _key(self) -> str:
        """Where the averages lie among what checkpoints hold of callbacks."""
        return f"sdsd {self.prefix}"

    def _forward_ended(self, model: nn.Module, inputs: Any, outputs: Any) -> None:
        if not torch.compiler.is_compiling():
            self._waiting = False  # where an exception ended the last backward pass
            for tensor in _tensors(outputs):
                if tensor.requires_grad:
                    tensor.register_hook(self._gradient_arrived)

    def _gradient_arrived(self, _: Any) -> None:
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
        self._tell(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._tell(state, control)

    def _tell(self, state: Any, control: Any) -> None:
        """Log where the Trainer is about to log, and leave what a checkpoint that it may be about to write holds."""
        if self.log is not None and self.stats is not None and control.should_log:
            self.log(scalars(self.stats, self.prefix))
            control.should_log = True  # the Trainer takes it for its own line, and would leave that out
        if self.monitor is not None and (control.should_save or control.should_evaluate):
            state.stateful_callbacks[self._key] = _to_json(self.monitor.state_dict())

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._detach()

    def _detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._nodes = [], []
        if self.monitor is not None:
            self.monitor.detach()
            self.monitor = None


def _to_json(state: dict[str, Any]) -> dict[str, Any]:
    """A monitor's state for a file of JSON: its tensors, which are of float64, as lists."""
    averages = state["averages"].items()
    tensors = {name: value.tolist() for name, value in averages if isinstance(value, Tensor)}
    return {**state, "averages": {name: value for name, value in averages if name not in tensors}, "tensors": tensors}


def _from_json(saved: dict[str, Any]) -> dict[str, Any]:
    """What `_to_json` was given."""
    tensors = {name: torch.tensor(value, dtype=torch.float64) for name, value in saved["tensors"].items()}
    return {**saved, "averages": saved["averages"] | tensors}


def _tensors(outputs: Any) -> Iterator[Tensor]:
    """The tensors in what a model returned."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping | list | tuple):
        for each in outputs.values() if isinstance(outputs, Mapping) else outputs:
            yield from _tensors(each)


def _when_backward_ends(call: Callable[[], None]) -> None:
    """Queue `call` behind everything that is queued for the end of this backward pass, reductions over ranks too."""
    torch.autograd.Variable._execution_engine.queue_callback(call)
