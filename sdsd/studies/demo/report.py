"""The demonstration's report: every sentence is computed from the numbers it speaks of."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import torch

from ...report import figures, html
from ...report.figures import plain_number
from ..digits import CENTRE, split_digits
from ..engine import FigureBook, write_text

if TYPE_CHECKING:
    from .run import DemoResult


def write_report(result: DemoResult) -> list[Path]:
    """Write report.html and a PNG of each figure into the result's folder; the paths, report first."""
    book = FigureBook(result.folder)
    sections = [
        *training_sections(result.results, book),
        *map_sections(result, book),
        *merge_sections(result.results, book),
        settings_section(result.results),
    ]
    if result.results["merges"] and result.results["merges"]["pairs_in_a_cohort"]:
        overview(result, book)
    text = html.page(
        "What a small network learned, and how loud the noise was",
        lead_blocks(result, book),
        sections,
        footer=f"Made by sdsd demo, seed {result.results['config']['seed']}, in {result.results['seconds']:.0f} s. "
        "All numbers are in results.json beside this page.",
    )
    report = result.folder / "report.html"
    write_text(report, text)
    return [report, *book.written]


def lead_blocks(result: DemoResult, book: FigureBook) -> list[html.Block]:
    results = result.results
    training, merges = results["training"], results["merges"]
    blocks: list[html.Block] = []
    if result.interrupted:
        blocks.append(html.Note("This run was interrupted. The page shows what was finished before that."))
    blocks.append(
        html.Text(
            "A network was trained to read handwritten digits, and two questions were asked of it. "
            "While it learned: is the gradient of a batch signal or noise? "
            "After it had learned: which neurons do the same job, and can they be merged?"
        )
    )
    if not training or not training["series"]["step"]:
        return blocks
    series = training["series"]
    cards = [(f"{100 * series['accuracy'][-1]:.1f}%", "of held-out digits read correctly")]
    story = noise_story(training, results["config"]["batch_size"])
    cards.append(
        (
            f"{plain_number(story['lowest'])} → {plain_number(story['last'])}",
            f"images: the noise scale at its lowest and at the end; the batch was {results['config']['batch_size']}",
        )
    )
    if merges and merges["pairs_in_a_cohort"]:
        together = {name: mean(merges["cohorts"][name]["together_accuracy_change"]) for name in ("near", "far")}
        size = merges["pairs_in_a_cohort"]
        cards.append((points(together["near"]), f"of accuracy after merging the {size} nearest pairs of neurons"))
        cards.append((points(together["far"]), f"of accuracy after merging the {size} farthest pairs instead"))
    blocks.append(html.Cards(cards))
    figure, axes = figures.new_figure(7.6, 0.85)
    figures.draw_images(axes, digit_strip(results["config"]))
    blocks.append(
        html.Figure(
            figures.to_svg(figure, "digits"),
            f"Ten of the {training['held_out_images']} held-out digits, 8 × 8 grey pixels each; "
            f"{training['training_images']:,} others were trained on. They ship with scikit-learn.",
        )
    )
    return blocks


def digit_strip(config: dict[str, Any]) -> Any:

    digits = split_digits(config["seed"], config["held_out"])
    firsts = torch.stack([(digits.held_out_labels == label).nonzero()[0, 0] for label in range(10)])
    return (digits.held_out_images[firsts] + CENTRE).reshape(10, 8, 8).numpy()


def points(change: float) -> str:
    """A change of accuracy in percentage points, signed."""
    sign = "+" if change > 0.0005 else "−" if change < -0.0005 else "±"
    return f"{sign}{abs(100 * change):.1f} points"


def signed(value: float) -> str:
    return f"+{plain_number(value)}" if value > 0 else plain_number(value)


def noise_scales(training: dict[str, Any], batch_size: int, layer: str = "whole network") -> dict[str, list[float]]:
    """Noise scale with its bounds at each step; infinite where no signal is seen."""

    def invert(gamma: float) -> float:
        return math.nan if math.isnan(gamma) else batch_size / gamma if gamma > 0 else math.inf

    found = training["series"]["layers"][layer]
    return {
        "estimate": [invert(value) for value in found["gamma"]],
        "low": [invert(value) for value in found["high"]],
        "high": [invert(value) for value in found["low"]],
    }


def noise_story(training: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """Where the noise scale was lowest, whence it stayed above the batch size, how it ended, what the exact says."""
    steps = training["series"]["step"]
    scales = noise_scales(training, batch_size)
    warm = min(10, len(steps) - 1)
    estimate = scales["estimate"]
    lowest_at = min(range(warm, len(steps)), key=lambda index: estimate[index])
    below = [index for index in range(warm, len(steps)) if estimate[index] < batch_size]
    exact = training["series"]["exact"]
    by_step = dict(zip(steps, zip(scales["low"], scales["high"], strict=True), strict=True))
    inside = [
        by_step[step][0] <= value <= by_step[step][1]
        for step, value in zip(exact["step"], exact["noise_scale"], strict=True)
        if not math.isnan(by_step[step][0])
    ]
    return {
        "lowest": estimate[lowest_at],
        "lowest_step": steps[lowest_at],
        "last": estimate[-1],
        "ever_below": bool(below),
        "above_from_step": steps[below[-1] + 1] if below and below[-1] + 1 < len(steps) else None,
        "share_below": len(below) / (len(steps) - warm),
        "exact_inside": sum(inside),
        "exact_measured": len(inside),
        "exact_last": exact["noise_scale"][-1],
    }


def noise_sentence(story: dict[str, Any], batch_size: int, last_step: int) -> str:
    """What figure 1 says, in words."""
    lowest, last = story["lowest"], story["last"]
    if not story["ever_below"]:
        return (
            f"The noise scale stayed above the batch size of {batch_size} throughout (lowest {plain_number(lowest)} "
            f"at step {story['lowest_step']}): every step was mostly noise, and a larger batch would have paid."
        )
    start = (
        f"The noise scale was lowest at step {story['lowest_step']}: {plain_number(lowest)} images. There a batch of "
        f"{batch_size} spent {batch_size / lowest:.1f} times as many images as it takes for signal to equal noise. "
    )
    if last < batch_size:
        return start + (
            f"It ended at {plain_number(last)}, still below the batch: in this run the batch was never too small at "
            "the end, and the figure does not show the gradient sinking into noise."
        )
    above = f"From step {story['above_from_step']} on it stayed above {batch_size}, and "
    if math.isinf(last):
        return f"{start}{above}after {last_step} steps no signal could be told from the noise."
    return (
        f"{start}{above}after {last_step} steps it stood at {plain_number(last)}: about "
        f"{100 / (1 + batch_size / last):.0f}% of the squared length of a batch's gradient was by then noise."
    )


def training_sections(results: dict[str, Any], book: FigureBook) -> list[html.Section]:
    training = results["training"]
    if not training or len(training["series"]["step"]) < 2:
        return []
    series, batch_size = training["series"], results["config"]["batch_size"]
    steps, exact = series["step"], series["exact"]
    scales = noise_scales(training, batch_size)
    story = noise_story(training, batch_size)

    figure, (upper, lower) = figures.new_figure(7.6, 5.4, rows=2, height_ratios=[2.6, 1])
    figures.draw_noise_scale(
        upper, steps, scales["estimate"], scales["low"], scales["high"], batch_size, exact["step"], exact["noise_scale"]
    )
    upper.tick_params(labelbottom=False)
    figures.draw_accuracy(lower, steps, series["accuracy"])
    lower.set_xlim(upper.get_xlim())
    noise_figure = html.Figure(
        book.add(figure, "noise_scale"),
        "The noise scale is how many images it takes for the signal in their mean gradient to equal the noise. "
        "Line: estimated from the batches training used anyway. Dots: the true value, over every training image. "
        "Where the line runs below the dashes the batch is larger than needed; where it runs above, a step is "
        "mostly noise. Below: accuracy on held-out digits.",
        "Figure 1. Signal first, noise later.",
    )

    layers = {name: values["gamma"] for name, values in series["layers"].items() if name != "whole network"}
    figure, axes = figures.new_figure(7.6, 3.7)
    figures.draw_layer_gamma(axes, steps, layers, batch_size)
    layer_figure = html.Figure(
        book.add(figure, "layers"),
        f"Γ of a batch of {batch_size}, of the weights of each layer. In the green field the layer's gradient is more "
        "signal than noise. Gaps: no signal could be told from noise.",
        "Figure 2. Not every layer hears the same.",
    )
    coverage = (
        "The estimate costs no extra data: sdsd.GammaMonitor reads it off the backward pass of every training step, "
        "from the spread of the gradients within the batch, averaged over about "
        f"{2 / (1 - results['config']['smoothing']) - 1:.0f} steps. Of {story['exact_measured']} exact values, "
        f"{story['exact_inside']} lie inside its band. The band tells the uncertainty of a running average, so where "
        "the truth moves fast the average trails behind it."
    )
    rows = [layer_row(name, values, batch_size) for name, values in series["layers"].items()]
    return [
        html.Section(
            "Is the gradient signal or noise?",
            [
                html.Text(
                    "Γ compares the squared length of the mean gradient (what all samples agree on) with the variance "
                    "of the gradient from sample to sample (what they disagree on): above 1 a step mostly follows the "
                    "signal (drift), below 1 mostly chance (diffusion). Γ grows in proportion to the batch; the batch "
                    "size at which it is 1 is the noise scale."
                ),
                noise_figure,
                html.Note(noise_sentence(story, batch_size, steps[-1])),
                html.Text(coverage),
                layer_figure,
                html.Table(
                    ("layer", "highest Γ", "last Γ", "last noise scale", "95% interval", "below Γ = 1 from step"),
                    [(*row[:-1], row[-1]) for row in (with_step(row, steps) for row in rows)],
                    f"Γ of a batch of {batch_size}; noise scale in images, ∞ where no signal can be told from noise.",
                ),
            ],
        )
    ]


def layer_row(name: str, values: dict[str, list[float]], batch_size: int) -> tuple[str, str, str, str, str, int]:
    gamma = values["gamma"]
    above = [index for index, value in enumerate(gamma) if value >= 1]
    low, high = values["low"][-1], values["high"][-1]

    def scale(value: float) -> str:
        return plain_number(math.nan if math.isnan(value) else batch_size / value if value > 0 else math.inf)

    warm = gamma[min(10, len(gamma) - 1) :]
    return (
        name,
        plain_number(max(warm)),
        plain_number(gamma[-1]),
        scale(gamma[-1]),
        f"{scale(high)} – {scale(low)}",
        above[-1] + 1 if above else 0,
    )


def with_step(row: tuple[str, str, str, str, str, int], steps: list[int]) -> tuple[str, ...]:
    return (*row[:-1], f"{steps[row[-1]]}" if row[-1] < len(steps) else "never")


def map_sections(result: DemoResult, book: FigureBook) -> list[html.Section]:
    neuron_map, activations, facts = result.neuron_map, result.activations, result.results["map"]
    if neuron_map is None or activations is None or not neuron_map.nearest:
        return []
    live, clusters = len(neuron_map.order), len(set(neuron_map.clusters))
    blocks: list[html.Block] = [
        html.Text(
            f"Each of the {len(neuron_map.alive)} neurons of layer {facts['layer']} answers the "
            f"{len(activations)} held-out digits with {len(activations)} numbers. Two neurons whose numbers point the "
            f"same way (cosine near 1) do the same job; two that never fire together have cosine 0. "
            f"{dead_sentence(neuron_map.dead)}"
        )
    ]
    near, far = neuron_map.nearest[0], neuron_map.farthest[0]
    figure, both = figures.new_figure(7.6, 3.3, columns=2)
    for axes, pair, colour, name in (
        (both[0], near, figures.GREEN, "nearest"),
        (both[1], far, figures.ORANGE, "farthest"),
    ):
        first, second = activations[:, pair.first].numpy(), activations[:, pair.second].numpy()
        figures.draw_pair_scatter(axes, first, second, (pair.first, pair.second), colour)
        figures.set_title(axes, f"{name}: cosine {pair.cosine:.3f}")
    blocks.append(
        html.Figure(
            book.add(figure, "pairs"),
            "Each dot is one held-out digit, placed by what two neurons answer to it. "
            + ("The nearest pair answers nearly in step" if near.cosine > 0.9 else "Left the pair most alike")
            + ("; in the farthest, one is silent where the other speaks." if abs(far.cosine) < 0.02 else "."),
            "Figure 3. Two neurons, the same digits.",
        )
    )
    order = list(neuron_map.order)
    figure, axes = figures.new_figure(4.7, 4.5)
    norms = activations[:, order].norm(dim=0).numpy()
    links, plane = neuron_map.links(10), neuron_map.plane()
    figures.draw_neuron_map(axes, plane.points, neuron_map.clusters, order, links, norms)
    drawn = [
        html.Figure(
            book.add(figure, "neuron_map"),
            f"Every live neuron, placed so that distance is 1 − cosine as well as a plane allows (stress "
            f"{plane.stress:.2f}; 0 would be exact). Colour: cluster. Size: how strongly it fires. "
            f"Lines: the {len(links)} nearest pairs.",
            "Figure 4. The map.",
            narrow=True,
        )
    ]
    matrix = neuron_map.cosine[order][:, order].numpy()
    changes = [
        position - 0.5
        for position in range(1, live)
        if neuron_map.clusters[position] != neuron_map.clusters[position - 1]
    ]
    figure, axes = figures.new_figure(4.7, 4.5)
    figures.draw_cosine_matrix(axes, matrix, changes, float(matrix.min()))
    drawn.append(
        html.Figure(
            book.add(figure, "cosine_matrix"),
            f"The same {live} neurons, ordered by cluster: dark blocks on the diagonal are groups that fire together. "
            f"{clusters} clusters{silhouette_words(neuron_map.silhouette)}.",
            "Figure 5. The cosine matrix.",
            narrow=True,
        )
    )
    blocks.append(html.SideBySide(drawn))
    rows = [
        (str(index + 1), *cells(near_pair), *cells(far_pair))
        for index, (near_pair, far_pair) in enumerate(
            list(zip(neuron_map.nearest, neuron_map.farthest, strict=False))[:8]
        )
    ]
    blocks.append(
        html.Table(
            ("", "nearest pair", "cosine", "farthest pair", "cosine"),
            rows,
            "Pairs are chosen greedily and share no neuron.",
        )
    )
    return [html.Section("Which neurons do the same job?", blocks)]


def dead_sentence(dead: list[int]) -> str:
    if not dead:
        return "None of them is dead."
    listed = ", ".join(map(str, dead[:12])) + (" …" if len(dead) > 12 else "")
    return f"{len(dead)} {'is' if len(dead) == 1 else 'are'} dead (never firing) and set aside: {listed}."


def cells(pair: Any) -> tuple[str, str]:
    return f"{pair.first} – {pair.second}", f"{pair.cosine:.3f}"


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
        f"Merging {size} pairs at once changed the loss by {signed(facts['near'])} for the nearest, "
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


def merge_sections(results: dict[str, Any], book: FigureBook) -> list[html.Section]:
    merges = results["merges"]
    if not merges or not merges["pairs_in_a_cohort"]:
        return []
    cohorts, size = merges["cohorts"], merges["pairs_in_a_cohort"]
    facts = merge_facts(merges)
    near, far = cohorts["near"]["pairs"][0], cohorts["far"]["pairs"][0]
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
                    f"digits by {signed(near['loss_change'])}; merging the farthest ({far['first']} and "
                    f"{far['second']}) by {signed(far['loss_change'])}. One pair may be luck, so {size} near, {size} "
                    f"far and {size} random pairs were merged, each singly and each cohort at once."
                ),
                html.Figure(
                    book.add(figure, "merges"),
                    "Left: each dot is one merge, the bar and the number below its cohort's median. "
                    f"Right: all {size} pairs of a cohort merged at once; random pairs in {facts['random_count']} "
                    "different pairings, with their mean.",
                    "Figure 6. What a merge costs.",
                ),
                html.Note(merge_sentence(facts, size)),
                html.Table(
                    ("pairs", "mean cosine", "median |Δ|", "largest |Δ|", "Δ, all at once", "accuracy, all at once"),
                    rows,
                    f"Δ: change of the loss on held-out digits, {merges['loss_before']:.4f} before. Accuracy before: "
                    f"{100 * merges['accuracy_before']:.1f}%. The weights were restored after each merge"
                    f"{', bit for bit.' if merges['restored_exactly'] else '; the check of that FAILED.'}",
                ),
            ],
        )
    ]


def draw_merge_axes(left: Any, right: Any, cohorts: dict[str, Any], size: int) -> None:
    figures.draw_merges(
        left, {name: [pair["loss_change"] for pair in cohort["pairs"]] for name, cohort in cohorts.items()}
    )
    figures.set_title(left, "one pair at a time")
    figures.draw_batch_merges(right, {name: cohort["together_loss_change"] for name, cohort in cohorts.items()})
    figures.set_title(right, f"{size} pairs at once")


def overview(result: DemoResult, book: FigureBook) -> None:
    """One picture of the whole run, as a PNG only."""
    results, neuron_map = result.results, result.neuron_map
    training, batch_size = results["training"], results["config"]["batch_size"]
    if neuron_map is None:
        return
    series = training["series"]
    scales = noise_scales(training, batch_size)
    figure, axes = figures.new_figure(13.2, 4.1, columns=3, width_ratios=[1.35, 1, 1.05])
    figures.draw_noise_scale(
        axes[0],
        series["step"],
        scales["estimate"],
        scales["low"],
        scales["high"],
        batch_size,
        series["exact"]["step"],
        series["exact"]["noise_scale"],
    )
    axes[0].set_xlabel("training step")
    figures.set_title(axes[0], "Is the gradient signal or noise?")
    figures.draw_neuron_map(
        axes[1],
        neuron_map.plane().points,
        neuron_map.clusters,
        neuron_map.order,
        neuron_map.links(10),
        labels=False,
    )
    figures.set_title(axes[1], "Which neurons do the same job?")
    cohorts = results["merges"]["cohorts"]
    figures.draw_batch_merges(axes[2], {name: cohort["together_loss_change"] for name, cohort in cohorts.items()})
    figures.set_title(axes[2], f"Can they be merged? ({results['merges']['pairs_in_a_cohort']} pairs at once)")
    book.save(figure, "overview", dpi=100)


def silhouette_words(silhouette: float | None) -> str:
    return "" if silhouette is None else f", silhouette {silhouette:.2f} (1 would be perfectly separate, 0 none)"


def settings_section(results: dict[str, Any]) -> html.Section:
    config = {name.replace("_", " "): setting(value) for name, value in results["config"].items()}
    rows = [*config.items(), *((f"version: {name}", value) for name, value in results["versions"].items())]
    return html.Section(
        "How this was made",
        [
            html.Text(
                f"The same seed gives the same numbers on the same machine. Run it again with: "
                f"sdsd demo --seed {results['config']['seed']} --epochs {results['config']['epochs']}"
            ),
            html.Table(("setting", "value"), rows),
        ],
    )


def setting(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def summary_lines(result: DemoResult) -> list[str]:
    """The run in a few lines of plain text."""
    results = result.results
    training, merges, config = results["training"], results["merges"], results["config"]
    lines = []
    if training and len(training["series"]["step"]) > 1:
        series = training["series"]
        lines.append(f"Accuracy on held-out digits: {100 * series['accuracy'][-1]:.1f}%.")
        story = noise_story(training, config["batch_size"])
        lines.append(noise_sentence(story, config["batch_size"], series["step"][-1]))
    if merges and merges["pairs_in_a_cohort"]:
        for name, word in (("near", "nearest"), ("far", "farthest")):
            pair = merges["cohorts"][name]["pairs"][0]
            lines.append(
                f"Merging the {word} pair, {pair['first']} and {pair['second']} (cosine {pair['cosine']:.3f}): "
                f"loss {signed(pair['loss_change'])}."
            )
        lines.append(merge_sentence(merge_facts(merges), merges["pairs_in_a_cohort"]))
    lines.append(f"Report: {result.folder / 'report.html'}")
    return lines
