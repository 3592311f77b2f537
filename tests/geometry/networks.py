"""Small networks whose neurons are merged, with six neurons in each layer of interest."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sdsd.geometry import Consumers, consumers


def scrambled(model: nn.Module) -> nn.Module:
    """In eval mode, and no parameter or statistic left at 0 or 1, so that nothing cancels."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if tensor.is_floating_point():
                tensor.data = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) - 0.5
                if name == "running_var":
                    tensor.data += 1
    return model.eval()


def mlp() -> nn.Sequential:
    return scrambled(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 3)))


def tokens() -> nn.Sequential:
    return scrambled(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3)))


def cnn() -> nn.Sequential:
    """For images of 2 channels and 8 × 8 pixels; nine inputs of the head read each channel of layer "0"."""
    return scrambled(
        nn.Sequential(
            nn.Conv2d(2, 6, 3),
            nn.BatchNorm2d(6),
            nn.PReLU(6),
            nn.MaxPool2d(2),
            nn.Dropout(),
            nn.Flatten(),
            nn.Linear(54, 3),
        )
    )


def separable() -> nn.Sequential:
    return scrambled(
        nn.Sequential(
            nn.Conv2d(2, 6, 1),
            nn.BatchNorm2d(6),
            nn.ReLU6(),
            nn.Conv2d(6, 6, 3, groups=6),
            nn.Tanh(),
            nn.Conv2d(6, 3, 2),
        )
    )


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.first, self.second = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)
        scrambled(self)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.norm(self.second(torch.relu(self.first(x))))
        return self.head(torch.relu(x).mean((2, 3)))


class Case(NamedTuple):
    """A layer of a network, its input, and where its reader is.

    `place`: of the reader among the modules; `sizes`, `dim`: what its input is viewed as, and where neurons are in it.
    """

    build: Callable[[], nn.Sequential]
    layer: str
    shape: tuple[int, ...]
    place: int
    sizes: tuple[int, ...]
    dim: int

    def input(self) -> Tensor:
        return torch.rand(self.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def rows(self, hidden: Tensor) -> Tensor:
        """A view of the reader's input, neurons first."""
        return hidden.view(self.sizes).movedim(self.dim, 0)


CASES = {
    "mlp, first": Case(mlp, "0", (50, 5), 2, (50, 6), 1),
    "mlp, second": Case(mlp, "2", (50, 5), 4, (50, 6), 1),
    "cnn": Case(cnn, "0", (7, 2, 8, 8), 6, (7, 6, 9), 1),
    "depthwise": Case(separable, "0", (7, 2, 4, 4), 5, (7, 6, 4), 1),
    "tokens": Case(tokens, "0", (7, 4, 5), 3, (7, 4, 6), 2),
}


class Forward(nn.Module):
    """Modules by name, and a forward that a test writes."""

    def __init__(self, forward, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self.run = forward

    def forward(self, x):
        return self.run(self, x)


def reads_nothing_else(model: nn.Module, layer: str, x: Tensor, example_input: Tensor | None = None) -> Consumers:
    """Assert, neuron by neuron, that readers read it by the columns found and that nothing else reads it."""
    found = consumers(model, layer, example_input)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    readers = {part.name for part in found.of("reader")}
    with torch.no_grad():
        untouched = model(x)
        for neuron in range(found.neurons):
            before = {part.name: tensors[part.name].clone() for part in found.parts}
            made = [part for part in found.parts if part.role != "reader" and part.name not in readers]
            for part in made:
                mine = (part.units == neuron).nonzero().flatten()
                entries = tensors[part.name].index_select(part.dim, mine)
                more = torch.full_like(entries, 5.0 if entries.ndim == 1 else 1.5)
                tensors[part.name].index_add_(part.dim, mine, more)
            assert not torch.equal(model(x), untouched), f"neuron {neuron} is not read at all"
            for part in found.of("reader"):
                tensors[part.name].index_fill_(part.dim, (part.units == neuron).nonzero().flatten(), 0)
            blind = model(x)
            for part in made:
                tensors[part.name].copy_(before[part.name])
            assert torch.equal(model(x), blind), f"neuron {neuron} is read by something else, too"
            for part in found.parts:
                tensors[part.name].copy_(before[part.name])
    return found
