"""The one table of rules that decide verdicts: what each says, since when, and what it replaced.

A rule stands here before a study is run. Who changes one gives it the day of the change and says what it replaced.
"""

from __future__ import annotations

from .engine import Rule

RULES: dict[str, Rule] = {
    "volume": Rule(
        "the number is Spearman's correlation of the volume of a class of functions with the length of its shortest "
        "formula, over all classes, those that no network met last, one number a seed; reproduced if its 95% interval "
        "lies below 0 and a straight line in that length explains at least 0.9 of the variance of log V; direction "
        "only if it explains less; opposite if the interval lies above 0; inconclusive otherwise",
        fixed="2026-11-26",
    ),
    "volume-sgd": Rule(
        "the number is Spearman's correlation of frequency and volume among the functions that fit, averaged over "
        "targets, one number a seed; reproduced if its 95% interval lies above 0 and the total variation distance of "
        "SGD's frequencies is at most twice that of as many draws from the volumes; direction only if it is more; "
        "opposite if the interval lies below 0; inconclusive otherwise",
        fixed="2026-11-26",
    ),
    "occam: bound": Rule(
        "refuted if the gap of one network exceeds the bound by more than its held-out samples can err; reproduced if "
        "none does and at least half of the bounds rule out some error; direction only if none does, most rule out "
        "nothing, and the 95% interval of the correlation of √(K/N) with the gap lies above 0; inconclusive otherwise",
        fixed="2026-11-26",
    ),
    "occam: trajectory": Rule(
        "reproduced if the 95% interval of the bits at the end over those at the first fit lies below 1, and networks "
        "trained with weight decay do not take fewer bits; direction only if they do; no effect if it lies within "
        "1.05 × of 1; opposite if it lies above 1; inconclusive otherwise",
        fixed="2026-11-26",
    ),
    "occam: data": Rule(
        "reproduced if the 95% interval of the bits with true labels over those with random ones, at the same number "
        "of samples, lies below 1; no effect if it lies within 1.05 × of 1; opposite if it lies above 1; inconclusive "
        "otherwise",
        fixed="2026-11-26",
    ),
    "basin": Rule(
        "the number is the difference of log V, true labels less random ones, in nats a parameter; reproduced if its "
        "95% interval lies above 0 and so does that of the share of a Gaussian; direction only if the latter does not; "
        "opposite if it lies below 0; inconclusive otherwise",
        fixed="2026-11-26",
    ),
    "least-norm: SGD": Rule(
        "reproduced if descent, SGD and momentum from zero end within 1e-6 of the least-norm solution on every "
        "problem; refuted otherwise",
        fixed="2026-11-26",
    ),
    "least-norm: others": Rule(
        "reproduced if the 95% interval of the norm at which Adam ends from zero, over the least norm, lies above 1; "
        "opposite if it lies below; no effect if it lies within 1.01 × of 1; inconclusive otherwise",
        fixed="2026-11-26",
    ),
    "tangent-kernel: width": Rule(
        "the number is the power of the width with which the relative change of the kernel in training goes; "
        "reproduced if its 95% interval lies below 0 and it is within a factor of 2 of −0.5; direction only if it is "
        "another below 0; opposite if the interval lies above 0; inconclusive otherwise",
        fixed="2026-11-26",
    ),
    "tangent-kernel: generalisation": Rule(
        "the number is the error on new data of regression with the first kernel of the narrowest network less that of "
        "the network itself, as a share of the variance; reproduced if its 95% interval lies above 0; opposite if it "
        "lies below; no effect if it lies within 0.02 of 0; inconclusive otherwise",
        fixed="2026-11-26",
    ),
    "goldstone": Rule(
        "the number is the power of time with which the variance along the orbit grows; reproduced if its 95% interval "
        "lies above 0, it is within a factor of 2 of 1, and the power across the orbit is within 0.1 of 0; direction "
        "only if one of the two is another; opposite if the interval lies below 0; inconclusive otherwise",
        fixed="2026-11-26",
    ),
    "two-wells": Rule(
        "the number is the share of noisy paths in the wide well less that of descent from the same starts; reproduced "
        "if its 95% interval lies above 0 and that of the noisy share holds the share at equilibrium; direction only "
        "if it does not; opposite if the interval lies below 0; no effect if it lies within 0.01 of 0; inconclusive "
        "otherwise",
        fixed="2026-11-26",
    ),
    "flatness": Rule(
        "reproduced if the 95% interval of the factor by which the top eigenvalue moves over an orbit lies above 1; no "
        "effect if it lies within 1.1 × of 1; inconclusive otherwise",
        fixed="2026-11-26",
    ),
    "learning-coefficient": Rule(
        "the number is λ̂ with true labels over λ̂ with random ones, both canonical and not refused; reproduced if its "
        "95% interval lies below 1; opposite if it lies above; no effect if it lies within 1.1 × of 1; inconclusive "
        "otherwise",
        fixed="2026-11-26",
    ),
    "kakeya": Rule(
        "the number is the area of the trained neurons' strips over that of strips of the same directions with their "
        "offsets exchanged; reproduced if its 95% interval lies below 1; opposite if it lies above; no effect if it "
        "lies within 1.05 × of 1; inconclusive otherwise",
        fixed="2026-11-26",
    ),
}
"""name of the study, or "study: what of it" → rule."""
