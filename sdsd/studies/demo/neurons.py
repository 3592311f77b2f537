"""The page's part on the map: pairs, neurons on a plane with what merging them cost, the cosine matrix."""

from __future__ import annotations

from statistics import median
from typing import Any

from ...report import figures, html
from ...report.figures import plain_number
from ..engine import FigureBook
from ..pairs import ANSWERING, farthest_examples
from .config import DemoResult

LINKS = 10
"""Pairs that are linked on a map of a run that ended before anything was merged."""


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
    farthest = farthest_examples(neuron_map, len(neuron_map.nearest)) or neuron_map.farthest
    near, far = neuron_map.nearest[0], farthest[0]
    figure, both = figures.new_figure(7.6, 3.3, columns=2)
    for axes, pair, colour, name in (
        (both[0], near, figures.GREEN, "nearest"),
        (both[1], far, figures.ORANGE, "farthest"),
    ):
        first, second = activations[:, pair.first].numpy(), activations[:, pair.second].numpy()
        figures.draw_pair_scatter(axes, first, second, (pair.first, pair.second), colour)
        figures.set_title(axes, figures.minus(f"{name}: cosine {pair.cosine:.3f}"))
    blocks.append(
        html.Figure(
            book.add(figure, "pairs"),
            "Each dot is one held-out digit, placed by what two neurons answer to it. "
            + ("The nearest pair answers nearly in step" if near.cosine > 0.9 else "Left the pair most alike")
            + ("; in the farthest, one is silent where the other speaks" if abs(far.cosine) < 0.02 else "")
            + f" (of neurons that {ANSWERING}, if any do).",
            "Figure 3. Two neurons, the same digits.",
        )
    )
    order = list(neuron_map.order)
    figure, axes = figures.new_figure(4.7, 4.5)
    norms = activations[:, order].norm(dim=0).numpy()
    plane = neuron_map.plane()
    cheap, dear, words = judged_links(neuron_map, result.results["merges"])
    figures.draw_neuron_map(
        axes, plane.points, neuron_map.clusters, order, cheap, norms, dotted=dear, dotted_means="one that costs more"
    )
    drawn = [
        html.Figure(
            book.add(figure, "neuron_map"),
            f"Every live neuron, placed so that distance is 1 − cosine as well as a plane allows (stress "
            f"{plane.stress:.2f}; 0 would be exact). Colour: cluster. Size: how strongly it fires. {words}",
            "Figure 4. The map.",
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
        )
    )
    blocks.append(html.SideBySide(drawn))
    return [html.Section("Which neurons do the same job?", blocks)]


def judged_links(
    neuron_map: Any, merges: dict[str, Any] | None
) -> tuple[list[tuple[int, int]], list[tuple[int, int]], str]:
    """Nearest pairs, as places on the map, that cost less than the median random pair, and the rest; and it in words.

    Without merges the nearest are all in the first list.
    """
    if not merges or not merges["pairs_in_a_cohort"]:
        links = neuron_map.links(LINKS)
        return links, [], f"Lines: the {len(links)} nearest pairs."
    pairs = merges["cohorts"]["near"]["pairs"]
    bound = median(abs(pair["loss_change"]) for pair in merges["cohorts"]["random"]["pairs"])
    place = {neuron: index for index, neuron in enumerate(neuron_map.order)}
    split: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    for pair in pairs:
        split[abs(pair["loss_change"]) >= bound].append((place[pair["first"]], place[pair["second"]]))
    return *split, link_words(len(split[0]), len(split[1]), bound)


def link_words(cheap: int, dear: int, bound: float) -> str:
    """What the lines on the map say."""
    total = f"Lines: the {cheap + dear} nearest pairs. "
    limit = f"the loss less than the median random pair does ({plain_number(bound)})"
    if not dear:
        return f"{total}Merging any of them changes {limit}."
    if not cheap:
        return f"{total}Dotted, for merging none of them changes {limit}."
    solid = f"{total}Merging one of the {cheap} that are solid changes {limit}"
    return f"{solid}; of the {dear} dotted ones, as much or more."


def dead_sentence(dead: list[int]) -> str:
    if not dead:
        return "None of them is dead."
    listed = ", ".join(map(str, dead[:12])) + (" …" if len(dead) > 12 else "")
    return f"{len(dead)} {'is' if len(dead) == 1 else 'are'} dead (never firing) and set aside: {listed}."


def silhouette_words(silhouette: float | None) -> str:
    return "" if silhouette is None else f", silhouette {silhouette:.2f} (1 would be perfectly separate, 0 none)"
