"""The claims of "Functional Geometry in Deep Neural Networks" on real networks, one study each.

Networks that others have trained are examined from the layer on: what stands before it is computed once, so that a
merge costs the rest of the network only. Seeds draw other data, and other random pairs.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ..geometry.controls import shuffled_pixels, trained, untrained
from ..geometry.plasticity import sgd_training
from ..geometry.sensitivity import cosine_to_untouched, kl_to_untouched, mean_loss
from ..report import figures, geometry_figures
from . import pretrained
from ._progress import Progress
from .geometry_arc import ArcConfig, Examination
from .geometry_resnet import ResNet18, cifar10
from .geometry_subject import (
    SHUFFLED,
    UNTRAINED,
    Subject,
    accuracy_on,
    classification_loss,
    digits_cnn,
    digits_mlp,
    load_digits,
)
from .geometry_verdicts import DOCUMENT, compared_silhouettes, judge_network
from .registry import Config, Study
from .result import StudyResult, Verdict

COHORTS = ("near", "random", "far")
CIFAR10 = "SDSD_CIFAR10"
"""The environment variable that names the folder of CIFAR-10."""
CHUNK = 32
"""Images at a time through the part before the layer."""


@torch.no_grad()
def _features(trunk: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    return torch.cat([trunk(part) for part in inputs.split(CHUNK)])


# The networks


def mnist_subject(config: Config, seed: int) -> Subject:
    """The hidden layer of a CNN that others trained on MNIST: mapped on some images, measured on others."""
    images, classes = pretrained.mnist()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    mapped, measured = order[: config["mapped"]], order[config["mapped"] : config["mapped"] + config["measured"]]
    model = pretrained.mnist_cnn()

    def head(network: pretrained.MnistCnn) -> nn.Module:
        return nn.Sequential(OrderedDict(fc_layers=network.fc_layers)).eval()

    def trunk(network: pretrained.MnistCnn) -> Callable[[Tensor], Tensor]:
        return lambda part: network.conv_layers(part).flatten(1)

    def control() -> tuple[nn.Module, list[Any]]:
        fresh = untrained(model, seed).eval()
        assert isinstance(fresh, pretrained.MnistCnn)
        return head(fresh), [_features(trunk(fresh), images[mapped])]

    held = [(_features(trunk(model), images[measured]), classes[measured])]
    return Subject(
        "MNIST CNN",
        head(model),
        "fc_layers.0",
        [_features(trunk(model), images[mapped])],
        mean_loss(held, classification_loss),
        "loss",
        held[0][0][:1],
        {
            UNTRAINED: control,
            SHUFFLED: lambda: (head(model), [_features(trunk(model), shuffled_pixels(images[mapped], seed))]),
        },
        accuracy_on(held),
    )


def efficientnet_subject(config: Config, seed: int) -> Subject:
    """The 1,280 channels before the classifier of EfficientNet-Lite0; no label is used."""
    count = config["mapped"]
    images = pretrained.photographs(count + config["measured"], seed=seed)
    model = pretrained.efficientnet()

    def head(network: pretrained.EfficientNetLite0) -> nn.Module:
        parts = OrderedDict(
            _conv_head=network._conv_head,
            _bn1=network._bn1,
            act=network.act,
            pool=network.pool,
            flatten=nn.Flatten(),
            _fc=network._fc,
        )
        return nn.Sequential(parts).eval()

    def trunk(network: pretrained.EfficientNetLite0) -> Callable[[Tensor], Tensor]:
        return lambda part: network._blocks(network.act(network._bn0(network._conv_stem(part))))

    def control() -> tuple[nn.Module, list[Any]]:
        fresh = untrained(model, seed).eval()
        assert isinstance(fresh, pretrained.EfficientNetLite0)
        return head(fresh), [_features(trunk(fresh), images[:count])]

    found = _features(trunk(model), images)
    network = head(model)
    return Subject(
        "EfficientNet-Lite0",
        network,
        "_conv_head",
        [found[:count]],
        kl_to_untouched(network, [found[count:]]),
        "KL divergence",
        found[:1],
        {
            UNTRAINED: control,
            SHUFFLED: lambda: (network, [_features(trunk(model), shuffled_pixels(images[:count], seed))]),
        },
    )


class MiniLmTail(nn.Module):
    """The layers of a MiniLM from one on, and the embedding; names as in the whole network."""

    def __init__(self, model: pretrained.MiniLm, first: int) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({str(number): model.layers[number] for number in range(first, len(model.layers))})

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers.values():
            hidden = layer(hidden, torch.ones(hidden.shape[0], 1, 1, hidden.shape[1], dtype=torch.bool))
        return normalize(hidden.mean(1), dim=1)


def minilm_subject(config: Config, seed: int) -> Subject:
    """The 1,536 neurons of one feed-forward layer of MiniLM, on sentences cut to equal length: nothing is padded."""
    first, length, count = config["layer"], config["tokens"], config["mapped"]
    ids = pretrained.tokenize(pretrained.sentences(config["sentences"]), length)
    ids = ids[(ids != 0).all(1)]
    wanted = count + config["measured"]
    if len(ids) < wanted:
        raise ValueError(f"sentences: {len(ids)} have {length} tokens, {wanted} are wanted.")
    ids = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))[:wanted]]
    model = pretrained.minilm()

    @torch.no_grad()
    def before(network: pretrained.MiniLm, ids: Tensor) -> Tensor:
        x = network.words(ids) + network.positions.weight[: ids.shape[1]] + network.types.weight[0]
        x = network.norm(x)
        for layer in list(network.layers)[:first]:
            x = layer(x, (ids != 0)[:, None, None, :])
        return x

    def control() -> tuple[nn.Module, list[Any]]:
        fresh = untrained(model, seed).eval()
        assert isinstance(fresh, pretrained.MiniLm)
        return MiniLmTail(fresh, first).eval(), [before(fresh, ids[:count])]

    def mixed() -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        words = ids[:count, 1:-1].flatten()
        order = torch.randperm(len(words), generator=generator)
        return torch.cat((ids[:count, :1], words[order].reshape(count, -1), ids[:count, -1:]), 1)

    network = MiniLmTail(model, first).eval()
    hidden = before(model, ids)
    return Subject(
        f"MiniLM, layer {first + 1} of {len(model.layers)}",
        network,
        f"layers.{first}.up",
        [hidden[:count]],
        cosine_to_untouched(network, [hidden[count:]]),
        "1 − cosine",
        hidden[:1],
        {UNTRAINED: control, "shuffled words": lambda: (network, [before(model, mixed())])},
    )


class ResNetTail(nn.Module):
    """The last block of a ResNet18 and its classifier; names as in the whole network."""

    def __init__(self, model: ResNet18) -> None:
        super().__init__()
        self.layer4 = nn.ModuleDict({"1": model.layer4[1]})
        self.pool, self.fc = model.pool, model.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.layer4["1"](x)).flatten(1))


def resnet_subject(config: Config, seed: int) -> Subject:
    """The 512 channels inside the last block of ResNet18, trained on CIFAR-10 if its folder is named, else digits."""
    if config["data"] == "digits":
        images, classes = load_digits(seed)
        images, training = images.reshape(-1, 1, 8, 8), 1347
    else:
        images, classes = cifar10(Path(config["data"]))
        training = 50_000
    fresh = untrained(ResNet18(images.shape[1]), seed)
    batches = list(zip(images[:training].split(128), classes[:training].split(128), strict=True))
    train = sgd_training(batches, classification_loss, lr=0.05, weight_decay=5e-4)
    model = trained(fresh, train, config["training epochs"], seed).eval()
    assert isinstance(model, ResNet18)
    test = slice(training, training + config["measured"])

    def control() -> tuple[nn.Module, list[Any]]:
        network = untrained(model, seed).eval()
        assert isinstance(network, ResNet18)
        return ResNetTail(network).eval(), [_features(network.trunk, images[test])]

    features = _features(model.trunk, images[test])
    held = [(features, classes[test])]
    return Subject(
        f"ResNet18 on {'digits' if config['data'] == 'digits' else 'CIFAR-10'}",
        ResNetTail(model).eval(),
        "layer4.1.conv1",
        [features],
        mean_loss(held, classification_loss),
        "loss",
        features[:1],
        {
            UNTRAINED: control,
            SHUFFLED: lambda: (ResNetTail(model).eval(), [_features(model.trunk, shuffled_pixels(images[test], seed))]),
        },
        accuracy_on(held),
    )


# What a study does with them


def mlp_subject(config: Config, seed: int) -> Subject:
    """Nothing of it is a setting."""
    return digits_mlp(seed)


def cnn_subject(config: Config, seed: int) -> Subject:
    """Nothing of it is a setting."""
    return digits_cnn(seed)


def measure(subject: Callable[[Config, int], Subject], config: Config, seed: int, progress: Progress) -> dict[str, Any]:
    """Examine what `subject` makes of the settings and the seed."""
    settings = ArcConfig(seed, config["pairs"], config["random_pairings"], config["epochs"])
    return Examination(subject(config, seed), settings, None, progress).run()


def _judge(result: StudyResult) -> list[Verdict]:
    return judge_network(result.series)


def _judge_resnet(result: StudyResult) -> list[Verdict]:
    found = judge_network(result.series)
    if result.config["data"] != "digits":
        return found
    note = f" The document's network was trained on CIFAR-10; set {CIFAR10} to its folder to run that."
    return [Verdict(**{**vars(verdict), "corrected": verdict.corrected + note}) for verdict in found]


def draw_network(result: StudyResult) -> Any:
    """The first seed's map, the cohorts of all seeds, the cost at equal size, and the controls."""
    runs = result.series
    first, measure = runs[0], runs[0]["measure"]
    figure, axes = figures.new_figure(12.6, 9.6, rows=2, columns=2)
    (left, right), (lower_left, lower_right) = axes
    geometry_figures.draw_points(left, first["map"]["points"], first["map"]["clusters"])
    figures.set_title(left, f"{len(first['map']['order'])} neurons of {first['network']}, {first['layer']!r}")
    figures.draw_merges(
        right,
        {name: [c for run in runs for c in run["biopsy"]["activations"][name]["changes"]] for name in COHORTS},
    )
    right.set_ylabel(f"|change of {measure}|")
    figures.set_title(right, "One pair merged: near, random, far")
    ways = [run["equal size"].get("ways", {}) for run in runs]
    costs = {name: [abs(way[name]["change"]) for way in ways] for name in ways[0]}
    costs["random pairs, averaged"] = [fmean(map(abs, run["consolidation"]["activations"]["random"])) for run in runs]
    geometry_figures.draw_costs(lower_left, costs, "nearest activations, averaged", f"|change of {measure}|")
    figures.set_title(lower_left, f"{first['consolidation']['activations']['pairs']} neurons fewer, by who chooses")
    geometry_figures.draw_silhouettes(lower_right, compared_silhouettes(runs))
    figures.set_title(lower_right, "Ten clusters: trained, and controls")
    return figure


def _study(
    name: str,
    what: str,
    subject: Callable[[Config, int], Subject],
    settings: dict[str, Any],
    quick: dict[str, Any],
    expected_seconds: float,
    seeds: int,
    judge: Callable[[StudyResult], list[Verdict]] = _judge,
) -> Study:
    return Study(
        name,
        f"map, biopsy, consolidation and controls of {what}",
        "Neurons that fire alike do the same job, and merging them is safe",
        f"{DOCUMENT}, Phases I to IV",
        {"pairs": 50, "random_pairings": 8, "epochs": 0, **settings},
        {"pairs": 10, "random_pairings": 3, **quick},
        partial(measure, subject),
        judge,
        draw_network,
        expected_seconds,
        seeds,
        needs=("sklearn",),
    )


STUDIES = (
    _study(
        "geometry-digits-mlp",
        "a perceptron that learned digits",
        mlp_subject,
        {"epochs": 5},
        {"epochs": 1, "pairs": 50},
        20,
        5,
    ),
    _study(
        "geometry-digits-cnn",
        "a CNN that learned digits",
        cnn_subject,
        {"epochs": 5},
        {"epochs": 1},
        360,
        5,
    ),
    _study(
        "geometry-mnist",
        "a CNN that others trained on MNIST",
        mnist_subject,
        {"mapped": 2000, "measured": 1000},
        {"mapped": 500, "measured": 200},
        40,
        3,
    ),
    _study(
        "geometry-efficientnet",
        "EfficientNet-Lite0, trained on ImageNet",
        efficientnet_subject,
        {"mapped": 64, "measured": 32},
        {"mapped": 16, "measured": 8},
        150,
        3,
    ),
    *(
        _study(
            f"geometry-minilm-{layer + 1}",
            f"the feed-forward neurons of MiniLM's layer {layer + 1}",
            minilm_subject,
            {"layer": layer, "tokens": 16, "sentences": 1300, "mapped": 256, "measured": 64},
            {"mapped": 64, "measured": 16},
            seconds,
            3,
        )
        for layer, seconds in ((2, 450), (5, 140))
    ),
    _study(
        "geometry-resnet18",
        "the last block of ResNet18, on CIFAR-10 where there is one",
        resnet_subject,
        {"data": os.environ.get(CIFAR10, "digits"), "training epochs": 4, "measured": 450},
        {"training epochs": 1},
        540,
        3,
        _judge_resnet,
    ),
)
