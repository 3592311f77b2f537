"""The page of `sdsd geometry`: every sentence is computed from the numbers it speaks of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ...geometry import COHORTS, NeuronMap
from ...report import figures, geometry_page, html
from ...report.figures import plain_number
from ..engine import FigureBook, StudyResult, Verdict, versions, write_text

BEST = "nearest activations, averaged"


def write_report(result: StudyResult, maps: Sequence[NeuronMap], folder: Path, command: str = "") -> list[Path]:
    """report.html and a PNG of each of its figures; the paths, report first. `command` is what repeats it."""
    book = FigureBook(folder)
    several = len(result.series) > 1
    sections = [
        section
        for number, (series, neuron_map) in enumerate(zip(result.series, maps, strict=True))
        for section in _network_sections(series, neuron_map, book, number, several)
    ]
    if result.verdicts:
        sections.append(_claims_section(result))
    text = html.page(
        _title(result),
        _lead(result),
        [*sections, _settings_section(result, command)],
        f"Made by sdsd geometry in {result.seconds:.0f} s. All numbers are in results.json beside this page. "
        + " · ".join(f"{name} {version}" for name, version in versions().items()),
        geometry_page.head(),
    )
    path = folder / "report.html"
    write_text(path, text)
    return [path, *book.written]


def _title(result: StudyResult) -> str:
    layers = {f"layer {series['layer']!r} of {series['network']}" for series in result.series}
    return f"The neurons of {layers.pop()}" if len(layers) == 1 else "Which neurons do the same job"


def _lead(result: StudyResult) -> list[html.Block]:
    blocks: list[html.Block] = []
    if result.interrupted:
        blocks.append(
            html.Note(
                "This run was interrupted. The page shows what was finished before that; the same command goes on "
                "from there."
            )
        )
    blocks.append(
        html.Text(
            "Two neurons that fire alike may do the same job. Here neurons are placed by how alike they fire, pairs of "
            "them are merged, near, random and far, and what the network loses is measured. If the picture is true, "
            "near pairs cost little and far pairs much; and networks that have learned nothing show no such picture."
        )
    )
    cards: list[tuple[str, str]] = []
    for series in result.series:
        cards += _cards(series, f" ({series['network']})" if len(result.series) > 1 else "")
    if cards:
        blocks.append(html.Cards(cards))
    return blocks


def _cards(series: Mapping[str, Any], where: str) -> list[tuple[str, str]]:
    headlines = []
    ratio = (series.get("biopsy") or {}).get("activations", {}).get("ratio")
    if ratio:
        headlines.append((f"{plain_number(ratio)} ×", f"as costly: a far pair against a near one{where}"))
    ratio = (series.get("consolidation") or {}).get("activations", {}).get("ratio")
    if ratio:
        headlines.append((f"{plain_number(ratio)} ×", f"as costly: many random pairs at once against near ones{where}"))
    size = series.get("equal size") or {}
    if BEST in size.get("ways", {}) and not where:
        before, after = size["neurons"]
        saved = 1 - size["parameters"][1] / size["parameters"][0]
        headlines.append((f"{before} → {after}", f"neurons, {100 * saved:.0f}% fewer parameters in all{where}"))
    return headlines


def _claims_section(result: StudyResult) -> html.Section:
    """A table for each network: verdicts come in the order of networks, each with the same claims at most once."""
    tables: list[list[geometry_page.ClaimRow]] = [[]]
    for verdict in result.verdicts:
        if any(claim.claim == verdict.claim for claim in tables[-1]):
            tables.append([])
        tables[-1].append(_claim(verdict))
    blocks: list[html.Block] = []
    for series, claims in zip(result.series, tables, strict=False):
        blocks += [html.Heading(f"{series['network']}, layer {series['layer']!r}"), geometry_page.ClaimRows(claims)]
    return html.Section(
        f"The claims of the document, held against {'these networks' if len(result.series) > 1 else 'this network'}",
        [
            html.Text("The claims are those of “Functional Geometry in Deep Neural Networks”, with its numbers."),
            *blocks,
        ],
    )


def _claim(verdict: Verdict) -> geometry_page.ClaimRow:
    here = "–" if verdict.our_figure is None else str(verdict.our_figure)
    return geometry_page.ClaimRow(
        verdict.claim, verdict.verdict, verdict.published, here, verdict.corrected, verdict.rule
    )


def _network_sections(
    series: Mapping[str, Any], neuron_map: NeuronMap, book: FigureBook, number: int, several: bool
) -> Iterable[html.Section]:
    stem, suffix = "".join(c if c.isalnum() else "-" for c in series["network"].lower()), ""
    if several:
        suffix = f" – {series['network']}"
    notes: list[html.Block] = [html.Text(note) for note in neuron_map.notes]
    dead = series["map"]["dead"]
    positions = f"{series['map']['samples']:,} samples (inputs × positions)"
    yield html.Section(
        f"The map{suffix}",
        [
            html.Text(
                f"Each point is one of {len(neuron_map.order)} neurons of layer {series['layer']!r}"
                + (f", after {series['map']['taken_after']}" if series["map"]["taken_after"] != "output" else "")
                + f", placed by its answers to {positions}. Close points fire alike; lines join the nearest pairs; "
                "larger points answer more strongly." + (f" Dead and left out: {dead}." if dead else "")
            ),
            geometry_page.InteractiveMap(neuron_map, f"map{number}"),
            *notes,
        ],
    )
    if series.get("biopsy"):
        yield _biopsy_section(series, book, stem, suffix)
    if series.get("equal size"):
        yield _size_section(series, book, stem, suffix)
    if series.get("controls"):
        yield _control_section(series, book, stem, suffix)
    if series.get("plasticity"):
        yield _plasticity_section(series, book, stem, suffix)


def _biopsy_section(series: Mapping[str, Any], book: FigureBook, stem: str, suffix: str) -> html.Section:
    biopsied, measure = series["biopsy"]["activations"], series["measure"]
    count = len(biopsied["near"]["changes"])
    figure, axes = figures.new_figure(5.2, 4.0)
    figures.draw_merges(axes, {name: biopsied[name]["changes"] for name in COHORTS}, series["seed"])
    axes.set_ylabel(f"|change of {measure}|")
    shown = [
        html.Figure(
            book.add(figure, f"{stem}-cohorts"),
            f"One point is one pair merged alone, {count} pairs a cohort; the bar and the number are the median. "
            f"The axis is logarithmic.",
            "One pair at a time.",
        )
    ]
    at_once = series.get("consolidation")
    if at_once:
        figure, axes = figures.new_figure(5.2, 4.0)
        figures.draw_batch_merges(
            axes,
            {
                "near": [at_once["activations"]["change"]],
                "near by\nweights": [at_once["weights"]["change"]],
                "random": at_once["activations"]["random"],
            },
        )
        axes.set_ylabel(f"change of {measure}")
        pairs = at_once["activations"]["pairs"]
        shown.append(
            html.Figure(
                book.add(figure, f"{stem}-consolidation"),
                f"{pairs} pairs merged at once: the nearest by activations, the nearest by incoming weights, and "
                f"{len(at_once['activations']['random'])} random pairings.",
                "Many pairs at once.",
            )
        )
    return html.Section(
        f"What merging costs{suffix}",
        [html.Note(_biopsy_sentence(series)), html.SideBySide(shown), _cohort_table(series)],
    )


def _biopsy_sentence(series: Mapping[str, Any]) -> str:
    biopsied = series["biopsy"]["activations"]
    ratio, interval = biopsied["ratio"], biopsied["interval"]
    if ratio is None or interval is None:
        return f"Near merges do not change the {series['measure']} at all, so there is no ratio."
    sure = "more than" if interval[0] > 1 else "not clearly more than"
    text = (
        f"A far pair costs {sure} a near one: {plain_number(ratio)} times as much on average (95% interval "
        f"{plain_number(interval[0])} to {plain_number(interval[1])})."
    )
    weights = series["biopsy"]["weights"]["ratio"]
    if weights is not None:
        better = "activations tell more than weights do" if ratio > weights else "weights tell as much or more"
        text += f" Pairs chosen by incoming weights instead reach {plain_number(weights)}: here {better}."
    return text


def _cohort_table(series: Mapping[str, Any]) -> html.Table:
    rows = []
    for geometry, label in (("activations", "by activations"), ("weights", "by weights")):
        for name in COHORTS:
            cohort = series["biopsy"][geometry][name]
            spread = "–" if cohort["sd"] is None else plain_number(cohort["sd"])
            rows.append(
                (f"{name}, {label}", figures.minus(f"{cohort['cosine']:.2f}"), plain_number(cohort["mean"]), spread)
            )
    return html.Table(("pairs", "mean cosine", f"mean |change of {series['measure']}|", "standard deviation"), rows)


def _size_section(series: Mapping[str, Any], book: FigureBook, stem: str, suffix: str) -> html.Section:
    size = series["equal size"]
    title = f"A smaller network{suffix}"
    if not size.get("ways"):
        return html.Section(title, [html.Text(f"This layer cannot shrink by itself: {size['why not']}")])
    costs = {name: [way["change"]] for name, way in size["ways"].items()}
    random = (series.get("consolidation") or {}).get("activations", {}).get("random")
    if random:
        costs["random pairs, averaged"] = [fmean(map(abs, random))]
    figure, axes = figures.new_figure(7.6, 3.2)
    figures.draw_costs(axes, costs, BEST, f"|change of {series['measure']}|")
    before, after = size["neurons"]
    flops = size["flops"]
    saved = [f"parameters {size['parameters'][0]:,} → {size['parameters'][1]:,}"]
    if flops:
        saved.append(f"FLOPs of a forward pass {flops[0]:,} → {flops[1]:,}")
    blocks: list[html.Block] = [
        html.Text(
            f"The same number of neurons is taken out in each way, {before} → {after}, so that the networks are "
            f"equally large: {', '.join(saved)}."
        ),
        html.Figure(
            book.add(figure, f"{stem}-equal-size"),
            "Averaged: both neurons of a pair become their mean. Absorbed: one neuron stands in for both, by least "
            "squares on the activations. Pruned: the neurons with the smallest Σ|w| are dropped.",
        ),
    ]
    if size["accuracy"] is not None:
        rows = [("untouched", f"{100 * size['accuracy']:.1f}%")]
        rows += [(name, f"{100 * way['accuracy']:.1f}%") for name, way in size["ways"].items()]
        blocks.append(html.Table(("network", "accuracy"), rows))
    return html.Section(title, blocks)


def _control_section(series: Mapping[str, Any], book: FigureBook, stem: str, suffix: str) -> html.Section:
    maps = {
        "trained": series["map"],
        **{name: drawn for name, drawn in series["controls"].items() if "points" in drawn},
    }
    known = {name: [drawn["compared"]] for name, drawn in maps.items() if drawn["compared"] is not None}
    blocks: list[html.Block] = [
        html.Text(
            "If the geometry is learned, it should not be there in a network that has learned nothing, or for inputs "
            "with nothing in them to know. Every silhouette is that of ten clusters, so that they can be compared."
        )
    ]
    figure, axes = figures.new_figure(2.9 * len(maps), 3.0, columns=len(maps))
    for place, (name, drawn) in zip([axes] if len(maps) == 1 else axes, maps.items(), strict=True):
        figures.draw_points(place, drawn["points"], drawn["clusters"])
        figures.set_title(place, name)
    blocks.append(html.Figure(book.add(figure, f"{stem}-controls"), "The first two directions of each map."))
    if known:
        figure, axes = figures.new_figure(7.6, 3.2)
        figures.draw_silhouettes(axes, known)
        blocks.append(
            html.Figure(
                book.add(figure, f"{stem}-silhouettes"),
                "1: tight clusters far apart; 0: none to speak of.",
            )
        )
    rows = [
        (
            name,
            "–" if drawn["compared"] is None else figures.minus(f"{drawn['compared']:.3f}"),
            "–" if drawn["effective_rank"] is None else f"{drawn['effective_rank']:.1f}",
            str(drawn["dead"]),
        )
        for name, drawn in maps.items()
    ]
    blocks.append(html.Table(("network", "silhouette", "effective rank", "dead neurons"), rows))
    for name, drawn in series["controls"].items():
        if "why not" in drawn:
            blocks.append(html.Text(f"No control “{name}”: {drawn['why not']}"))
    return html.Section(f"Controls{suffix}", blocks)


def _plasticity_section(series: Mapping[str, Any], book: FigureBook, stem: str, suffix: str) -> html.Section:
    curves = {name: series["plasticity"][name] for name in ("geometry", "random", "untouched")}
    best = {name: f"{100 * max(curve):.1f}%" for name, curve in curves.items()}
    figure, axes = figures.new_figure(7.6, 3.4)
    figures.draw_relearning(axes, curves)
    return html.Section(
        f"Training on{suffix}",
        [
            html.Note(
                f"Merged by geometry and trained on, the network peaks at {best['geometry']}; merged at random, at "
                f"{best['random']}; not merged, at {best['untouched']}."
            ),
            html.Figure(book.add(figure, f"{stem}-plasticity"), "Accuracy after each epoch."),
        ],
    )


def _settings_section(result: StudyResult, command: str) -> html.Section:
    rows = [(name.replace("_", " "), str(value)) for name, value in result.config.items()]
    blocks: list[html.Block] = [html.Text("The same command goes on from what is finished:"), html.Code(command)]
    return html.Section("How this was made", [*(blocks if command else []), html.settings(rows)])
