"""What the studies quotient and prediction are made of."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from sdsd.studies.digits import load_digits, split_digits
from sdsd.studies.theory.gamma_star_experiment import gamma_star_experiment
from sdsd.studies.theory.orbit_experiment import orbit_experiment


def test_the_orbit_experiment_separates_what_moves_from_what_does_not():
    x = torch.randn(40, 6).double()
    result = orbit_experiment(x, (x[:, :3] + torch.randn(40, 3) / 2).argmax(1), hidden=8, points=4)
    assert result.output_change < 1e-12
    assert max(result.squared_gradients) > 2 * min(result.squared_gradients)
    assert max(result.gammas) > 1.01 * min(result.gammas)
    assert max(result.quotient_gammas) - min(result.quotient_gammas) < 1e-9 * max(result.quotient_gammas)
    assert result.canonical_squared_norm < min(result.squared_norms)
    assert result.vertical["gradient"] <= 1e-20
    assert result.vertical["weight decay, canonical"] <= 1e-20
    assert min(result.vertical[name] for name in ("Adam step", "isotropic noise", "weight decay")) > 1e-3
    assert len(result.to_dict()["gammas"]) == 5
    with pytest.raises(ValueError, match="labels: expected one for each of the 40 samples, got 3"):
        orbit_experiment(x, torch.zeros(3, dtype=torch.long))


def test_gamma_star_foretells_real_steps_and_the_published_gamma_does_not():
    """Digits with 20% label noise at three learning rates; the study "prediction" is the same at full length."""
    right = {"gamma_star": 0, "gamma_published": 0, "gamma_published_diffusion": 0}
    significant = 0
    for seed in (0, 1):
        pixels, labels = load_digits(seed, 200, centre=0.0, dtype=torch.float64)
        result = gamma_star_experiment(pixels, labels, seed=seed, steps=800, measurements=12, batches=150, probes=24)
        assert len(result.points) == 36
        assert {point.learning_rate for point in result.points} == {0.05, 0.2, 0.5}
        assert any(point.measured > 0 for point in result.significant)
        assert any(point.measured < 0 for point in result.significant)
        significant += len(result.significant)
        for ratio, count in result.right.items():
            right[ratio] += count
    assert significant >= 50
    assert right["gamma_star"] >= 0.9 * significant
    assert right["gamma_published"] < 0.6 * significant
    assert right["gamma_published_diffusion"] < right["gamma_star"]


def test_one_loader_of_digits():
    from sklearn.datasets import load_digits as all_digits

    pixels, classes = map(torch.from_numpy, all_digits(return_X_y=True))
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(3))
    images, labels = load_digits(3)
    assert torch.equal(images, (pixels.float() / 16 - 0.3)[order])
    assert torch.equal(labels, classes.long()[order])
    few, their_labels = load_digits(3, 256, centre=0.0, dtype=torch.float64)
    assert torch.equal(few, pixels[order[:256]] / 16)
    assert torch.equal(their_labels, labels[:256])
    split = split_digits(3, held_out=100)
    assert torch.equal(torch.cat((split.images, split.held_out_images)), images)
    assert torch.equal(torch.cat((split.labels, split.held_out_labels)), labels)
    assert len(split.held_out_labels) == 100
