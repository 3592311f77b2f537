"""Words that follow from a number and its interval, and p-values corrected for their number."""

from __future__ import annotations

import math

import pytest
import torch

pytest.importorskip("matplotlib")

from sdsd.studies.engine import Effect, Measured, Rule, Verdict, geometric_interval, holm, mean_interval

FIVE_TIMES = Effect(nothing=1.0, published=5.0, negligible=1.25)


@pytest.mark.parametrize(
    ("value", "low", "high", "word"),
    [
        (5.0, 4.0, 6.0, "reproduced"),
        (2.5, 2.0, 3.0, "reproduced"),
        (2.4, 2.0, 3.0, "direction only"),
        (10.1, 9.0, 11.0, "direction only"),  # twice as much is another number, too
        (42.0, 0.32, 5500.0, "inconclusive"),
        (1.0, 0.9, 1.2, "no effect"),
        (1.0, 0.7, 1.2, "inconclusive"),
        (0.69, 0.62, 0.77, "opposite"),
    ],
)
def test_an_interval_says_which_word(value, low, high, word):
    assert FIVE_TIMES.verdict(Measured(value, low, high)) == word
    # The same claim told the other way round.
    mirrored = Effect(nothing=1.0, published=1 / 5, above=False, negligible=1.25)
    assert mirrored.verdict(Measured(1 / value, 1 / high, 1 / low)) == word


def test_differences_and_claims_without_a_number():
    lower = Effect(nothing=0.0, published=-2.1, above=False, negligible=1.0)
    assert lower.verdict(Measured(-2.0, -2.5, -1.5)) == "reproduced"
    assert lower.verdict(Measured(-0.5, -0.6, -0.4)) == "direction only"
    assert lower.verdict(Measured(0.14, -0.17, 0.45)) == "no effect"
    assert lower.verdict(Measured(0.5, -0.5, 1.5)) == "inconclusive"
    assert lower.verdict(Measured(1.0, 0.5, 1.5)) == "opposite"
    assert Effect(nothing=0.0).verdict(Measured(0.01, 0.001, 0.02)) == "reproduced"
    assert Effect(nothing=0.0).verdict(Measured(0.0, -0.001, 0.001)) == "inconclusive"  # no size was named
    assert Effect(nothing=0.0).verdict(Measured(3.0)) == "inconclusive"  # nor is there a spread


def test_a_rule_in_words_names_what_decides():
    text = FIVE_TIMES.rule()
    assert "reproduced if the 95% interval lies above 1 and the number is within a factor of 2 of 5" in text
    assert "opposite if it lies below; no effect if the interval lies within 1.25 × of 1" in text
    assert "direction only" not in Effect(nothing=0.0).rule()


def test_effects_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="nothing: expected 0 for a difference or 1 for a ratio, got 2"):
        Effect(nothing=2.0)
    with pytest.raises(ValueError, match="negligible: expected more than 1, got 0.5"):
        Effect(nothing=1.0, negligible=0.5)
    with pytest.raises(ValueError, match="published: expected a number on the claimed side of 0"):
        Effect(nothing=0.0, published=-2.1)
    with pytest.raises(ValueError, match="expected one of 'reproduced', .*got 'holds'"):
        Verdict("c", "s", "holds", "r", "1", None, "i")


def test_a_verdict_states_its_rule():
    rule = Rule("above 1", "2026-11-26", "above 2")
    verdict = Verdict("c", "s", "refuted", published="1", our_figure=None, corrected="i", **rule.stated())
    assert (verdict.rule, verdict.fixed, verdict.replaced) == ("above 1", "2026-11-26", "above 2")


def test_p_is_that_of_students_two_sided_test():
    # t = mean / (s / √n) = 2.5 / (1.290994 / 2) = 3.872983, P(|T₃| ≥ t) = 0.030466
    assert mean_interval([1.0, 2.0, 3.0, 4.0], against=0.0).p == pytest.approx(0.030466, abs=1e-6)
    assert geometric_interval([math.e**k for k in (1, 2, 3, 4)], against=1.0).p == pytest.approx(0.030466, abs=1e-6)
    ours = mean_interval([1.0, 2.0, 3.0, 4.0])
    assert mean_interval([1.0, 2.0, 3.0, 4.0], against=ours.low).p == pytest.approx(0.05, abs=1e-9)
    assert ours.p is None
    assert mean_interval([1.0], against=0.0).p is None
    assert mean_interval([2.0, 2.0], against=0.0).p == 0
    assert mean_interval([2.0, 2.0], against=2.0).p == 1


def test_holms_correction():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ValueError, match="numbers from 0 to 1, got 2"):
        holm([2])
    # False alarms in a family of seven true null hypotheses: 30% without the correction, 5% with it.
    generator = torch.Generator().manual_seed(0)
    families = torch.rand(2000, 7, generator=generator, dtype=torch.float64).tolist()
    assert sum(min(family) < 0.05 for family in families) / 2000 == pytest.approx(0.30, abs=0.04)
    assert sum(min(holm(family)) < 0.05 for family in families) / 2000 == pytest.approx(0.05, abs=0.02)
