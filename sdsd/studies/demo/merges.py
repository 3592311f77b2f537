"""The page's part on merging: what near, random and far pairs cost."""

from __future__ import annotations

from itertools import product
from statistics import mean, median
from typing import Any

from ...report import figures, html
from ...report.figures import plain_number
from ..engine import FigureBook
from ..pairs import ANSWERING


def merge_sections(results: dict[str, Any], book: FigureBook) -> list[html.Section]:
    merges = results["merges"]
    if not merges or not merges["pairs_in_a_cohort"]:
        return []
    cohorts, size = merges["cohorts"], merges["pairs_in_a_cohort"]
    facts = merge_facts(merges)
    near, far = example(cohorts["near"]), example(cohorts["far"])
    figure, (left, right) = figures.new_figure(7.6, 3.7, columns=2, width_ratios=[1.15, 1])
    draw_merge_axes(left, right, cohorts, size)
    rows = [
        (
            name,
            f"{mean(pair['cosine'] for pair in cohort['pairs']):.2f}",
            plain_number(facts["median"][name]),
            plain_number(max(abs(pair["loss_change"]) for pair in cohort["pairs"])),
            signed(mean(cohort["together_loss_change"])),
            points(mean(cohort["together_accuracy_change"])),
        )
        for name, cohort in cohorts.items()
    ]
    return [
        html.Section(
            "Can neurons that do the same job be merged?",
            [
                html.Text(
                    "To merge two neurons, both get the average of their incoming weights and biases, so that from "
                    "then on they compute the same; nothing else is touched, and nothing is retrained. "
                    f"Merging the nearest pair ({near['first']} and {near['second']}) changed the loss on held-out "
                    f"digits by {signed(near['loss_change'])} nats; merging the farthest ({far['first']} and "
                    f"{far['second']}) by {signed(far['loss_change'])}. Both are of neurons that {ANSWERING}, if "
                    "any do. One pair may be luck, so "
                    f"{size} near, {size} far and {size} random pairs were merged, each singly and each cohort at once."
                ),
                html.Figure(
                    book.add(figure, "merges"),
                    "One pair at a time: each dot is one merge, the bar and the number below its cohort's median. "
                    f"At once: all {size} pairs of a cohort; random pairs in {facts['random_count']} different "
                    "pairings, with their mean.",
                    "Figure 6. What a merge costs.",
                ),
                html.Note(merge_sentence(facts, size)),
                html.Table(
                    ("pairs", "mean cosine", "median |Δ|", "largest |Δ|", "Δ, all at once", "accuracy, all at once"),
                    rows,
                    f"Δ: change of the loss on held-out digits, in nats; {merges['loss_before']:.4f} before. "
                    "Accuracy before: "
                    f"{100 * merges['accuracy_before']:.1f}%. The weights were restored after each merge"
                    f"{', bit for bit.' if merges['restored_exactly'] else '; the check of that FAILED.'}",
                ),
                pair_table(cohorts),
            ],
        )
    ]


LISTED = 8
"""Pairs of a cohort in the table."""


def pair_table(cohorts: dict[str, Any]) -> html.Table:
    """The first pairs of the near and the far cohort one by one: how alike, and what merging them cost."""
    names = {"near": "nearest", "far": "farthest"}
    columns = [
        [
            (f"{pair['first']} – {pair['second']}", figures.minus(f"{pair['cosine']:.3f}"), signed(pair["loss_change"]))
            for pair in cohorts[name]["pairs"][:LISTED]
        ]
        for name in names
    ]
    return html.Table(
        ("", *(head for name in names.values() for head in (f"{name} pair", "its cosine", "its Δ"))),
        [(str(rank), *near, *far) for rank, (near, far) in enumerate(zip(*columns, strict=True), start=1)],
        "The first pairs of both cohorts, each merged alone. Pairs of a cohort share no neuron; neurons that hardly "
        "ever fire have cosine 0 with most others, and are no example above.",
    )


def example(cohort: dict[str, Any]) -> dict[str, Any]:
    """The first pair whose neurons both answer: a neuron that hardly ever fires is no example."""
    return cohort["pairs"][cohort["example"]]


def merge_facts(merges: dict[str, Any]) -> dict[str, Any]:
    """The comparisons the merge section speaks of."""
    cohorts = merges["cohorts"]
    singles = {name: [abs(pair["loss_change"]) for pair in cohort["pairs"]] for name, cohort in cohorts.items()}
    together = {name: cohort["together_loss_change"] for name, cohort in cohorts.items()}
    wins = [far > near for far, near in product(singles["far"], singles["near"])]
    return {
        "median": {name: median(values) for name, values in singles.items()},
        "far_beats_near": sum(wins) / len(wins),
        "near": together["near"][0],
        "far": together["far"][0],
        "random": mean(together["random"]),
        "random_range": (min(together["random"]), max(together["random"])),
        "random_worse_than_near": sum(value > together["near"][0] for value in together["random"]),
        "random_count": len(together["random"]),
    }


def merge_sentence(facts: dict[str, Any], size: int) -> str:
    """Whether nearness predicts what can be merged, decided by the numbers."""
    single = facts["median"]["far"] > facts["median"]["near"] and facts["far_beats_near"] > 0.6
    batch = facts["far"] > facts["near"] and facts["random_worse_than_near"] > 0.75 * facts["random_count"]
    singly = (
        f"Taken singly, a far merge cost more than a near one in {100 * facts['far_beats_near']:.0f}% of all "
        f"comparisons (50% would be no difference; medians {plain_number(facts['median']['far'])} and "
        f"{plain_number(facts['median']['near'])})"
    )
    at_once = (
        f"Merging {size} pairs at once changed the loss by {signed(facts['near'])} nats for the nearest, "
        f"{signed(facts['far'])} for the farthest, and {signed(facts['random'])} on average for random pairs; "
        f"{facts['random_worse_than_near']} of {facts['random_count']} random pairings did worse than the nearest"
    )
    if single and batch:
        verdict = "In this run nearness did predict what can be merged, singly and together."
    elif batch:
        verdict = "Together the difference is plain; singly it is weak, and one lucky pair could have said anything."
    elif single:
        verdict = "Singly nearness helped; for the cohort as a whole this run does not show it."
    else:
        verdict = "This run does not show that nearness predicts what can be merged."
    return f"{at_once}. {singly}. {verdict}"


def draw_merge_axes(left: Any, right: Any, cohorts: dict[str, Any], size: int) -> None:
    figures.draw_merges(
        left, {name: [pair["loss_change"] for pair in cohort["pairs"]] for name, cohort in cohorts.items()}, unit="nats"
    )
    figures.set_title(left, "one pair at a time")
    figures.draw_batch_merges(
        right, {name: cohort["together_loss_change"] for name, cohort in cohorts.items()}, unit="nats"
    )
    figures.set_title(right, f"{size} pairs at once")


def points(change: float) -> str:
    """A change of accuracy in percentage points, signed."""
    sign = "+" if change > 0.0005 else "−" if change < -0.0005 else "±"
    return f"{sign}{abs(100 * change):.1f} points"


def signed(value: float) -> str:
    return f"+{plain_number(value)}" if value > 0 else plain_number(value)
