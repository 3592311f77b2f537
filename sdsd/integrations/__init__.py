"""Γ in the training loops of other libraries. Each part is optional and imports its library when it is imported.

================================================  ========================================================
`sdsd.integrations.lightning.GammaCallback`       for the Trainer of `lightning` or `pytorch_lightning`
`sdsd.integrations.transformers.GammaCallback`    for the Trainer of Hugging Face
`scalars`                                         a step's statistics as plain numbers, for any logger
`write_scalars`                                   the same into a TensorBoard SummaryWriter
`loggers.py`                                      a history's rows into TensorBoard, Weights & Biases, MLflow, trackio
`lightning.py`, `transformers.py`, `_attach.py`   those callbacks, and what they share
================================================  ========================================================
"""

from __future__ import annotations

from typing import Any

from ..gamma import GammaStats

__all__ = ["scalars", "write_scalars"]

FIELDS = ("signal", "noise", "signal_unbiased", "gamma_unbiased", "noise_scale")


def scalars(stats: GammaStats, prefix: str = "gamma/", *, parameters: bool = False) -> dict[str, float]:
    """`stats` as a flat dictionary of floats, for `wandb.log`, TensorBoard or a line of JSON.

    Args:
        stats: what `GammaMonitor.step` or `gamma_stats` returned. Reading it waits for the device.
        prefix: put before every name.
        parameters: also the smoothed (or else the plain) Γ and noise scale of every parameter.

    Returns:
        name → value: batch_size, signal, noise, signal_unbiased, gamma_unbiased and noise_scale; the same five under
        "smoothed/" where there are running averages, with the bounds gamma_low, gamma_high, noise_scale_low and
        noise_scale_high once there is an interval. A noise scale is infinite where no signal is seen.
    """
    values: dict[str, float] = {"batch_size": float(stats.batch_size), **_plain(stats)}
    if stats.smoothed is not None:
        values |= {f"smoothed/{name}": value for name, value in _plain(stats.smoothed).items()}
    if parameters:
        for name, part in stats.parameters.items():
            part = part.smoothed or part
            values |= {f"{field}/{name}": getattr(part, field) for field in ("gamma_unbiased", "noise_scale")}
    return {prefix + name: value for name, value in values.items()}


def _plain(stats: GammaStats) -> dict[str, float]:
    values = {field: getattr(stats, field) for field in FIELDS}
    for name, bounds in (("gamma", stats.interval), ("noise_scale", stats.noise_scale_interval)):
        if bounds is not None:
            values[f"{name}_low"], values[f"{name}_high"] = bounds
    return values


def write_scalars(writer: Any, stats: GammaStats, step: int, prefix: str = "gamma/", **options: Any) -> None:
    """Write `scalars(stats, prefix, **options)` into `writer` at `step`.

    Args:
        writer: a torch.utils.tensorboard.SummaryWriter, or whatever has its `add_scalar`.
        stats, prefix, options: as in `scalars`.
        step: of the run.
    """
    for name, value in scalars(stats, prefix, **options).items():
        writer.add_scalar(name, value, step)
