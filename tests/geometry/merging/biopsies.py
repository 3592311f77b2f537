"""A small network, and its biopsy."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sdsd.geometry.merging.controls import sgd_training, shuffled_pixels, trained

LAYER, READER = "2", 4


def digit_loss(model, batch):
    return cross_entropy(model(batch[0]), batch[1])


class Digits:
    """A perceptron with two hidden layers of 128, trained for 30 epochs; biopsies are on all digits."""

    def __init__(self, seed: int, shuffled: bool = False) -> None:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))
        images = (torch.from_numpy(pixels).float() / 16 - 0.3)[order]
        self.images = shuffled_pixels(images, seed) if shuffled else images
        self.labels = torch.from_numpy(labels).long()[order]
        self.loader = list(zip(self.images[:1347].split(64), self.labels[:1347].split(64), strict=True))
        torch.manual_seed(seed)
        layers = [nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)]
        self.network = trained(nn.Sequential(*layers), sgd_training(self.loader, digit_loss, lr=0.1), 30, seed)
        self.loss = ([(self.images, self.labels)], digit_loss)

    def activations(self, network: nn.Module | None = None) -> torch.Tensor:
        with torch.no_grad():
            return (network or self.network)[:READER](self.images)

    def accuracy(self, network: nn.Module) -> torch.Tensor:
        return (network(self.images[1347:]).argmax(1) == self.labels[1347:]).float().mean()


X = torch.rand(40, 5, generator=torch.Generator().manual_seed(3))

Y = torch.arange(40) % 3


def small_loss(model):
    return cross_entropy(model(X), Y)
