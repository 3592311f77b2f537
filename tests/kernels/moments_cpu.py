"""Moments on the CPU in float64."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import Tensor

from sdsd_kernels import gamma_moments
from sdsd_kernels.gamma_moments import cpu


@contextmanager
def torch_threads(count: int):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def moments(grads, per_sample: bool = True) -> Tensor:
    return cpu.gamma_moments(grads if isinstance(grads, list) else [grads], per_sample)


def oracle(grads: Tensor) -> dict[str, Tensor]:
    """The definition, in float64."""
    G = grads.double().reshape(grads.shape[0], -1)
    mean = G.mean(0)
    d = G - mean
    quads = G[: len(G) // 4 * 4].unflatten(0, (-1, 4))
    return {
        "signal": mean @ mean,
        "squares": (d * d).sum(),
        "deviations": (d * d).sum(1),
        "projections": d @ mean,
        "products": ((quads[:, 0] - quads[:, 1]) * (quads[:, 2] - quads[:, 3])).sum(1) / 2,
    }


def assert_right(grads: Tensor, per_sample: bool = True, tolerance: float = 2e-6) -> None:
    """Within `tolerance` of the definition, relative to sums in which nothing cancels."""
    wanted = oracle(grads)
    largest = wanted["deviations"].max().item()
    scales = dict.fromkeys(("deviations", "products"), largest)
    scales |= {"projections": max(largest * wanted["signal"].item(), largest**2 / 100) ** 0.5}
    scales |= {"signal": wanted["signal"].item(), "squares": wanted["squares"].item()}
    got = gamma_moments(grads, per_sample=per_sample, backend="torch")
    for name, value in got._asdict().items():
        if value is not None:
            error = (value[0] - wanted[name]).abs().max().item()
            assert error <= tolerance * scales[name], f"{name}: error {error:.3e}, scale {scales[name]:.3e}"
