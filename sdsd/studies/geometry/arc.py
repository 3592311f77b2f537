"""One network through the whole arc of "Functional Geometry in Deep Neural Networks": map, biopsy, mass consolidation,
plasticity, controls. Each finished step is kept in a folder, so that a stopped run goes on from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor, nn

from sdsd_kernels import checks

from ...geometry import COHORTS, Measurements, evaluating, fingerprint
from ...geometry.collect import LayerActivations, collect_activations
from ...geometry.cosines import NeuronPair, disjoint_pairs
from ...geometry.map import NeuronMap, cluster
from ...geometry.merging import (
    Biopsy,
    Cohort,
    biopsy,
    consolidate,
    consumers,
    dense_layer,
    mass_consolidation,
    plasticity,
    remove_neurons,
    single_number,
    tensor_of,
    weight_cosine,
)
from ..engine import LOGGER, Progress, plain, write_json
from .subject import Subject

HOW = "mean"
COMPARED = 10
"""Clusters at which silhouettes are compared: those of two maps say something only at the same number."""
LIVE = 2 * COMPARED
"""Live neurons below which there are no ten clusters to speak of."""
MOST_OF_A_LAYER = 0.4
"""Pairs a cohort, by default at most this share of the live neurons, so that near and far cohorts differ."""


@dataclass(frozen=True)
class ArcConfig:
    """What the numbers depend on, besides the network and the data.

    Attributes:
        seed: of random pairs, bootstraps and controls.
        pairs: in a cohort, and merged at once; fewer where the layer is small.
        random_pairings: how many random pairings are consolidated.
        epochs: of training after a merge; 0 leaves plasticity out.
    """

    seed: int = 0
    pairs: int = 50
    random_pairings: int = 8
    epochs: int = 0

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("pairs", 1), ("random_pairings", 2), ("epochs", 0)):
            object.__setattr__(self, name, checks.check_count(getattr(self, name), name, least=least))


class Notebook:
    """What steps of one examination gave, in a file of its own if there is a folder.

    Its name is a digest of everything the numbers depend on, so that another network, other data or other settings
    begin a notebook of their own beside it.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any]) -> None:
        self.digest = hashlib.sha256(json.dumps(plain(identity), sort_keys=True).encode()).hexdigest()[:12]
        self.folder = folder
        self.identity = identity
        self.steps: dict[str, Any] = {}
        self.resumed: list[str] = []
        path = self.path(".json")
        if path is not None and path.exists():
            try:
                self.steps = json.loads(path.read_text(encoding="utf-8"))["steps"]
            except (ValueError, KeyError) as error:
                raise ValueError(f"{path}: expected finished steps of an examination; delete the file.") from error

    def path(self, ending: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{self.digest}{ending}"

    def step(self, name: str, measure: Callable[[], Any]) -> Any:
        """What `measure` gives, as JSON holds it; what was measured before is not measured again."""
        if name in self.steps:
            self.resumed.append(name)
            LOGGER.info("step %s: finished earlier, read from %s", name, self.path(".json"))
        else:
            self.steps[name] = json.loads(json.dumps(plain(measure())))
            path = self.path(".json")
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, {"identity": self.identity, "steps": self.steps})
        return self.steps[name]


class Examination:
    """One network and how far its examination has come.

    Attributes:
        series: results of finished steps, as results.json has them; see the methods.
        neuron_map: of the layer, once it is drawn.
        control_maps: of the controls that could be drawn, by name.
    """

    def __init__(self, subject: Subject, config: ArcConfig, folder: Path | None, progress: Progress) -> None:
        self.subject, self.config, self.progress = subject, config, progress
        self.layer = dense_layer(subject.model, subject.layer)
        readers = consumers(subject.model, subject.layer, subject.example_input)
        if readers.is_output:
            readers.require("Examining a layer", removal=False)
        self.before = self._measured(subject.model)
        self.notebook = Notebook(
            folder,
            {
                "network": subject.name,
                "layer": subject.layer,
                "measure": subject.measure,
                "fingerprint": fingerprint(subject.model),
                "before": f"{self.before:.5g}",
                "config": asdict(config),
            },
        )
        self.neuron_map: NeuronMap | None = None
        self.control_maps: dict[str, NeuronMap] = {}
        self._collected: LayerActivations | None = None
        self._losses: Measurements | None = None
        self.series: dict[str, Any] = {
            "network": subject.name,
            "layer": subject.layer,
            "kind": type(self.layer).__name__,
            "seed": config.seed,
            "measure": subject.measure,
            "before": self.before,
        }

    def run(self) -> dict[str, Any]:
        """All steps in order; each finished one is in `series` at once."""
        self.series["map"] = self._mapped()
        self.series["biopsy"] = self.notebook.step("biopsy", self._biopsies)
        self.series["consolidation"] = self.notebook.step("consolidation", self._consolidations)
        self.series["equal size"] = self.notebook.step("equal size", self._equal_size)
        self.series["controls"] = {}
        for name in self.subject.controls:
            control = self.notebook.step(name, partial(self._control, name))
            self.series["controls"][name] = control
            if "why not" not in control:
                self._control_map(name)
        if self.config.epochs and self.subject.train is not None and self.subject.accuracy is not None:
            self.series["plasticity"] = self.notebook.step("plasticity", self._plasticity)
        return self.series

    def _mapped(self) -> dict[str, Any]:
        self.neuron_map = self._kept_map(
            "-map", lambda: NeuronMap.from_activations(self.collected(), seed=self.config.seed)
        )
        return describe(self.neuron_map)

    def _kept_map(self, ending: str, draw: Callable[[], NeuronMap]) -> NeuronMap:
        """A map from its file, or drawn and put there."""
        path = self.notebook.path(ending)
        if path is not None and path.with_suffix(".json").exists() and path.with_suffix(".npz").exists():
            return NeuronMap.load(path)
        drawn = draw()
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            drawn.save(path)
        return drawn

    def collected(self) -> LayerActivations:
        """Sums over the data, collected when they are first asked for."""
        if self._collected is None:
            self._collected = self._collect(self.subject.model, self.subject.batches, "activations")
        return self._collected

    def _collect(self, model: nn.Module, batches: list[Any], what: str) -> LayerActivations:
        bar = self.progress.bar(f"{self.subject.name}: {what}")
        collected = collect_activations(
            model, batches, self.subject.layer, forward=self.subject.forward, progress=bar, max_bytes=2**33
        )
        return collected[self.subject.layer]

    def _pairs(self) -> int:
        assert self.neuron_map is not None
        return max(1, min(self.config.pairs, int(MOST_OF_A_LAYER * len(self.neuron_map.order))))

    def _geometries(self) -> dict[str, dict[str, Any]]:
        """What pairs are chosen by: cosines of activations, and cosines of weights."""
        assert self.neuron_map is not None
        alive = self.neuron_map.alive
        return {
            "activations": {"cosine": self.neuron_map.cosine, "alive": alive},
            "weights": {"cosine": weight_cosine(self.subject.model, self.subject.layer).cpu(), "alive": alive},
        }

    def _options(self) -> dict[str, Any]:
        return {
            "how": HOW,
            "seed": self.config.seed,
            "example_input": self.subject.example_input,
            "resume": self.notebook.path(".jsonl") or self._losses,
        }

    def _biopsies(self) -> dict[str, Any]:
        """far, random and near pairs, by activations and by weights."""
        biopsies = {}
        for name, geometry in self._geometries().items():
            bar = self.progress.bar(f"{self.subject.name}: single merges, pairs by {name}")
            measured = biopsy(
                self.subject.model,
                self.subject.layer,
                self.subject.sensitivity,
                self._pairs(),
                progress=bar,
                **geometry,
                **self._options(),
            )
            self._losses = measured.measurements
            biopsies[name] = _biopsy_numbers(measured)
        return biopsies

    def _consolidations(self) -> dict[str, Any]:
        """Many pairs merged at once: nearest by activations and by weights, and random ones."""
        consolidations = {}
        for name, geometry in self._geometries().items():
            bar = self.progress.bar(f"{self.subject.name}: pairs by {name} merged at once")
            measured = mass_consolidation(
                self.subject.model,
                self.subject.layer,
                self.subject.sensitivity,
                self._pairs(),
                random_pairings=self.config.random_pairings,
                progress=bar,
                **geometry,
                **self._options(),
            )
            consolidations[name] = {
                "pairs": len(measured.pairs),
                "change": measured.geometry,
                "random": list(measured.random),
                "ratio": measured.ratio,
                "interval": measured.interval,
            }
        return consolidations

    def _equal_size(self) -> dict[str, Any]:
        """The same number of neurons taken out of the network in different ways: what it costs, and what it saves.

        A reason in the place of numbers where the layer cannot shrink.
        """
        assert self.neuron_map is not None
        model, layer, example = self.subject.model, self.subject.layer, self.subject.example_input
        geometries, count = self._geometries(), self._pairs()
        near = {name: _nearest(geometry, count) for name, geometry in geometries.items()}
        count = len(near["activations"])
        smallest = weight_magnitudes(self.layer).topk(count, largest=False).indices.tolist()
        ways: dict[str, Callable[[], Any]] = {
            "nearest activations, averaged": lambda: consolidate(
                model, layer, near["activations"], "mean", example_input=example
            ),
            "nearest activations, absorbed": lambda: consolidate(
                model, layer, near["activations"], "absorb", gram=self.collected().gram(), example_input=example
            ),
            "nearest weights, averaged": lambda: consolidate(
                model, layer, near["weights"], "mean", example_input=example
            ),
            "smallest weights, pruned": lambda: remove_neurons(model, layer, smallest, example_input=example),
        }
        sizes: dict[str, Any] = {"removed": count, "accuracy": self._accuracy(model), "ways": {}}
        try:
            for name in self.progress.each(list(ways), f"{self.subject.name}: {count} neurons fewer"):
                smaller, report = ways[name]()
                sizes["ways"][name] = {
                    "change": self._measured(smaller) - self.before,
                    "accuracy": self._accuracy(smaller),
                }
                sizes |= {"neurons": report.neurons, "parameters": report.parameters, "flops": report.flops}
        except ValueError as error:
            return {"removed": 0, "why not": str(error)}
        return sizes

    def _measured(self, model: nn.Module) -> float:
        with evaluating(model):
            return single_number(self.subject.sensitivity(model), "loss")

    def _accuracy(self, model: nn.Module) -> float | None:
        if self.subject.accuracy is None:
            return None
        with evaluating(model):
            return single_number(self.subject.accuracy(model), "accuracy")

    def _control(self, name: str) -> dict[str, Any]:
        """The map of a network, or of data, in which the geometry should not show."""
        try:
            return describe(self._control_map(name))
        except ValueError as error:
            return {"why not": str(error)}

    def _control_map(self, name: str) -> NeuronMap:
        def drawn() -> NeuronMap:
            model, batches = self.subject.controls[name]()
            collected = self._collect(model, batches, f"control, {name}")
            return NeuronMap.from_activations(collected, seed=self.config.seed, pairs=0)

        if name not in self.control_maps:
            self.control_maps[name] = self._kept_map(f"-{name.replace(' ', '-')}-map", drawn)
        return self.control_maps[name]

    def _plasticity(self) -> dict[str, Any]:
        assert self.subject.train is not None
        assert self.subject.accuracy is not None
        bar = self.progress.bar(f"{self.subject.name}: training on after merges")
        options = {name: value for name, value in self._options().items() if name != "resume"}
        measured = plasticity(
            self.subject.model,
            self.subject.layer,
            self.subject.train,
            self.subject.accuracy,
            self._pairs(),
            epochs=self.config.epochs,
            progress=bar,
            **self._geometries()["activations"],
            **options,
        )
        curves = {name: list(getattr(measured, name)) for name in ("geometry", "random", "untouched")}
        return {**curves, "difference": measured.difference}


def describe(neuron_map: NeuronMap) -> dict[str, Any]:
    """A map's figures and points, as results.json has them; `compared` is the silhouette at `COMPARED` clusters.

    It is None with fewer than `LIVE` live neurons.
    """
    facts = neuron_map.to_dict()
    live = neuron_map.alive.nonzero().flatten()
    names = (
        "taken_after",
        "samples",
        "neurons",
        "silhouette",
        "effective_rank",
        "stress",
        "order",
        "clusters",
        "notes",
    )
    return {
        **{name: facts[name] for name in names},
        "dead": len(facts["dead"]),
        "compared": cluster(neuron_map.cosine[live][:, live], COMPARED).silhouette if len(live) >= LIVE else None,
        "points": neuron_map.points.astype(float).round(3).tolist(),
        "nearest": [[pair.first, pair.second, round(pair.cosine, 4)] for pair in neuron_map.nearest],
    }


def weight_magnitudes(layer: nn.Module) -> Tensor:
    """Σ|w| of each neuron's incoming weights, by which filters are pruned in Li et al. 2017, arXiv 1608.08710."""
    weight = tensor_of(layer, "weight").detach()
    dim = 1 if isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)) else 0
    return weight.abs().movedim(dim, 0).flatten(1).sum(1).cpu()


def _nearest(geometry: Mapping[str, Tensor], count: int) -> Sequence[NeuronPair]:
    return tuple(disjoint_pairs(None, count, "nearest", cosine=geometry["cosine"], alive=geometry["alive"]))


def _biopsy_numbers(measured: Biopsy) -> dict[str, Any]:
    def numbers(cohort: Cohort) -> dict[str, Any]:
        return {
            "cosine": round(fmean(pair.cosine for pair in cohort.pairs), 4),
            "mean": cohort.mean,
            "sd": cohort.std,
            "changes": list(cohort.loss_changes),
        }

    return {
        **{name: numbers(getattr(measured, name)) for name in COHORTS},
        "ratio": measured.ratio,
        "interval": measured.interval,
        "single ratio": measured.single_ratio,
    }
