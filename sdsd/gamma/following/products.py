"""Products: what is summed over must not be the samples, and two operands with samples must put them at one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .places import names_its_own
from .table import FUNCTIONAL, NAMESPACES, SECOND_ALLOWED, TORCH, Call, batched, register
from .tracks import Mixed, Track, Verdict, track_of


def product(call: Call, a: Tensor, b: Tensor) -> Verdict:
    if a.dim() == 1 and b.dim() == 1:
        return call.labelled([(a, "k"), (b, "k")], "")
    left = batched(a, "mk" if a.dim() > 1 else "k")
    right = batched(b, "kp" if b.dim() > 1 else "k")
    core = [label for label in [*left, *right] if label in ("m", "p")]
    return call.labelled([(a, left), (b, right)], batched(call.out, core))


def matmul(call: Call, input: Tensor, other: Any = None, **kwargs: Any) -> Verdict:
    other = next((kwargs[k] for k in ("mat2", "vec", "tensor") if k in kwargs), other)
    return product(call, input, other)


def reflected_matmul(call: Call, input: Tensor, other: Tensor) -> Verdict:
    return product(call, other, input)


def added_product(call: Call, input: Tensor, *factors: Tensor, **named: Any) -> Verdict:
    """addmm, addmv, baddbmm: `input` is broadcast and added to the product."""
    names = ("mat", "mat1", "batch1", "vec", "mat2", "batch2")
    a, b = [*factors, *(named[name] for name in names if name in named)]  # type: ignore[misc]
    own = track_of(input)
    if isinstance(own, Track):
        own = own._replace(axis=own.axis + call.out.dim() - input.dim())
    return call.agreed([own, product(call, a, b)])


def summed_product(call: Call, input: Tensor, a: Tensor, b: Tensor, **_: Any) -> Verdict:
    """addbmm: the batch dimension is summed over."""
    own = track_of(input)
    if isinstance(own, Track):
        own = own._replace(axis=own.axis + call.out.dim() - input.dim())
    return call.agreed([own, call.labelled([(a, "bmk"), (b, "bkp")], "mp")])


def inner(call: Call, input: Tensor, other: Tensor) -> Verdict:
    """The sum over the last dimension of both."""
    left: list[Any] = [("a", i) for i in range(input.dim() - 1)]
    right: list[Any] = [("b", i) for i in range(other.dim() - 1)]
    return call.labelled([(input, [*left, "k"]), (other, [*right, "k"])], [*left, *right])


def rank_one(call: Call, input: Tensor, vec1: Tensor, vec2: Tensor, **_: Any) -> Verdict:
    """addr: `input` plus an outer product."""
    own = track_of(input)
    if isinstance(own, Track):
        own = own._replace(axis=own.axis + call.out.dim() - input.dim())
    return call.agreed([own, outer(call, vec1, vec2)])


def outer(call: Call, input: Tensor, other: Any = None, **kwargs: Any) -> Verdict:
    return call.labelled([(input, "i"), (kwargs.get("vec2", other), "j")], "ij")


def linear(call: Call, input: Tensor, weight: Tensor, bias: Any = None) -> Verdict:
    if weight.dim() == 1:
        return call.labelled([(input, batched(input, "i")), (weight, "i")], batched(call.out, ""))
    x = batched(input, "i")
    return call.labelled([(input, x), (weight, "oi"), (bias, "o" if isinstance(bias, Tensor) else "")], [*x[:-1], "o"])


def bilinear(call: Call, input1: Tensor, input2: Tensor, weight: Tensor, bias: Any = None) -> Verdict:
    a, b = batched(input1, "i"), batched(input2, "j")
    return call.labelled([(input1, a), (input2, b), (weight, "oij"), (bias, "o")], [*a[:-1], "o"])


def parsed(equation: str, operands: Sequence[Tensor]) -> tuple[list[list[Any]], list[Any]]:
    """The labels of each operand and of the output; dimensions behind an ellipsis are counted from the right."""
    given, arrow, wanted = equation.replace(" ", "").partition("->")

    def labels(term: str, ndim: int | None) -> list[Any]:
        if "..." not in term:
            return list(term)
        head, _, tail = term.partition("...")
        width = most if ndim is None else ndim - len(head) - len(tail)
        return [*head, *range(-width, 0), *tail]

    terms = given.split(",")
    letters = [c for c in given if c.isalpha()]
    most = max(
        (x.dim() - len(t.replace("...", "")) for t, x in zip(terms, operands, strict=True) if "..." in t), default=0
    )
    if not arrow:
        wanted = ("..." if "..." in given else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    return [labels(t, x.dim()) for t, x in zip(terms, operands, strict=True)], labels(wanted, None)


def einsum(call: Call, equation: Any, *operands: Any) -> Verdict:
    if not isinstance(equation, str):
        return call.mixed("with lists of subscripts; written as a string it can be followed")
    given = operands[0] if len(operands) == 1 and isinstance(operands[0], (tuple, list)) else operands
    inputs, out = parsed(equation, given)
    return call.labelled(zip(given, inputs, strict=True), out)


def tensordot(call: Call, a: Tensor, b: Tensor, dims: Any = 2, **_: Any) -> Verdict:
    if isinstance(dims, Tensor):
        dims = dims.tolist()
    if isinstance(dims, int):
        pairs = [(a.dim() - dims + k, k) for k in range(dims)]
    else:
        first, second = ([d] if isinstance(d, int) else d for d in dims)
        pairs = [(i % a.dim(), j % b.dim()) for i, j in zip(first, second, strict=True)]
    left: list[Any] = [("a", i) for i in range(a.dim())]
    right: list[Any] = [("b", j) for j in range(b.dim())]
    kept_a, kept_b = {i for i, _ in pairs}, {j for _, j in pairs}
    out = [x for i, x in enumerate(left) if i not in kept_a] + [x for j, x in enumerate(right) if j not in kept_b]
    return call.labelled([(a, left), (b, right)], out)


def distances(call: Call, x1: Tensor, x2: Tensor, *_: Any, **__: Any) -> Verdict:
    return call.labelled([(x1, batched(x1, "ik")), (x2, batched(x2, "jk"))], batched(call.out, "ij"))


def attention(
    call: Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Any = None,
    *_: Any,
    enable_gqa: bool = False,
    **__: Any,
) -> Verdict:
    operands = [(query, batched(query, "le")), (key, batched(key, "se")), (value, batched(value, "sv"))]
    if isinstance(attn_mask, Tensor):
        mask = batched(attn_mask, "ls") if attn_mask.dim() > 1 else ["s"]
        operands.append((attn_mask, mask))
    if enable_gqa and query.shape[-3] != key.shape[-3]:  # Groups of heads share one: no label for them.
        operands = [(x, ["heads" if label == -1 else label for label in labels]) for x, labels in operands]
    return call.labelled(operands, batched(call.out, "lv"))


def grouped(call: Call, x: Tensor, axis: int, groups: int, target: int) -> Verdict:
    """A dimension of channels that is cut into groups, each with its own part of the output's dimension `target`."""
    track = track_of(x)
    assert isinstance(track, Track)
    width = x.shape[axis] // groups
    if groups == 1 or width == 0 or track.inner % width:
        return call.over(x)
    return Track(target, track.outer, track.inner // width * (call.out.shape[target] // groups))


def _all_equal(value: Any, wanted: int) -> bool:
    return value == wanted or (isinstance(value, (tuple, list)) and all(v == wanted for v in value))


def convolved(call: Call, input: Tensor, weight: Tensor, bias: Any, groups: int, pointwise: bool) -> Verdict:
    spatial = weight.dim() - 2
    channels = input.dim() - spatial - 1
    verdicts: list[Verdict] = []
    track = track_of(input)
    if isinstance(track, Track):
        if track.axis == channels:
            track = grouped(call, input, channels, groups, channels)
        elif track.axis > channels and not pointwise:
            track = call.over(input)
    verdicts.append(track)
    track = track_of(weight)
    if isinstance(track, Track):
        track = grouped(call, weight, 0, groups, channels) if track.axis == 0 else call.over(weight)
    verdicts.append(track)
    if isinstance(bias, Tensor) and track_of(bias) is not None:
        track = track_of(bias)
        verdicts.append(track._replace(axis=channels) if isinstance(track, Track) else track)
    return call.agreed(verdicts)


def convolution(
    call: Call,
    input: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Verdict:
    pointwise = (
        _all_equal(list(weight.shape[2:]), 1)
        and _all_equal(stride, 1)
        and (padding in ("same", "valid") or _all_equal(padding, 0))
    )
    return convolved(call, input, weight, bias, groups, pointwise)


def transposed_convolution(
    call: Call,
    input: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Verdict:
    return convolved(call, input, weight, bias, groups, False)


def general_convolution(
    call: Call,
    input: Tensor,
    weight: Tensor,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    *_: Any,
) -> Verdict:
    return convolved(call, input, weight, bias, groups, False)


def grouped_product(call: Call, input: Tensor, mat2: Tensor, offs: Tensor | None = None, *_: Any, **__: Any) -> Verdict:
    """torch._grouped_mm of rows (rows, d) and matrices (groups, d, p), parted at `offs`."""
    track = track_of(input)
    if isinstance(track, Track) and track.axis == 0 and input.dim() == 2 and mat2.dim() == 3:
        others = [track_of(x) for x in (mat2, offs) if isinstance(x, Tensor)]
        return call.agreed([track, *others]) if others == [None] * len(others) else call.over(input)
    return call.mixed("of other than rows and matrices")


def embedding(call: Call, input: Tensor, weight: Tensor, *settings: Any, **named: Any) -> Verdict:
    """Row `input[...]` of `weight`."""
    track = track_of(weight)
    if isinstance(track, Track):
        bounded = named.get("max_norm", settings[1] if len(settings) > 1 else None)
        if track.axis == 0 and bounded is None:
            held = track_of(input)
            return held if names_its_own(input, held, track, weight.shape[0], call.n) else call.over(weight)
        if bounded is not None:
            return call.over(weight)
        track = track._replace(axis=input.dim())
    return call.agreed([track_of(input), track])


def batch_of_matrices(call: Call, *operands: Any, **_: Any) -> Verdict:
    """Linear algebra of one or two (batches of) matrices or vectors: only leading dimensions are apart."""
    verdicts: list[Verdict] = []
    first = call.out if isinstance(call.out, Tensor) else call.out[0]
    for x in operands:
        if not isinstance(x, Tensor):
            continue
        track = track_of(x)
        if isinstance(track, Track):
            if track.axis >= x.dim() - 2 or any(isinstance(y, Tensor) and y.dim() != x.dim() for y in operands):
                return call.over(x)
            verdicts.append(track)
        elif isinstance(track, Mixed):
            return track
    verdict = call.agreed(verdicts)
    if isinstance(verdict, Track) and first.dim() <= verdict.axis:
        return call.mixed("whose output has too few dimensions")
    return verdict


def solved(call: Call, A: Tensor, B: Tensor, *_: Any, left: bool = True, **__: Any) -> Verdict:
    """solve, solve_triangular: every column of B (left), or row, by itself."""
    if B.dim() == 1 or (B.dim() == A.dim() - 1 and B.shape == A.shape[:-1]):
        return call.labelled([(A, batched(A, "kl")), (B, batched(B, "k"))], batched(call.out, "x"))
    given, out = ("kr", "xr") if left else ("rk", "rx")
    return call.labelled([(A, batched(A, "kl")), (B, batched(B, given))], batched(call.out, out))


def solved_by_factor(call: Call, input: Tensor, factor: Any = None, *_: Any, **named: Any) -> Verdict:
    """cholesky_solve(B, L)."""
    return solved(call, named.get("input2", factor), input)


SECOND_ALLOWED.update({attention: (3, "attn_mask")})
SECOND_ALLOWED.update(
    dict.fromkeys((matmul, reflected_matmul, added_product, inner, linear, einsum, tensordot, distances), (None, None))
)

register("matmul mm bmm mv dot inner_product vdot", matmul, TORCH)
register("matmul", matmul, NAMESPACES[6:7])
register("__rmatmul__", reflected_matmul, TORCH)
register("inner", inner, TORCH)
register("addr", rank_one, TORCH)
register("addmm addmv baddbmm", added_product, TORCH)
register("addbmm", summed_product, TORCH)
register("outer ger", outer, TORCH)
register("_grouped_mm", grouped_product, TORCH)
register("linear", linear, FUNCTIONAL)
register("bilinear", bilinear)
register("einsum", einsum, TORCH)
register("tensordot", tensordot, TORCH)
register("cdist", distances, TORCH)
register("scaled_dot_product_attention", attention, FUNCTIONAL)
register("conv1d conv2d conv3d", convolution)
register("conv_transpose1d conv_transpose2d conv_transpose3d", transposed_convolution)
register("convolution", general_convolution, TORCH)
register("embedding", embedding, FUNCTIONAL)
register("embedding", lambda call, weight, indices, *_, **__: embedding(call, indices, weight), TORCH)
register(
    "inverse det logdet slogdet pinverse cholesky cholesky_inverse qr svd matrix_power matrix_exp",
    batch_of_matrices,
    TORCH,
)
register(
    "inv pinv det slogdet cholesky qr svd svdvals eigh eigvalsh eig eigvals matrix_power matrix_exp lstsq lu lu_factor",
    batch_of_matrices,
    NAMESPACES[6:7],
)
register("solve solve_triangular", solved, NAMESPACES[6:7])
register("cholesky_solve", solved_by_factor, TORCH)
