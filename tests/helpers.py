"""float64 oracles and the comparison all numeric tests use. Nothing here imports reference.py."""

from __future__ import annotations

from torch import Tensor


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """‖got − wanted‖ / ‖wanted‖ in float64; NaN anywhere gives NaN, which no bound passes."""
    got, wanted = got.detach().double().cpu(), wanted.detach().double().cpu()
    scale = wanted.norm().item()
    return (got - wanted).norm().item() / (scale if scale > 0 else 1.0)


def assert_error_within(got: Tensor, oracle: Tensor, baseline: Tensor, *, factor: float, floor: float = 0.0) -> None:
    """The error of `got` is at most `factor` × that of `baseline` (torch in the same dtype), both against `oracle`.

    `floor` is a few units in the last place of the result's dtype, for a baseline that happens to be exact.
    """
    assert got.shape == oracle.shape, f"shape {tuple(got.shape)}, expected {tuple(oracle.shape)}"
    error, allowed = relative_error(got, oracle), max(factor * relative_error(baseline, oracle), floor)
    assert error <= allowed, f"relative error {error:.3e} exceeds {allowed:.3e}"
