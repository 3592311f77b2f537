"""Small networks that have, between them, every symmetry the quotient knows."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Residual(nn.Module):
    """Neurons of stem, second and third are joined by adds; third both reads and writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.third, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.leaky_relu(self.stem(x), 0.5)
        x = functional.leaky_relu(x + self.second(self.first(x).relu()), 0.5)
        return self.head(x - 0.5 * self.third(x).relu())


class BatchNormResidual(nn.Module):
    """Norms before adds, and a shortcut with a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.first, self.norm1 = nn.Conv2d(4, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.second, self.norm2 = nn.Conv2d(5, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        y = functional.relu(self.norm1(self.first(x)))
        y = self.norm2(self.second(y))
        return self.head(functional.leaky_relu(x + y, 0.1).mean((2, 3)))


class PreNorm(nn.Module):
    """A stream of tokens that only LayerNorms read, as in a transformer without attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.norm1, self.up, self.down = nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.norm2, self.head = nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = x + self.down(self.up(self.norm1(x)).relu())
        return self.head(self.norm2(x))


class PreActivation(nn.Module):
    """A stream with biases that several BatchNorms read, each behind another part of the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1, self.first = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)
        self.norm2, self.head = nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + 2 * self.first(self.norm1(x).relu())
        return self.head(self.norm2(x).relu())


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.LeakyReLU(0.1), nn.Linear(6, 3))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 2, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 6),
        nn.PReLU(6),
        nn.Linear(6, 3),
    )


def layer_norm() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 8),
        nn.LayerNorm(8),
        nn.ReLU(),
        nn.Linear(8, 6),
        nn.RMSNorm(6),
        nn.ReLU(),
        nn.Linear(6, 6),
        nn.LayerNorm(6),
        nn.Tanh(),
        nn.Linear(6, 3),
    )


def group_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.GroupNorm(2, 6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 2, stride=2),
        nn.InstanceNorm2d(4, affine=True),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 8),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )


def odd_convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 3, 2),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(3, 2, 1),
        nn.Flatten(),
        nn.LogSoftmax(1),
    )


IMAGES = (1, 6, 6)
MODELS = {
    "mlp": (mlp, (5,)),
    "convolutional": (convolutional, IMAGES),
    "layer_norm": (layer_norm, (5,)),
    "group_norm": (group_norm, IMAGES),
    "odd_convolutions": (odd_convolutions, IMAGES),
    "residual": (Residual, (5,)),
    "batch_norm_residual": (BatchNormResidual, IMAGES),
    "pre_norm": (PreNorm, None),
    "pre_activation": (PreActivation, (5,)),
}


def make(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A model with random weights, biases, norm parameters and running statistics."""
    model = MODELS[name][0]()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            parameter.add_(0.3 * torch.randn_like(parameter)) if parameter.ndim < 2 else None
            assert parameter.isfinite().all(), path
        for buffer_name, buffer in model.named_buffers():
            if "running" in buffer_name:
                buffer.add_(torch.rand_like(buffer))
    return model.to(dtype)


def inputs(name: str, samples: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A batch for `make(name)`."""
    shape = MODELS[name][1]
    return torch.randint(0, 7, (samples, 4)) if shape is None else torch.randn(samples, *shape, dtype=dtype)
