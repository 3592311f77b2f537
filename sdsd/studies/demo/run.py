"""The demonstration: train on real digits, watch signal and noise, map the neurons, merge near and far pairs."""

from __future__ import annotations

import copy
import math
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ... import GammaHistory, GammaMonitor, GammaStats
from ..._extras import require
from ...geometry import COHORTS, NeuronMap, biopsy, merge
from ..digits import Digits, evaluate, split_digits
from ..engine import Display, choose_display, gamma_columns, one_thread, prepare_output, table_row, versions, write_json
from ..pairs import answering
from .config import HISTORY, DemoConfig, DemoResult
from .report import write_report


def run_demo(
    out: str | Path, config: DemoConfig | None = None, *, quiet: bool = False, display: Display | None = None
) -> DemoResult:
    """Run the demonstration and write report.html, results.json, history.jsonl and figures into `out`.

    An interrupt (Ctrl-C) ends the phase at hand; what was finished is written and marked as interrupted.

    Raises:
        ValueError: `out` cannot be written.
        MissingExtraError: a package of the extra "report" is missing.
    """
    config = config or DemoConfig()
    for module in ("sklearn", "matplotlib", "rich"):
        require(module, extra="report", purpose="sdsd demo")
    folder = prepare_output(out)
    display = display or choose_display(quiet)
    started = time.perf_counter()
    results: dict[str, Any] = {
        "study": "demo",
        "status": "running",
        "config": asdict(config),
        "versions": versions(),
        "training": None,
        "map": None,
        "merges": None,
    }
    result = DemoResult(results, folder, interrupted=False)
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(config.seed)
        try:
            digits = split_digits(config.seed, config.held_out)
            network = build_network(config)
            train(network, digits, config, display, result)
            display.say("Mapping the neurons of the last hidden layer …")
            map_last_hidden_layer(network, digits, config, result)
            display.say("Merging near, random and far pairs …")
            results["merges"] = merge_cohorts(network, digits, config, result.neuron_map)
        except KeyboardInterrupt:
            result.interrupted = True
            drop_unfinished_step(results)
        finally:
            display.stop()
    results["status"] = "interrupted" if result.interrupted else "complete"
    results["seconds"] = round(time.perf_counter() - started, 1)
    write_json(folder / "results.json", results)
    result.written.append(folder / "results.json")
    display.say("Drawing the report …")
    result.written += write_report(result)
    return result


def build_network(config: DemoConfig) -> nn.Sequential:
    """A multilayer perceptron with ReLU: hidden1, hidden2, …, head."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    width = 64
    for number, neurons in enumerate(config.hidden, start=1):
        layers[f"hidden{number}"] = nn.Linear(width, neurons)
        layers[f"relu{number}"] = nn.ReLU()
        width = neurons
    layers["head"] = nn.Linear(width, 10)
    return nn.Sequential(layers)


def noise_scale_over(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The true noise scale of single images drawn from `images`: population variance over squared mean gradient."""
    network = copy.deepcopy(network)  # its gradients and its monitor, if any, stay out of this
    network.zero_grad()
    with GammaMonitor(network, mode="exact") as monitor:
        cross_entropy(network(images), labels).backward()
        stats = monitor.step()
    assert stats is not None
    return stats.noise * (stats.n - 1) / stats.n / stats.signal


def smoothed_gamma(stats: GammaStats) -> dict[str, tuple[float, float, float]]:
    """(Γ of one image, its lower bound, its upper bound) of each layer's weights and of the whole network.

    From the running averages, ratio of averages; bounds are NaN while there are too few steps.
    """
    assert stats.smoothed is not None
    parts = {
        name.removesuffix(".weight"): part
        for name, part in stats.smoothed.parameters.items()
        if name.endswith(".weight")
    }
    parts["whole network"] = stats.smoothed
    return {name: (part.gamma_unbiased, *(part.interval or (math.nan, math.nan))) for name, part in parts.items()}


def train(network: nn.Module, digits: Digits, config: DemoConfig, display: Display, result: DemoResult) -> None:
    """Momentum SGD under a GammaMonitor: Γ of each step, smoothed; once an epoch the exact noise scale over all images.

    Batches are drawn with replacement, so that they are independent samples of the training gradient and the
    estimate from batches and the exact value speak of the same thing.
    """
    count = len(digits.images)
    steps_per_epoch = math.ceil(count / config.batch_size)
    total = config.epochs * steps_per_epoch
    series: dict[str, Any] = {
        "step": [],
        "train_loss": [],
        "held_out_loss": [],
        "accuracy": [],
        "layers": {},
        "exact": {"step": [], "noise_scale": []},
    }
    result.results["training"] = {
        "training_images": count,
        "held_out_images": len(digits.held_out_images),
        "steps_planned": total,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "series": series,
    }
    draw = torch.Generator().manual_seed(config.seed + 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=config.learning_rate, momentum=config.momentum)
    display.say(
        f"Training on {count:,} real digits, batches of {config.batch_size}; "
        f"{len(digits.held_out_images)} digits held out."
    )
    display.start(total)
    header = gamma_columns("layer", config.batch_size, config.confidence)
    path = result.folder / HISTORY
    path.unlink(missing_ok=True)
    result.written.append(path)
    history = GammaHistory(path, parameters=True)
    with GammaMonitor(
        network, mode="exact", ema=config.smoothing, confidence=config.confidence, history=history
    ) as monitor:
        for step in range(1, total + 1):
            chosen = torch.randint(count, (config.batch_size,), generator=draw)
            if (step - 1) % steps_per_epoch == 0:
                exact = noise_scale_over(network, digits.images, digits.labels)
            loss = cross_entropy(network(digits.images[chosen]), digits.labels[chosen])
            loss.backward()
            stats = monitor.step()
            optimizer.step()
            optimizer.zero_grad()
            held_out_loss, accuracy = evaluate(network, digits.held_out_images, digits.held_out_labels)

            assert stats is not None
            rows = []
            for name, (gamma, low, high) in smoothed_gamma(stats).items():
                layer = series["layers"].setdefault(name, {"gamma": [], "low": [], "high": []})
                for key, value in zip(("gamma", "low", "high"), (gamma, low, high), strict=True):
                    layer[key].append(value * config.batch_size)
                rows.append(table_row(name, gamma, low, high, config.batch_size))
            if (step - 1) % steps_per_epoch == 0:
                series["exact"]["step"].append(step)
                series["exact"]["noise_scale"].append(exact)
            for key, value in zip(
                ("step", "train_loss", "held_out_loss", "accuracy"),
                (step, loss.item(), held_out_loss, accuracy),
                strict=True,
            ):
                series[key].append(value)
            display.update(step, f"loss {loss.item():.4f} · accuracy {100 * accuracy:5.1f}%", header, rows)
    display.stop()


def drop_unfinished_step(results: dict[str, Any]) -> None:
    """Cut all series to the steps of which every number is there."""
    if results["training"] is None:
        return
    series = results["training"]["series"]
    lists = [series[name] for name in ("step", "train_loss", "held_out_loss", "accuracy")]
    lists += [values for layer in series["layers"].values() for values in layer.values()]
    finished = min(map(len, lists))
    for values in lists:
        del values[finished:]
    exact = series["exact"]
    measured = [step for step in exact["step"] if step <= finished][: len(exact["noise_scale"])]
    exact["step"], exact["noise_scale"] = measured, exact["noise_scale"][: len(measured)]


def map_last_hidden_layer(network: nn.Sequential, digits: Digits, config: DemoConfig, result: DemoResult) -> None:
    """Cosine matrix, clusters and pairs of the last hidden layer on held-out images."""
    with torch.no_grad():
        activations = network[:-1](digits.held_out_images)
    neuron_map = NeuronMap.from_activations(
        activations, layer=f"hidden{len(config.hidden)}", pairs=config.pairs, seed=config.seed
    )
    result.activations = activations
    result.neuron_map = neuron_map
    result.results["map"] = neuron_map.to_dict()


def merge_cohorts(
    network: nn.Sequential, digits: Digits, config: DemoConfig, neuron_map: NeuronMap | None
) -> dict[str, Any]:
    """Loss change on held-out images of merging near, random and far pairs, each singly and a whole cohort at once.

    All cohorts are of the same size. Random cohorts come in several pairings; the first is also merged singly.
    """
    assert neuron_map is not None
    layer, images, labels = f"hidden{len(config.hidden)}", digits.held_out_images, digits.held_out_labels
    loss_before, accuracy_before = evaluate(network, images, labels)
    live = neuron_map.alive.nonzero().flatten().tolist()
    size = min(config.pairs, len(live) // 2)
    merges: dict[str, Any] = {
        "layer": layer,
        "how": "mean",
        "pairs_in_a_cohort": size,
        "loss_before": loss_before,
        "accuracy_before": accuracy_before,
        "cohorts": {},
        "restored_exactly": True,
    }
    if not size:
        return merges
    seed = config.seed + 2
    alone = biopsy(
        network,
        layer,
        lambda model: evaluate(model, images, labels)[0],
        size,
        cosine=neuron_map.cosine,
        alive=neuron_map.alive,
        seed=seed,
    )

    def together(pairs: Iterable[tuple[int, int]]) -> tuple[float, float]:
        with merge(network, layer, pairs):
            loss, accuracy = evaluate(network, images, labels)
        return loss - loss_before, accuracy - accuracy_before

    for name in COHORTS:
        cohort = getattr(alone, name)
        pairings = [[(pair.first, pair.second) for pair in cohort.pairs]]
        if name == "random":
            pairings += random_pairings(live, size, config.random_pairings, seed)[1:]
        costs = [together(pairs) for pairs in pairings]
        loud = answering(neuron_map)
        told = [place for place, pair in enumerate(cohort.pairs) if loud[pair.first] and loud[pair.second]]
        merges["cohorts"][name] = {
            "example": min(told, default=0),
            "pairs": [
                {"first": pair.first, "second": pair.second, "cosine": pair.cosine, "loss_change": change}
                for pair, change in zip(cohort.pairs, cohort.loss_changes, strict=True)
            ],
            "together_loss_change": [change for change, _ in costs],
            "together_accuracy_change": [change for _, change in costs],
        }
    merges["restored_exactly"] = evaluate(network, images, labels)[0] == loss_before
    return merges


def random_pairings(live: Sequence[int], size: int, count: int, seed: int) -> list[list[tuple[int, int]]]:
    """`count` times `size` disjoint pairs of live neurons; the first time those that `biopsy` draws from this seed."""
    shuffle = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(live), generator=shuffle)[: 2 * size].reshape(-1, 2) for _ in range(count)]
    return [[(live[i], live[j]) if i < j else (live[j], live[i]) for i, j in order.tolist()] for order in orders]
