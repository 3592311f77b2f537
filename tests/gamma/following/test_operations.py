"""Operations of torch that are followed in any setting, one by one, against the oracle."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from sdsd.gamma.following import Track

from .operations import FOLDED, NUMBERS, SETTINGS, SIZES, Case, Setting, named, put, settings, verdicts

pytestmark = pytest.mark.usefixtures("double")


def viewed(x: Tensor, y: Tensor) -> Tensor:
    """y's samples written into a buffer through a view of it."""
    buffer = torch.zeros(*x.shape[:2], 2, dtype=x.dtype)
    buffer[:, :, 0].copy_(y)
    return buffer


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
    Case(
        "index_select by keywords", lambda x: torch.index_select(input=x, dim=1, index=torch.tensor([0, 2])), ("N 3 d",)
    ),
    Case(
        "index_fill by keywords",
        lambda x: (
            torch.index_fill(input=x, dim=1, index=torch.tensor([1]), value=0.0),
            x.index_fill(dim=1, index=torch.tensor([1]), value=torch.tensor(0.5)),
        ),
        ("N 3 d",),
    ),
    Case("sort by keywords", lambda x: torch.sort(input=x, dim=1)[0], ("N 5 d",)),
    Case("where by keywords", lambda x, m: torch.where(condition=m, input=x, other=0.0), ("N T d", "b:N T 1")),
    Case("searchsorted by keywords", lambda x, y: torch.searchsorted(sorted_sequence=y, input=x), ("N T", "3")),
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


@named(FOLLOWED)
@settings([*SETTINGS, *FOLDED])
def test_followed(case: Case, s: Setting) -> None:
    found = verdicts(case, s)
    assert found
    assert not [v for v in found if not isinstance(v, Track | None)]
    if case.name != "no argument is tracked":
        assert any(isinstance(v, Track) for v in found)
