"""The claims of "Functional Geometry in Deep Neural Networks" on real networks, one study each.

Networks that others have trained are examined from the layer on: what stands before it is computed once, so that a
merge costs the rest of the network only. Seeds draw other data, and other random pairs.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ...geometry import COHORTS
from ...geometry.controls import shuffled_pixels, trained, untrained
from ...geometry.plasticity import sgd_training
from ...geometry.sensitivity import cosine_to_untouched, kl_to_untouched, mean_loss
from ...report import figures, geometry_figures
from ..digits import load_digits
from ..documents import FUNCTIONAL_GEOMETRY
from ..engine import Progress, Study, StudyResult, Verdict
from . import pretrained
from .arc import ArcConfig, Examination
from .resnet import ResNet18, cifar10
from .subject import (
    SHUFFLED,
    UNTRAINED,
    Subject,
    accuracy_on,
    classification_loss,
    digits_cnn,
    digits_mlp,
)
from .verdicts import compared_silhouettes, judge_network

CIFAR10 = "SDSD_CIFAR10"
"""The environment variable that names the folder of CIFAR-10."""
CHUNK = 32
"""Images at a time through the part before the layer."""


@torch.no_grad()
def _features(trunk: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    return torch.cat([trunk(part) for part in inputs.split(CHUNK)])


# The networks


def mnist_subject(seed: int, mapped: int, measured: int) -> Subject:
    """The hidden layer of a CNN that others trained on MNIST: mapped on some images, measured on others."""
    images, classes = pretrained.mnist()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    shown, held_out = order[:mapped], order[mapped : mapped + measured]
    model = pretrained.mnist_cnn()

    def head(network: pretrained.MnistCnn) -> nn.Module:
        return nn.Sequential(OrderedDict(fc_layers=network.fc_layers)).eval()

    def trunk(network: pretrained.MnistCnn) -> Callable[[Tensor], Tensor]:
        return lambda part: network.conv_layers(part).flatten(1)

    def control() -> tuple[nn.Module, list[Any]]:
        fresh = untrained(model, seed).eval()
        assert isinstance(fresh, pretrained.MnistCnn)
        return head(fresh), [_features(trunk(fresh), images[shown])]

    held = [(_features(trunk(model), images[held_out]), classes[held_out])]
    return Subject(
        "MNIST CNN",
        head(model),
        "fc_layers.0",
        [_features(trunk(model), images[shown])],
        mean_loss(held, classification_loss),
        "loss",
        held[0][0][:1],
        {
            UNTRAINED: control,
            SHUFFLED: lambda: (head(model), [_features(trunk(model), shuffled_pixels(images[shown], seed))]),
        },
        accuracy_on(held),
    )


def efficientnet_subject(seed: int, mapped: int, measured: int) -> Subject:
    """The 1,280 channels before the classifier of EfficientNet-Lite0; no label is used."""
    images = pretrained.photographs(mapped + measured, seed=seed)
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
        return head(fresh), [_features(trunk(fresh), images[:mapped])]

    features = _features(trunk(model), images)
    network = head(model)
    return Subject(
        "EfficientNet-Lite0",
        network,
        "_conv_head",
        [features[:mapped]],
        kl_to_untouched(network, [features[mapped:]]),
        "KL divergence",
        features[:1],
        {
            UNTRAINED: control,
            SHUFFLED: lambda: (network, [_features(trunk(model), shuffled_pixels(images[:mapped], seed))]),
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


def minilm_subject(seed: int, *, layer: int, tokens: int, count: int, mapped: int, measured: int) -> Subject:
    """The 1,536 neurons of one feed-forward layer of MiniLM, on sentences cut to equal length: nothing is padded."""
    ids = pretrained.tokenize(pretrained.sentences(count), tokens)
    ids = ids[(ids != 0).all(1)]
    wanted = mapped + measured
    if len(ids) < wanted:
        raise ValueError(f"sentences: {len(ids)} have {tokens} tokens, {wanted} are wanted.")
    ids = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))[:wanted]]
    model = pretrained.minilm()

    @torch.no_grad()
    def before(network: pretrained.MiniLm, ids: Tensor) -> Tensor:
        x = network.words(ids) + network.positions.weight[: ids.shape[1]] + network.types.weight[0]
        x = network.norm(x)
        for block in list(network.layers)[:layer]:
            x = block(x, (ids != 0)[:, None, None, :])
        return x

    def control() -> tuple[nn.Module, list[Any]]:
        fresh = untrained(model, seed).eval()
        assert isinstance(fresh, pretrained.MiniLm)
        return MiniLmTail(fresh, layer).eval(), [before(fresh, ids[:mapped])]

    def mixed() -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        words = ids[:mapped, 1:-1].flatten()
        order = torch.randperm(len(words), generator=generator)
        return torch.cat((ids[:mapped, :1], words[order].reshape(mapped, -1), ids[:mapped, -1:]), 1)

    network = MiniLmTail(model, layer).eval()
    hidden = before(model, ids)
    return Subject(
        f"MiniLM, layer {layer + 1} of {len(model.layers)}",
        network,
        f"layers.{layer}.up",
        [hidden[:mapped]],
        cosine_to_untouched(network, [hidden[mapped:]]),
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


def resnet_subject(seed: int, data: str, training_epochs: int, measured: int) -> Subject:
    """The 512 channels inside the last block of ResNet18, trained on CIFAR-10 if its folder is named, else digits."""
    if data == "digits":
        images, classes = load_digits(seed)
        images, training = images.reshape(-1, 1, 8, 8), 1347
    else:
        images, classes = cifar10(Path(data))
        training = 50_000
    fresh = untrained(ResNet18(images.shape[1]), seed)
    batches = list(zip(images[:training].split(128), classes[:training].split(128), strict=True))
    train = sgd_training(batches, classification_loss, lr=0.05, weight_decay=5e-4)
    model = trained(fresh, train, training_epochs, seed).eval()
    assert isinstance(model, ResNet18)
    test = slice(training, training + measured)

    def control() -> tuple[nn.Module, list[Any]]:
        network = untrained(model, seed).eval()
        assert isinstance(network, ResNet18)
        return ResNetTail(network).eval(), [_features(network.trunk, images[test])]

    features = _features(model.trunk, images[test])
    held = [(features, classes[test])]
    return Subject(
        f"ResNet18 on {'digits' if data == 'digits' else 'CIFAR-10'}",
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


def _examine(
    subject: Subject, seed: int, progress: Progress, pairs: int, random_pairings: int, epochs: int = 0
) -> dict[str, Any]:
    return Examination(subject, ArcConfig(seed, pairs, random_pairings, epochs), None, progress).run()


def measure_mlp(
    seed: int, progress: Progress, *, pairs: int = 50, random_pairings: int = 8, epochs: int = 5
) -> dict[str, Any]:
    """The second hidden layer of a perceptron."""
    return _examine(digits_mlp(seed), seed, progress, pairs, random_pairings, epochs)


def measure_cnn(
    seed: int, progress: Progress, *, pairs: int = 50, random_pairings: int = 8, epochs: int = 5
) -> dict[str, Any]:
    """The last convolution of a CNN."""
    return _examine(digits_cnn(seed), seed, progress, pairs, random_pairings, epochs)


def measure_mnist(
    seed: int,
    progress: Progress,
    *,
    pairs: int = 50,
    random_pairings: int = 8,
    mapped: int = 2000,
    measured: int = 1000,
) -> dict[str, Any]:
    """See `mnist_subject`."""
    return _examine(mnist_subject(seed, mapped, measured), seed, progress, pairs, random_pairings)


def measure_efficientnet(
    seed: int, progress: Progress, *, pairs: int = 50, random_pairings: int = 8, mapped: int = 64, measured: int = 32
) -> dict[str, Any]:
    """See `efficientnet_subject`."""
    return _examine(efficientnet_subject(seed, mapped, measured), seed, progress, pairs, random_pairings)


def measure_minilm(
    seed: int,
    progress: Progress,
    *,
    layer: int,
    pairs: int = 50,
    random_pairings: int = 8,
    tokens: int = 16,
    sentences: int = 1300,
    mapped: int = 256,
    measured: int = 64,
) -> dict[str, Any]:
    """See `minilm_subject`."""
    subject = minilm_subject(seed, layer=layer, tokens=tokens, count=sentences, mapped=mapped, measured=measured)
    return _examine(subject, seed, progress, pairs, random_pairings)


def measure_resnet(
    seed: int,
    progress: Progress,
    *,
    data: str,
    pairs: int = 50,
    random_pairings: int = 8,
    training_epochs: int = 4,
    measured: int = 450,
) -> dict[str, Any]:
    """See `resnet_subject`; `data` is "digits" or the folder of CIFAR-10."""
    return _examine(resnet_subject(seed, data, training_epochs, measured), seed, progress, pairs, random_pairings)


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
    measure: Callable[..., dict[str, Any]],
    quick: Mapping[str, Any],
    expected_seconds: float,
    **further: Any,
) -> Study:
    return Study(
        name=name,
        summary=f"map, biopsy, consolidation and controls of {what}",
        claim="Neurons that fire alike do the same job, and merging them is safe",
        source=f"{FUNCTIONAL_GEOMETRY}, Phases I to IV",
        measure=measure,
        draw=draw_network,
        expected_seconds=expected_seconds,
        quick={"pairs": 10, "random_pairings": 3, **quick},
        needs=("sklearn",),
        **{"judge": _judge, **further},
    )


STUDIES = (
    _study(
        "geometry-digits-mlp",
        "a perceptron that learned digits",
        measure_mlp,
        {"epochs": 1, "pairs": 50},
        20,
        seeds=5,
    ),
    _study("geometry-digits-cnn", "a CNN that learned digits", measure_cnn, {"epochs": 1}, 360, seeds=5),
    _study("geometry-mnist", "a CNN that others trained on MNIST", measure_mnist, {"mapped": 500, "measured": 200}, 40),
    _study(
        "geometry-efficientnet",
        "EfficientNet-Lite0, trained on ImageNet",
        measure_efficientnet,
        {"mapped": 16, "measured": 8},
        150,
    ),
    *(
        _study(
            f"geometry-minilm-{layer + 1}",
            f"the feed-forward neurons of MiniLM's layer {layer + 1}",
            measure_minilm,
            {"mapped": 64, "measured": 16},
            seconds,
            settings={"layer": layer},
        )
        for layer, seconds in ((2, 450), (5, 140))
    ),
    _study(
        "geometry-resnet18",
        "the last block of ResNet18, on CIFAR-10 where there is one",
        measure_resnet,
        {"training_epochs": 1},
        540,
        settings={"data": os.environ.get(CIFAR10, "digits")},
        judge=_judge_resnet,
    ),
)
