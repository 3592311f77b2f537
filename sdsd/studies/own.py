"""`sdsd study NAME --model FILE.py`: what a study measures, on a network of one's own.

The file defines `model` and `loader`, and `loss(model, batch)`, a scalar tensor; it may define `optimizer`, whose
learning rate counts where a step does. It runs as for `sdsd gamma FILE.py`. A verdict there is none: claims are about
networks in general, numbers here are of one.

A study that makes sense on any network has a function in `OWN`; of the others `REFUSALS` says why they have their own.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from .._extras import MissingExtraError
from ..gamma import compute_gamma
from ..geometry import collect_activations, disjoint_pairs, evaluating, merge, merge_cost, outgoing_weights
from ..report import figures
from ..theory import (
    RefusedEstimateError,
    basin_volume,
    curvature_gamma,
    description_length,
    geometric_functional,
    hidden_layers,
    local_learning_coefficient,
    quotient_gamma,
    random_representative,
    realized_volume,
    sharpness,
    symmetries,
    vertical_fraction,
)
from ..theory.quotient import example_for
from .catalogue import CATALOGUE
from .engine import Progress, StudyResult, find_study, plain, prepare_output, rank_correlation, versions, write_json
from .geometry import subject_from_file
from .user_file import DEFAULT_LEARNING_RATE, Script, first_length, length_of, load_script, users_code

SCHEMA = 1
LINES = 12
"""Of what was not analysed."""


@dataclass
class Own:
    """The network of a file, and how much of it to look at."""

    path: Path
    script: Script
    batches: list[Any]
    layer: str | None
    seed: int
    points: int
    draws: int
    progress: Progress

    @property
    def model(self) -> nn.Module:
        """In eval mode."""
        return self.script.model

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The user's loss, whose errors are the user's."""
        with users_code(self.path):
            return self.script.loss(model, batch)

    def orbit(self) -> list[nn.Module]:
        """The network itself, then random points that compute the same."""
        example = example_for(self.model, self.batches, self.script.loss)
        return [
            copy.deepcopy(self.model),
            *(random_representative(self.model, seed=self.seed + k, example_input=example) for k in range(self.points)),
        ]

    def structure(self) -> Any:
        """The network's symmetries."""
        return symmetries(self.model, example_for(self.model, self.batches, self.script.loss))


@dataclass
class OwnResult:
    """What a study measured on a network: numbers by name, and the same in words."""

    study: str
    file: str
    numbers: dict[str, Any] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """What results.json holds."""
        return {
            "schema": SCHEMA,
            "study": self.study,
            "file": self.file,
            "numbers": plain(self.numbers),
            "lines": self.lines,
            "versions": versions(),
        }


Numbers = tuple[dict[str, Any], list[str]]


def _factor(values: list[float]) -> float:
    """How many times the smallest of some numbers of one sign the largest is; NaN for others."""
    sizes = [abs(value) for value in values]
    return max(sizes) / min(sizes) if min(sizes) > 0 and (min(values) > 0) == (max(values) > 0) else math.nan


def _quotient(own: Own) -> Numbers:
    """Gradient, Γ and Γ of the quotient at points of the orbit."""
    count = len(own.batches)
    numbers: dict[str, Any] = {"squared_gradients": [], "gammas": [], "quotient_gammas": []}
    for point in own.progress.each(own.orbit(), "points of the orbit"):
        stats = compute_gamma(point, own.batches, own.loss, count)
        numbers["squared_gradients"].append(stats.signal)
        numbers["gammas"].append(stats.gamma)
        numbers["quotient_gammas"].append(quotient_gamma(point, own.batches, own.loss, count).gamma)
    structure = own.structure()
    parameters = dict(own.model.named_parameters())
    losses = [own.loss(own.model, batch) for batch in own.batches]
    trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    gradients = torch.autograd.grad(torch.stack(losses).mean(), list(trained.values()), materialize_grads=True)
    draw = torch.Generator().manual_seed(own.seed)
    noise = {name: torch.randn(value.shape, dtype=torch.float64, generator=draw) for name, value in trained.items()}
    vectors: dict[str, dict[str, Tensor]] = {
        "gradient": dict(zip(trained, gradients, strict=True)),
        "weight decay": {**trained},
        "isotropic noise": noise,
    }
    numbers["vertical"] = {name: vertical_fraction(structure, vector) for name, vector in vectors.items()}
    shares = ", ".join(f"{share:.3g} of {name}" for name, share in numbers["vertical"].items())
    lines = [
        f"‖∇L‖² moves by a factor of {_factor(numbers['squared_gradients']):.4g} over {own.points + 1} points of one "
        f"orbit, Γ of a batch by {_factor(numbers['gammas']):.4g}, Γ of the quotient by "
        f"{_factor(numbers['quotient_gammas']):.7g}",
        f"Γ of a batch is {numbers['gammas'][0]:.4g} where the network stands, Γ of the quotient "
        f"{numbers['quotient_gammas'][0]:.4g} ({count} batches)",
        f"along the orbit lie {shares}",
        *str(structure).splitlines()[:1],
        *(f"not analysed: {note}" for note in structure.not_analysed[:LINES]),
    ]
    return numbers, lines


def _flatness(own: Own) -> Numbers:
    """The top Hessian eigenvalue at points of the orbit, there and at the canonical one."""
    numbers: dict[str, Any] = {"as_it_is": [], "canonical": []}
    for point in own.progress.each(own.orbit(), "points of the orbit"):
        for name, canonical in (("as_it_is", False), ("canonical", True)):
            measured = sharpness(
                point, iter(own.batches), own.loss, canonicalize=canonical, tolerance=1e-3, seed=own.seed
            )
            numbers[name].append(measured.value)
    low, high = min(numbers["as_it_is"]), max(numbers["as_it_is"])
    canonical = numbers["canonical"]
    return numbers, [
        f"the top Hessian eigenvalue is {numbers['as_it_is'][0]:.4g} where the network stands, and between {low:.4g} "
        f"and {high:.4g} at {own.points + 1} points that compute the same",
        f"at the canonical representative it is {canonical[0]:.5g}, the same within {_factor(canonical) - 1:.1e}",
    ]


def _learning_coefficient(own: Own) -> Numbers:
    """λ̂ at the canonical representative, or why it is refused."""
    measured = local_learning_coefficient(
        own.model, iter(own.batches), own.loss, draws=own.draws, burn_in=own.draws, seed=own.seed
    )
    try:
        value: float | None = measured.value
    except RefusedEstimateError:
        value = None
    return {"value": value, "acceptance": list(measured.acceptance)}, str(measured).splitlines()


def _basin(own: Own) -> Numbers:
    """The basin's volume, by rays."""
    measured = basin_volume(own.model, iter(own.batches), own.loss, directions=own.draws, seed=own.seed)
    return {"log_volume": measured.log_volume, "lower_bound": measured.lower_bound()}, str(measured).splitlines()


def _occam(own: Own) -> Numbers:
    """Bits of the rounded network."""
    measured = description_length(own.model, iter(own.batches), own.loss)
    return {"bits": measured.bits}, str(measured).splitlines()


def _orbit(own: Own) -> Numbers:
    """H_G and V of the hidden layers."""
    structure = own.structure()
    pairs = None if own.layer is None else [tuple(own.layer.split(":"))]
    if pairs is not None and len(pairs[0]) != 2:
        raise ValueError(f"--layer: expected two layers, WRITER:READER, got {own.layer!r}.")
    try:
        functional = geometric_functional(structure, 0.0, layers=pairs)  # type: ignore[arg-type]
    except ValueError as error:
        raise ValueError(f"{error} A pair goes here as --layer WRITER:READER.") from error
    numbers, lines = {}, []
    for layer in hidden_layers(structure, pairs):  # type: ignore[arg-type]
        volume = realized_volume(layer.rows[layer.mass > 0].detach())
        entropy = functional.layers[layer.name][0]
        numbers[layer.name] = {"entropy": entropy, "volume": volume.value, "caps": volume.caps, "angle": volume.angle}
        lines.append(
            f"{layer.name}: H_G {entropy:.4g} nats of at most {torch.tensor(float(len(layer.rows))).log():.4g}, "
            f"V {volume.value:.4g} of {volume.caps} caps of {volume.angle * 180 / torch.pi:.0f}°"
        )
    return numbers, lines


def _phase(own: Own) -> Numbers:
    """Γ_H and Γ*: whether a step of the file's learning rate on one batch lowers the loss."""
    optimizer = own.script.optimizer
    rates = {float(group.get("lr", DEFAULT_LEARNING_RATE)) for group in optimizer.param_groups}
    if len(rates) > 1:
        raise ValueError(f"optimizer: expected one learning rate for all parameters, got {sorted(rates)}.")
    rate, plain_steps = rates.pop(), type(optimizer) is torch.optim.SGD
    changes, lines = [], []
    if not plain_steps or any(group["momentum"] for group in optimizer.param_groups):
        what = "SGD with momentum" if plain_steps else type(optimizer).__name__
        lines.append(f"of a plain step of SGD at that learning rate; {what} takes other steps")
    for batch in own.batches[:1]:
        stats = curvature_gamma(
            own.model, own.loss, batch, learning_rate=rate, batch_size=length_of(batch), seed=own.seed
        )
        changes.append(stats.expected_change)
        lines += str(stats).splitlines()
    return {"learning_rate": rate, "expected_change": changes[0]}, lines


def _merges(own: Own, pairs: int = 30) -> dict[str, Any]:
    """What merging pairs of one layer costs: near ones by cosine and by foretold cost, and pairs as they come."""
    subject = subject_from_file(own.path, own.layer, samples=sum(map(length_of, own.batches)), seed=own.seed)
    model, layer, example = subject.model, subject.layer, subject.example_input
    collected = collect_activations(model, subject.batches, layer)[layer]
    gram, cosine, alive = collected.gram(), collected.cosine_matrix(), collected.alive
    outgoing = outgoing_weights(model, layer, example)
    most = max(2, min(pairs, int(alive.sum()) // 4))
    chosen = {
        "near by cosine": disjoint_pairs(None, most, cosine=cosine, alive=alive),
        "near by foretold cost": disjoint_pairs(
            None, most, by="cost", how="mean", outgoing=outgoing, gram=gram, alive=alive
        ),
        "random": disjoint_pairs(None, most, "random", cosine=cosine, alive=alive, seed=own.seed),
    }
    with evaluating(model):
        before = float(subject.sensitivity(model))
    costs: dict[str, list[float]] = {}
    for name, those in chosen.items():
        costs[name] = []
        for pair in own.progress.each(list(those), f"merging {name}"):
            with merge(model, layer, [pair], example_input=example), evaluating(model):
                costs[name].append(float(subject.sensitivity(model)) - before)
    random = chosen["random"]
    indices = torch.stack([random.first, random.second], 1)
    foretold = {
        "1 − cos": (1 - random.cosine).tolist(),
        "foretold cost": merge_cost(None, outgoing, indices, gram=gram, samples=collected.samples).tolist(),
    }
    return {"layer": layer, "measure": subject.measure, "costs": costs, "foretold": foretold}


def _merge_cost(own: Own) -> Numbers:
    """Near pairs by cosine and by foretold cost, beside random ones."""
    numbers = _merges(own)
    words = ", ".join(f"{fmean(values):.3g} ({name})" for name, values in numbers["costs"].items())
    return numbers, [f"{numbers['layer']}: a merge costs {words} of {numbers['measure']} on average"]


def _redundancy(own: Own) -> Numbers:
    """What foretells the cost of merging pairs as they come."""
    numbers = _merges(own)
    costs = [abs(cost) for cost in numbers["costs"]["random"]]
    numbers["correlation"] = {name: rank_correlation(values, costs) for name, values in numbers["foretold"].items()}
    words = ", ".join(f"{value:.2f} for {name}" for name, value in numbers["correlation"].items())
    return numbers, [f"{numbers['layer']}: rank correlation with the cost of {len(costs)} random merges: {words}"]


OWN: dict[str, Callable[[Own], Numbers]] = {
    "quotient": _quotient,
    "flatness": _flatness,
    "learning-coefficient": _learning_coefficient,
    "basin": _basin,
    "occam": _occam,
    "orbit": _orbit,
    "phase": _phase,
    "merge-cost": _merge_cost,
    "redundancy": _redundancy,
}
"""The studies that take a network of one's own. The two of merges take a layer; `orbit` takes WRITER:READER as one."""

TOY = "it follows a process whose answer is known, and there is no network in it"
RUNS = "its claim compares trainings with one another"
REGIME = "what it is about shows in a training made for it"
REFUSALS = {
    **dict.fromkeys(("multiplicative", "well", "conservation", "selection", "rank", "sensing", "least-norm"), TOY),
    **dict.fromkeys(("goldstone", "two-wells", "kakeya"), TOY),
    **dict.fromkeys(("regulariser", "prediction", "connectivity", "tangent-kernel"), RUNS),
    **dict.fromkeys(("volume", "volume-sgd"), "it counts functions of four bits over random networks"),
    **dict.fromkeys(("grokking", "neural-collapse", "lottery-ticket", "double-descent", "edge-of-stability"), REGIME),
}
"""Why a study has networks of its own, where that is not said of its group."""
ELSEWHERE = "it is about these networks; map, merges and controls of one of yours: sdsd geometry --model FILE"


def check_own(name: str, known: Iterable[str]) -> str:
    """The name of a study that takes a network of one's own.

    Raises:
        ValueError: there is no such study, or it has networks of its own; the message says why.
    """
    if name not in OWN and name.rpartition("-")[0] in OWN:
        name = name.rpartition("-")[0]  # merge-cost-mlp
    if name in OWN:
        return name
    known = list(known)
    if name not in known:
        find_study(name, dict.fromkeys([*known, *OWN]))  # type: ignore[arg-type]
    why = REFUSALS.get(name, ELSEWHERE)
    raise ValueError(f"study {name} has networks of its own, because {why}. With --model go: {', '.join(OWN)}.")


def run_own(
    name: str,
    path: Path,
    out: Path,
    progress: Progress,
    *,
    layer: str | None = None,
    samples: int = 256,
    seed: int = 0,
    quick: bool = False,
) -> OwnResult:
    """Measure on the network of `path` what the study `name` does, and write results.json, and a figure of an orbit.

    Args:
        samples: batches are taken from the loader until there are so many.
        quick: fewer points and draws.

    Raises:
        ValueError: a name, a file, what it defines or what the measurement needs is missing.
        UserCodeError: the user's code raised.
    """
    script = load_script(path)
    script.model.eval()
    batches: list[Any] = []
    with users_code(path):
        count = 0
        for batch in script.loader:
            batches.append(batch)
            count += first_length(batch) or samples
            if count >= samples:
                break
    for batch in batches:
        length_of(batch)
    if len(batches) < 2 and name == "quotient":
        raise ValueError(
            f"{path}: loader: expected at least 2 batches, whose gradients differ by noise; got {len(batches)} among "
            f"the first {samples} samples. --samples takes more."
        )
    if not batches:
        raise ValueError(f"{path}: loader gave no batch.")
    own = Own(path, script, batches, layer, seed, 2 if quick else 6, 100 if quick else 1000, progress)
    try:
        numbers, lines = OWN[name](own)
    except RuntimeError as error:  # a method that did not get to its end
        raise ValueError(f"{path}: {error}") from error
    result = OwnResult(name, str(path), numbers, lines)
    folder = prepare_output(out / name)
    if name in ("quotient", "flatness"):
        try:
            figures.save_png(CATALOGUE[name].draw(StudyResult(name, {}, [seed], [numbers])), folder / f"{name}.png")
            result.written.append(f"{name}.png")
        except MissingExtraError as error:
            result.lines.append(f"no figure: {error}")
    write_json(folder / "results.json", result.to_dict())
    result.written.append("results.json")
    return result
