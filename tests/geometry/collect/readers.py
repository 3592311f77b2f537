"""Cosines and inputs of networks whose readers are known."""

from __future__ import annotations

from torch.nn import functional


def cosine(values):
    unit = functional.normalize(values.double(), dim=0)
    return unit.T @ unit
