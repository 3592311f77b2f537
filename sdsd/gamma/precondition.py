"""The diagonal D by which Adam, AdamW and RMSprop multiply a gradient, read off the optimizer's state.

D = 1 / (√v̂ + ε) with v from before the step: the metric in which the optimizer sees signal and noise.
"""

from __future__ import annotations

import torch
from torch import Tensor


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raise unless `diagonal` knows the optimizer."""
    if not any(cls.__name__ in ("Adam", "AdamW", "RMSprop") for cls in type(optimizer).__mro__):
        raise ValueError(
            f"precondition: expected an Adam, AdamW or RMSprop optimizer, got {type(optimizer).__name__}. "
            "Leave precondition out to measure in the plain metric."
        )


def groups_of(optimizer: torch.optim.Optimizer) -> dict[int, dict]:  # type: ignore[type-arg]
    """id of each parameter → its parameter group."""
    return {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}


def diagonal(optimizer: torch.optim.Optimizer, parameter: Tensor, group: dict) -> Tensor | None:  # type: ignore[type-arg]
    """D for one parameter, of its shape; None before the optimizer's first step."""
    state = optimizer.state.get(parameter, {})
    if "exp_avg_sq" in state:
        # The number of steps stays a tensor: reading it would wait for a GPU, and break a graph.
        steps = torch.as_tensor(state["step"], dtype=torch.float64)
        second = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
        return 1 / ((second / (1 - group["betas"][1] ** steps)).sqrt() + group["eps"])
    if "square_avg" in state:
        second = state["square_avg"]
        if group.get("centered"):
            second = second - state["grad_avg"].square()
        return 1 / (second.sqrt() + group["eps"])
    return None
