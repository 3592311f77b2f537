"""Networks that others have trained, and ResNet18, as they are examined.

They are examined from the layer on: what stands before it is computed once, so that a merge costs the rest of the
network only. Seeds draw other data, and other random pairs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ...geometry.merging import (
    cosine_to_untouched,
    kl_to_untouched,
    mean_loss,
    sgd_training,
    shuffled_pixels,
    trained,
    untrained,
)
from ..digits import load_digits
from . import pretrained
from .resnet import ResNet18, cifar10
from .subject import (
    SHUFFLED,
    UNTRAINED,
    Subject,
    accuracy_on,
    classification_loss,
)

CHUNK = 32
"""Images at a time through the part before the layer."""


@torch.no_grad()
def _features(trunk: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    return torch.cat([trunk(part) for part in inputs.split(CHUNK)])


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
        sensitivity=mean_loss(held, classification_loss),
        measure="loss",
        example_input=held[0][0][:1],
        controls={
            UNTRAINED: control,
            SHUFFLED: lambda: (head(model), [_features(trunk(model), shuffled_pixels(images[shown], seed))]),
        },
        accuracy=accuracy_on(held),
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
        sensitivity=kl_to_untouched(network, [features[mapped:]]),
        measure="KL divergence",
        example_input=features[:1],
        controls={
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
        sensitivity=cosine_to_untouched(network, [hidden[mapped:]]),
        measure="1 − cosine",
        example_input=hidden[:1],
        controls={UNTRAINED: control, "shuffled words": lambda: (network, [before(model, mixed())])},
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
        sensitivity=mean_loss(held, classification_loss),
        measure="loss",
        example_input=features[:1],
        controls={
            UNTRAINED: control,
            SHUFFLED: lambda: (ResNetTail(model).eval(), [_features(model.trunk, shuffled_pixels(images[test], seed))]),
        },
        accuracy=accuracy_on(held),
    )
