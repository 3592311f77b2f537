"""Pairs that serve as examples: none with a neuron that hardly answers."""

from __future__ import annotations

import pytest
import torch

from sdsd.geometry import NeuronMap
from sdsd.studies.pairs import LEAST_NORM, answering, farthest_examples

pytest.importorskip("sklearn")


def test_a_faint_neuron_is_no_farthest_example():
    activations = torch.rand(60, 12) + 0.1
    activations[:, 4] = 0
    activations[0, 4] = 0.02  # answers once, and almost nothing: far from all others
    neuron_map = NeuronMap.from_activations(activations, pairs=3)
    assert 4 in (neuron_map.farthest[0].first, neuron_map.farthest[0].second)
    examples = farthest_examples(neuron_map, 3)
    assert len(examples) == 3
    assert not any(4 in (pair.first, pair.second) for pair in examples)
    assert not answering(neuron_map)[4]
    assert answering(neuron_map).sum() == 11
    loud = neuron_map.cosine[:, [n for n in range(12) if n != 4]][[n for n in range(12) if n != 4]]
    assert examples[0].cosine == pytest.approx(loud.min().item(), abs=1e-6)


def test_without_norms_all_live_neurons_are_examples():
    cosine = torch.eye(6) + 0.1 * (1 - torch.eye(6))
    neuron_map = NeuronMap.from_cosine(cosine)
    assert [tuple(pair) for pair in farthest_examples(neuron_map, 2)] == [
        tuple(pair) for pair in neuron_map.farthest[:2]
    ]


def test_the_least_norm_is_a_share_of_the_median():
    activations = torch.ones(5, 9)
    activations[:, 0] = 0.99 * LEAST_NORM
    activations[:, 1] = 1.01 * LEAST_NORM
    assert answering(NeuronMap.from_activations(activations)).tolist() == [False] + 8 * [True]


def test_a_dead_layer_has_no_examples():
    assert farthest_examples(NeuronMap.from_activations(torch.zeros(5, 4)), 3) == ()
