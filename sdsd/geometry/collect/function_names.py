"""What functions of torch do to the values of neurons, by the names a model's author calls them by.

Calls are seen above autograd, where a function still has the name that its caller used, "gelu" or "batch_norm". The
operations that they become below it have the vocabulary of `sdsd.graphs`.
"""

from __future__ import annotations

from typing import Any

ENTRY_BY_ENTRY = """
relu leaky_relu rrelu relu6 elu selu celu gelu silu mish tanh sigmoid logsigmoid log_sigmoid softplus
softsign softshrink hardshrink tanhshrink hardtanh hardswish hardsigmoid threshold dropout dropout1d
dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout abs neg exp expm1 log log1p sqrt
rsqrt square erf sin cos sign reciprocal clamp clamp_min clamp_max clip pow add sub rsub mul div truediv
true_divide maximum minimum where masked_fill addcmul lerp gt ge lt le eq ne logical_not contiguous clone
detach alias to to_copy type_as float double half bfloat16 requires_grad rand_like randn_like ones_like
zeros_like full_like empty_like
"""
"""Functions and methods (without underscores at the ends) that give each entry from the same entry of their inputs."""
IN_PLACE_OPERATORS = ("iadd", "isub", "imul", "itruediv", "ipow", "iand", "ior")
NONLINEARITIES = {
    "relu",
    "relu6",
    "leaky_relu",
    "prelu",
    "rrelu",
    "elu",
    "selu",
    "celu",
    "gelu",
    "silu",
    "mish",
    "tanh",
    "sigmoid",
    "hardswish",
    "hardsigmoid",
    "hardtanh",
    "softplus",
    "softsign",
    "softshrink",
    "hardshrink",
    "tanhshrink",
    "threshold",
    "logsigmoid",
    "log_sigmoid",
    "clamp",
    "clamp_min",
}
"""Functions of one neuron's value by name, without the underscore of those that work in place."""
AFFINE = {
    "add",
    "sub",
    "mul",
    "div",
    "neg",
    "lerp",
    "addcmul",
    "masked_fill",
    "batch_norm",
    "layer_norm",
    "group_norm",
    "instance_norm",
    "rms_norm",
}
"""What, by itself, makes no nonlinearity of what it reads."""
NORMS = {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"}
UNCHANGED = {
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "alpha_dropout",
    "feature_dropout",
    "feature_alpha_dropout",
    "contiguous",
    "clone",
    "detach",
    "alias",
    "to",
    "to_copy",
    "type_as",
    "float",
    "double",
    "half",
    "bfloat16",
    "requires_grad",
    "data",
    "cpu",
    "cuda",
}
POOLINGS = {
    f"{kind}_pool{size}d"
    for kind in ("max", "avg", "lp", "adaptive_max", "adaptive_avg", "fractional_max")
    for size in (1, 2, 3)
} | {"interpolate", "upsample", "upsample_nearest", "upsample_bilinear"}
RESHAPES = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as"}
PERMUTES = {"permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "T", "mT", "adjoint", "mH", "H"}
MOVES = {
    "cat",
    "concat",
    "concatenate",
    "stack",
    "hstack",
    "vstack",
    "dstack",
    "column_stack",
    "getitem",
    "index_select",
    "gather",
    "take_along_dim",
    "split",
    "split_with_sizes",
    "chunk",
    "tensor_split",
    "unbind",
    "select",
    "narrow",
    "masked_select",
    "flip",
    "roll",
    "repeat",
    "tile",
    "expand",
    "broadcast_to",
    "repeat_interleave",
    "pad",
    "unfold",
    "pixel_shuffle",
    "pixel_unshuffle",
    "channel_shuffle",
    "as_strided",
}
"""What puts values in other places, or beside others, as they are."""
LEAVES_TORCH = {"numpy", "tolist", "array"}
ELEMENTWISE = (
    set(ENTRY_BY_ENTRY.split())
    | NONLINEARITIES
    | {
        "fmax",
        "fmin",
        "clamp_max",
        "addcdiv",
        "xlogy",
        "nan_to_num",
        "isnan",
        "isfinite",
        "isinf",
        "logical_and",
        "logical_or",
        "bitwise_and",
        "bitwise_or",
        "bitwise_not",
        "ceil",
        "floor",
        "round",
        "trunc",
        "tan",
        "sinh",
        "cosh",
        "exp2",
        "log2",
        "log10",
        "erfc",
        "float_power",
        "remainder",
        "copysign",
        "hypot",
        "atan",
        "atan2",
        "setitem",
    }
)
NO_VALUES = {
    "zeros_like",
    "ones_like",
    "empty_like",
    "full_like",
    "rand_like",
    "randn_like",
    "new_zeros",
    "new_ones",
    "new_empty",
    "new_full",
    "new_tensor",
    "expand_as",
}
SUMMARIES = {
    "mean",
    "sum",
    "amax",
    "amin",
    "max",
    "min",
    "any",
    "all",
    "std",
    "var",
    "norm",
    "vector_norm",
    "logsumexp",
}
"""What puts positions or neurons together: what it makes is not followed, and no reader as a layer is one."""
ADD_A_PRODUCT = {"addmm", "baddbmm", "addbmm", "addmv", "addr"}
"""Readers that add their first argument to a product of the others."""
READERS = {
    "linear",
    "bilinear",
    "matmul",
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "addbmm",
    "mv",
    "addmv",
    "dot",
    "einsum",
    "inner",
    "tensordot",
    "scaled_dot_product_attention",
    "multi_head_attention_forward",
    "rnn_tanh",
    "rnn_relu",
    "lstm",
    "gru",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "convolution",
}
OTHER_NAMES = {
    "radd": "add",
    "rmul": "mul",
    "rsub": "sub",
    "rtruediv": "div",
    "rdiv": "div",
    "truediv": "div",
    "divide": "div",
    "true_divide": "div",
    "multiply": "mul",
    "subtract": "sub",
    "rpow": "pow",
    "rmatmul": "matmul",
    "negative": "neg",
    "absolute": "abs",
    "clip": "clamp",
    "greater": "gt",
    "and": "logical_and",
    "or": "logical_or",
    "invert": "bitwise_not",
}


def name_of(func: Any) -> str:
    name = getattr(func, "__name__", "")
    if name == "__get__":
        name = getattr(getattr(func, "__self__", None), "__name__", "")
    name = name.strip("_")
    name = name[1:] if name in IN_PLACE_OPERATORS else name
    return OTHER_NAMES.get(name, name)
