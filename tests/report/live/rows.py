"""Lines as a history writes them."""

from __future__ import annotations

import json

from sdsd.gamma.history import TOTAL


def lines(count: int, first: int = 1, names: int = 1, scale: float = 100.0) -> list[str]:
    """Lines of a made-up history, one for the total and each parameter of each step."""
    made = []
    for step in range(first, first + count):
        for place, name in enumerate([TOTAL, *(f"layer{number}.weight" for number in range(names))]):
            gamma = 1 / (scale + step + place)
            row = {
                "step": step,
                "parameter": name,
                "batch_size": 32,
                "signal": 1.0,
                "noise": 10.0 - place,
                "gamma": 0.3,
                "gamma_unbiased": 0.2,
                "noise_scale": 1 / gamma,
                "smoothed_gamma": gamma,
                "smoothed_noise_scale": 1 / gamma,
                "noise_scale_low": 0.5 / gamma,
                "noise_scale_high": None,
                "noise_scale_high_is": "inf",
                "confidence": 0.999,
                "phase": "diffusion",
                "recommended_batch": None,
                "verdict": "can grow",
                "advice": "Grow." if name == TOTAL else None,
            }
            made.append(json.dumps(row) + "\n")
    return made
