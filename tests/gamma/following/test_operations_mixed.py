"""Operations that mix samples or sum over them, and that no verdict is wrong."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from sdsd.gamma.following import Mixed, Summed

from .operations import FOLDED, NUMBERS, SETTINGS, Case, Setting, named, put, settings, verdicts

pytestmark = pytest.mark.usefixtures("double")


def written(x: Tensor, start: int) -> Tensor:
    """A column of samples written into a square buffer through a flat view of it."""
    buffer = torch.zeros(x.shape[0] + 2, x.shape[0])
    buffer.flatten()[start : start + x.shape[0]].copy_(x[:, 0])
    return buffer * 2


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
    Case("one sample for all", lambda x: x - x[0], ("N T",)),
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
