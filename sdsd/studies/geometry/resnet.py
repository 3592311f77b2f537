"""ResNet18 (He et al. 2016, arXiv 1512.03385) for small images, and CIFAR-10 from a folder."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FILES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


class BasicBlock(nn.Module):
    """Two convolutions and a way round them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if stride > 1 or inputs != outputs
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.downsample(x))


class ResNet18(nn.Module):
    """Names as elsewhere; the stem keeps the resolution of small images: one 3 × 3 convolution, no pooling."""

    def __init__(self, channels: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(BasicBlock(inputs, outputs, stride), BasicBlock(outputs, outputs, 1))
            for inputs, outputs, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512, classes)

    def trunk(self, x: Tensor) -> Tensor:
        """What the last block reads."""
        x = self.relu(self.bn1(self.conv1(x)))
        return self.layer4[0](self.layer3(self.layer2(self.layer1(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.layer4[1](self.trunk(x))).flatten(1))


def cifar10(folder: str | Path) -> tuple[Tensor, Tensor]:
    """60,000 images, the 10,000 of the test set last, from the Python version of CIFAR-10 (cifar-10-batches-py).

    Returns:
        Images, standardised by channel, and classes; shapes: (60000, 3, 32, 32), (60000,).

    Raises:
        ValueError: a file is missing, or is not what it should be.
    """
    folder = Path(folder)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder}: expected CIFAR-10's Python version (data_batch_1 to 5, test_batch), and {missing[0]} is "
            "missing. It comes from www.cs.toronto.edu/~kriz/cifar.html; pass the folder cifar-10-batches-py."
        )
    parts = [_read(folder / name) for name in FILES]
    images = torch.from_numpy(np.concatenate([part[b"data"] for part in parts])).reshape(-1, 3, 32, 32).float() / 255
    mean, spread = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
    classes = torch.tensor([label for part in parts for label in part[b"labels"]])
    return (images - mean) / spread, classes


class _ArraysOnly(pickle.Unpickler):
    """Reads pickled NumPy arrays and plain values; nothing else in the file is run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module.split(".")[0], name) in {
            ("numpy", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no array")


def _read(path: Path) -> dict[bytes, Any]:
    try:
        with path.open("rb") as file:
            batch = _ArraysOnly(file, encoding="bytes").load()
        if batch[b"data"].shape[1:] != (3072,) or len(batch[b"labels"]) != len(batch[b"data"]):
            raise ValueError(f"shape {batch[b'data'].shape}")
    except (pickle.UnpicklingError, KeyError, TypeError, AttributeError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: expected a batch of CIFAR-10, and it is something else ({error}).") from error
    return batch
