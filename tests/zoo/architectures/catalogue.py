"""Tiny random configurations of what people train, by the library they come from."""

from __future__ import annotations

from . import adapters, decoders, encoders, images, plain, vision
from .base import Architecture

FAMILIES: dict[str, dict[str, Architecture]] = {
    "transformers, decoders": decoders.MODELS,
    "transformers, encoders and encoder-decoders": encoders.MODELS,
    "transformers, images and time series": vision.MODELS,
    "timm": images.TIMM,
    "torchvision": images.TORCHVISION,
    "peft": adapters.MODELS,
    "torch": plain.MODELS,
}
