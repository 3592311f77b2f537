"""Every rule against the oracle: each operation alone, over shapes where sizes coincide and where they do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from sdsd.gamma.following import Mixed, Rows, Summed, Track

from .oracle import check

pytestmark = pytest.mark.usefixtures("double")

A = torch.arange


class Case(NamedTuple):
    """f(*inputs); each input is a string of dimensions: N carries samples, T is a length that may equal N,
    a lower-case letter or a digit a size. A leading "i:" makes it indices below 3, "b:" a mask, "c:" complex;
    an input without N is a constant."""

    name: str
    f: Callable[..., Any]
    inputs: tuple[str, ...]
    ways: tuple[str, ...] = ("small", "large", "poison")


SIZES = {"d": 6, "e": 4, "h": 2, "w": 8, "c": 4, "k": 3}
NUMBERS = ("small", "large")


class Setting(NamedTuple):
    n: int
    t: int
    outer: int = 1
    inner: int = 1


SETTINGS = [Setting(3, 5), Setting(4, 4), Setting(1, 4)]
FOLDED = [Setting(2, 4, 2, 1), Setting(2, 8, 2, 2)]


def made(spec: str, s: Setting) -> tuple[Tensor, Track | None]:
    kind, _, dims = spec.rpartition(":")
    letters = dims.split()
    sizes = {**SIZES, "T": s.t, "N": s.outer * s.n * s.inner}
    shape = [sizes[x] if x in sizes else int(x) for x in letters]
    axis = letters.index("N") if "N" in letters else None
    track = None if axis is None else Track(axis, s.outer, s.inner)
    if kind == "i":
        return torch.randint(0, 3, shape), track
    if kind == "b":
        return torch.rand(shape) > 0.4, track
    x = torch.randn(shape, dtype=torch.complex128 if kind == "c" else torch.float64)
    return (x.abs() + 0.1 if kind == "p" else x), track


def verdicts(case: Case, s: Setting) -> list[Any]:
    inputs, tracks = zip(*(made(spec, s) for spec in case.inputs), strict=True)
    return check(case.f, inputs, tracks, s.n, case.ways)


def put(x: Tensor, index: Any, value: Any) -> Tensor:
    x = x.clone()
    x[index] = value
    return x


def viewed(x: Tensor, y: Tensor) -> Tensor:
    """y's samples written into a buffer through a view of it."""
    buffer = torch.zeros(*x.shape[:2], 2, dtype=x.dtype)
    buffer[:, :, 0].copy_(y)
    return buffer


def written(x: Tensor, start: int) -> Tensor:
    """A column of samples written into a square buffer through a flat view of it."""
    buffer = torch.zeros(x.shape[0] + 2, x.shape[0])
    buffer.flatten()[start : start + x.shape[0]].copy_(x[:, 0])
    return buffer * 2


def scattered(x: Tensor, y: Tensor) -> Tensor:
    """Two rows of each sample of y put in the place of two of x."""
    mask = torch.zeros_like(x, dtype=torch.bool)
    mask[:, 1:3] = x[:, 1:3] == x[:, 1:3].clone()
    return x.masked_scatter(mask, y)


def ctc(x: Tensor, reduction: str) -> Tensor:
    t, n, _ = x.shape
    lengths = torch.full((n,), t), torch.full((n,), 1)
    return F.ctc_loss(x.log_softmax(-1), torch.ones(n, 1, dtype=torch.int64), *lengths, reduction=reduction)


# Followed: a `Mixed` would refuse what people train. In any setting, also where samples are folded with others.
FOLLOWED = [
    Case("add", lambda x, y: x + y, ("N T d", "N T d")),
    Case("add a constant", lambda x, y: x + y, ("N T d", "T d")),
    Case("add a scalar", lambda x: 1 + x * 2 - 3 / (x * x + 1), ("N T",)),
    Case("constant first", lambda x, y: y * x, ("N T d", "1 T 1")),
    Case("broadcast", lambda x, y: x * y, ("N 1 d", "N T d")),
    Case("fewer dimensions", lambda x, y: x + y, ("T N d", "N d")),
    Case("in place", lambda x, y: x.clone().add_(y).mul_(2), ("N T", "N T")),
    Case("in place into a constant", lambda x, y: torch.zeros(y.shape).add_(y), ("N T", "N T")),
    Case("operators", lambda x, y: -(abs(x) ** 2) + (x > y) * (x // (y + 5)) % 3, ("N T", "N T")),
    Case("reflected", lambda x: (2 - x) / 3 + 2 / (x * x + 1) + 2**x, ("N T",), ("small",)),
    Case("where", lambda x, y, m: torch.where(m, x, y), ("N T", "N T", "b:N T")),
    Case("where scalar", lambda x, m: torch.where(m, x, 0.0), ("N T d", "b:N T 1")),
    Case("masked_fill", lambda x, m: x.masked_fill(m, -1e9), ("N T", "b:N T")),
    Case("masked_fill constant", lambda x, m: x.masked_fill(m, float("-inf")), ("N T d", "b:T d")),
    Case("clamp", lambda x: x.clamp(-1, 1).clamp(min=torch.zeros(1)), ("N T",)),
    Case("activations", lambda x: F.gelu(F.relu(x)) + F.silu(x) + F.elu(x) + F.softplus(x), ("N T d",)),
    Case("relu in place", lambda x: F.relu(x * 1, inplace=True), ("N T d",)),
    Case("prelu", lambda x: F.prelu(x, torch.tensor([0.1])), ("N 6 d",)),
    Case("glu", lambda x: F.glu(x, -1), ("N T d",)),
    Case("dropout", lambda x: F.dropout(F.dropout2d(x, 0.5), 0.5), ("N c T d",)),
    Case("conversions", lambda x: x.float().to(torch.float64).contiguous().detach().clone().type_as(x), ("N T",)),
    Case("data", lambda x: x.data + x.detach(), ("N T",)),
    Case("zeros_like", lambda x: (torch.zeros_like(x) + x, x.new_zeros(2, 3)), ("N T",)),
    Case("sum", lambda x: x.sum(-1) + x.sum(dim=1), ("N T T",)),
    Case("sum, batch second", lambda x: x.sum(0), ("T N d",)),
    Case("mean keepdim", lambda x: x - x.mean(-1, keepdim=True), ("N T d",)),
    Case("mean dims", lambda x: x.mean((1, 3)), ("T h N w",)),
    Case("mean over space", lambda x: x.mean((2, 3)), ("N c T w",)),
    Case("mean numpy style", lambda x: x.mean(axis=1, keepdims=True), ("N T d",)),
    Case("std var", lambda x: x.std(-1) + x.var(1, keepdim=False) + torch.var(x, dim=-1), ("N d d",)),
    Case("var_mean", lambda x: torch.var_mean(x, dim=1), ("N d T",)),
    Case("max", lambda x: x.max(-1), ("N T d",)),
    Case("amax argmax", lambda x: (x.amax(1), x.argmax(-1), x.min(dim=1).values), ("N T T",)),
    Case("maximum", lambda x, y: torch.max(x, y) + torch.min(x, torch.ones(1)), ("N T", "N T")),
    Case(
        "norms",
        lambda x: x.norm(dim=-1) + torch.linalg.norm(x, dim=-1) + torch.linalg.vector_norm(x, dim=-1),
        ("N T d",),
    ),
    Case("norm of p", lambda x: torch.norm(x, 2, -1, True) * x, ("N T d",)),
    Case("normalize", lambda x: F.normalize(x, dim=-1) + F.normalize(x, p=1.0, dim=1), ("N T d",)),
    Case("logsumexp", lambda x: torch.logsumexp(x, -1) + x.prod(-1) + x.nansum(-1), ("N T",), NUMBERS),
    Case("softmax", lambda x: F.softmax(x, -1) + x.log_softmax(1) + torch.softmax(x, dim=1), ("N T d",)),
    Case("softmax without a dimension", lambda x: F.softmax(x), ("N T",)),
    Case("cumsum", lambda x: x.cumsum(1) + x.cumprod(-1), ("N T d",)),
    Case(
        "sort topk", lambda x: (x.sort(-1)[0], torch.sort(x, dim=1, descending=True)[1], x.topk(2, -1)[0]), ("N 5 d",)
    ),
    Case(
        "argsort kthvalue median",
        lambda x: (x.argsort(-1), x.kthvalue(2, -1)[0], x.median(-1)[0], x.mode(1)[0]),
        ("N 5 d",),
        NUMBERS,
    ),
    Case("quantile", lambda x: torch.quantile(x, 0.3, dim=-1), ("N T",)),
    Case("quantiles", lambda x: torch.quantile(x, torch.tensor([0.3, 0.5]), dim=1), ("N T d",)),
    Case("flip roll", lambda x: x.flip(1) + x.roll(1, -1) + x.roll((1, 2), dims=(1, 2)), ("N T d",)),
    Case("diff", lambda x: x.diff(dim=-1), ("N T",)),
    Case("cosine", lambda x, y: F.cosine_similarity(x, y, dim=-1), ("N T d", "N 1 d")),
    Case("pairwise_distance", lambda x, y: F.pairwise_distance(x, y), ("N d", "N d")),
    Case("fft", lambda x: torch.fft.rfft(x, dim=1).real + torch.fft.fft(x, dim=1).imag[:, :3], ("N 4 d",)),
    Case("fft2", lambda x: torch.fft.irfft2(torch.fft.rfft2(x)), ("N 2 4 4",)),
    Case("view", lambda x: x.view(-1, SIZES["d"]), ("N T d",)),
    Case("view and back", lambda x: x.view(-1, SIZES["d"]).view(x.shape), ("N T d",)),
    Case("heads", lambda x: x.view(*x.shape[:2], 2, 3).transpose(1, 2).flatten(0, 1), ("N T d",)),
    Case("heads, batch second", lambda x: x.reshape(x.shape[0], x.shape[1] * 2, 3).transpose(0, 1), ("T N d",)),
    Case("flatten", lambda x: x.flatten(1) + torch.flatten(x, 1), ("N T d",)),
    Case("unflatten", lambda x: x.unflatten(-1, (2, 3)).unflatten(1, (-1, 1)), ("N T d",)),
    Case("flatten before", lambda x: x.flatten(0, 1), ("T N d",)),
    Case("flatten all", lambda x: x.reshape(-1), ("T N d",)),
    Case("permute", lambda x: x.permute(2, 0, 1).transpose(0, -1), ("T N d",)),
    Case("permute list", lambda x: torch.permute(x, [0, 2, 1]).swapaxes(0, 1).movedim(0, -1), ("N T d",)),
    Case("movedim", lambda x: x.movedim((0, 1), (2, 0)), ("N T d",)),
    Case("T", lambda x: (x.T, x.t(), x.mT, x.T.contiguous().T), ("N T",)),
    Case("squeeze", lambda x: x.squeeze(1).unsqueeze(0).squeeze(0).unsqueeze(-1), ("N 1 d",)),
    Case("expand", lambda x: x.unsqueeze(1).expand(-1, 3, -1) + x[:, None].expand(x.shape[0], 3, x.shape[1]), ("N T",)),
    Case("expand_as", lambda x, y: x.expand_as(y), ("N 1", "N T")),
    Case("repeat", lambda x: x.repeat(1, 2), ("N T",)),
    Case("repeat samples", lambda x: x.repeat(3, 1), ("N T",)),
    Case("tile", lambda x: x.tile(2), ("N T",)),
    Case("repeat_interleave", lambda x: x.repeat_interleave(3, dim=0), ("N T",)),
    Case("repeat_interleave others", lambda x: torch.repeat_interleave(x, 2, 1), ("N T",)),
    Case("repeat_interleave flat", lambda x: x.repeat_interleave(2), ("N",)),
    Case("repeat_interleave flattened", lambda x: x.repeat_interleave(2), ("N T",)),
    Case("beams", lambda x: x.repeat_interleave(3, 0).view(-1, 3, x.shape[1]).sum(1), ("N T",)),
    Case("split chunk", lambda x: [*x.split(2, -1), *x.chunk(2, 1), *torch.tensor_split(x, 2, 1)], ("N 4 d",)),
    Case("split list", lambda x: x.split([2, 4], dim=-1)[1], ("N T d",)),
    Case("unbind", lambda x: x.unbind(1), ("N 3 d",)),
    Case("select narrow", lambda x: x.select(1, 0) + x.narrow(1, 0, 2).sum(1), ("N 4 d",)),
    Case("cat", lambda x, y: torch.cat([x, y, x], dim=1), ("N T", "N T")),
    Case("cat with constants", lambda x: torch.cat([torch.ones(x.shape[0], 2), x], -1), ("N T",)),
    Case("cat samples", lambda x, y: torch.cat([x, y]), ("N T", "N T")),
    Case("cat and chunk", lambda x, y: torch.cat([x, y]).chunk(2), ("N T", "N T")),
    Case(
        "stack",
        lambda x, y: (torch.stack([x, y]), torch.stack([x, y], -1), torch.stack([x, torch.ones(1).expand_as(x)], 1)),
        ("N T", "N T"),
    ),
    Case("pad", lambda x: F.pad(x, (1, 2, 0, 1)), ("N T d",)),
    Case("pad circular", lambda x: F.pad(x, (1, 1), mode="circular"), ("N T d",)),
    Case("unfold", lambda x: x.unfold(1, 2, 1), ("N 5 d",)),
    Case("tril", lambda x: x.tril() + torch.triu(x), ("N T T",)),
    Case("diagonal", lambda x: x.diagonal(dim1=1, dim2=2), ("N T T",)),
    Case("diag_embed", lambda x: torch.diag_embed(x), ("N T",)),
    Case(
        "complex",
        lambda x: torch.view_as_real(torch.view_as_complex(x.reshape(*x.shape[:-1], 3, 2)) * 1j).flatten(2),
        ("N T d",),
    ),
    Case("polar", lambda x: torch.polar(x.abs(), x).abs() + torch.complex(x, x).real, ("N T",)),
    Case("meshgrid", lambda x: torch.meshgrid(x, torch.ones(3), indexing="ij")[0], ("N",)),
    Case("broadcast_tensors", lambda x, y: torch.broadcast_tensors(x, y)[0], ("N 1", "T")),
    Case("matmul", lambda x, w: x @ w, ("N T d", "d e")),
    Case("matmul reversed", lambda x, w: w @ x, ("N T d", "3 T")),
    Case("matmul pairs", lambda x, y: x @ y.transpose(-1, -2), ("N T d", "N T d")),
    Case("matmul heads", lambda x, y: torch.matmul(x, y), ("N h T d", "N h d e")),
    Case("matmul vector", lambda x, w: x @ w, ("N T d", "d")),
    Case("matmul rows", lambda x, w: x @ w + torch.mm(x, w), ("N d", "d e")),
    Case("matmul columns", lambda x, w: w @ x, ("d N", "e d")),
    Case("bmm", lambda x, y: torch.bmm(x, y), ("N T d", "N d e")),
    Case("baddbmm", lambda x, y, z: torch.baddbmm(z, x, y, beta=0.5), ("N T d", "N d e", "N T e")),
    Case("addmm", lambda x, w, b: torch.addmm(b, x, w), ("N d", "d e", "e")),
    Case("mv", lambda x, w: torch.mv(x, w), ("N d", "d")),
    Case("outer", lambda x, w: torch.outer(x, w), ("N", "T")),
    Case("linear", lambda x, w, b: F.linear(x, w, b), ("N T d", "e d", "e")),
    Case("linear, batch second", lambda x, w: F.linear(x, w), ("T N d", "e d")),
    Case("bilinear", lambda x, y, w: F.bilinear(x, y, w), ("N d", "N e", "3 d e")),
    Case("einsum", lambda x, w: torch.einsum("btd,ed->bte", x, w), ("N T d", "e d")),
    Case("einsum pairs", lambda x, y: torch.einsum("bhid,bhjd->bhij", x, y), ("N h T d", "N h T d")),
    Case("einsum implicit", lambda x, w: torch.einsum("bi,ij", x, w), ("N d", "d e")),
    Case("einsum ellipsis", lambda x, w: torch.einsum("...i,oi->...o", x, w), ("N T d", "e d")),
    Case("einsum diagonal", lambda x: torch.einsum("bii->bi", x), ("N T T",)),
    Case("einsum capital", lambda x, w: torch.einsum("b t D, D e -> t b e", x, w), ("N T d", "d e")),
    Case(
        "tensordot",
        lambda x, w: torch.tensordot(x, w, dims=1) + torch.tensordot(x, w, dims=([2], [0])),
        ("N T d", "d e"),
    ),
    Case("cdist", lambda x, w: torch.cdist(x, w), ("N T d", "5 d"), NUMBERS),
    Case(
        "attention", lambda q, k, v: F.scaled_dot_product_attention(q, k, v), ("N h T d", "N h T d", "N h T e"), NUMBERS
    ),
    Case("attention causal", lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True), ("N h T d",), NUMBERS),
    Case(
        "attention mask",
        lambda q, m: F.scaled_dot_product_attention(q, q, q, attn_mask=m),
        ("N h T d", "N 1 1 T"),
        NUMBERS,
    ),
    Case(
        "attention keys are constants",
        lambda q, k: F.scaled_dot_product_attention(q, k, k),
        ("N h T d", "1 h 3 d"),
        NUMBERS,
    ),
    Case("embedding", lambda i, w: F.embedding(i, w), ("i:N T", "3 d")),
    Case("embedding padding", lambda i, w: F.embedding(i, w, padding_idx=0), ("i:N", "3 d")),
    Case("table by index", lambda i, w: w[i] + w.index_select(0, i.flatten()).view(*i.shape, -1), ("i:N T", "3 d")),
    Case("one_hot", lambda i: F.one_hot(i, 3), ("i:N T",)),
    Case("layer_norm", lambda x: F.layer_norm(x, (6,), torch.ones(6), torch.zeros(6)), ("N T d",)),
    Case("rms_norm", lambda x: F.rms_norm(x, (6,)), ("N T d",)),
    Case("layer_norm two", lambda x: F.layer_norm(x, x.shape[1:]), ("N T d",)),
    Case("interpolate", lambda x: F.interpolate(x, scale_factor=2), ("N c 2 4",)),
    Case("interpolate bilinear", lambda x: F.interpolate(x, size=(5, 5), mode="bilinear"), ("N c 2 4",)),
    Case("conv1d", lambda x, w: F.conv1d(x, w, padding=1), ("N c T", "6 c 3")),
    Case("conv2d", lambda x, w, b: F.conv2d(x, w, b, stride=2, padding=1), ("N c 4 w", "6 c 3 3", "6")),
    Case("conv2d groups", lambda x, w: F.conv2d(x, w, groups=2), ("N c 4 w", "6 2 3 3")),
    Case("conv3d", lambda x, w: F.conv3d(x, w), ("N c 3 4 4", "6 c 2 2 2")),
    Case("conv_transpose", lambda x, w: F.conv_transpose2d(x, w, stride=2), ("N c 4 4", "c 6 2 2")),
    Case("conv1d pointwise over samples", lambda x, w: F.conv1d(x, w), ("2 c N", "6 c 1")),
    Case("pools", lambda x: F.max_pool2d(x, 2) + F.avg_pool2d(x, 2), ("N c 4 w",)),
    Case("adaptive pools", lambda x: F.adaptive_avg_pool2d(x, 1) + F.adaptive_max_pool2d(x, (1, 1)), ("N c 4 w",)),
    Case("pool1d", lambda x: F.max_pool1d(x, 2) + F.avg_pool1d(x, 2), ("N c w",)),
    Case("pool indices", lambda x: F.max_pool2d(x, 2, return_indices=True), ("N c 4 w",)),
    Case("pixel_shuffle", lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2), ("N c 4 w",)),
    Case("index slices", lambda x: x[:, 1:, ::2] + x[..., 1:, 0:3], ("N 5 6",)),
    Case("index integer", lambda x: x[:, 0] + x[:, -1] + x[..., 0, :], ("N T d",)),
    Case("index none", lambda x: x[:, None, :, None] + x[:, None, :, None][...], ("N T",)),
    Case("index constant tensor", lambda x: x[:, torch.tensor([2, 0, 1])] + x[:, [2, 0, 1]], ("N 4 d",)),
    Case("index two tensors", lambda x: x[:, torch.tensor([0, 1]), torch.tensor([2, 3])], ("N 4 d",)),
    Case("index apart", lambda x: x[torch.tensor([0, 1]), :, torch.tensor([2, 3])], ("4 N d",)),
    Case("index matrix", lambda x: x[:, torch.tensor([[0, 1, 2], [1, 1, 0]])], ("N 4 d",)),
    Case("index then integer", lambda x: x[0, :, torch.tensor([1, 2])], ("3 N d",)),
    Case("index constant mask", lambda x: x[:, torch.tensor([True, False, True, True])], ("N 4 d",)),
    Case("index whole", lambda x: x[:] + x[...] + x[0:], ("N T",)),
    Case("gather", lambda x, i: x.gather(1, i) + torch.gather(x, -1, i), ("N 3", "i:N 3")),
    Case("take_along_dim", lambda x, i: torch.take_along_dim(x, i, dim=1), ("N 3 d", "i:N 2 1")),
    Case(
        "scatter",
        lambda x, i: torch.zeros(x.shape[0], 3).scatter(1, i, x) + torch.zeros(x.shape[0], 3).scatter_add(1, i, x),
        ("N 2", "i:N 2"),
    ),
    Case("scatter a number", lambda i: torch.zeros(i.shape[0], 3).scatter_(1, i, 1.0), ("i:N 2",)),
    Case("index_select", lambda x: x.index_select(1, torch.tensor([0, 2])), ("N 3 d",)),
    Case("index_add", lambda x: torch.zeros(x.shape[0], 4).index_add(1, torch.tensor([0, 2, 2]), x), ("N 3",)),
    Case("setitem slice", lambda x, y: put(x, (slice(None), slice(1, 3)), y), ("N 4 d", "N 2 d")),
    Case("setitem into constants", lambda x: put(torch.zeros(*x.shape[:2], 3), (..., 1), x), ("N T",)),
    Case("setitem number", lambda x: put(x, (slice(None), 0), 7.0), ("N T",)),
    Case("setitem one row", lambda x: put(x, 0, 7.0), ("N T",)),
    Case("setitem mask", lambda x, m: put(x, m, 0.0), ("N T d", "b:N T")),
    Case("setitem tensor", lambda x, y: put(x, (slice(None), torch.tensor([0, 2])), y), ("N 4 d", "N 2 d")),
    Case("through a view", viewed, ("N T d", "N T")),
    Case(
        "losses none",
        lambda x, y: (
            F.mse_loss(x, y, reduction="none")
            + F.l1_loss(x, y, reduction="none")
            + F.smooth_l1_loss(x, y, reduction="none")
        ),
        ("N T", "N T"),
    ),
    Case("bce none", lambda x: F.binary_cross_entropy_with_logits(x, torch.ones_like(x), reduction="none"), ("N T",)),
    Case("cross_entropy none", lambda x, i: F.cross_entropy(x, i, reduction="none"), ("N 3", "i:N")),
    Case("cross_entropy none deep", lambda x, i: F.cross_entropy(x, i, reduction="none"), ("N 3 T", "i:N T")),
    Case(
        "cross_entropy tokens",
        lambda x, i: F.cross_entropy(x.view(-1, 6), i.view(-1), reduction="none", ignore_index=0).view(i.shape),
        ("N T d", "i:N T"),
    ),
    Case("nll none", lambda x, i: F.nll_loss(x, i, reduction="none"), ("N 3", "i:N")),
    Case("linalg", lambda x: torch.linalg.inv(x) + torch.inverse(x), ("N 3 3",), NUMBERS),
    Case("cell", lambda x, h, w: torch.gru_cell(x, h, w, w), ("N d", "N d", "18 d")),
    Case("bucketize", lambda x: torch.bucketize(x, torch.tensor([-1.0, 0.0, 1.0])), ("N T",), NUMBERS),
    Case("isin", lambda i: torch.isin(i, torch.tensor([0, 2])), ("i:N T",)),
    Case("cross", lambda x, y: torch.linalg.cross(x, y) + torch.cross(x, y, dim=-1), ("N 3", "N 3")),
    Case("inner", lambda x, w: torch.inner(x, w), ("N T d", "e d")),
    Case("no argument is tracked", lambda x: torch.ones(3) + 1, ("N T",)),
    Case("empty written", lambda x: torch.empty_like(x).copy_(x), ("N T",)),
    Case("out", lambda x: torch.add(x, 1, out=torch.empty_like(x)), ("N T",)),
    Case("aten", lambda x: torch.ops.aten.mean.dim(torch.ops.aten.add(x, 1), [1]), ("N T d",)),
]

# Followed where a row is a sample's alone (outer = inner = 1).
PLAIN = [
    Case("samples one by one", lambda x: torch.stack(list(x)), ("N T",)),
    Case("stacked elsewhere", lambda x: torch.stack(x.unbind(), -1), ("N T d",)),
    Case("rows joined", lambda x: torch.cat(x.unbind(), 1), ("N T d",)),
    Case("chunks joined again", lambda x: torch.cat(x.split(1)), ("N T",)),
    Case("uneven parts joined again", lambda x: torch.cat(x.split([1, len(x) - 1])), ("N T",)),
    Case("masked_scatter", scattered, ("N 4 d", "N 2 d"), NUMBERS),
    Case("triplet none", lambda x, y: F.triplet_margin_loss(x, y, x + y, reduction="none"), ("N T", "N T")),
    Case("ctc none", lambda x: ctc(x, "none"), ("T N k",), NUMBERS),
    Case("group_norm", lambda x: F.group_norm(x, 2), ("N c T",)),
    Case("instance_norm", lambda x: F.instance_norm(x), ("N c 3 w",)),
    Case("batch_norm eval", lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4)), ("N c T",)),
    Case("local_response_norm", lambda x: F.local_response_norm(x, 2), ("N c T",)),
    Case("channel_shuffle", lambda x: F.channel_shuffle(x, 2), ("N c T w",)),
    Case("F.unfold", lambda x: F.fold(F.unfold(x, 2, stride=2), (4, 8), 2, stride=2), ("N c 4 w",)),
    Case(
        "grid_sample, samples as rows of points",
        lambda x, g: F.grid_sample(x, g, align_corners=False),
        ("1 c 4 4", "1 N 3 2"),
        NUMBERS,
    ),
    Case(
        "grid_sample, samples as points",
        lambda x, g: F.grid_sample(x, g, align_corners=False),
        ("1 c 4 4", "1 3 N 2"),
        NUMBERS,
    ),
    Case("solve", lambda a, b: torch.linalg.solve(a + 9 * torch.eye(4), b), ("N e e", "N e d"), NUMBERS),
    Case("solve of columns", lambda a, b: torch.linalg.solve(a + 9 * torch.eye(4), b), ("e e", "e N"), NUMBERS),
    Case(
        "solve_triangular of columns",
        lambda a, b: torch.linalg.solve_triangular(a.tril() + 9 * torch.eye(4), b, upper=False),
        ("1 e e", "1 e N"),
        NUMBERS,
    ),
    Case(
        "solve_triangular of rows",
        lambda a, b: torch.linalg.solve_triangular(a.tril() + 9 * torch.eye(4), b, upper=False, left=False),
        ("e e", "N e"),
        NUMBERS,
    ),
    Case(
        "cholesky_solve of columns",
        lambda b, a: torch.cholesky_solve(b, a.tril() + 9 * torch.eye(4)),
        ("e N", "e e"),
        NUMBERS,
    ),
    Case("max_unpool", lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), ("N c 4 w",), NUMBERS),
    Case("grid_sample", lambda x, g: F.grid_sample(x, g, align_corners=False), ("N c 4 4", "N 3 3 2"), NUMBERS),
    Case("affine_grid", lambda x: F.affine_grid(x, [x.shape[0], 1, 3, 3], align_corners=False), ("N 2 3",), NUMBERS),
    Case("embedding_bag", lambda i, w: F.embedding_bag(i, w), ("i:N T", "3 d")),
    Case("index by arange", lambda x, i: x[A(x.shape[0]), i], ("N 3 d", "i:N")),
    Case("index by arange both", lambda x, i: x[A(x.shape[0])[:, None], i], ("N 3 d", "i:N 2")),
    Case("index by arange shared", lambda x: x[A(x.shape[0])[:, None], A(3)[None]], ("N 3 d",)),
    Case("setitem by arange", lambda x, i: put(x, (A(x.shape[0]), i), 0.0), ("N 3 d", "i:N")),
    Case("setitem by arange of samples", lambda x, i, y: put(x, (A(x.shape[0]), i), y), ("N 3 d", "i:N", "N d")),
    Case("identity", lambda x: x[A(x.shape[0])] + x[0 : x.shape[0]] + x.index_select(0, A(x.shape[0])), ("N T",)),
    Case("doubled", lambda x: x[torch.cat([A(x.shape[0]), A(x.shape[0])])], ("N T",)),
    Case(
        "lstm",
        lambda x, w, v: torch.lstm(
            x, (x.new_zeros(1, x.shape[0], 2), x.new_zeros(1, x.shape[0], 2)), (w, v), False, 1, 0.0, False, False, True
        ),
        ("N T d", "8 d", "8 2"),
    ),
    Case(
        "gru, batch second",
        lambda x, w, v: torch.gru(x, x.new_zeros(1, x.shape[1], 2), (w, v), False, 1, 0.0, False, False, False),
        ("T N d", "6 d", "6 2"),
    ),
    Case("multi_margin none", lambda x, i: F.multi_margin_loss(x, i, reduction="none"), ("N 3", "i:N")),
]

# Never followed: samples meet. The oracle need not object where a rule knows no better (roll, flip of samples).
MIXED = [
    Case("solved over the samples", lambda x: torch.linalg.solve(torch.ones(len(x), len(x)).tril(), x), ("N d",)),
    Case("sum over samples keepdim", lambda x: x - x.mean(0, keepdim=True), ("N T",)),
    Case("mean over samples, centred", lambda x: x - x.mean(0), ("N T",)),
    Case("std of all", lambda x: x / x.std(), ("N T",)),
    Case("max of all", lambda x: x / x.abs().max(), ("N T",)),
    Case("softmax over samples", lambda x: x.softmax(0), ("N T",)),
    Case("softmax without a dimension", lambda x: F.softmax(x), ("N T d",)),
    Case("cumsum over samples", lambda x: x.cumsum(0), ("N T",)),
    Case("sort over samples", lambda x: x.sort(0)[0], ("N T",)),
    Case("topk over samples", lambda x: x.topk(1, 0)[0], ("N T",)),
    Case("flip samples", lambda x: x.flip(0), ("N T",)),
    Case("roll samples", lambda x: x.roll(1, 0), ("N T",)),
    Case("roll flat", lambda x: x.roll(1), ("N T",)),
    Case("normalize over samples", lambda x: F.normalize(x, dim=0), ("N T",)),
    Case("similarity", lambda x, y: x @ y.T, ("N d", "N d")),
    Case("similarity einsum", lambda x, y: torch.einsum("id,jd->ij", x, y), ("N d", "N d")),
    Case("similarity cdist", lambda x, y: torch.cdist(x, y), ("N d", "N d")),
    Case("similarity broadcast", lambda x, y: x[:, None] - y[None], ("N d", "N d")),
    Case("similarity cosine", lambda x, y: F.cosine_similarity(x[:, None], y[None], dim=-1), ("N d", "N d")),
    Case("contraction", lambda x: x.T @ x, ("N d",)),
    Case("attention across samples", lambda q: F.scaled_dot_product_attention(q, q, q), ("1 h N d",)),
    Case("one sample", lambda x: x[0], ("N T",)),
    Case("one sample for all", lambda x: x - x[0], ("N T",)),
    Case("last sample", lambda x: x.select(0, -1), ("N T",)),
    Case("permuted samples", lambda x, i: x[i % len(x)], ("N T", "i:N")),
    Case("gather over samples", lambda x, i: x.gather(0, i % len(x)), ("N T", "i:N T")),
    Case("batch_norm", lambda x: F.batch_norm(x, None, None, training=True), ("N c 3",)),
    Case("layer_norm over samples", lambda x: F.layer_norm(x, x.shape), ("N T",)),
    Case("group_norm of channels", lambda x: F.group_norm(x, 1), ("2 N T",)),
    Case("conv over samples", lambda x, w: F.conv1d(x, w, padding=1), ("2 c N", "6 c 3")),
    Case("flipped target", lambda x: x * x.flip(0), ("N T",)),
    Case("unique", lambda i: torch.unique(i), ("i:N T",)),
    Case("bincount", lambda i: torch.bincount(i, minlength=3), ("i:N",)),
    Case("as_strided", lambda x: x.as_strided((1,), (1,)), ("N T",)),
    Case(
        "write into a part", lambda x: put(torch.zeros(x.shape[0] + 1, x.shape[1]), slice(0, x.shape[0]), x), ("N T",)
    ),
    Case("gradient within", lambda x: torch.autograd.grad((x.requires_grad_() ** 2).sum(), x)[0], ("N T",)),
    Case("exponential of a loss", lambda x: x.requires_grad_().square().mean().exp(), ("N T",)),
    Case("product of losses", lambda x: x.requires_grad_().sum() * x.mean(), ("N T",)),
    Case("divided by a loss", lambda x: x.requires_grad_().sum() / x.square().mean(), ("N T",)),
    Case("loss joined with samples", lambda x: x.sum() + x, ("N T",)),
    Case("batch norm by hand", lambda x: (x - x.mean(0)) / x.var(0), ("N T",)),
    Case("a part alone", lambda x: x.unbind()[0] * 2, ("N T",)),
    Case("loss of pairs", lambda x, y: F.mse_loss(x, y.T), ("N N", "N N")),
]

# A sum over samples of something of each alone, and what stays one.
SUMMED = [
    Case("mean of all", lambda x: x.mean(), ("N T",)),
    Case("sum over samples", lambda x: x.sum(0), ("N T",)),
    Case("cross_entropy", lambda x, i: F.cross_entropy(x, i), ("N 3", "i:N")),
    Case("mse", lambda x, y: F.mse_loss(x, y), ("N T", "N T")),
    Case("squeeze of samples and transposed sum", lambda x: x.t().sum(1), ("N T",)),
    Case("loss scaled and added", lambda x, y: 2 * F.mse_loss(x, y) / 3 - x.sum() + 1, ("N T", "N T")),
    Case("loss accumulated", lambda x: torch.zeros(()).add_(x.mean()).add_(x.sum()), ("N T",)),
    Case("losses stacked", lambda x: torch.stack([x.sum(), x.mean()]).sum(), ("N T",)),
    Case("loss of single precision", lambda x: x.sum().detach().clone().double().reshape(1).view(1, 1), ("N T",)),
    Case("cross_entropy deep", lambda x, i: F.cross_entropy(x, i, reduction="sum"), ("N 3 T", "i:N T")),
    Case("bce", lambda x: F.binary_cross_entropy_with_logits(x, torch.ones_like(x)), ("N T",)),
    Case("kl", lambda x: F.kl_div(x, torch.ones_like(x) / 2, reduction="sum"), ("N T",), NUMBERS),
    Case("hinge", lambda x: F.hinge_embedding_loss(x, torch.ones_like(x)), ("N T",), NUMBERS),
    Case("aten sum", lambda x: torch.ops.aten.sum.dim_IntList(x, [0]), ("N T",)),
]

# Verdicts differ by values or by how samples are folded; whatever is claimed has to be right.
ANY = [
    Case("write into a part of a view", lambda x: written(x, 2), ("N T",)),
    Case("write into the front of a view", lambda x: written(x, 0), ("N T",)),
    Case("write into rows of a view", lambda x: written(x, x.shape[0]), ("N T",)),
    Case("pieces side by side", lambda x: torch.cat(x.chunk(len(x) * 2 // 3 + 1), 1), ("N T",)),
    Case("some of the samples put together", lambda x: torch.stack(list(x)[:1] * 2), ("N T",)),
    Case("samples put together in another order", lambda x: torch.stack(list(x)[::-1]), ("N T",)),
    Case("repeat_interleave by a list", lambda x: x.repeat_interleave(torch.tensor([2] * x.shape[0]), 0), ("N T",)),
    Case("half", lambda x: x[: max(1, x.shape[0] // 2)], ("N T",)),
    Case("every other", lambda x: x[::2], ("N T",)),
    Case("chunk samples", lambda x: x.chunk(2), ("N T",)),
    Case("strided", lambda x: x[1::2], ("N T",)),
    Case("view pairs", lambda x: x.reshape(2, -1), ("N 2 T",)),
    Case("view square", lambda x: x.reshape(x.shape[1], x.shape[0]), ("N T",)),
    Case("view square deep", lambda x: x.reshape(x.shape[1], x.shape[0], x.shape[2]), ("N T d",)),
    Case("view of the transposed", lambda x: x.transpose(0, 1).reshape(x.shape), ("N T d",)),
    Case("pool without a batch", lambda x: F.max_pool2d(x, 2), ("N 4 w",)),
    Case("fold groups", lambda x: x.reshape(-1, x.shape[1] * 2), ("N T 2",)),
    Case("swapped halves", lambda x: torch.cat(x.chunk(2)[::-1]), ("N T",)),
    Case("depthwise", lambda x, w: F.conv1d(x, w, groups=x.shape[1]), ("1 N T", "N 1 1")),
    Case("index with wrong order", lambda x: x[torch.arange(x.shape[0] - 1, -1, -1)], ("N T",)),
    Case("shifted", lambda x: torch.cat([x[1:], x[:1]]), ("N T",)),
    Case("mixup", lambda x: 0.3 * x + 0.7 * x[torch.randperm(x.shape[0])], ("N T",)),
    Case("squeeze", lambda x: x.squeeze(), ("N 1 T",)),
    Case("broadcast of samples", lambda x, y: x + y, ("N d", "T 1 d")),
    Case("scatter over samples", lambda x, i: torch.zeros(3, x.shape[1]).scatter_add(0, i, x), ("N T", "i:N T")),
    Case("index_add over samples", lambda x, i: torch.zeros(3, x.shape[1]).index_add(0, i, x), ("N T", "i:N")),
    Case("masked_scatter", lambda x, m, y: x.masked_scatter(m, y), ("N T", "b:N T", "N T"), ("small", "large")),
    Case("take", lambda x, i: torch.take(x, i % x.numel()), ("N T", "i:N")),
    Case("constant table of samples' length", lambda x, w: x + w, ("N T", "T")),
    Case("view then write", lambda x: put(torch.zeros(x.shape[1], x.shape[0]), ..., x.T), ("N T",)),
]


def named(cases: list[Case]) -> Any:
    return pytest.mark.parametrize("case", cases, ids=[c.name for c in cases])


def settings(some: list[Setting]) -> Any:
    return pytest.mark.parametrize("s", some, ids=["n{}-t{}-o{}-i{}".format(*s) for s in some])


@named(FOLLOWED)
@settings([*SETTINGS, *FOLDED])
def test_followed(case: Case, s: Setting) -> None:
    found = verdicts(case, s)
    assert found
    assert not [v for v in found if not isinstance(v, Track | None)]
    if case.name != "no argument is tracked":
        assert any(isinstance(v, Track) for v in found)


@named(PLAIN)
@settings(SETTINGS)
def test_followed_row_by_row(case: Case, s: Setting) -> None:
    found = verdicts(case, s)
    assert found
    assert not [v for v in found if not isinstance(v, Track)]


@named(PLAIN)
@settings(FOLDED)
def test_row_by_row_folded_is_never_wrong(case: Case, s: Setting) -> None:
    assert verdicts(case, s)


CHOSEN = [
    Case("nonzero", lambda m: (m & (A(m.shape[1]) > 0)).nonzero(), ("b:N T",)),
    Case("where", lambda m: torch.where(m & (A(m.shape[1]) > 0)), ("b:N T",)),
    Case("masked rows", lambda x, m: x[m], ("N d", "b:N")),
    Case("masked tokens", lambda x, m: x[m], ("N T d", "b:N T")),
]


@named(CHOSEN)
@settings([*SETTINGS, *FOLDED])
def test_chosen(case: Case, s: Setting) -> None:
    found = verdicts(case, s)
    assert found
    assert all(isinstance(v, Rows) for v in found)


@named(MIXED)
@settings([*SETTINGS, *FOLDED])
def test_mixed(case: Case, s: Setting) -> None:
    found = verdicts(case, s)
    assert found
    assert all(isinstance(v, Mixed) and v.reason for v in found)


@named(SUMMED)
@settings([*SETTINGS, *FOLDED])
def test_summed(case: Case, s: Setting) -> None:
    found = verdicts(case, s)
    assert found
    assert all(isinstance(v, Summed) and v.reason for v in found)


@named(ANY)
@settings([*SETTINGS, *FOLDED])
def test_never_wrong(case: Case, s: Setting) -> None:
    assert verdicts(case, s)
