"""Operations that are followed where a row is a sample's alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from sdsd.gamma.following import Rows, Track

from .operations import FOLDED, NUMBERS, SETTINGS, Case, Setting, named, put, settings, verdicts

pytestmark = pytest.mark.usefixtures("double")

A = torch.arange


def scattered(x: Tensor, y: Tensor) -> Tensor:
    """Two rows of each sample of y put in the place of two of x."""
    mask = torch.zeros_like(x, dtype=torch.bool)
    mask[:, 1:3] = x[:, 1:3] == x[:, 1:3].clone()
    return x.masked_scatter(mask, y)


def ctc(x: Tensor, reduction: str) -> Tensor:
    t, n, _ = x.shape
    lengths = torch.full((n,), t), torch.full((n,), 1)
    return F.ctc_loss(x.log_softmax(-1), torch.ones(n, 1, dtype=torch.int64), *lengths, reduction=reduction)


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
