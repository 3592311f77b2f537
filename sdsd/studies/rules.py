"""The one table of rules that decide verdicts: what each says, since when, and what it replaced.

A rule stands here before a study is run. Who changes one gives it the day of the change and says what it replaced.
Rules of 2026-11-26 that replaced others were written after the figures of the rules before had been seen.
"""

from __future__ import annotations

from .engine import Effect, Rule

FIRST, REVISED = "2026-11-22", "2026-11-26"
WORDS = "the same with “not reproduced” for what is inconclusive now"

EFFECTS = {
    "geometry: batch": Effect(nothing=1.0, published=5.0, negligible=1.25),
    "geometry: single": Effect(nothing=0.0, negligible=0.1),
    "geometry: mass": Effect(nothing=0.0, negligible=0.1),
    "geometry: weights": Effect(nothing=1.0, negligible=1.25),
    "geometry: pruning": Effect(nothing=0.0, negligible=0.1),
    "geometry: controls": Effect(nothing=0.0, negligible=0.02),
    "geometry: plasticity": Effect(nothing=0.0, published=-2.1, above=False, negligible=1.0),
    "redundancy": Effect(nothing=0.0, negligible=0.1),
    "merge-cost": Effect(nothing=1.0, negligible=1.25),
    "copies": Effect(nothing=1.0, negligible=1.05),
    "removal": Effect(nothing=1.0, negligible=1.25),
}
"""What claims say of a number whose interval decides; see `Effect`."""

RELATIVE = "of the difference over the sum of both costs, which stays finite where a cost changes its sign: "
RATIOS = "ratios, which are anything where a cost comes near zero; no upper limit for a match"

RULES: dict[str, Rule] = {
    "without a study": Rule(
        "untestable here, for what the claim is about is not measured by any of the studies", "2026-11-22"
    ),
    "orbit": Rule(
        "reproduced if, with every seed, it falls without weight decay, and more than on shuffled labels which the "
        "same optimizer got into the network (99% of the training labels), and the interval of its share of the fall "
        "with weight decay lies above 0.5 in every reading (H_G: neurons by mass, and all alike; V: caps of 60°, and "
        "of 75°); direction only if it falls with every seed; opposite if it rises with every seed; untestable here "
        "if the shuffled labels were not remembered; inconclusive otherwise",
        REVISED,
        "shuffled labels under SGD, which left 75 to 82% of them wrong; a share of over 0.5 on average; H_G by mass "
        "and V at 60° only",
    ),
    "copies: V": Rule(
        f"of V with half of the neurons replaced by copies of the others over V as trained: {EFFECTS['copies'].rule()}",
        "2026-11-27",
    ),
    "copies: loss": Rule(
        "refuted if at every state, whatever its V, the loss varies by less than 1e-9 of itself along the orbit; "
        "inconclusive otherwise",
        "2026-11-27",
    ),
    "regulariser": Rule(
        "refuted if minimising L_geom alone, from a trained network on, costs accuracy with every seed and every λ "
        "tried; reproduced if it gains with all; inconclusive otherwise",
        "2026-11-27",
        "the same with one λ; before 2026-11-26 without an outcome that reproduces it",
    ),
    "quotient": Rule(
        "reproduced if Γ at the canonical point stays within 1e-5 over all moves tried that keep the function; "
        "direction only if it does over those that are analysed (scales, shifts, permutations, mixing of adjacent "
        "linear layers) and moves by over 1% when neurons are mixed that a ReLU cuts on no sample; refuted if it moves "
        "over the analysed ones, while ‖∇L‖² does by over a factor of 2; inconclusive otherwise",
        "2026-11-27",
        "adjacent linear layers, which are analysed now, as the move that is not; before 2026-11-26: reproduced if "
        "‖∇L‖² moved by less than 2, which no network would do",
    ),
    "prediction": Rule(
        "of the steps whose mean effect is three standard errors from zero, the mean of the share of falling and of "
        "rising steps that a ratio foretells, for which a constant answer gets 0.5: refuted if, with every seed, Γ* "
        "has 0.9 or more and either form of the document's Γ less; reproduced if one of those has 0.9 or more with "
        "every seed; inconclusive otherwise",
        REVISED,
        "the share of all signs, which a constant answer gets for the more frequent one; points of a run as "
        "independent",
    ),
    "averaging": Rule(
        "over looks at networks that learn, one share a seed: reproduced if the 95% interval of the share of 95% "
        "intervals that hold the present Γ lies above 0.9; direction only if it lies below, while at every simulated "
        "drift under a tenth of all averages is called short enough by `averaging_lag` and misses, by the upper bound; "
        "refuted if at some drift it is more, by the lower bound; inconclusive otherwise",
        "2026-11-27",
        "nothing; written after a first look at simulated averages",
    ),
    "phase": Rule(
        "refuted if in some bowl the loss turns at a Γ that is off 1 by over 0.5, while Γ_H is within 0.1 of 1 in "
        "all; reproduced if Γ is within 0.1 of 1 in all; inconclusive otherwise",
        REVISED,
        WORDS,
    ),
    "multiplicative": Rule(
        "refuted if over 95% of paths come within a tenth of their start at ratios below 1, by the lower bound, or if "
        "under 5% of those that start at Γ = 100 with additive noise come within a hundredth of it, by the upper; "
        "reproduced if the first are under 5% and the second over 95%, by the other bounds; inconclusive otherwise",
        "2026-11-27",
        "the same for ratios below 1 alone, which is half of the claim; before 2026-11-26 without an outcome that "
        "reproduces it",
    ),
    "well": Rule(
        "reproduced if the share of paths that stay falls from over 0.9 to below 0.2 between D = 0.1 and 0.4, and "
        "does not depend on when one looks; direction only if, at one D, it depends on that by more than 0.1; "
        "inconclusive if it does not fall so",
        REVISED,
        WORDS,
    ),
    "conservation": Rule(
        "reproduced if isotropic noise takes |Q| = |u² − v²| below a tenth; direction only if label noise and weight "
        "decay do, while gradient descent and, on average, isotropic noise conserve Q; refuted if none of them does; "
        "inconclusive otherwise",
        REVISED,
        WORDS,
    ),
    "selection": Rule(
        "reproduced if all starts end within 0.001 of α = ½ at one state; direction only if they end there at more "
        "than one; inconclusive otherwise",
        REVISED,
        WORDS,
    ),
    "rank: 84%": Rule(
        "reproduced if 42 of the 50 published starts are at rank 1 after 2,981 steps; inconclusive otherwise",
        REVISED,
        WORDS,
    ),
    "rank: compression": Rule(
        "reproduced if, by the lower bound, over 5% of starts are at rank 1 for a target of rank 2, from 2,981 steps "
        "on; refuted if none is, and 99% or more for a target of rank 1 after 10,000; untestable here otherwise",
        "2026-11-27",
        "the same without an outcome that reproduces it",
    ),
    "rank: imbalance": Rule(
        "over the published starts that are still at rank 2: reproduced if the 95% interval of the geometric mean "
        "lies above 1 and it is within a factor of 2 of 80; direction only if it is another; inconclusive otherwise",
        REVISED,
        "the mean over all 50 starts, most of which are at rank 1, against the median over many",
    ),
    "sensing": Rule(
        "reproduced if the effective rank is at most 3 from the smallest start and less than twice that from one of "
        "ordinary size; direction only if it is at most 3 from the smallest alone; inconclusive otherwise",
        REVISED,
        WORDS,
    ),
    "geometry: batch": Rule(
        EFFECTS["geometry: batch"].rule(),
        REVISED,
        "reproduced from half of the document's number up, with no upper limit",
    ),
    "geometry: single": Rule(
        f"untestable here with fewer than 3 seeds; {RELATIVE}{EFFECTS['geometry: single'].rule()}; direction only, "
        "too, if the costs differ by another factor than 7 to 28",
        REVISED,
        RATIOS,
    ),
    "geometry: mass": Rule(
        f"{RELATIVE}{EFFECTS['geometry: mass'].rule()}; direction only, too, if the costs differ by another "
        "factor than 0.9 to 3.6",
        REVISED,
        RATIOS,
    ),
    "geometry: weights": Rule(
        f"of what near pairs by the weights cost over what near pairs by activations cost: "
        f"{EFFECTS['geometry: weights'].rule()}",
        REVISED,
        "far over near by activations against far over near by weights, which a dear far cohort wins as well as a "
        "cheap near one",
    ),
    "geometry: pruning": Rule(RELATIVE + EFFECTS["geometry: pruning"].rule(), REVISED, RATIOS),
    "geometry: controls": Rule(
        "of the silhouette of ten clusters less that of the closest control: reproduced if the 95% interval lies "
        "above 0, and the silhouette is over 0.05 and over 1.5 times that of every control with every seed; direction "
        "only if the interval alone lies above 0; opposite if it lies below; no effect if it lies within 0.02 of 0; "
        "inconclusive otherwise",
        REVISED,
        "direction only if it was above every control's with every seed, whatever the interval",
    ),
    "geometry: plasticity": Rule(
        EFFECTS["geometry: plasticity"].rule(), REVISED, "not reproduced, whether there was no effect or too few data"
    ),
    "after-merging": Rule(
        "reproduced if the 95% interval of the peak accuracy merged by geometry, less that merged at random, lies "
        "below a gain of 1 point; refuted if it lies above 0 and the gain is a point or more; inconclusive otherwise",
        REVISED,
    ),
    "after-merging: speed": Rule(
        "reproduced if the 95% interval of what pairs merged at once cost, random less by geometry over their sum, "
        "lies above 0, and that of the mean accuracy over the epochs after it, by geometry less at random, within 1 "
        "point of 0; no effect if the first lies within 0.1 of 0; refuted if the second lies beyond a point; "
        "inconclusive otherwise",
        "2026-11-27",
    ),
    "redundancy": Rule("of the rank correlation: " + EFFECTS["redundancy"].rule(), REVISED),
    "removal": Rule(
        "of far / near by averaging pairs over far / near by taking one neuron of a pair out: "
        f"{EFFECTS['removal'].rule()}; direction only, too, if the 95% interval of far / near by taking out lies above "
        "1, so that it tells near from far as well",
        "2026-11-27",
        "nothing; the document says that the first attempt failed and that neurons were to be removed, and no more",
    ),
    "grokking": Rule(
        "reproduced if, with every seed, test accuracy passes 95% at over 5 times the step at which training accuracy "
        "does, and never without weight decay or with too few sums, in three times as many steps; direction only if a "
        "control gets there too; no effect if it does so with no seed; inconclusive otherwise",
        "2026-11-27",
        "the same with memorising seen every 50 steps only, and controls that stopped with the run",
    ),
    "grokking: Γ": Rule(
        "with Γ of the batches, averaged from memorising half-way to understanding, and round understanding: "
        "reproduced if, with every seed, it is below 1 and then above, and below 1 in the controls; direction only "
        "if, with every seed, it is higher round understanding than before and than in the controls at those steps; "
        "refuted otherwise; untestable here if nothing groks",
        FIRST,
    ),
    "collapse of H_G and V": Rule(
        "reproduced if, with every seed, H_G and V both fall by over 5% from start to end, and by a larger part than "
        "in every control; direction only if H_G falls by that much; opposite if it rises by that much with every "
        "seed; no effect if it stays within 5% with every seed; inconclusive otherwise; V at the angle at which caps "
        "round as many random directions cover half of what they could",
        "2026-11-27",
        "the same with V at 60°, where caps round neurons of these layers hardly overlap, so that V was their number "
        "and could not fall; until 2026-11-26 all but a fall of 5% was “not reproduced”, and on 2026-11-22, until "
        "15:40, any fall of both was reproduced, as which grokking then stood",
    ),
    "neural-collapse": Rule(
        "reproduced if, with every seed and BatchNorm, NC1 falls over 20-fold and NC2 and NC3 to under half, while "
        "NC1 without BatchNorm ends at over twice that; direction only if it is as low without; no effect if NC1 "
        "falls so with no seed; inconclusive otherwise",
        REVISED,
        WORDS,
    ),
    "neural-collapse: Γ": Rule(
        "reproduced if, with every seed, Γ of the batch trained on is above 1 on average from the first look with "
        "under 1% training error on; direction only if it at least rises as NC1 falls (rank correlation below −0.5 "
        "with every seed); refuted otherwise; untestable here without a collapse",
        FIRST,
    ),
    "lottery-ticket": Rule(
        "reproduced if, with every seed, after the steps watched the ticket is over 0.1 more accurate than both "
        "controls, whose weights are as large as the connections left ask for, and at most 0.02 less than the whole "
        "network; direction only if it beats both with every seed; opposite if a control beats it with every seed; "
        "inconclusive otherwise",
        REVISED,
        "controls with weights as large as for all connections, too small for an eighth of them",
    ),
    "lottery-ticket: Γ": Rule(
        "reproduced if, with every seed, Γ of the batches trained on, over the steps watched, is above 1 in exactly "
        "those runs that get over half of the digits right; direction only if the 95% interval of Γ of the ticket "
        "over that of the better control lies above 1; refuted otherwise; untestable here if the ticket is no better "
        "than the controls",
        REVISED,
        "controls with weights too small; before 2026-11-22, 15:40: Γ of batches of 128 above 1 for the ticket and "
        "below for the controls, which was reproduced and changed after its figures had been seen",
    ),
    "double-descent": Rule(
        "reproduced if, with every seed and wrong labels, the error at as many features as samples is over twice that "
        "at a third of them and at the most, and higher than without wrong labels; direction only if wrong labels do "
        "not raise it; no effect if there is no such peak with any seed; inconclusive otherwise",
        REVISED,
        WORDS,
    ),
    "double-descent: Γ": Rule(
        "with Γ of batches when 10% of the loss that can be got rid of is left: reproduced if, with every seed, it is "
        "below 1 at the peak and above 1 at a third of its width and at the largest; direction only if, with every "
        "seed, it is lowest at most 25% from the peak; refuted otherwise; untestable here without a peak",
        FIRST,
    ),
    "edge-of-stability": Rule(
        "reproduced if, with every seed, η/2 times the sharpness is between 0.9 and 1.2 on average over the second "
        "half, over a tenth of the steps raise the loss and it more than halves on average, while at the small rate "
        "it stays below 0.9 and no step raises the loss; direction only if the small rate does not; inconclusive "
        "otherwise",
        REVISED,
        WORDS,
    ),
    "edge-of-stability: Γ": Rule(
        "over pairs of a step that lowers the loss and one that raises it, how often the first has the larger Γ, "
        "which no choice of batch or threshold changes: reproduced if 90% or more with every seed, direction only if "
        "over 60% with every seed, refuted otherwise; untestable here without the phenomenon",
        FIRST,
    ),
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
        "95% interval lies above 0 and so does that of the share of a Gaussian; direction only if the latter does "
        "not; opposite if it lies below 0; inconclusive otherwise, and wherever an estimate rests on fewer than 10 "
        "effective rays",
        fixed="2026-11-26",
        replaced="the same without the last clause, for a few hours; estimates that rest on one ray are lower bounds, "
        "whose difference is not that of volumes",
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
        "reproduced if its 95% interval lies below 0 and it is within a factor of 2 of −1; direction only if it is "
        "another below 0; opposite if the interval lies above 0; inconclusive otherwise",
        fixed="2026-11-26",
        replaced="−0.5 in the place of −1, for a few hours; that is the order of the first proven bound and of the "
        "kernel's spread at the start, and the change in training is of the order of 1/width",
    ),
    "tangent-kernel: generalisation": Rule(
        "the number is the error on new data of regression with the first kernel of the narrowest network less that "
        "of the network itself, as a share of the variance; reproduced if its 95% interval lies above 0; opposite if "
        "it lies below; no effect if it lies within 0.02 of 0; inconclusive otherwise",
        fixed="2026-11-26",
    ),
    "goldstone": Rule(
        "the number is the power of time with which the variance along the orbit grows; reproduced if its 95% "
        "interval lies above 0, it is within a factor of 2 of 1, and the power across the orbit is within 0.1 of 0; "
        "direction only if one of the two is another; opposite if the interval lies below 0; inconclusive otherwise",
        fixed="2026-11-26",
    ),
    "two-wells": Rule(
        "the number is the share of noisy paths in the wide well less that of descent from the same starts; "
        "reproduced if its 95% interval lies above 0 and that of the noisy share holds the share at equilibrium; "
        "direction only if it does not; opposite if the interval lies below 0; no effect if it lies within 0.01 of 0; "
        "inconclusive otherwise",
        fixed="2026-11-26",
    ),
    "flatness": Rule(
        "reproduced if the 95% interval of the factor by which the top eigenvalue moves over an orbit lies above 1; "
        "no effect if it lies within 1.1 × of 1; inconclusive otherwise",
        fixed="2026-11-26",
    ),
    "learning-coefficient": Rule(
        "the number is λ̂ with true labels over λ̂ with random ones, both canonical and not refused; reproduced if "
        "its 95% interval lies below 1; opposite if it lies above; no effect if it lies within 1.1 × of 1; "
        "inconclusive otherwise",
        fixed="2026-11-26",
    ),
    "kakeya": Rule(
        "the number is the area of the trained neurons' strips over that of strips of the same directions with their "
        "offsets exchanged; reproduced if its 95% interval lies below 1; opposite if it lies above; no effect if it "
        "lies within 1.05 × of 1; inconclusive otherwise",
        fixed="2026-11-26",
    ),
    "connectivity": Rule(
        "reproduced if the 95% interval of the barrier that matching by weights takes away lies above 0 and at most a "
        "tenth of the barrier is left with every seed; direction only if more is left; opposite if the interval lies "
        "below 0; inconclusive otherwise",
        fixed="2026-11-26",
        replaced="nothing; written after a first look at three pairs of such networks",
    ),
    "merge-cost: foretold": Rule(
        f"{EFFECTS['merge-cost'].rule()}; direction only, too, if the ratio is below 2",
        fixed="2026-11-26",
        replaced="nothing; written after a first look at three networks, by their loss",
    ),
    "merge-cost: pruning": Rule(
        f"with a quarter of the neurons that answer removed: {EFFECTS['merge-cost'].rule()}",
        fixed="2026-11-27",
        replaced="the same of all neurons: pruning could take dead ones and merging could not, which on a third "
        "network made the ratio 1e-13; written after a first look at two networks of each kind",
    ),
}
"""name of the study, or "study: what of it" → rule."""
