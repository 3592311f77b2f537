"""Whole numbers may be NumPy's wherever an int is asked for, and change nothing in the result."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import sdsd
import sdsd_kernels
from sdsd import geometry, integrations, theory

from .calls import (
    BYTES,
    SPREAD,
    TARGET,
    Mixture,
    accumulated,
    accuracy,
    batches,
    case,
    compared,
    described,
    draw,
    layer_grads,
    loss_of_batch,
    mapped,
    merged,
    monitored,
    network,
    numpys,
    observed,
    plain,
    recorded,
    sharded,
    written,
)

MODULES = (sdsd, geometry, theory, integrations, sdsd_kernels)
COUNTED = ("int", "int | None", "int | Sequence[int]", "Sequence[int]", "Iterable[int]")


CASES = [
    case(sdsd.gamma_stats, draw(8, 20), whole={"samples_per_gradient": 2, "batch_size": 64, "population": 400}),
    case(
        monitored,
        whole={"every": 1, "batch_dim": 0, "batch_size": 16, "population": 99, "max_bytes": BYTES},
        of="sdsd.GammaMonitor",
    ),
    case(recorded, whole={"step": 3}, of="sdsd.GammaHistory.append"),
    case(
        lambda **sizes: sdsd.compute_gamma(network(), batches(), loss_of_batch, **sizes),
        of="sdsd.compute_gamma",
        whole={"n_samples": 2, "samples_per_gradient": 16, "population": 400},
    ),
    case(
        lambda batch_size: sdsd.recommend_batch(sdsd.gamma_stats(TARGET, confidence=0.9), batch_size=batch_size),
        whole={"batch_size": 32},
        of="sdsd.recommend_batch",
    ),
    case(
        sdsd.gamma.averaging_lag,
        *2 * (sdsd.gamma_stats(1 + draw(8, 20), confidence=0.9),),
        ema=0.9,
        whole={"steps": 99},
    ),
    case(
        accumulated,
        whole={"n": 9, "max_bytes": BYTES, "neuron_dim": 1, "correction": 1},
        of="sdsd.GramAccumulator sdsd.GramAccumulator.update sdsd.GramAccumulator.covariance",
    ),
    case(
        sdsd.NeuronMap.from_activations,
        SPREAD,
        whole={"neuron_dim": 1, "pairs": 3, "clusters": 3, "seed": 4},
        of="sdsd.NeuronMap.from_activations",
    ),
    case(
        lambda **sizes: sdsd.NeuronMap.from_model(network(), "0", batches(), **sizes),
        of="sdsd.NeuronMap.from_model",
        whole={"pairs": 3, "clusters": 3, "seed": 4, "neuron_dim": 1, "max_bytes": BYTES, "max_batches": 2},
    ),
    case(
        lambda **sizes: sdsd.NeuronMap.from_cosine(sdsd.neuron_cosine_matrix(SPREAD), **sizes),
        whole={"pairs": 3, "clusters": 3, "seed": 4},
        of="sdsd.NeuronMap.from_cosine",
    ),
    case(lambda count: mapped().neighbours(count), whole={"count": 2}, of="sdsd.NeuronMap.neighbours"),
    case(lambda most: mapped().links(most), whole={"most": 2}, of="sdsd.NeuronMap.links"),
    case(lambda seed: mapped().plane(seed=seed), whole={"seed": 2}, of="sdsd.NeuronMap.plane"),
    case(
        lambda **sizes: sdsd.biopsy(network(), "0", (batches(), loss_of_batch), **sizes),
        whole={"pairs": 3, "neuron_dim": 1, "seed": 2},
        activations=SPREAD,
        of="sdsd.biopsy",
    ),
    case(
        lambda **sizes: sdsd.mass_consolidation(network(), "0", (batches(), loss_of_batch), **sizes),
        whole={"pairs": 3, "random_pairings": 2, "neuron_dim": 1, "seed": 2},
        activations=SPREAD,
        of="sdsd.mass_consolidation",
    ),
    case(
        lambda **sizes: sdsd.plasticity(
            network(), "0", geometry.sgd_training(batches(), loss_of_batch), accuracy, **sizes
        ),
        whole={"pairs": 3, "epochs": 1, "neuron_dim": 1, "seed": 2},
        activations=SPREAD,
        of="sdsd.plasticity",
    ),
    case(
        lambda **sizes: sdsd.collect_activations(network(), batches(), ["0"], **sizes)["0"].sums.covariance(),
        whole={"max_bytes": BYTES, "max_batches": 2, "neuron_dim": 1},
        of="sdsd.collect_activations",
    ),
    case(
        lambda neuron_dim: sdsd.consolidate(
            network(), "0", [(0, 1)], activations=SPREAD, neuron_dim=neuron_dim, example_input=draw(4, 6)
        )[0],
        whole={"neuron_dim": 1},
        of="sdsd.consolidate",
    ),
    case(lambda neuron_dim: merged(neuron_dim), whole={"neuron_dim": 1}, of="sdsd.merge"),
    case(sdsd.cosine_between, SPREAD, SPREAD.roll(1, 0), whole={"neuron_dim": 1, "max_bytes": BYTES}),
    case(sdsd.cosine_histogram, SPREAD, whole={"bins": 10, "neuron_dim": 1, "max_bytes": BYTES}),
    case(
        sdsd.disjoint_pairs, SPREAD, which="random", whole={"pairs": 3, "neuron_dim": 1, "seed": 2, "max_bytes": BYTES}
    ),
    case(sdsd.neuron_cosine_matrix, SPREAD, whole={"neuron_dim": 1}),
    case(sdsd.neuron_neighbors, SPREAD, whole={"k": 3, "neuron_dim": 1, "max_bytes": BYTES}),
    case(sdsd.neuron_pairs, SPREAD, above=0.1, whole={"neuron_dim": 1, "max_bytes": BYTES}),
    case(sdsd.row_sums, SPREAD, whole={"neuron_dim": 1, "max_bytes": BYTES}),
    case(sharded, whole={"neuron_dim": 1, "max_bytes": BYTES}, of="sdsd.sharded_cosine"),
    case(
        lambda neurons: geometry.remove_neurons(network(), "0", neurons, example_input=draw(4, 6))[0],
        whole={"neurons": [1, 3]},
        of="sdsd.remove_neurons",
    ),
    case(
        lambda removed: geometry.remove_experts(Mixture(), "experts", removed, example_input=draw(4, 6)),
        whole={"removed": [0]},
        of="sdsd.remove_experts",
    ),
    case(
        lambda dim: geometry.RepeatedNorm(nn.LayerNorm(6), dim, torch.arange(6), torch.arange(6))(draw(4, 6)),
        whole={"dim": -1},
        of="sdsd.RepeatedNorm",
    ),
    case(
        lambda **sizes: [list(each.shape) for each in geometry.FewerHeads(**sizes).parameters()],
        whole={"embed_dim": 8, "num_heads": 3, "head_dim": 4, "kdim": 6, "vdim": 5},
        of="sdsd.FewerHeads",
    ),
    case(
        lambda seed: geometry.shuffled_pixels(draw(4, 1, 4, 4), seed=seed), whole={"seed": 2}, of="sdsd.shuffled_pixels"
    ),
    case(
        lambda **sizes: geometry.trained(network(), geometry.sgd_training(batches(), loss_of_batch), **sizes),
        whole={"epochs": 1, "seed": 2},
        of="sdsd.trained",
    ),
    case(lambda seed: geometry.untrained(network(), seed=seed), whole={"seed": 2}, of="sdsd.untrained"),
    case(observed, whole={"every": 1, "batch_size": 16}, of="sdsd.CurvatureObserver"),
    case(
        lambda **sizes: theory.curvature_gamma(network(), loss_of_batch, batches()[0], learning_rate=0.1, **sizes),
        of="sdsd.curvature_gamma",
        whole={"batch_size": 8, "samples_per_gradient": 2, "population": 400, "probes": 3, "chunk_size": 2, "seed": 1},
    ),
    case(theory.factorise, whole={"seeds": [1, 2], "steps": [2, 5]}),
    case(
        lambda **sizes: theory.geometric_functional(network(), 0.1, volume="union", **sizes),
        whole={"samples": 200, "seed": 1},
        of="sdsd.geometric_functional",
    ),
    case(
        lambda samples_per_gradient: theory.gradient_rows(network(), loss_of_batch, batches()[0], samples_per_gradient),
        whole={"samples_per_gradient": 4},
        of="sdsd.gradient_rows",
    ),
    case(
        lambda **sizes: theory.quotient_gamma(network(), batches(), loss_of_batch, **sizes),
        whole={"n_samples": 2, "samples_per_gradient": 16},
        of="sdsd.quotient_gamma",
    ),
    case(
        lambda seed: theory.random_representative(network(), seed=seed),
        whole={"seed": 2},
        of="sdsd.random_representative",
    ),
    case(theory.realized_volume, TARGET, 0.5, whole={"samples": 100, "seed": 3}),
    case(theory.select_on_hyperbola, draw(3, 2), 1.0, 0.01, whole={"steps": 5}),
    case(theory.select_on_line, draw(3, 2), 1.0, 0.01, whole={"steps": 5}),
    case(theory.sense, (0.1,), whole={"dim": 4, "measurements": 9, "rank": 1, "problems": 2, "steps": 3, "seed": 1}),
    case(
        theory.simulate,
        lambda x: x.square().sum(-1),
        0.1,
        draw(4, 2),
        step_size=0.1,
        whole={"steps": 4, "every": 2, "seed": 1},
    ),
    case(written, whole={"step": 3}, of="sdsd.write_scalars"),
    case(sdsd_kernels.weight_grad_stats, draw(4, 3, 5), draw(4, 3, 6), whole={"max_bytes": BYTES}),
    case(
        sdsd_kernels.conv_weight_grad_stats,
        draw(4, 4, 6, 6),
        draw(4, 6, 3, 2),
        whole={"kernel_size": [3, 3], "stride": 2, "padding": [1, 0], "dilation": 1, "groups": 2, "max_bytes": BYTES},
    ),
    case(
        lambda **sizes: layer_grads(sdsd_kernels.weight_grad_into, draw(4, 3, 5), draw(4, 3, 6), **sizes),
        whole={"row": 1, "bias_row": 2, "max_bytes": BYTES},
        of="sdsd_kernels.weight_grad_into",
    ),
    case(
        lambda **sizes: layer_grads(sdsd_kernels.conv_weight_grad_into, draw(4, 4, 6, 6), draw(4, 6, 3, 2), **sizes),
        whole={
            "row": 1,
            "kernel_size": [3, 3],
            "bias_row": 2,
            "stride": 2,
            "padding": [1, 0],
            "dilation": 1,
            "groups": 2,
            "max_bytes": BYTES,
        },
        of="sdsd_kernels.conv_weight_grad_into",
    ),
    case(
        lambda **sizes: layer_grads(
            sdsd_kernels.lookup_squares_into, draw(4, 3, 5), torch.arange(12).reshape(4, 3) % 7, **sizes
        ),
        whole={"row": 1, "padding": 2},
        of="sdsd_kernels.lookup_squares_into",
    ),
    case(
        lambda **sizes: layer_grads(sdsd_kernels.scale_shift_grads, draw(4, 3, 5), **sizes),
        inputs=draw(4, 3, 5),
        whole={"scale_row": 1, "shift_row": 2},
        of="sdsd_kernels.scale_shift_grads",
    ),
    case(sdsd_kernels.cosine_matrix, SPREAD, whole={"neuron_dim": 1}),
    case(sdsd_kernels.cosine_between, SPREAD, SPREAD.roll(1, 0), whole={"neuron_dim": 1, "max_bytes": BYTES}),
    case(sdsd_kernels.cosine_topk, SPREAD, whole={"k": 3, "neuron_dim": 1, "max_bytes": BYTES}),
    case(sdsd_kernels.cosine_pairs, SPREAD, above=0.1, whole={"neuron_dim": 1, "max_bytes": BYTES}),
    case(sdsd_kernels.cosine_histogram, SPREAD, whole={"bins": 10, "neuron_dim": 1, "max_bytes": BYTES}),
    case(sdsd_kernels.cosine_row_sums, SPREAD, whole={"neuron_dim": 1, "max_bytes": BYTES}),
    case(
        sdsd_kernels.disjoint_pairs,
        SPREAD,
        which="random",
        whole={"pairs": 3, "neuron_dim": 1, "seed": 2, "max_bytes": BYTES},
    ),
    case(
        lambda neuron_dim: sdsd_kernels.gram_accumulate(torch.zeros(12, 12), SPREAD, neuron_dim=neuron_dim),
        whole={"neuron_dim": 1},
        of="sdsd_kernels.gram_accumulate",
    ),
    case(lambda samples: described().bound(samples), whole={"samples": 100}, of="sdsd.DescriptionLength.bound"),
    case(
        compared,
        whole={"n": 12, "m": 12, "max_bytes": BYTES, "neuron_dim": 1},
        of="sdsd.LayerComparison sdsd.LayerComparison.update",
    ),
    case(
        lambda neuron_dim: geometry.LayerComparison.of(SPREAD, SPREAD.roll(1, 0), neuron_dim=neuron_dim).cka(),
        whole={"neuron_dim": 1},
        of="sdsd.LayerComparison.of",
    ),
    case(
        lambda **sizes: sdsd.match_neurons(SPREAD, SPREAD.roll(1, 0), **sizes),
        whole={"neuron_dim": 1},
        of="sdsd.match_neurons",
    ),
    case(
        lambda **sizes: sdsd.match_neurons(network(), network(), [draw(16, 6)], **sizes),
        whole={"seed": 1, "max_batches": 2, "max_bytes": BYTES},
        of="sdsd.match_neurons",
    ),
    case(
        lambda **sizes: geometry.merge_cost(SPREAD, draw(12, 3), **sizes),
        whole={"max_bytes": BYTES, "neuron_dim": 1},
        of="sdsd.merge_cost",
    ),
    case(
        lambda samples: geometry.merge_cost(None, draw(12, 3), gram=SPREAD.T @ SPREAD, samples=samples),
        whole={"samples": 40},
        of="sdsd.merge_cost",
    ),
    case(
        lambda points: geometry.loss_barrier(network(), network(), (batches(), loss_of_batch), points=points),
        whole={"points": 3},
        of="sdsd.loss_barrier",
    ),
    case(
        lambda output: theory.tangent_kernel(network(), draw(4, 6), output=output),
        whole={"output": 1},
        of="sdsd.tangent_kernel",
    ),
    case(
        lambda **sizes: theory.sharpness(network(), batches()[0], loss_of_batch, tolerance=0.5, **sizes),
        whole={"seed": 1, "most_products": 30},
        of="sdsd.sharpness",
    ),
    case(
        lambda **sizes: theory.basin_volume(network(), batches()[0], loss_of_batch, prior_scale=1.0, **sizes),
        whole={"directions": 3, "probes": 2, "seed": 1},
        of="sdsd.basin_volume",
    ),
    case(
        lambda **sizes: (
            theory.local_learning_coefficient(network(), batches()[0], loss_of_batch, step_size=1e-5, **sizes).__dict__
        ),
        whole={"chains": 2, "draws": 20, "burn_in": 2, "seed": 1},
        of="sdsd.local_learning_coefficient",
    ),
    case(geometry.approximate_neighbors, SPREAD, whole={"k": 3, "neuron_dim": 1, "effort": 64, "check": 10, "seed": 1}),
    case(
        lambda max_batches: geometry.group_activations(network(), batches(), "0", max_batches=max_batches)[
            "0"
        ].sums.covariance(),
        whole={"max_batches": 1},
        of="sdsd.group_activations",
    ),
    case(
        lambda **sizes: geometry.consolidate_model(network(), [draw(16, 6)], above=0.5, **sizes)[0],
        whole={"max_batches": 1, "multiple": 2},
        of="sdsd.consolidate_model",
    ),
    case(
        lambda **sizes: geometry.plan_consolidation(network(), [draw(16, 6)], above=0.5, **sizes),
        whole={"max_batches": 1, "multiple": 2},
        of="sdsd.plan_consolidation",
    ),
    case(theory.telling_angle, whole={"count": 20, "dim": 5}),
    case(
        lambda max_bytes: theory.curvature_gamma(
            network(), loss_of_batch, batches()[0], learning_rate=0.1, batch_size=8, max_bytes=max_bytes
        ),
        whole={"max_bytes": 2**24},
        of="sdsd.curvature_gamma",
    ),
]
BEYOND = {
    ("sdsd.NeuronMap.save_png", "dpi"),  # matplotlib's
    ("sdsd.expert_cosine", "max_batches"),  # handed on to `group_activations`' own loop over batches
}
MADE_BY_US = ("NeuronMap", "GammaStats", "BatchRecommendation")
"""Records that nobody makes by hand."""


@pytest.mark.parametrize("kind", [np.int64, np.int32])
@pytest.mark.parametrize(("call", "given", "options", "whole"), CASES)
def test_numpys_whole_numbers_give_the_same(call, given, options, whole, kind):
    expected = call(*copy.deepcopy(given), **options, **whole)
    got = call(*copy.deepcopy(given), **options, **{name: numpys(value, kind) for name, value in whole.items()})
    assert json.dumps(plain(got)) == json.dumps(plain(expected))


def public_functions() -> Iterator[tuple[str, Any]]:
    for module in MODULES:
        package = module.__name__.split(".")[0]
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) and issubclass(value, BaseException):
                continue
            if inspect.isclass(value):
                if name not in MADE_BY_US and not hasattr(value, "_fields") and not dataclasses.is_dataclass(value):
                    yield f"{package}.{name}", value
                for method in vars(value):
                    if not method.startswith("_") and callable(getattr(value, method)):
                        yield f"{package}.{name}.{method}", getattr(value, method)
            elif callable(value):
                yield f"{package}.{name}", value


def test_no_argument_that_is_a_whole_number_was_forgotten():
    covered = {(name, argument) for each in CASES for name in each.id.split() for argument in each.values[3]}
    forgotten = {
        (name, parameter.name)
        for name, function in public_functions()
        for parameter in inspect.signature(function).parameters.values()
        if parameter.annotation in COUNTED
    } - covered
    assert forgotten == BEYOND


@pytest.mark.parametrize("wrong", [True, np.bool_(True), 1.0, "1"])
def test_what_is_no_whole_number_is_refused(wrong):
    for call in (lambda: monitored(every=wrong), lambda: sdsd.gamma_stats(draw(8, 20), batch_size=wrong)):
        with pytest.raises((TypeError, ValueError), match=r"expected (a whole number|an int)"):
            call()
