"""Which function first reads a layer's output, found while the model runs: torch tells a mode of every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

NONLINEARITIES = {
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "tanh", "sigmoid",
    "hardswish", "hardsigmoid", "hardtanh", "softplus", "softsign", "softshrink", "hardshrink", "tanhshrink",
    "threshold", "logsigmoid", "log_sigmoid", "clamp", "clamp_min",
}  # fmt: skip
"""Functions of one neuron's value by name, without the underscore of those that work in place."""
PASSED_THROUGH = {
    "batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "dropout", "dropout1d", "dropout2d",
    "dropout3d", "alpha_dropout", "feature_alpha_dropout", "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d",
    "avg_pool2d", "avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "contiguous", "clone", "float", "double",
    "half", "bfloat16",
}  # fmt: skip
"""Functions between a layer and its nonlinearity that leave each neuron in its place."""


class _Reading:
    """One call of a layer whose output is followed."""

    def __init__(self, layer: str) -> None:
        self.layer, self.done = layer, False


class NonlinearityFollower(TorchFunctionMode):
    """Watches which functions read the outputs of layers, and hands on what the first nonlinearity makes of them."""

    def __init__(self, found: Callable[[str, str, Any], object]) -> None:
        super().__init__()
        self.found = found
        self.followed: Any = WeakIdKeyDictionary()  # tensor → the readings it belongs to

    def hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def follow(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                self.followed[output] = [*self.followed.get(output, ()), _Reading(name)]

        return follow

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        source = args[0] if args else (kwargs or {}).get("input")
        readings = self.followed.get(source) if isinstance(source, Tensor) else None
        result = func(*args, **(kwargs or {}))
        if readings and isinstance(result, Tensor):
            function = getattr(func, "__name__", "").strip("_")
            if function in NONLINEARITIES:
                for reading in readings:
                    if not reading.done:
                        reading.done = True
                        self.found(reading.layer, function, result)
            elif function in PASSED_THROUGH:
                self.followed[result] = readings
        return result
