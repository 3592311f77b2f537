"""Whether the cost of a merge can be foretold, and what that is worth beside cosines, random pairs and pruning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ...geometry import (
    How,
    NeuronPairs,
    collect_activations,
    consolidate,
    disjoint_pairs,
    evaluating,
    kl_to_untouched,
    merge,
    merge_cost,
    outgoing_weights,
    remove_neurons,
)
from ...report import figures
from ...report.figures import plain_number
from ..documents import FUNCTIONAL_GEOMETRY
from ..engine import Progress, Study, StudyResult, Verdict, geometric_interval, mean_interval, rank_correlation
from ..rules import EFFECTS, RULES
from .networks import mnist_subject
from .subject import BUILT_IN_SUBJECTS, TRAINING_IMAGES, Subject

CHOICES = {"cosine": "by cosine", "cost": "by cost", "curvature": "by cost with curvature"}
"""What nearest pairs are chosen by."""
WAYS = {
    "cosine": "averaged, by cosine",
    "cost": "averaged, by cost",
    "absorb": "absorbed, by cost",
    "curvature": "absorbed, by cost with curvature",
    "random": "averaged, at random",
    "pruned": "pruned by weight",
    "group": "pruned by group norm",
}
"""How a smaller network is made. Pruned are neurons with the least ‖w‖₁ (Li et al. 2017), or the least ‖w‖² + ‖v‖² of
incoming and outgoing weights, as Torch-Pruning's group magnitude (Fang et al. 2023) has it. Shares are of the neurons
that answer, and only those are merged and pruned: others have no cosine, and cost nothing whoever takes them out."""
TWICE = 2.0
ABOVE = EFFECTS["merge-cost"]


def measure(
    seed: int,
    progress: Progress,
    *,
    network: str,
    epochs: int,
    pairs: int = 30,
    shares: Sequence[float] = (0.125, 0.25, 0.375),
    random_pairings: int = 4,
    draws: int = 16,
) -> dict[str, Any]:
    """A network that learned digits; pairs are chosen on digits it has not seen, merges measured on others of these."""
    subject = BUILT_IN_SUBJECTS[network](seed, epochs=epochs)
    halves = subject.batches[0][0][TRAINING_IMAGES:].chunk(2)
    return _measured(
        subject, halves, seed, progress, pairs=pairs, shares=shares, random_pairings=random_pairings, draws=draws
    )


def measure_mnist(
    seed: int,
    progress: Progress,
    *,
    mapped: int = 2000,
    pairs: int = 30,
    shares: Sequence[float] = (0.125, 0.25, 0.375),
    random_pairings: int = 4,
    draws: int = 16,
) -> dict[str, Any]:
    """See `mnist_subject`; pairs are chosen on half of the images, merges measured on the others. Seeds draw images."""
    subject = mnist_subject(seed, mapped, 1)
    return _measured(
        subject,
        subject.batches[0].chunk(2),
        seed,
        progress,
        pairs=pairs,
        shares=shares,
        random_pairings=random_pairings,
        draws=draws,
    )


def _measured(
    subject: Subject,
    halves: Sequence[Tensor],
    seed: int,
    progress: Progress,
    *,
    pairs: int,
    shares: Sequence[float],
    random_pairings: int,
    draws: int,
) -> dict[str, Any]:
    model, layer, example = subject.model, subject.layer, subject.example_input
    shown, held_out = halves
    changed = kl_to_untouched(model, [held_out])
    collected = collect_activations(model, [shown], layer)[layer]
    gram, cosine, alive = collected.gram(), collected.cosine_matrix(), collected.alive
    plain = outgoing_weights(model, layer, example)
    weighted = outgoing_weights(model, layer, example, loss=(_with_own_labels(model, shown, draws, seed), _loss))

    def nearest(by: str, count: int, how: str = "mean") -> NeuronPairs:
        if by == "cosine":
            return disjoint_pairs(None, count, cosine=cosine, alive=alive)
        outgoing = weighted if by == "curvature" else plain
        return disjoint_pairs(None, count, by="cost", how=how, outgoing=outgoing, gram=gram, alive=alive)

    def at_random(count: int, draw: int) -> NeuronPairs:
        return disjoint_pairs(None, count, "random", cosine=cosine, alive=alive, seed=draw)

    def alone(chosen: Iterable[Any]) -> list[float]:
        changes = []
        for pair in chosen:
            with merge(model, layer, [pair], example_input=example), evaluating(model):
                changes.append(changed(model))
        return changes

    def smaller(chosen: NeuronPairs, how: How = "mean") -> float:
        products = gram if how == "absorb" else None
        return _after(consolidate(model, layer, chosen, how, gram=products, example_input=example)[0], changed)

    result: dict[str, Any] = {"near": {}, "smaller": {way: [] for way in WAYS}, "correlation": {}}
    for by in progress.each(list(CHOICES), f"seed {seed}: single merges"):
        result["near"][by] = alone(nearest(by, pairs))
    strangers = at_random(int(alive.sum()) // 2, seed)
    measured, indices = alone(strangers), torch.stack([strangers.first, strangers.second], 1)
    foretold = {
        "cosine": 1 - strangers.cosine,
        "cost": merge_cost(None, plain, indices, gram=gram, samples=collected.samples),
        "curvature": merge_cost(None, weighted, indices, gram=gram, samples=collected.samples),
    }
    result["correlation"] = {by: rank_correlation(values, measured) for by, values in foretold.items()}
    result["foretold"] = fmean((foretold["curvature"].square() / 2).tolist()) / fmean(measured)
    living = alive.nonzero().flatten()
    counts = [round(share * len(living)) for share in shares]
    weights = model.get_submodule(layer).weight
    assert isinstance(weights, Tensor)
    incoming = weights.detach().flatten(1).double()
    importances = {"pruned": incoming.abs().sum(1), "group": incoming.square().sum(1) + plain.square().sum(1)}
    for count in progress.each(counts, f"seed {seed}: smaller networks"):
        ways: tuple[tuple[str, str, How], ...] = (
            ("cosine", "cosine", "mean"),
            ("cost", "cost", "mean"),
            ("absorb", "cost", "absorb"),
            ("curvature", "curvature", "absorb"),
        )
        for way, by, how in ways:
            result["smaller"][way].append(smaller(nearest(by, count, how), how))
        result["smaller"]["random"].append(fmean(smaller(at_random(count, draw)) for draw in range(random_pairings)))
        for way, importance in importances.items():
            smallest = living[importance[living].topk(count, largest=False).indices].tolist()
            pruned, _ = remove_neurons(model, layer, smallest, example_input=example)
            result["smaller"][way].append(_after(pruned, changed))
    return {**result, "removed": counts, "neurons": len(living), "name": subject.name}


def _with_own_labels(model: nn.Module, images: Tensor, draws: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Labels drawn as the network gives them, for which the Fisher matrix is the curvature of the divergence."""
    with evaluating(model):
        chances = model(images).softmax(1)
    labels = torch.multinomial(chances, draws, replacement=True, generator=torch.Generator().manual_seed(seed))
    return [(images, each) for each in labels.T]


def _loss(model: nn.Module, batch: Any) -> Tensor:
    return cross_entropy(model(batch[0]), batch[1])


def _after(network: nn.Module, changed: Any) -> float:
    with evaluating(network):
        return changed(network)


def judge(result: StudyResult) -> list[Verdict]:
    runs = result.series
    near = {by: [fmean(run["near"][by]) for run in runs] for by in CHOICES}
    gain = geometric_interval(
        [a / b for a, b in zip(near["cosine"], near["cost"], strict=True)],
        "× near pairs by cosine / by cost",
        against=1.0,
    )
    foretells = ABOVE.verdict(gain)
    ranks = {by: mean_interval([run["correlation"][by] for run in runs]) for by in CHOICES}
    foretold = geometric_interval([run["foretold"] for run in runs])
    half = len(runs[0]["removed"]) // 2
    removed, neurons = runs[0]["removed"][half], runs[0]["neurons"]
    sizes = {way: [run["smaller"][way][half] for run in runs] for way in WAYS}
    pruned = geometric_interval(
        [a / b for a, b in zip(sizes["pruned"], sizes["absorb"], strict=True)],
        "× pruned / absorbed by cost",
        against=1.0,
    )
    beside = "; ".join(f"{label} {plain_number(fmean(sizes[way]))}" for way, label in WAYS.items())
    return [
        Verdict(
            claim="Which merges are cheap can be foretold: by ‖aᵢ − aⱼ‖ ‖vᵢ − vⱼ‖ better than by cosine",
            source=f"{FUNCTIONAL_GEOMETRY}, Status & Future Work",
            verdict="direction only" if foretells == "reproduced" and gain.value < TWICE else foretells,
            effect=ABOVE,
            **RULES["merge-cost: foretold"].stated(),
            published="left open (theoretical formalization)",
            our_figure=gain,
            corrected=f"Over random pairs the rank correlation with what a merge changes is {ranks['cosine']} for "
            f"1 − cosine, {ranks['cost']} for the cost and {ranks['curvature']} with curvature, whose foretold "
            f"divergence is {foretold} times the measured one.",
        ),
        Verdict(
            claim="Neurons absorbed by foretold cost make a smaller network better than pruning does",
            source=f"{FUNCTIONAL_GEOMETRY}, Phase III",
            verdict=ABOVE.verdict(pruned),
            effect=ABOVE,
            **RULES["merge-cost: pruning"].stated(),
            published="outperforms naive approaches, of pairs by cosine",
            our_figure=pruned,
            corrected=f"With {removed} of {neurons} neurons that answer removed the divergence (nats) is: {beside}.",
        ),
    ]


def draw(result: StudyResult) -> Any:
    figure, (left, right) = figures.new_figure(11.8, 4.3, columns=2)
    runs = result.series
    costs = {label: [fmean(run["near"][by]) for run in runs] for by, label in CHOICES.items()}
    figures.draw_costs(left, costs, CHOICES["cost"], "divergence (nats), mean over near pairs")
    figures.set_title(left, "One near pair merged")
    for (way, label), colour in zip(WAYS.items(), figures.CLUSTER_COLOURS, strict=False):
        values = [
            geometric_interval([max(run["smaller"][way][k], 1e-12) for run in runs]).value
            for k in range(len(runs[0]["removed"]))
        ]
        right.plot(runs[0]["removed"], values, marker="o", color=colour, label=label)
    right.set_yscale("log")
    right.set_xlabel(f"neurons fewer, of {runs[0]['neurons']} that answer")
    right.set_ylabel("divergence (nats)")
    right.legend(frameon=False, loc="lower right", fontsize=8.5)
    figures.set_title(right, "Many at once, at equal size")
    return figure


STUDIES = tuple(
    Study(
        name=f"merge-cost-{network}",
        summary=f"foretold costs of merges beside cosines and pruning, {what}",
        claim="Which merges are cheap can be foretold",
        source=f"{FUNCTIONAL_GEOMETRY}, Status & Future Work",
        measure=measured,
        judge=judge,
        draw=draw,
        expected_seconds=seconds,
        settings=settings,
        quick={"pairs": 10, "random_pairings": 2, **quick},
        seeds=seeds,
        needs=("sklearn",),
    )
    for network, what, measured, settings, quick, seconds, seeds in (
        (
            "mlp",
            "a perceptron that learned digits",
            measure,
            {"network": "mlp", "epochs": 30},
            {"epochs": 10},
            30,
            5,
        ),
        ("cnn", "a CNN that learned digits", measure, {"network": "cnn", "epochs": 15}, {"epochs": 5}, 200, 5),
        ("mnist", "a CNN that others trained on MNIST", measure_mnist, {}, {"mapped": 400}, 30, 5),
    )
)
