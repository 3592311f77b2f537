"""Operations that few models use, one by one, against the oracle: followed, or refused where they mix samples."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from sdsd.gamma.following import Mixed, Track

from .operations import FOLDED, NUMBERS, SETTINGS, Case, Setting, named, settings, verdicts

pytestmark = pytest.mark.usefixtures("double")

FOLLOWED = [
    Case("addbmm, samples in rows", lambda x, w, b: torch.addbmm(b, x, w), ("3 N d", "3 d e", "N e")),
    Case("addr", lambda x, v, b: torch.addr(b, x, v), ("N", "e", "N e")),
    Case("addmv", lambda x, v, b: torch.addmv(b, x, v), ("N d", "d", "N")),
    Case("dot of constants", lambda x, v: x * torch.dot(v, v), ("N T", "d")),
    Case("vector times matrix", lambda x, w: torch.matmul(w, x), ("d N", "d")),
    Case("convolution", lambda x, w: torch.convolution(x, w, None, [1], [0], [1], False, [0], 1), ("N c T", "6 c 3")),
    Case("tensordot along a tensor", lambda x, w: torch.tensordot(x, w, torch.tensor([[2], [0]])), ("N T d", "d e")),
    Case(
        "attention in groups",
        lambda q, k: F.scaled_dot_product_attention(q, k, k, enable_gqa=True),
        ("N 4 T d", "N h T d"),
        NUMBERS,
    ),
    Case("columns of a table", lambda i, w: F.embedding(i, w), ("i:T", "3 N")),
    Case("solve", lambda x, y: torch.linalg.solve(x, y), ("N 3 3", "N 3 d"), NUMBERS),
    Case("solve from the right", lambda x, y: torch.linalg.solve(x, y, left=False), ("N 3 3", "N d 3"), NUMBERS),
    Case("solve for vectors", lambda x, y: torch.linalg.solve(x, y), ("N 3 3", "N 3"), NUMBERS),
    Case("matrix norms", lambda x: torch.linalg.matrix_norm(x) + torch.linalg.matrix_norm(x, 1), ("N T d",), NUMBERS),
    Case("flipped", lambda x: x.flip(1) + torch.fliplr(x), ("N T",)),
    Case("msort, flipud", lambda x: torch.msort(x) + torch.flipud(x), ("T N",)),
    Case("rot90", lambda x: torch.rot90(x, 1, (1, 2)), ("N T d",)),
    Case("differences", lambda x, y: torch.diff(x, n=2, dim=1, prepend=y), ("N 4 d", "N 2 d")),
    Case("gumbel_softmax", lambda x: torch.zeros_like(F.gumbel_softmax(x, dim=-1)) + x, ("N T",)),
    Case("trapezoid", lambda x, t: torch.trapezoid(x, t) + torch.trapezoid(x, dx=0.5, dim=1), ("N T", "T")),
    Case("cosine_similarity", lambda x, y: F.cosine_similarity(x, y, dim=-1), ("N T d", "T d"), NUMBERS),
    Case("pairwise_distance", lambda x, y: F.pairwise_distance(x, y, keepdim=True), ("N T d", "T d"), NUMBERS),
    Case("pairwise_distance without", lambda x, y: F.pairwise_distance(x, y, p=1.0), ("N T d", "d"), NUMBERS),
    Case("renorm", lambda x: torch.renorm(x, 2, 0, 1.0), ("N T d",), NUMBERS),
    Case("norm except", lambda x: torch.norm_except_dim(x, 2, 0), ("N T d",), NUMBERS),
    Case(
        "fft",
        lambda x: (torch.fft.rfft(x).abs(), torch.fft.fft(x, n=3, dim=1).real, torch.fft.fftshift(x, dim=1)),
        ("N T d",),
        NUMBERS,
    ),
    Case(
        "fft of pictures",
        lambda x: torch.fft.rfft2(x).abs().sum(-1) + torch.fft.fftn(x, s=(4, 6)).abs().sum(-1),
        ("N c 4 d",),
        NUMBERS,
    ),
    Case("searchsorted", lambda x, y: torch.searchsorted(x.sort(-1)[0], y), ("N T", "N 3"), NUMBERS),
    Case("searchsorted among constants", lambda x: torch.searchsorted(torch.arange(3.0), x), ("N T",), NUMBERS),
    Case(
        "index_put",
        lambda x, y: x.index_put((torch.arange(x.shape[0])[:, None], torch.tensor([0, 2])), y),
        ("N 4", "N 2"),
    ),
    Case("take", lambda i, w: torch.take(w, i), ("i:N T", "3 d")),
    Case(
        "hstack, vstack, column_stack", lambda x, y: (torch.hstack((x, y)), torch.column_stack((x, y))), ("N T", "N d")
    ),
    Case("stacks of vectors", lambda x, y: (torch.column_stack((x, y)), torch.vstack((x, y))), ("N", "N")),
    Case("meshgrid, xy", lambda x: torch.meshgrid(torch.ones(3), x, indexing="xy")[1], ("N",)),
    Case("copied into", lambda x: torch.zeros_like(x).copy_(x), ("N T",)),
    Case("filled", lambda x: x.clone().fill_(2.0) + x.clone().fill_(torch.tensor(3.0)), ("N T",)),
    Case("ravel", lambda x: x.ravel(), ("N T",)),
    Case("adjoint", lambda x: x.adjoint() + x.mH, ("c:N T T",)),
    Case("hsplit, vsplit", lambda x: (*torch.hsplit(x, 2), *torch.hsplit(x, [1])), ("N 4 d",)),
    Case("renamed dimensions", lambda x: torch.sum(x, axis=1, keepdims=True), ("N T d",)),
]

MIXED = [
    Case("addbmm", lambda x, w, b: torch.addbmm(b, x, w), ("N T d", "N d e", "T e")),
    Case("flipud", lambda x: torch.flipud(x), ("N T",)),
    Case("rot90", lambda x: torch.rot90(x), ("N N",)),
    Case("differences", lambda x: torch.diff(x, dim=0), ("N T",)),
    Case("trapezoid over the samples", lambda x: torch.trapezoid(x, dim=0), ("N T",)),
    Case("trapezoid of samples' places", lambda x, t: torch.trapezoid(x, t), ("N T", "N T")),
    Case("cosine_similarity", lambda x, y: F.cosine_similarity(x, y, dim=0), ("N T", "N T")),
    Case("pairwise_distance", lambda x, y: F.pairwise_distance(x, y, keepdim=True), ("d N", "d N")),
    Case("renorm", lambda x: torch.renorm(x, 2, 1, 1.0), ("N T",)),
    Case("fft", lambda x: torch.fft.fft(x, dim=0).real, ("N T",)),
    Case("fftn", lambda x: torch.fft.fftn(x).real, ("N T",)),
    Case("cov", lambda x: torch.cov(x), ("N T",)),
    Case("searchsorted in samples", lambda x, y: torch.searchsorted(x, y), ("N", "T")),
    Case("take", lambda x: torch.take(x, torch.tensor([0, 1])), ("N T",)),
    Case("vectors and matrices", lambda x, y: torch.vstack((x, y)), ("N", "2 N")),
    Case("padded", lambda x: F.pad(x, (0, 0, 1, 0)), ("N T",)),
    Case("windows", lambda x: x.unfold(0, 2, 1), ("N T",)),
    Case("diagonal", lambda x: x.diagonal(), ("N 3",)),
    Case("unique", lambda x: x.unique(), ("N T",)),
    Case("rows of a table", lambda w: F.embedding(torch.tensor([0, 1]), w), ("N d",)),
]


@settings([*SETTINGS, *FOLDED])
@named(FOLLOWED)
def test_followed(case: Case, s: Setting) -> None:
    found = verdicts(case, s)
    assert not [v for v in found if isinstance(v, Mixed)], found
    assert [v for v in found if isinstance(v, Track)] or not any("N" in spec.split() for spec in case.inputs)


@named(MIXED)
def test_mixed(case: Case) -> None:
    assert any(isinstance(v, Mixed) for v in verdicts(case, Setting(4, 5)))
