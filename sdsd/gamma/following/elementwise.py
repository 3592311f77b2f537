"""Functions that work entry by entry, and those whose output holds no samples at all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .table import RULES, SECOND_ALLOWED, TORCH, Call, aligned, register, register_property
from .tracks import Verdict, tensors_in, track_of


def elementwise(call: Call, *args: Any, **kwargs: Any) -> Verdict:
    out = call.out
    if not isinstance(out, Tensor):
        tensors = list(tensors_in(out))
        if not tensors:
            return None
        out = tensors[0]
    operands = [x for x in tensors_in((args, kwargs)) if x is not kwargs.get("out")]
    return call.agreed(aligned(x, out) for x in operands)


def first(call: Call, input: Tensor, *args: Any, **kwargs: Any) -> Verdict:
    """The output is the first argument, entry by entry; other tensors lend their type or device only."""
    return track_of(input)


def copied(call: Call, input: Tensor, src: Any, *args: Any, **kwargs: Any) -> Verdict:
    """The output holds the second argument; `input` is overwritten, or lends its type."""
    return aligned(src, call.out) if isinstance(src, Tensor) else None


def fresh(call: Call, *args: Any, **kwargs: Any) -> Verdict:
    """Only shapes and types were read."""
    return None


def where(call: Call, condition: Tensor, *args: Any, **kwargs: Any) -> Verdict:
    if not args and not kwargs:
        return call.mixed("with one argument, whose output is as long as the values say")
    return elementwise(call, condition, *args, **kwargs)


def prelu(call: Call, input: Tensor, weight: Tensor, **_: Any) -> Verdict:
    if track_of(weight) is not None:
        return call.mixed("by slopes that depend on samples")
    return track_of(input)


def bucketize(call: Call, input: Any, boundaries: Tensor, **_: Any) -> Verdict:
    if track_of(boundaries) is not None:
        return call.mixed("by boundaries that depend on samples")
    return track_of(input) if isinstance(input, Tensor) else None


def isin(call: Call, elements: Any, test_elements: Any, **_: Any) -> Verdict:
    if isinstance(test_elements, Tensor) and track_of(test_elements) is not None:
        return call.mixed("of elements that depend on samples")
    return track_of(elements) if isinstance(elements, Tensor) else None


def set_data(call: Call, input: Tensor, value: Tensor) -> Verdict:
    return track_of(value)


def fill(call: Call, input: Tensor, value: Any, **_: Any) -> Verdict:
    if isinstance(value, Tensor) and track_of(value) is not None:
        return call.mixed("by a value that depends on samples")
    return None


SECOND_ALLOWED.update({elementwise: (None, None), where: (None, None)})

register(
    "abs absolute acos acosh add addcdiv addcmul angle arccos arccosh arcsin arcsinh arctan arctan2 arctanh asin asinh "
    "atan atan2 atanh bernoulli bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor "
    "ceil clamp clamp_max clamp_min clip complex conj conj_physical copysign cos cosh deg2rad digamma div divide "
    "eq erf erfc erfinv exp exp2 expm1 fix float_power floor floor_divide fmax fmin fmod frac frexp "
    "gammainc gammaincc gcd ge greater greater_equal gt heaviside hypot i0 igamma igammac isclose isfinite isinf isnan "
    "isneginf isposinf isreal lcm ldexp le lerp less less_equal lgamma log log10 log1p log2 logaddexp logaddexp2 "
    "logical_and logical_not logical_or logical_xor logit lt masked_fill maximum minimum mul multiply mvlgamma "
    "nan_to_num ne neg negative nextafter not_equal polar polygamma positive pow rad2deg real imag reciprocal "
    "remainder resolve_conj resolve_neg rsqrt rsub round sgn sigmoid sign signbit sin sinc sinh sqrt square sub "
    "subtract poisson tan tanh true_divide trunc xlogy truediv floordiv mod and or xor invert lshift rshift",
    elementwise,
)
register(
    "expit entr erfcx i0e i1 i1e log_ndtr ndtr ndtri psi gammaln xlog1py zeta bessel_j0 bessel_j1 "
    "celu elu gelu hardshrink hardsigmoid hardswish hardtanh leaky_relu logsigmoid log_sigmoid mish relu relu6 rrelu "
    "selu silu softplus softshrink softsign tanhshrink threshold",
    elementwise,
)
register(
    "__ne__ __eq__ __lt__ __le__ __gt__ __ge__ __neg__ __invert__ __abs__ __pos__ __rsub__ __rpow__ "
    "__rdiv__ __div__ __truediv__ __rtruediv__ __idiv__ __itruediv__ __mul__ __rmul__ __imul__ __add__ __radd__ "
    "__iadd__ __sub__ __isub__ __pow__ __ipow__ __mod__ __rmod__ __imod__ __floordiv__ __rfloordiv__ "
    "__ifloordiv__ __and__ __rand__ __iand__ __or__ __ror__ __ior__ __xor__ __rxor__ __ixor__",
    elementwise,
    TORCH,
)
register(
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout native_dropout",
    first,
)
register(
    "clone contiguous detach to type type_as float double half bfloat16 int long short char byte bool cfloat cdouble "
    "cpu cuda requires_grad_ retain_grad pin_memory alias lift_fresh "
    "as_subclass __deepcopy__ __copy__",
    first,
)
register("copy_ new_tensor", copied, TORCH)
register(
    "zeros ones zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros new_ones "
    "new_empty new_full new_empty_strided zero_ normal_ uniform_ random_ exponential_ cauchy_ log_normal_ geometric_ "
    "is_floating_point is_complex is_same_size size dim stride numel nelement element_size storage_offset "
    "data_ptr get_device is_contiguous is_nonzero item tolist ndimension register_hook result_type __len__ __bool__ "
    "__float__ __int__ __index__ __contains__ __hash__ __repr__ __format__ backward equal allclose is_set_to "
    "register_post_accumulate_grad_hook untyped_storage",
    fresh,
    TORCH,
)
register("fill", fill, TORCH)
register("where", where, TORCH)
register("isin", isin, TORCH)
register("prelu", prelu)
register("bucketize", bucketize, TORCH)
register_property("data real imag", first)
register_property(
    "shape dtype device ndim requires_grad grad_fn is_leaf is_cuda is_cpu is_sparse is_quantized layout names "
    "itemsize nbytes is_meta is_nested is_xpu is_mps is_mkldnn is_sparse_csr _version is_xla output_nr "
    "retains_grad _backward_hooks",
    fresh,
)

for name in ("requires_grad", "grad", "_backward_hooks"):
    RULES[getattr(torch.Tensor, name).__set__] = fresh
RULES[torch.Tensor.data.__set__] = set_data  # type: ignore[attr-defined]
