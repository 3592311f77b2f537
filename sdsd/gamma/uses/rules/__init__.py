"""How operations that join samples with parameters are measured: one rule an operation.

===================  =================================================================================================
file                 operations
===================  =================================================================================================
`linear.py`          F.linear, matrix products of samples with a matrix, addmm
`convolution.py`     conv1d … conv3d, transposed too
`grouped.py`         _grouped_mm: rows sorted by expert
`lookup.py`          embedding, embedding_bag
`norms.py`           layer norm, RMS norm, group norm, instance norm, batch norm in eval mode
`joined_norms.py`    layer and group norm by functions whose backward is one kernel's
`elementwise.py`     + − × ÷ with a parameter, PReLU
`spreading.py`       a parameter expanded to the shape of samples
`attention.py`       attention with a mask of parameters
`recurrent.py`       lstm, gru, rnn_tanh, rnn_relu, packed or not, lstm_cell
`unrolled.py`        such a layer, run again for one sample
`generic.py`         every other one, and writing into samples
`alone.py`           any operation of one sample alone
`broadcasting.py`    what several share: gradients of an operand that is broadcast to the output
`again.py`           what several share: a function of torch run again by itself
===================  =================================================================================================

A rule is called as `rule(mode, func, args, kwargs, parameters)` in the place of `func(*args, **kwargs)`, whose result
it returns.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from . import attention, convolution, elementwise, grouped, linear, lookup, norms, recurrent
from .alone import one_by_one
from .generic import any_operation
from .spreading import meets_a_likeness, spread_to_samples, spread_together, spreads

_ADD, _SUBTRACT, _MULTIPLY, _DIVIDE = map(elementwise.combination, ("add", "subtract", "multiply", "divide"))

RULES: dict[Any, Any] = {
    F.linear: linear.linear,
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm), linear.matmul),
    **dict.fromkeys((torch.addmm, Tensor.addmm), linear.addmm),
    **dict.fromkeys(
        (
            torch.conv1d,
            torch.conv2d,
            torch.conv3d,
            torch.conv_transpose1d,
            torch.conv_transpose2d,
            torch.conv_transpose3d,
        ),
        convolution.convolution,
    ),
    F.embedding: lookup.embedding,
    F.embedding_bag: lookup.embedding_bag,
    F.scaled_dot_product_attention: attention.attention,
    F.layer_norm: norms.layer_norm,
    F.rms_norm: norms.rms_norm,
    F.group_norm: norms.group_norm,
    F.instance_norm: norms.instance_norm,
    F.batch_norm: norms.batch_norm,
    torch.prelu: elementwise.prelu,
    Tensor.prelu: elementwise.prelu,
    **dict.fromkeys((torch.add, Tensor.add, Tensor.add_, Tensor.__radd__, Tensor.__iadd__), _ADD),
    **dict.fromkeys((torch.sub, torch.subtract, Tensor.sub, Tensor.subtract, Tensor.sub_, Tensor.__isub__), _SUBTRACT),
    Tensor.__rsub__: elementwise.combination("subtract from"),
    **dict.fromkeys(
        (
            torch.mul,
            torch.multiply,
            Tensor.mul,
            Tensor.multiply,
            Tensor.__rmul__,
            Tensor.mul_,
            Tensor.__imul__,
        ),
        _MULTIPLY,
    ),
    **dict.fromkeys(
        (
            torch.div,
            torch.divide,
            torch.true_divide,
            Tensor.div,
            Tensor.divide,
            Tensor.true_divide,
            Tensor.__truediv__,
            Tensor.div_,
            Tensor.__itruediv__,
        ),
        _DIVIDE,
    ),
    torch._grouped_mm: grouped.grouped_mm,
    torch.lstm_cell: recurrent.lstm_cell,
    **dict.fromkeys((torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu), recurrent.recurrent),
}

__all__ = [
    "RULES",
    "any_operation",
    "meets_a_likeness",
    "one_by_one",
    "spread_to_samples",
    "spread_together",
    "spreads",
]
