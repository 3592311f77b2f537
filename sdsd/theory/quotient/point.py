"""A point of the orbit: a model's parameters and the statistics of its norms, to be moved."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Point:
    """Parameters and norm statistics of a model in float64, to be moved along its orbit and written back once."""

    def __init__(self, model: nn.Module, norms: Iterable[tuple[str, str]]) -> None:
        self.model = model
        self.values = {name: wide(parameter) for name, parameter in model.named_parameters()}
        self.buffers: dict[str, Tensor] = {}
        self.eps: dict[str, float] = {}
        self.attributes = dict(norms)
        for name, attribute in norms:
            module: Any = model.get_submodule(name)
            eps = getattr(module, attribute)
            self.eps[name] = torch.finfo(next(model.parameters()).dtype).eps if eps is None else eps
            if keeps_statistics(module):
                self.buffers[f"{name}.running_mean"] = wide(module.running_mean)
                self.buffers[f"{name}.running_var"] = wide(module.running_var)
        self._eps_before = dict(self.eps)

    @torch.no_grad()
    def write_back(self) -> None:
        """Round every value once, into the model's own tensors."""
        targets: dict[str, Tensor] = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        for name, value in {**self.values, **self.buffers}.items():
            targets[name].copy_(value)
        for name, eps in self.eps.items():
            if eps != self._eps_before[name]:
                setattr(self.model.get_submodule(name), self.attributes[name], eps)


def wide(value: Tensor) -> Tensor:
    """A copy in float64; complex numbers, which nothing moves, in complex128."""
    return value.detach().to(torch.complex128 if value.is_complex() else torch.float64, copy=True)


def keeps_statistics(module: nn.Module) -> bool:
    """Whether a norm has running statistics."""
    return getattr(module, "running_mean", None) is not None


def frozen(module: nn.Module) -> bool:
    """Whether a norm divides by its running statistics now, so that it undoes no change of parameters."""
    return keeps_statistics(module) and not module.training
