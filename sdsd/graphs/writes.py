"""Parameters that a forward writes into, put back afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..models import place_of
from .operations import written


@contextmanager
def parameters_kept(model: nn.Module, heard: Callable[[Tensor], None] | None = None) -> Iterator[None]:
    """Parameters that runs inside write into, through `data` or not, are put back, and handed to `heard`."""
    mode = _Writes(model, heard or (lambda _parameter: None))
    try:
        with mode:
            yield
    finally:
        mode.put_back()


class _Writes(TorchDispatchMode):
    """Copies a parameter before it is written."""

    def __init__(self, model: nn.Module, heard: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.heard = heard
        self.held = [(each, each.data) for each in model.parameters()]
        self.places = {place_of(data): each for each, data in self.held if data.numel()}
        self.copies: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for target in written(func, args):
            self._copy(self.places.get(place_of(target)))
        return func(*args, **(kwargs or {}))

    def _copy(self, parameter: Tensor | None) -> None:
        if parameter is not None and id(parameter) not in self.copies:
            self.copies[id(parameter)] = parameter.detach().clone()
            self.heard(parameter)

    def put_back(self) -> None:
        with torch.no_grad():
            for parameter, data in self.held:
                if parameter.data_ptr() != data.data_ptr():
                    parameter.data = data
                    self.heard(parameter)
                if id(parameter) in self.copies:
                    parameter.copy_(self.copies[id(parameter)])
