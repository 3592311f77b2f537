"""The demonstration's report: every sentence is computed from the numbers it speaks of."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import torch

from ...report import figures, html
from ...report.figures import plain_number
from ..digits import CENTRE, split_digits
from ..engine import FigureBook, write_text
from ..pairs import ANSWERING
from .config import HISTORY, DemoResult
from .merges import example, merge_facts, merge_sections, merge_sentence, points, signed
from .neurons import map_sections
from .noise import noise_scales, noise_sentence, noise_story, training_sections


def write_report(result: DemoResult) -> list[Path]:
    """Write report.html and a PNG of each figure into the result's folder; the paths, report first."""
    book = FigureBook(result.folder)
    sections = [
        *training_sections(result.results, book),
        *map_sections(result, book),
        *merge_sections(result.results, book),
        settings_section(result),
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
            figures.to_panels(figure, "digits"),
            f"Ten of the {training['held_out_images']} held-out digits, 8 × 8 grey pixels each; "
            f"{training['training_images']:,} others were trained on. They ship with scikit-learn.",
        )
    )
    return blocks


def digit_strip(config: dict[str, Any]) -> Any:
    digits = split_digits(config["seed"], config["held_out"])
    firsts = torch.stack([(digits.held_out_labels == label).nonzero()[0, 0] for label in range(10)])
    return (digits.held_out_images[firsts] + CENTRE).reshape(10, 8, 8).numpy()


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
        estimate=scales["estimate"],
        low=scales["low"],
        high=scales["high"],
        batch_size=batch_size,
        exact_steps=series["exact"]["step"],
        exact=series["exact"]["noise_scale"],
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
        legend=False,
    )
    figures.set_title(axes[1], "Which neurons do the same job?")
    cohorts = results["merges"]["cohorts"]
    figures.draw_batch_merges(
        axes[2], {name: cohort["together_loss_change"] for name, cohort in cohorts.items()}, unit="nats"
    )
    figures.set_title(axes[2], f"Can they be merged? ({results['merges']['pairs_in_a_cohort']} pairs at once)")
    book.save(figure, "overview", dpi=100)


def settings_section(result: DemoResult) -> html.Section:
    results = result.results
    config = {name.replace("_", " "): setting(value) for name, value in results["config"].items()}
    rows = [*config.items(), *((f"version: {name}", value) for name, value in results["versions"].items())]
    return html.Section(
        "How this was made",
        [
            html.Text(
                "The same seed gives the same numbers on the same machine. Run it again, or look at every step of it:"
            ),
            html.Code(
                f"sdsd demo --seed {results['config']['seed']} --epochs {results['config']['epochs']}\n"
                f"sdsd watch {result.folder / HISTORY}"
            ),
            html.settings(rows),
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
            pair = example(merges["cohorts"][name])
            which = f" of neurons that {ANSWERING}" if pair is not merges["cohorts"][name]["pairs"][0] else ""
            lines.append(
                f"Merging the {word} pair{which}, {pair['first']} and {pair['second']} (cosine {pair['cosine']:.3f}): "
                f"loss {signed(pair['loss_change'])} nats."
            )
        lines.append(merge_sentence(merge_facts(merges), merges["pairs_in_a_cohort"]))
    lines.append(f"Report: {result.folder / 'report.html'}")
    return lines
