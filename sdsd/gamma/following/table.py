"""Which rule follows which function, by name: a function, its method and its in-place variant share one."""

from __future__ import annotations

from typing import Any

from . import indexing, rules

_ELEMENTWISE = """
abs absolute acos acosh add addcdiv addcmul alpha_dropout angle arccos arcsin arctan asin asinh atan atan2 atanh
bernoulli bitwise_and bitwise_not bitwise_or bitwise_xor bool byte cdouble ceil celu cfloat char clamp clamp_max
clamp_min clip conj conj_physical copysign cos cosh cpu cuda deg2rad detach digamma div divide double dropout dropout1d
dropout2d dropout3d elu eq erf erfc erfinv exp exp2 expm1 fake_quantize_per_tensor_affine feature_alpha_dropout
feature_dropout float float_power floor floor_divide fmax fmin fmod frac frexp ge gelu greater greater_equal gt half bfloat16
hardshrink hardsigmoid hardswish hardtanh heaviside hypot i0 int isclose isfinite isinf isnan isnat ldexp le leaky_relu
lerp less less_equal lgamma log log10 log1p log2 logaddexp logaddexp2 logical_and logical_not logical_or logical_xor
logit logsigmoid long lt masked_fill maximum minimum mish mul multiply nan_to_num ne neg negative
nextafter not_equal polygamma positive pow prelu rad2deg real imag reciprocal relu relu6 remainder resolve_conj
resolve_neg round rrelu rsqrt rsub selu sgn short sigmoid sign signbit silu sin sinc sinh softplus softshrink softsign
sqrt square sub subtract tan tanh tanhshrink threshold true_divide trunc type where xlogy clone contiguous
requires_grad_ data fix quantize_per_tensor logsigmoid hardtanh
__add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __div__ __rdiv__ __pow__ __rpow__
__neg__ __pos__ __abs__ __invert__ __and__ __or__ __xor__ __rand__ __ror__ __rxor__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__
__floordiv__ __rfloordiv__ __mod__ __rmod__ __iadd__ __isub__ __imul__ __itruediv__ __ipow__ __iand__ __ior__
alias fake_quantize lift pin_memory detach_
"""
_NOTHING = """
zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros new_ones new_empty new_full
new_tensor zero fill normal uniform new_empty_strided new random exponential set
"""
_ROW_MAJOR = "view reshape flatten unflatten ravel view_as reshape_as __reshape__ _unsafe_view"
_STRIDED = "permute transpose movedim moveaxis swapaxes swapdims t adjoint narrow diagonal T mT H mH as_strided_none"
_REDUCTIONS = """
sum mean nansum nanmean prod amax amin all any argmax argmin count_nonzero logsumexp std var std_mean var_mean max min
median nanmedian aminmax mode
"""
_ALONG = {
    "softmax": (1, None), "log_softmax": (1, None), "softmin": (1, None), "cumsum": (1, None), "cumprod": (1, None),
    "cummax": (1, None), "cummin": (1, None), "logcumsumexp": (1, None), "sort": (1, -1), "argsort": (1, -1),
    "flip": (1, None), "roll": (2, None), "topk": (2, -1), "gumbel_softmax": (4, -1), "glu": (1, -1), "diff": (2, -1),
    "normalize": (2, 1), "renorm": (2, None), "fft": (2, -1), "ifft": (2, -1), "rfft": (2, -1), "irfft": (2, -1),
    "fft_fft": (2, -1), "fft_ifft": (2, -1), "fft_rfft": (2, -1), "fft_irfft": (2, -1), "fft_fft2": (2, (-2, -1)),
    "fft_ifft2": (2, (-2, -1)), "fft_rfft2": (2, (-2, -1)), "fft_irfft2": (2, (-2, -1)), "fft_fftn": (2, None),
    "fft_rfftn": (2, None), "fft_irfftn": (2, None), "fft_ifftn": (2, None), "fft_fftshift": (1, None),
    "_softmax": (1, None), "_log_softmax": (1, None),
}  # fmt: skip
_LOSSES = """
cross_entropy nll_loss mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy
binary_cross_entropy_with_logits kl_div poisson_nll_loss gaussian_nll_loss soft_margin_loss multilabel_margin_loss
multilabel_soft_margin_loss hinge_embedding_loss cosine_embedding_loss triplet_margin_loss ctc_loss margin_ranking_loss
multi_margin_loss
"""
_FIRST = """
conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution conv_tbc_none grid_sample
affine_grid group_norm instance_norm local_response_norm unfold_images fold col2im im2col max_unpool1d max_unpool2d
max_unpool3d interpolate upsample upsample_nearest upsample_bilinear embedding_bag_none
"""

LINEAR = frozenset(
    f"""{_ROW_MAJOR} mul multiply div divide true_divide add sub subtract rsub neg negative sum mean unsqueeze squeeze stack
    cat __getitem__ select to float double half bfloat16 type type_as clone contiguous detach expand real data
    __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __neg__ __iadd__ __isub__ __imul__ __itruediv__""".split()
)
"""Functions that are linear in a sum over samples, so that it stays one: no product of two such sums, no quotient by one."""
QUOTIENTS = frozenset(["div", "divide", "true_divide", "__truediv__", "__itruediv__"])
PRODUCTS = QUOTIENTS | frozenset(["mul", "multiply", "__mul__", "__rmul__", "__imul__"])

TABLE: dict[str, Any] = {
    **dict.fromkeys(_ELEMENTWISE.split(), rules.elementwise),
    **dict.fromkeys(_NOTHING.split(), rules.nothing),
    **dict.fromkeys(_ROW_MAJOR.split(), rules.row_major),
    **dict.fromkeys(_STRIDED.split(), rules.strided),
    **dict.fromkeys(_REDUCTIONS.split(), rules.reduction()),
    **{name: rules.along(*setting) for name, setting in _ALONG.items()},
    **dict.fromkeys(_LOSSES.split(), rules.loss),
    **dict.fromkeys(_FIRST.split(), rules.first_axis),
    "to": rules.own,
    "type_as": rules.own,
    "copy": rules.copied,
    "norm": rules.reduction(2),
    "vector_norm": rules.reduction(2),
    "linalg_vector_norm": rules.reduction(2),
    "linalg_norm": rules.reduction(2),
    "kthvalue": rules.reduction(2, -1),
    "quantile": rules.reduction(2),
    "unsqueeze": rules.unsqueeze,
    "squeeze": rules.squeeze,
    "expand": rules.expand,
    "expand_as": rules.expand,
    "broadcast_to": rules.expand,
    "repeat": rules.repeat,
    "tile": rules.repeat,
    "repeat_interleave": rules.repeat_interleave,
    **dict.fromkeys(("cat", "concat", "concatenate", "hstack", "vstack", "column_stack", "row_stack"), rules.cat),
    "stack": rules.stack,
    "masked_scatter": rules.masked_scatter,
    **dict.fromkeys(
        ("chunk", "split", "tensor_split", "split_with_sizes", "unsafe_chunk", "unsafe_split"), rules.split
    ),
    "unbind": rules.unbind,
    "select": rules.strided,
    **dict.fromkeys(("matmul", "bmm", "mm", "mv", "__matmul__", "__rmatmul__"), rules.matmul),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), rules.add_product),
    "linear": rules.linear,
    "bilinear": rules.bilinear,
    "einsum": rules.einsum,
    "scaled_dot_product_attention": rules.attention,
    "embedding": rules.embedding,
    "one_hot": rules.same,
    "layer_norm": rules.features(lambda call: len(call.get(1, "normalized_shape"))),
    "rms_norm": rules.features(lambda call: len(call.get(1, "normalized_shape"))),
    "batch_norm": rules.batch_norm,
    "pad": rules.pad,
    **dict.fromkeys(("gather", "scatter", "scatter_add", "scatter_reduce", "take_along_dim"), rules.gather),
    "index_select": rules.index_select,
    "nonzero": rules.nonzero,
    "argwhere": rules.nonzero,
    **dict.fromkeys(("index_add", "index_copy", "index_fill"), rules.index_along),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), rules.recurrent),
    **dict.fromkeys(("tril", "triu", "inverse", "linalg_inv", "matrix_exp", "linalg_matrix_exp"), rules.linalg_matrix),
    "view_as_real": rules.as_complex,
    "view_as_complex": rules.as_complex,
    "complex": rules.elementwise,
    "polar": rules.elementwise,
    "cdist": rules.cdist,
    "cosine_similarity": rules.similarity(2),
    "pairwise_distance": rules.similarity(0),
    "embedding_bag": rules.embedding_bag,
    "pixel_shuffle": rules.pool(3),
    "pixel_unshuffle": rules.pool(3),
    "channel_shuffle": rules.first_axis,
    **{
        f"{kind}{space}d{end}": rules.pool(space)
        for kind in ("avg_pool", "max_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool", "fractional_max_pool")
        for space in (1, 2, 3)
        for end in ("", "_with_indices")
    },
    "__getitem__": indexing.get_item,
    "__setitem__": indexing.set_item,
}
