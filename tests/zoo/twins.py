"""A monitored model beside an unmonitored twin: whether training is the same."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import sdsd
from tests.zoo.verdict import described, float64_default, refused, same

STEPS = 3


@dataclass(frozen=True)
class Training:
    """What three steps of one run left behind, in the order it happened."""

    values: list[tuple[str, Any]]
    """Outputs, losses, gradients, buffers, optimizer states."""
    exact: list[tuple[str, Any]]
    """Random streams, shapes, names, identities."""
    refusal: str = ""


def unchanged(
    make: Callable[[], nn.Module],
    run: Callable[[nn.Module, int], Any],
    *,
    tolerance: float = 1e-9,
    dtype: torch.dtype = torch.float64,
    adam: bool = True,
    **options: Any,
) -> tuple[str, str]:
    """("same" | "refused" | "changed" | "crash", why) of three training steps.

    `run(model, k)` runs the k-th forward and backward pass and gives what the loop sees of it (outputs, loss, input
    gradients). Everything agrees to `tolerance`; the first forward pass, random streams, shapes and identities exactly.
    `adam=False` takes gradient descent with momentum: Adam makes large steps of gradients that are rounding alone.
    """
    with float64_default(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = _train(make, run, dtype, adam, None)
        try:
            watched = _train(make, run, dtype, adam, options)
        except _CrashError as crash:
            return "crash", str(crash)
    count = len(watched.exact)
    if (difference := _differ(plain.exact[:count], watched.exact, 0.0)) is not None:
        return "changed", difference
    first = [pair for pair in watched.values if pair[0].startswith("step 1: seen")]
    if (difference := _differ(plain.values[: len(first)], first, 0.0)) is not None:
        return "changed", difference
    if (difference := _differ(plain.values[: len(watched.values)], watched.values, tolerance)) is not None:
        return "changed", difference
    return ("refused", watched.refusal) if watched.refusal else ("same", "")


class _CrashError(Exception):
    pass


def _train(
    make: Callable[[], nn.Module], run: Callable[[nn.Module, int], Any], dtype: torch.dtype, adam: bool, options: Any
) -> Training:
    torch.manual_seed(0)
    model = make().double() if dtype == torch.float64 else make().float()
    if adam and not any(getattr(module, "sparse", False) for module in model.modules()):
        optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
    training = Training([], [])
    before = {name: id(p) for name, p in model.named_parameters()}
    monitor = None
    for k in range(STEPS):
        _seed(k)
        where = f"step {k + 1}: "
        try:
            if options is not None and monitor is None:
                monitor = sdsd.GammaMonitor(model, **options)
            seen = run(model, k)
            training.values.append((where + "seen", seen))
            training.exact.append((where + "shapes", [tuple(t.shape) for t in pytree.tree_leaves(seen) if _tensor(t)]))
            if monitor is not None:
                monitor.step()
        except Exception as error:
            verdict = refused(error, model, r"\bforward\b|\bbackward\b|\bbatch\b")
            if monitor is None and options is None:
                raise
            if not verdict.sound:
                raise _CrashError(described(error)) from error
            if training.values and training.values[-1][0] == where + "seen":
                training.values.extend(_gradients(model, where))
            return Training(training.values, training.exact, verdict.why)
        training.exact.append((where + "random streams", _streams()))
        own = {name: id(p) for name, p in model.named_parameters()}
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        after = [
            (where + "state_dict names", list(model.state_dict())),
            (where + "parameters kept", own == before),
            (where + "parameters are the optimizer's", set(own.values()) == held),
            (where + "types", [(n, type(p).__name__, p.requires_grad, p.is_leaf) for n, p in model.named_parameters()]),
            (where + "train mode", [module.training for module in model.modules()]),
        ]
        training.exact.extend(after)
        training.values.extend(_gradients(model, where))
        training.values.extend((f"{where}buffer {n}", b.detach().clone()) for n, b in model.named_buffers())
        optimizer.step()
        state = [
            (f"{where}{key} of {n}", value.clone() if _tensor(value) else value)
            for n, p in model.named_parameters()
            for key, value in optimizer.state.get(p, {}).items()
        ]
        training.values.extend(state)
        optimizer.zero_grad()
    if monitor is not None:
        monitor.detach()
    training.exact.append(("after: types of modules", [type(m).__name__ for m in model.modules()]))
    return training


def _gradients(model: nn.Module, where: str) -> list[tuple[str, Any]]:
    return [(f"{where}.grad of {n}", None if p.grad is None else p.grad.clone()) for n, p in model.named_parameters()]


def _seed(k: int) -> None:
    torch.manual_seed(k)
    np.random.seed(k)
    random.seed(k)


def _streams() -> list[Any]:
    return [torch.get_rng_state(), *np.random.get_state()[1:3], random.getstate()]


def _tensor(x: Any) -> bool:
    return isinstance(x, Tensor)


def _differ(plain: list[tuple[str, Any]], watched: list[tuple[str, Any]], tolerance: float) -> str | None:
    norms = [x.norm().item() for name, x in plain if ".grad of" in name and _tensor(x)]
    for (name, a), (other, b) in zip(plain, watched, strict=True):
        if name != other:
            return f"{name} in the plain run, {other} in the monitored one"
        ours, theirs = pytree.tree_leaves([a]), pytree.tree_leaves([b])
        if len(ours) != len(theirs):
            return f"{name}: {len(ours)} values, monitored {len(theirs)}"
        for x, y in zip(ours, theirs, strict=True):
            if _tensor(x) and _tensor(y):
                x, y = x.to_dense(), y.to_dense()
                if x.shape != y.shape:
                    return f"{name}: shape {tuple(x.shape)}, monitored {tuple(y.shape)}"
                # NaN agrees with NaN.
                alike = torch.equal(x.isnan(), y.isnan()) and same(
                    y.nan_to_num(), x.nan_to_num(), tolerance, floor=1e-3 * tolerance * max(norms, default=0.0)
                )
            elif isinstance(x, np.ndarray):
                alike = np.array_equal(x, y)
            elif isinstance(x, float) and isinstance(y, float):
                alike = x == y or abs(x - y) <= tolerance * abs(x) or x != x
            else:
                alike = type(x) is type(y) and x == y
            if not alike:
                return f"{name}: not as in the run without a monitor"
    return None
