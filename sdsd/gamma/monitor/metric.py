"""Signal and noise in an optimizer's metric: the diagonal D of each parameter, once a step."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import precondition
from .parameters import Parameters


class Metric:
    """D of every parameter from an optimizer, or none at all."""

    def __init__(self, optimizer: torch.optim.Optimizer | None, parameters: Parameters) -> None:
        if optimizer is not None:
            precondition.check_optimizer(optimizer)
        self.optimizer, self._parameters = optimizer, parameters
        self._of_step: dict[str, Tensor | None] = {}

    def begin_step(self) -> None:
        """Forget the last step's diagonals.

        Raises:
            ValueError: the optimizer does not hold a measured parameter.
        """
        self._of_step = {}
        if self.optimizer is None:
            return
        self._groups = precondition.groups_of(self.optimizer)
        for name, parameter in self._parameters.measured().items():
            if id(parameter) not in self._groups:
                raise ValueError(
                    f"precondition: the optimizer does not hold {name}. Pass the names of those that it holds as "
                    "parameters=…; where each part has an optimizer, give each a monitor."
                )

    def scale(self, name: str) -> Tensor | None:
        """D of a parameter in this step; None where gradients are measured as they are."""
        if self.optimizer is None or name not in self._parameters.index:
            return None
        if name not in self._of_step:
            parameter = self._parameters.chosen[name]
            self._of_step[name] = precondition.diagonal(self.optimizer, parameter, self._groups[id(parameter)])
        return self._of_step[name]
