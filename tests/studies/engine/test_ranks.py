"""Spearman's correlation, with ties."""

from __future__ import annotations

import math

import pytest
import torch

from sdsd.studies.engine import rank_correlation


def test_it_sees_order_only():
    assert rank_correlation([1, 2, 3, 40], [0.1, 0.2, 5, 6]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)  # 1 − 6·4 / (4·15)
    left, right = torch.tensor([1.0, 2, 3, 4, 5]), torch.tensor([2.0, 1, 4, 3, 5])
    assert rank_correlation(left, right) == pytest.approx(1 - 6 * 4 / (5 * 24))
    assert rank_correlation([1.0, 1 + 1e-12, 2.0], [3.0, 2.0, 1.0]) == pytest.approx(-1)  # told apart in float64


def test_ties_share_their_mean_rank():
    """By hand: ranks 1.5, 0, 1.5, 3 against 0 to 3. In whatever order equal numbers come, the answer is the same."""
    a, b = [0.0, -1.5, 0.0, 1.5], [-1.5, -0.5, 0.5, 1.5]
    by_hand = sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(4.5 * 5)
    assert rank_correlation([5, 1, 5, 9], [0, 1, 2, 3]) == pytest.approx(by_hand)
    assert rank_correlation([0, 0, 0, 1], [3, 2, 1, 4]) == rank_correlation([0, 0, 0, 1], [1, 2, 3, 4])
    assert math.isnan(rank_correlation([1, 2, 3], [0, 0, 0]))


def test_it_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    left, right = torch.randint(0, 5, (2, 40)).double()
    assert rank_correlation(left, right) == pytest.approx(stats.spearmanr(left, right).statistic)
