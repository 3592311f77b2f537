"""The orbit's tangents: projections, invariance, optimisers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from sdsd.theory.quotient import (
    canonicalize,
    horizontal,
    symmetries,
    vertical,
    vertical_fraction,
)

from ..models import MODELS, inputs, make
from .gradients import flat, labels, random_vectors, tiny_eps

GENERIC = ["mlp", "convolutional", "layer_norm", "group_norm", "residual", "batch_norm_residual", "pre_activation"]
"""Models without symmetries beyond those looked for, on data that switches every neuron on and off."""


@pytest.mark.parametrize("name", GENERIC)
def test_vertical_is_the_projection_onto_the_null_space_of_the_jacobian(name):
    torch.manual_seed(
        15 if name in ("group_norm", "batch_norm_residual") else 12
    )  # no neuron is on, or off, on all samples
    model = tiny_eps(make(name))
    parameters = list(model.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    rows = []
    for batch in (inputs(name, count // 3 + 8) * 3).chunk(8):
        for output in model(batch).flatten():
            found = torch.autograd.grad(output, parameters, retain_graph=True)
            rows.append(torch.cat([part.flatten() for part in found]))
    _, values, vectors = torch.linalg.svd(torch.stack(rows), full_matrices=False)
    null = vectors[values < 1e-10 * values[0]].T
    found = symmetries(model)
    assert found.tangents == null.shape[1] > 10
    update = random_vectors(model)
    wanted = null @ (null.T @ flat(update))
    got = flat(vertical(found, update))
    assert (got - wanted).norm() <= 1e-6 * wanted.norm()
    assert (got + flat(horizontal(found, update)) - flat(update)).abs().max() < 1e-14


@pytest.mark.parametrize("name", sorted(MODELS))
def test_gradients_of_an_invariant_loss_are_horizontal(name):
    model = tiny_eps(make(name))
    x = inputs(name, 40)
    head = {"softmax_head": name != "odd_convolutions"}
    outputs = model(x).flatten(0, -2)
    y = torch.randint(0, outputs.shape[-1], (len(outputs),))
    grads = torch.autograd.grad(functional.cross_entropy(outputs, y), list(model.parameters()))
    assert vertical_fraction(model, grads, **head) <= 1e-20
    assert vertical_fraction(model, list(model.parameters()), **head) > 1e-3
    for part, wanted in (
        (vertical(model, grads, **head), [torch.zeros(())] * len(grads)),
        (horizontal(model, grads, **head), grads),
    ):
        assert all((one - other).abs().max() < 1e-9 for one, other in zip(part, wanted, strict=True))


def test_projections_are_orthogonal_and_idempotent():
    model = make("layer_norm")
    update = random_vectors(model)
    along, across = vertical(model, update), horizontal(model, update)
    assert abs(flat(along) @ flat(across)) < 1e-11 * flat(along).norm() * flat(across).norm()
    assert (flat(vertical(model, along)) - flat(along)).norm() < 1e-11 * flat(along).norm()
    assert flat(vertical(model, across)).norm() < 1e-11 * flat(across).norm()
    listed = vertical(model, [value.float() for value in update.values()])
    assert isinstance(listed, list)
    assert all(part.dtype == torch.float64 for part in listed)
    assert (torch.cat([part.flatten() for part in listed]) - flat(along)).norm() < 1e-6 * flat(along).norm()


def test_the_overlap_of_neighbouring_layers_counts():
    """Projecting tangent by tangent, as if they were orthogonal, would be wrong."""
    model = make("mlp")
    found, update = symmetries(model), random_vectors(model)
    span = found._span()
    coefficients = span.solve({name: value.double() for name, value in update.items()})
    naive = span.project(update) / span._diagonal()
    assert (naive - coefficients).norm() > 1e-2 * coefficients.norm()


def test_adam_and_weight_decay_have_vertical_parts():
    torch.manual_seed(1)
    model = make("mlp")
    x = inputs("mlp", 64)
    y = labels(model, x)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(5):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    step = [now.detach() - then for now, then in zip(model.parameters(), before, strict=True)]
    assert 1e-3 < vertical_fraction(model, step) < 0.5
    assert vertical_fraction(model, list(model.parameters())) > 1e-2
    canonical = canonicalize(model)
    assert vertical_fraction(canonical, list(canonical.parameters())) <= 1e-20
