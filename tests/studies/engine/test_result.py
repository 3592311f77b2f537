"""The result's format: verdicts, intervals, numbers as text."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from sdsd.studies.engine import (
    Measured,
    Verdict,
    fraction_interval,
    geometric_interval,
    mean_interval,
)


def test_verdicts_are_of_the_list():
    with pytest.raises(ValueError, match="verdict: expected one of 'reproduced', 'direction only'"):
        Verdict("c", "s", "true", "r", "1", Measured(1.0), "i")


def test_intervals_against_scipy():
    from scipy import stats

    values = [3.1, 2.7, 3.9, 3.3]
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    found = mean_interval(values)
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), low, high))
    found = geometric_interval(np.exp(values).tolist())
    assert (found.value, found.low, found.high) == pytest.approx(tuple(np.exp((np.mean(values), low, high))))
    for successes, count in ((42, 50), (0, 20), (20, 20), (1, 3)):
        ci = stats.binomtest(successes, count).proportion_ci(method="wilson")
        found = fraction_interval(successes, count)
        assert (found.value, found.low, found.high) == pytest.approx((successes / count, ci.low, ci.high), abs=1e-6)
    assert mean_interval([2.0]) == Measured(2.0)


def test_measured_as_text():
    assert str(Measured(0.84, 0.71, 0.92, "of starts")) == "0.84 [0.71, 0.92] of starts"
    assert str(Measured(79.7, unit="×")) == "80 ×"
    assert str(Measured(1.0, 0.9987, 1.0)) == "1 [0.9987, 1]"
    assert str(Measured(-0.5402, -0.5411, -0.5391)) == "−0.5402 [−0.5411, −0.5391]"
    assert str(Measured(2.0, 2.0, 2.0)) == "2 [2, 2]"


def test_an_interval_ends_where_its_values_must():
    assert mean_interval([0.9, 1.0, 1.0], within=(-1, 1)).high == 1
    assert mean_interval([0.9, 1.0, 1.0]).high > 1
    assert mean_interval([-0.9, -1.0, -1.0], within=(-1, 1)).low == -1
