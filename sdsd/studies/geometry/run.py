"""`sdsd geometry`: networks through the whole arc, and a report people read.

from sdsd.studies.geometry import Subject, examine

examined = examine([Subject("my network", model, "encoder.fc1", batches, sensitivity)], "out/geometry")
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from ..._extras import require
from ...geometry.map import NeuronMap, save_ply, save_png
from ..engine import Progress, StudyResult, choose_progress, one_thread, prepare_output, write_json
from .arc import ArcConfig, Examination
from .report import write_report
from .subject import Subject
from .verdicts import judge_network

QUICK_PAIRS, QUICK_PAIRINGS = 10, 4
KEPT = "measurements"


@dataclass
class GeometryResult:
    """What an examination found, finished or not.

    Attributes:
        result: as results.json has it: `series` holds a dict for each network.
        maps: of the networks, in the same order.
        control_maps: of their controls, by name, in the same order.
        folder: where everything was written.
        written: the files, report first.
        resumed: steps that an earlier run had finished.
    """

    result: StudyResult
    folder: Path
    maps: list[NeuronMap] = field(default_factory=list)
    control_maps: list[dict[str, NeuronMap]] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)


def examine(
    subjects: Sequence[Subject | Callable[[], Subject]],
    out: str | Path,
    config: ArcConfig | None = None,
    *,
    quick: bool = False,
    quiet: bool = False,
    progress: Progress | None = None,
    command: str = "",
) -> GeometryResult:
    """Map, biopsy, consolidate, train on and control networks; write report.html, results.json, PNGs, PLYs to `out`.

    An interrupt (Ctrl-C) keeps what is finished, and the report shows that. Every finished step is kept in
    `out`/measurements; another call with the same network, data and settings goes on from there.

    Args:
        subjects: networks, or functions that make one when its turn comes.
        out: folder, made if need be.
        config: what the numbers depend on.
        quick: fewer pairs and pairings, to see that it works.
        quiet: say nothing.
        progress: shows how far it is; None: bars on a terminal, lines elsewhere.
        command: what repeats it, for the report.

    Raises:
        ValueError, TypeError: `out` cannot be written; as `collect_activations`, `biopsy` and `consolidate` for
            networks, layers and data.
        MissingExtraError: matplotlib, scikit-learn, plotly or plyfile is not installed.
    """
    for package in ("matplotlib", "sklearn", "plotly", "plyfile"):
        require(package, extra="report", purpose="sdsd geometry")
    if not subjects:
        raise ValueError("subjects: expected at least one network, got none.")
    folder = prepare_output(out)
    config = config or ArcConfig()
    if quick:
        settings = asdict(config) | {
            "pairs": min(config.pairs, QUICK_PAIRS),
            "random_pairings": min(config.random_pairings, QUICK_PAIRINGS),
        }
        config = ArcConfig(**settings)
    progress = progress or choose_progress(quiet)
    examined = GeometryResult(StudyResult("geometry", {"quick": quick, **asdict(config)}), folder)
    started = time.perf_counter()
    try:
        with torch.random.fork_rng(devices=[]), one_thread():
            for subject in subjects:
                _examine_one(subject, examined, config, progress)
    except KeyboardInterrupt:
        examined.result.status = "interrupted"
    finally:
        progress.stop()
    examined.result.seconds = time.perf_counter() - started
    write_json(folder / "results.json", examined.result.to_dict())
    report = write_report(examined.result, examined.maps, folder, command)
    examined.written = [*report, folder / "results.json", *_map_files(examined)]
    return examined


def _examine_one(
    subject: Subject | Callable[[], Subject], examined: GeometryResult, config: ArcConfig, progress: Progress
) -> None:
    """One network; what is finished when an interrupt comes is in the result."""
    if not isinstance(subject, Subject):
        progress.say("preparing the network …")
        subject = subject()
    examination = Examination(subject, config, examined.folder / KEPT, progress)
    examined.result.seeds = [config.seed]
    examined.result.series.append(examination.series)
    try:
        examination.run()
    finally:
        if examination.neuron_map is not None:
            examined.maps.append(examination.neuron_map)
            examined.control_maps.append(examination.control_maps)
        else:
            examined.result.series.remove(examination.series)
        examined.resumed += examination.notebook.resumed
        examined.result.verdicts += judge_network([examination.series])


def _map_files(examined: GeometryResult) -> list[Path]:
    """The maps as point clouds and pictures, those of the controls as point clouds."""
    written = []
    for series, neuron_map, controls in zip(examined.result.series, examined.maps, examined.control_maps, strict=True):
        stem = file_name(series["network"])
        written += [save_ply(neuron_map, examined.folder / f"{stem}-map.ply")]
        written += [save_png(neuron_map, examined.folder / f"{stem}-map.png")]
        for name, control in controls.items():
            written += [save_ply(control, examined.folder / f"{stem}-{file_name(name)}-map.ply")]
    return written


def file_name(network: str) -> str:
    """The network's name in lower case, for files."""
    return "".join(letter if letter.isalnum() else "-" for letter in network.lower()).strip("-") or "network"
