"""Calls of public functions with whole numbers, made short, and what results of them hold."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sdsd
import sdsd_kernels
from sdsd import geometry, integrations, theory

BYTES = 2**22


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))


class Mixture(nn.Module):
    """Two experts, of which each sample gets the likelier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router, self.experts = nn.Linear(6, 2), nn.ModuleList(nn.Linear(6, 3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        answers = torch.stack([expert(x) for expert in self.experts], 1)
        return answers.gather(1, self.router(x).argmax(1)[:, None, None].expand(-1, 1, 3))


def batches() -> list[tuple[Tensor, Tensor]]:
    return [(draw(16, 6), torch.arange(16) % 3), (draw(17, 6)[:16], torch.arange(16) % 3)]


def loss_of_batch(model: nn.Module, batch: Any) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def accuracy(model: nn.Module) -> float:
    return float((model(batches()[0][0]).argmax(1) == batches()[0][1]).float().mean())


def images() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


def monitored(**options: Any) -> list[Any]:
    model, seen = network(), []
    monitor = sdsd.GammaMonitor(model, **options)
    for inputs, targets in batches():
        model.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        seen.append(monitor.step())
    return seen


def recorded(step: int) -> list[Any]:
    history = sdsd.GammaHistory()
    history.append(step, sdsd.gamma_stats(draw(8, 20)))
    return [row["step"] for row in history]


def sharded(**sizes: int) -> Tensor:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        return sdsd.sharded_cosine(SPREAD, **sizes)
    finally:
        torch.distributed.destroy_process_group()


def accumulated(n: int, max_bytes: int | None, neuron_dim: int, correction: int) -> Tensor:
    gram = sdsd.GramAccumulator(n, center=True, max_bytes=max_bytes)
    gram.update(draw(12, 9), neuron_dim=neuron_dim)
    return gram.covariance(correction=correction)


def mapped() -> sdsd.NeuronMap:
    return sdsd.NeuronMap.from_activations(draw(40, 12))


def observed(**options: Any) -> Any:
    model = network()
    observer = theory.CurvatureObserver(loss_of_batch, batches(), learning_rate=0.1, **options)
    monitor = sdsd.GammaMonitor(model)
    monitor.add_observer(observer)
    loss_of_batch(model, batches()[0]).backward()
    monitor.step()
    return observer.history


def layer_grads(function: Callable[..., Any], *arguments: Tensor, **options: Any) -> list[Any]:
    squares = torch.zeros(4, sdsd_kernels.NORMS_WIDTH, dtype=torch.float64)
    return [function(*arguments, squares, **options), squares]


def described() -> theory.DescriptionLength:
    return theory.description_length(network(), batches()[0], loss_of_batch)


def compared(n: int, m: int, max_bytes: int, neuron_dim: int) -> Any:
    comparison = geometry.LayerComparison(n, m, max_bytes=max_bytes)
    comparison.update(SPREAD, SPREAD.roll(1, 0), neuron_dim=neuron_dim)
    return comparison.cka()


def written(step: int) -> list[Any]:
    lines: list[Any] = []

    class Writer:
        def add_scalar(self, name: str, value: float, step: int) -> None:
            lines.append((name, value, int(step)))

    integrations.write_scalars(Writer(), sdsd.gamma_stats(draw(8, 20)), step)
    return lines


TARGET = draw(6, 8)

SPREAD = draw(40, 12)

TRAIN = [(draw(16, 4, 4), torch.arange(16) % 3)]


def merged(neuron_dim: int) -> Tensor:
    model = network()
    with sdsd.merge(model, "0", [(0, 1)], activations=SPREAD, neuron_dim=neuron_dim, example_input=draw(4, 6)):
        return model(draw(4, 6)).detach()


def numpys(value: Any, kind: type) -> Any:
    if isinstance(value, list):
        return [kind(each) for each in value]
    return kind(value)


def plain(value: Any) -> Any:
    """What a result holds, in types that compare."""
    if isinstance(value, Tensor):
        return value.detach().double().nan_to_num(nan=1e300).tolist()
    if isinstance(value, np.ndarray):
        return plain(torch.from_numpy(value))
    if isinstance(value, nn.Module):
        return plain(value.state_dict())
    if isinstance(value, (sdsd.GammaStats, sdsd.NeuronMap)):
        return plain(value.to_dict())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    if isinstance(value, (int, float, str, type(None))):
        return value
    if isinstance(value, (torch.dtype, torch.device, Path)) or callable(value):
        return str(type(value))
    state = vars(value) if hasattr(value, "__dict__") else {n: getattr(value, n) for n in value.__slots__}
    return {name: plain(each) for name, each in state.items()}


def case(call: Callable[..., Any], *given: Any, whole: dict[str, Any], of: str = "", **options: Any) -> Any:
    """A call, its arguments that are whole numbers, and the public name it stands for where `call` is a helper."""
    return pytest.param(call, given, options, whole, id=of or f"{call.__module__.split('.')[0]}.{call.__qualname__}")
