"""An accumulator as tensors and plain values, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sdsd_kernels import checks

from .layout import SETTINGS, Plan, packed_rows, unpack
from .sums import Fresh, Sums


def saved(plan: Plan, sums: Sums) -> dict[str, Any]:
    """What `GramAccumulator.state_dict` returns; copies."""
    packed = None
    if sums.gram is not None:
        packed = torch.cat([packed_rows(block) for _, block in plan.blocks(sums.gram)])
    return {
        "n": plan.n,
        "center": plan.center,
        "dtype": plan.dtype,
        "samples": sums.samples,
        "gram": packed,
        "mean": None if sums.mean is None else sums.mean.clone(),
        "exponent": sums.exponent.clone(),
        "nonfinite": sums.nonfinite.clone(),
    }


def loaded(plan: Plan, state: Mapping[str, Any], fresh: Fresh) -> Sums:
    """The sums that `saved` gave, from any device; ValueError for what it did not give."""
    check_state(plan, state)
    mean, samples = state["mean"], state["samples"]
    exponent, nonfinite = (state[name].to(plan.device, copy=True) for name in ("exponent", "nonfinite"))
    mean = None if mean is None else mean.to(plan.device, copy=True)
    if not samples:
        return Sums(None, mean, exponent, nonfinite)
    out, first = fresh(), 0
    for which, target in plan.blocks(out):
        rows = which.stop - which.start
        count = rows * target.shape[1] - rows * (rows - 1) // 2
        unpack(state["gram"][first : first + count].to(plan.device), target)
        first += count
    return Sums(out, mean, exponent, nonfinite, samples)


def check_state(plan: Plan, state: Mapping[str, Any]) -> None:
    """ValueError unless `state` is what `state_dict` of an accumulator with the same settings returns."""
    names = (*SETTINGS, "samples", "gram", "mean", "exponent", "nonfinite")
    if not isinstance(state, Mapping) or set(state) != set(names):
        got = f"a mapping with {sorted(map(str, state))}" if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"state: expected what state_dict() returned, with {sorted(names)}, got {got}.")
    for name in SETTINGS:
        if state[name] != getattr(plan, name):
            raise ValueError(
                f"state: expected {name}={getattr(plan, name)} like this accumulator, got {state[name]}. Load it "
                f"into GramAccumulator({state['n']}, center={state['center']}, dtype={state['dtype']})."
            )
    samples = state["samples"]
    if checks.whole_number(samples) is None or samples < 0:
        raise ValueError(f"state: expected samples to be an int ≥ 0, got {samples!r}.")
    triangle = plan.n * (plan.n + 1) // 2
    for name, dtype, elements in (
        ("gram", torch.float64 if samples else None, triangle),
        ("mean", torch.float64 if plan.center else None, plan.n),
        ("exponent", torch.int32, plan.n),
        ("nonfinite", torch.bool, plan.n),
    ):
        value = state[name]
        present = (value.dtype, tuple(value.shape)) if isinstance(value, Tensor) else value
        wanted = None if dtype is None else (dtype, (elements,))
        if present != wanted:
            expected = "None" if dtype is None else f"{dtype} of shape {(elements,)}"
            got = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise ValueError(f"state: expected {name} to be {expected}, got {got}.")
