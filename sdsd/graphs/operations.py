"""What operations of torch do to neurons: one vocabulary for all that follows a running model.

An operation has one row; a table of rules has one rule for each kind of row that it can follow (`CutWalk`, for what can
be cut; `MoveWalk` of `sdsd.theory`, for what can be moved). A new operation is one name in a row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor


class Row(NamedTuple):
    """Operations alike.

    Attributes:
        kind: what becomes of entries, in one word; walks have a rule a kind.
        names: in torch.ops.aten, without the underscore of those that work in place.
        linear: each entry of the result is a sum of entries of what goes in, times numbers; of a product, where all
            factors but one are numbers.
        power: a positive factor on all that goes in comes out to this power; None where it depends on more, or where
            none does.
    """

    kind: str
    names: str
    linear: bool = False
    power: float | None = None


def spatial_names() -> list[str]:
    """Operations that pool, pad or resize pictures, by their names in torch.ops.aten."""
    names: list[Any] = [each.partition(".")[0] for each in torch._C._dispatch_get_all_op_names() if "aten::" in each]
    plain = {each.rpartition("::")[2] for each in names}
    fitting = re.compile(
        r"(_?adaptive_)?(max|avg|fractional_max|lp)_pool\dd(_with_indices)?$|mkldnn_\w*pool\dd$|"
        r"_?upsample_\w+\dd(_aa)?$|(reflection|replication)_pad\dd$"
    )
    return sorted(each for each in plain if fitting.match(each))


EACH = "each"
"""The kind of operations without a row that torch itself calls pointwise."""

MOVES = {
    "reshape": "view _unsafe_view reshape _reshape_alias view_as flatten unflatten",
    "permute": "permute t transpose movedim swapaxes",
    "squeeze": "squeeze unsqueeze",
    "expand": "expand expand_copy",
    "repeat": "repeat tile",
    "select": "select unbind unbind_copy",
    "slice": "slice narrow",
    "split": "split split_with_sizes chunk unsafe_chunk unsafe_split split_copy tensor_split",
    "cat": "cat concat concatenate",
    "stack": "stack",
    "flip": "flip",
    "roll": "roll",
    "index": "index index_select gather",
    "copy": "copy",
    "pack": "_pack_padded_sequence",
    "restride": "as_strided",
    "window": "unfold",
    "diagonal": "diagonal",
    "shuffle": "channel_shuffle native_channel_shuffle",
    "to pixels": "pixel_shuffle",
    "from pixels": "pixel_unshuffle",
    "patches": "im2col",
    "parts of complex": "view_as_real view_as_complex",
}

ROWS = (
    # Every entry by itself.
    Row("same", "clone _to_copy alias detach lift_fresh lift contiguous positive", linear=True, power=1),
    Row("same", "native_dropout", power=1),
    Row("sum", "add sub rsub", linear=True, power=1),
    Row("product", "mul div", linear=True),
    Row("negative", "neg", linear=True, power=1),
    Row("power", "relu leaky_relu abs rrelu_with_noise", power=1),
    Row("power", "sqrt", power=0.5),
    Row("power", "rsqrt", power=-0.5),
    Row("power", "square", power=2),
    Row("power", "reciprocal", power=-1),
    Row("power", "pow"),
    Row("prelu", "_prelu_kernel", power=1),
    Row("curved", "clamp clamp_min clamp_max hardtanh threshold log_sigmoid_forward hardswish"),
    Row("mask", "masked_fill"),
    Row(EACH, "_conj", linear=True, power=1),
    Row(
        EACH,
        """
        floor_divide complex polar fill zero normal uniform bernoulli random exponential set_data where resolve_conj
        nan_to_num log_normal geometric cauchy masked_scatter _fused_dropout isin detach_copy alias_copy _copy_from
        """,
    ),
    # Entries move, and stay what they are.
    *(Row(kind, names, linear=True, power=1) for kind, names in MOVES.items()),
    Row("pad", "constant_pad_nd pad"),
    Row("put", "index_put index_add scatter scatter_add scatter_reduce index_copy index_fill index_reduce"),
    Row("lookup", "embedding"),
    Row("bag", "_embedding_bag _embedding_bag_forward_only"),
    # Entries are made.
    Row(
        "constant",
        """
        zeros ones empty full rand randn new_zeros new_ones new_empty new_full empty_strided new_empty_strided
        scalar_tensor
        """,
    ),
    Row("like", "zeros_like ones_like empty_like full_like rand_like randn_like randint_like"),
    Row("count", "arange eye linspace logspace tril_indices triu_indices randperm randint one_hot"),
    # Entries of an axis are taken together.
    Row("reduce", "mean sum", linear=True, power=1),
    Row("reduce", "amax amin std std_mean linalg_vector_norm max min", power=1),
    Row("reduce", "var var_mean", power=2),
    Row("transform", "_fft_r2c _fft_c2c _fft_c2r", linear=True, power=1),
    Row("digest", "norm median nansum nanmean aminmax mode dist kthvalue", power=1),
    Row("digest", "logsumexp prod argmax argmin any all count_nonzero"),
    Row("softmax", "_softmax _log_softmax softmax log_softmax _safe_softmax"),
    Row("cumulate", "cumsum cumprod logcumsumexp"),
    Row("order", "topk sort argsort unique_dim cummax cummin"),
    Row("gate", "glu"),
    Row("from patches", "col2im", linear=True, power=1),
    Row("unpool", "max_unpool2d max_unpool3d", linear=True, power=1),
    Row("pool", " ".join(spatial_names()), power=1),
    Row("grid", "grid_sampler_2d grid_sampler_3d _grid_sampler_2d_cpu_fallback"),
    Row("distance", "_cdist_forward _euclidean_dist _pdist_forward", power=1),
    Row(
        "batch norm",
        """
        native_batch_norm cudnn_batch_norm miopen_batch_norm _native_batch_norm_legit _batch_norm_with_update
        _native_batch_norm_legit_no_training _batch_norm_no_update _native_batch_norm_legit_functional
        """,
    ),
    Row("layer norm", "native_layer_norm _fused_rms_norm rms_norm layer_norm"),
    Row("group norm", "native_group_norm group_norm"),
    Row("weight norm", "_weight_norm_interface _weight_norm"),
    # Products that are summed over an axis.
    Row("matrix product", "mm addmm bmm baddbmm mv addmv dot vdot _sparse_addmm"),
    Row("bilinear", "_trilinear"),
    Row("grouped product", "_grouped_mm _scaled_grouped_mm"),
    Row("convolution", "convolution _convolution"),
    Row(
        "attention",
        """
        _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention
        _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
        _scaled_dot_product_fused_attention_overrideable _scaled_dot_product_attention_math_for_mps
        """,
    ),
    Row("recurrent layer", "mkldnn_rnn_layer"),
)

KINDS = tuple(dict.fromkeys(row.kind for row in ROWS))
OPERATIONS = {name: row for row in ROWS for name in row.names.split()}


class Step(NamedTuple):
    """One operation of torch that was carried out, and its row."""

    name: str
    row: Row
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    @property
    def given(self) -> tuple[Tensor, ...]:
        """All tensors that it took."""
        return (*tensors(self.args), *tensors(tuple(self.kwargs.values())))

    @property
    def written(self) -> tuple[Tensor, ...]:
        """Those that it wrote into."""
        return tuple(written(self.func, self.args))

    @property
    def factors(self) -> tuple[Tensor | None, Tensor, Tensor]:
        """Of a product of matrices: what is added to it, and both."""
        plus, first, *others = self.args if "add" in self.name else (None, *self.args)
        return plus, first, others[0]

    @property
    def over(self) -> list[int]:
        """Of an operation that takes entries together: the dimensions along which it does."""
        ndim = self.args[0].ndim
        dims = self.argument(2 if self.name in ("linalg_vector_norm", "norm", "kthvalue") else 1, "dim")
        whole = dims is None or dims == [] or isinstance(dims, bool) or "dim" not in str(self.func._schema)
        listed = range(ndim) if whole else [dims] if isinstance(dims, int) else dims
        return sorted({dim % max(1, ndim) for dim in listed})

    @property
    def by_place(self) -> list[int]:
        """Of an operation that moves entries: the dimensions along which it says which goes where, one by one."""
        ndim, kind = self.args[0].ndim, self.row.kind
        if self.name == "index":
            return covered(self.args[1], ndim)
        if kind in ("index", "window", "flip"):
            listed = self.argument(1, "dim", 0)
        elif kind == "roll":
            listed = self.argument(2, "dims", ()) or range(ndim)
        elif kind == "diagonal":
            listed = self.argument(2, "dim1", 0), self.argument(3, "dim2", 1)
        else:
            listed = ()
        return [dim % max(1, ndim) for dim in ([listed] if isinstance(listed, int) else listed)]

    @property
    def picture_dims(self) -> int:
        """Of a pool, a resize or the like: how many dimensions, the last ones, a picture has."""
        size = re.search(r"(\d)d", self.name)
        return int(size[1]) if size else 2

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """What came by its place or by name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)


UNKNOWN = Row("", "")
POINTWISE = Row(EACH, "")


def step_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Step:
    """What a dispatch mode is told of an operation, with the row of the vocabulary."""
    name = func._schema.name.rpartition("::")[2]
    plain = name[:-1] if name.endswith("_") and not name.endswith("__") else name
    row = OPERATIONS.get(plain) or (POINTWISE if torch.Tag.pointwise in func.tags else UNKNOWN)
    return Step(plain, row, func, args, kwargs, out)


Rule = TypeVar("Rule")


def adding_to(rules: dict[str, Rule]) -> Callable[..., Callable[[Rule], Rule]]:
    """A decorator that makes a function the rule for the kinds it is given.

    Raises:
        KeyError: a kind that no row of the vocabulary has.
    """

    def rule(*kinds: str) -> Callable[[Rule], Rule]:
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            raise KeyError(f"no operation is of the kind {unknown[0]!r}; known are {', '.join(KINDS)}")

        def add(made: Rule) -> Rule:
            rules.update(dict.fromkeys(kinds, made))
            return made

        return add

    return rule


def tensors(values: Any) -> Iterator[Tensor]:
    """The tensors among arguments or results."""
    for value in values if isinstance(values, (tuple, list)) else (values,):
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from tensors(value)


def written(func: Any, args: tuple[Any, ...]) -> Iterator[Tensor]:
    """The tensors among arguments that an operation writes into."""
    for known, value in zip(func._schema.arguments, args, strict=False) if func._schema.is_mutable else ():
        if known.alias_info is not None and known.alias_info.is_write:
            yield from tensors(value)


def covered(chosen: Iterable[Any], ndim: int) -> list[int]:
    """The dimensions that indices take; a mask of several takes several."""
    dims, dim = [], 0
    for each in chosen:
        taken = each.ndim if each is not None and each.dtype in (torch.bool, torch.uint8) else 1
        if each is not None:
            dims += list(range(dim, dim + taken))
        dim += taken
    return [dim for dim in dims if dim < ndim]
