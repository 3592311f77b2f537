"""Which modules, functions and methods the walk over a graph knows, and how it reads their arguments."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

DENSE = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
LAST_AXIS_NORMS = (nn.LayerNorm, nn.RMSNorm)
NORMS = (*BATCH_NORMS, *INSTANCE_NORMS, nn.GroupNorm, *LAST_AXIS_NORMS)
HOMOGENEOUS = (
    nn.ReLU, nn.LeakyReLU, nn.RReLU, nn.PReLU, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
)  # fmt: skip
"""f(c·x) = c·f(x) for c > 0, neuron by neuron."""
POOLS = (
    nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
CURVED = (
    nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.SELU, nn.CELU, nn.Softplus, nn.Hardtanh, nn.ReLU6, nn.Hardswish,
    nn.Hardsigmoid, nn.Mish, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink,
)  # fmt: skip
"""Neuron by neuron, and not positively homogeneous: neurons can be permuted, not rescaled."""
SOFTMAX = (nn.Softmax, nn.LogSoftmax)

HOMOGENEOUS_NAMES = {"relu", "relu_", "leaky_relu", "leaky_relu_", "dropout", "dropout1d", "dropout2d", "dropout3d"}
POOL_NAMES = {f"{kind}_pool{d}d" for d in (1, 2, 3) for kind in ("max", "avg", "adaptive_avg", "adaptive_max")}
CURVED_NAMES = {
    "tanh", "tanh_", "sigmoid", "sigmoid_", "gelu", "silu", "elu", "selu", "celu", "softplus", "hardtanh", "relu6",
    "hardswish", "hardsigmoid", "mish", "softsign", "logsigmoid", "tanhshrink", "softshrink", "hardshrink",
}  # fmt: skip
SUMS = {"add": 1.0, "add_": 1.0, "iadd": 1.0, "sub": -1.0, "sub_": -1.0, "isub": -1.0}
PRODUCTS = {"mul", "mul_", "imul", "div", "div_", "truediv"}
SAME_NAMES = {"contiguous", "float", "double", "clone"}
SHAPE_NAMES = {"size", "dim", "len", "numel"}
SHAPE_ATTRIBUTES = {"shape", "ndim", "dtype", "device"}


def plain_type(module: nn.Module) -> type:
    """The module's class as its author wrote it, under a GammaMonitor too."""
    return getattr(type(module), "_sdsd_original", type(module))


def node_name(node: fx.Node) -> str:
    """The name of the function or method that a node calls."""
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))


def argument(node: fx.Node, place: int, name: str) -> Any:
    """An argument by its place or its name; None where it was left out."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Shape of the node's tensor, where an example input was run."""
    shape = getattr(node.meta.get("tensor_meta"), "shape", None)
    return None if shape is None else tuple(shape)


def ndim_of(node: fx.Node) -> int | None:
    """Dimensions of the node's tensor, where an example input was run."""
    shape = shape_of(node)
    return None if shape is None else len(shape)


def asks_for_shape(node: fx.Node) -> bool:
    """Whether a node reads a tensor's shape or kind, and none of its values."""
    name = node_name(node)
    return name in SHAPE_NAMES or (name == "getattr" and node.args[1] in SHAPE_ATTRIBUTES)


def constant_factor(node: fx.Node) -> float | None:
    """The number that a product or quotient multiplies by; None where it is no number, or zero."""
    name, first, second = node_name(node), node.args[0], argument(node, 1, "other")
    if isinstance(second, (int, float)) and second != 0:
        return float(second) if "mul" in name else 1 / second
    return float(first) if isinstance(first, (int, float)) and first != 0 and "mul" in name else None


def flattens(node: fx.Node) -> bool:
    """Whether flatten, view or reshape makes (N, everything else)."""
    if node_name(node) == "flatten":
        return (argument(node, 1, "start_dim"), argument(node, 2, "end_dim") or -1) == (1, -1)
    before, after = shape_of(node.all_input_nodes[0]), shape_of(node)
    if before is not None and after is not None:
        return len(after) == 2 and after[0] == before[0]
    sizes = node.args[1] if isinstance(node.args[1], (tuple, list)) else node.args[1:]
    return len(sizes) == 2 and _is_batch_size(sizes[0]) and bool(sizes[1] == -1)


def _is_batch_size(size: Any) -> bool:
    """Whether a node is x.size(0) or x.shape[0]."""
    if not isinstance(size, fx.Node):
        return False
    if size.op == "call_method" and size.target == "size":
        return size.args[1:] == (0,)
    return node_name(size) == "getitem" and bool(size.args[1] == 0)
