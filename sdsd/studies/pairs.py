"""Pairs of neurons that tell something: examples for a page or a terminal."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..geometry import NeuronMap, disjoint_pairs

LEAST_NORM = 0.1
"""Share of the live neurons' median norm below which a neuron is no example.

One that hardly ever answers is orthogonal to most others, which says nothing about what they do.
"""
ANSWERING = f"answer at least {LEAST_NORM:.0%} as strongly as the median one"
"""What examples are taken from, in words."""


def answering(neuron_map: NeuronMap) -> Tensor:
    """Which neurons are more than faint: all live ones of a map without norms.  # shape: (n,), bool"""
    norms = neuron_map.norms
    if norms is None or not bool(neuron_map.alive.any()):
        return neuron_map.alive
    return neuron_map.alive & (norms >= LEAST_NORM * norms[neuron_map.alive].median())


def farthest_examples(neuron_map: NeuronMap, count: int) -> tuple[Any, ...]:
    """Up to `count` of the farthest disjoint pairs whose neurons both answer; of all live ones without norms.

    Pairs of the map's `farthest` that have a faint neuron are left out and others take their place.
    """
    loud = answering(neuron_map)
    count = min(count, int(loud.sum()) // 2)
    if not count:
        return ()
    return tuple(disjoint_pairs(cosine=neuron_map.cosine, alive=loud, pairs=count, which="farthest"))
