"""The page's part on signal and noise: what the monitor saw, against the exact noise scale."""

from __future__ import annotations

import math
from typing import Any

from ...report import figures, html
from ...report.figures import plain_number
from ..engine import FigureBook


def training_sections(results: dict[str, Any], book: FigureBook) -> list[html.Section]:
    training = results["training"]
    if not training or len(training["series"]["step"]) < 2:
        return []
    series, batch_size = training["series"], results["config"]["batch_size"]
    steps, exact = series["step"], series["exact"]
    scales = noise_scales(training, batch_size)
    story = noise_story(training, batch_size)

    figure, (upper, lower) = figures.new_figure(7.6, 5.4, rows=2, height_ratios=[2.6, 1])
    figures.draw_noise_scale(
        upper,
        steps,
        scales["estimate"],
        low=scales["low"],
        high=scales["high"],
        batch_size=batch_size,
        exact_steps=exact["step"],
        exact=exact["noise_scale"],
    )
    upper.tick_params(labelbottom=False)
    figures.draw_accuracy(lower, steps, series["accuracy"])
    lower.set_xlim(upper.get_xlim())
    noise_figure = html.Figure(
        book.add(figure, "noise_scale"),
        "The noise scale is how many images it takes for the signal in their mean gradient to equal the noise. "
        "Line: estimated from the batches training used anyway. Dots: the true value, over every training image. "
        "Where the line runs below the dashes the batch is larger than needed; where it runs above, a step is "
        "mostly noise. Below: accuracy on held-out digits.",
        "Figure 1. Signal first, noise later.",
    )

    layers = {name: values["gamma"] for name, values in series["layers"].items() if name != "whole network"}
    figure, axes = figures.new_figure(7.6, 3.7)
    figures.draw_layer_gamma(axes, steps, layers, batch_size)
    layer_figure = html.Figure(
        book.add(figure, "layers"),
        f"Γ of a batch of {batch_size}, of the weights of each layer. In the green field the layer's gradient is more "
        "signal than noise. Gaps: no signal could be told from noise.",
        "Figure 2. Not every layer hears the same.",
    )
    coverage = (
        "The estimate costs no extra data: sdsd.GammaMonitor reads it off the backward pass of every training step, "
        "from the spread of the gradients within the batch, averaged over about "
        f"{2 / (1 - results['config']['smoothing']) - 1:.0f} steps. Of {story['exact_measured']} exact values, "
        f"{story['exact_inside']} lie inside its band. The band tells the uncertainty of a running average, so where "
        "the truth moves fast the average trails behind it."
    )
    rows = [layer_row(name, values, batch_size) for name, values in series["layers"].items()]
    return [
        html.Section(
            "Is the gradient signal or noise?",
            [
                html.Text(
                    "Γ compares the squared length of the mean gradient (what all samples agree on) with the variance "
                    "of the gradient from sample to sample (what they disagree on): above 1 a step mostly follows the "
                    "signal (drift), below 1 mostly chance (diffusion). Γ grows in proportion to the batch; the batch "
                    "size at which it is 1 is the noise scale."
                ),
                noise_figure,
                html.Note(noise_sentence(story, batch_size, steps[-1])),
                html.Text(coverage),
                layer_figure,
                html.Table(
                    ("layer", "highest Γ", "last Γ", "last noise scale", "95% interval", "below Γ = 1 from step"),
                    [(*row[:-1], row[-1]) for row in (with_step(row, steps) for row in rows)],
                    f"Γ of a batch of {batch_size}; noise scale in images, ∞ where no signal can be told from noise.",
                ),
            ],
        )
    ]


def noise_scales(training: dict[str, Any], batch_size: int) -> dict[str, list[float]]:
    """Noise scale with its bounds at each step; infinite where no signal is seen."""

    def invert(gamma: float) -> float:
        return math.nan if math.isnan(gamma) else batch_size / gamma if gamma > 0 else math.inf

    bounds = training["series"]["layers"]["whole network"]
    return {
        "estimate": [invert(value) for value in bounds["gamma"]],
        "low": [invert(value) for value in bounds["high"]],
        "high": [invert(value) for value in bounds["low"]],
    }


def noise_story(training: dict[str, Any], batch_size: int) -> dict[str, Any]:
    """Where the noise scale was lowest, whence it stayed above the batch size, how it ended, what the exact says."""
    steps = training["series"]["step"]
    scales = noise_scales(training, batch_size)
    warm = min(10, len(steps) - 1)
    estimate = scales["estimate"]
    lowest_at = min(range(warm, len(steps)), key=lambda index: estimate[index])
    below = [index for index in range(warm, len(steps)) if estimate[index] < batch_size]
    exact = training["series"]["exact"]
    by_step = dict(zip(steps, zip(scales["low"], scales["high"], strict=True), strict=True))
    inside = [
        by_step[step][0] <= value <= by_step[step][1]
        for step, value in zip(exact["step"], exact["noise_scale"], strict=True)
        if not math.isnan(by_step[step][0])
    ]
    return {
        "lowest": estimate[lowest_at],
        "lowest_step": steps[lowest_at],
        "last": estimate[-1],
        "ever_below": bool(below),
        "above_from_step": steps[below[-1] + 1] if below and below[-1] + 1 < len(steps) else None,
        "share_below": len(below) / (len(steps) - warm),
        "exact_inside": sum(inside),
        "exact_measured": len(inside),
        "exact_last": exact["noise_scale"][-1],
    }


def noise_sentence(story: dict[str, Any], batch_size: int, last_step: int) -> str:
    """What figure 1 says, in words."""
    lowest, last = story["lowest"], story["last"]
    if not story["ever_below"]:
        return (
            f"The noise scale stayed above the batch size of {batch_size} throughout (lowest {plain_number(lowest)} "
            f"at step {story['lowest_step']}): every step was mostly noise, and a larger batch would have paid."
        )
    start = (
        f"The noise scale was lowest at step {story['lowest_step']}: {plain_number(lowest)} images. There a batch of "
        f"{batch_size} spent {batch_size / lowest:.1f} times as many images as it takes for signal to equal noise. "
    )
    if last < batch_size:
        return start + (
            f"It ended at {plain_number(last)}, still below the batch: in this run the batch was never too small at "
            "the end, and the figure does not show the gradient sinking into noise."
        )
    above = f"From step {story['above_from_step']} on it stayed above {batch_size}, and "
    if math.isinf(last):
        return f"{start}{above}after {last_step} steps no signal could be told from the noise."
    return (
        f"{start}{above}after {last_step} steps it stood at {plain_number(last)}: about "
        f"{100 / (1 + batch_size / last):.0f}% of the squared length of a batch's gradient was by then noise."
    )


def layer_row(name: str, values: dict[str, list[float]], batch_size: int) -> tuple[str, str, str, str, str, int]:
    gamma = values["gamma"]
    above = [index for index, value in enumerate(gamma) if value >= 1]
    low, high = values["low"][-1], values["high"][-1]

    def scale(value: float) -> str:
        return plain_number(math.nan if math.isnan(value) else batch_size / value if value > 0 else math.inf)

    warm = gamma[min(10, len(gamma) - 1) :]
    return (
        name,
        plain_number(max(warm)),
        plain_number(gamma[-1]),
        scale(gamma[-1]),
        f"{scale(high)} – {scale(low)}",
        above[-1] + 1 if above else 0,
    )


def with_step(row: tuple[str, str, str, str, str, int], steps: list[int]) -> tuple[str, ...]:
    return (*row[:-1], f"{steps[row[-1]]}" if row[-1] < len(steps) else "never")
