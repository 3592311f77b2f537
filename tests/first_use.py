"""What every installation has to do: import, both core calls, the monitor, validate. Needs nothing but sdsd.

python tests/first_use.py
"""

import sys

import numpy as np
import torch
from torch import nn

import sdsd


def main() -> None:
    torch.manual_seed(0)
    gradients = torch.randn(32, 500, dtype=torch.float64) + 0.3
    stats = sdsd.gamma_stats(gradients, confidence=0.95)
    mean, variance = gradients.numpy().mean(0), gradients.numpy().var(0, ddof=1).sum()
    assert abs(stats.gamma - mean @ mean / variance) < 1e-12 * stats.gamma
    assert stats.interval is not None
    assert stats.interval[0] < stats.gamma_unbiased < stats.interval[1]

    activations = np.random.default_rng(0).normal(size=(100, 7))
    cosine = sdsd.neuron_cosine_matrix(activations)
    units = activations / np.linalg.norm(activations, axis=0)
    assert np.abs(cosine.numpy() - units.T @ units).max() < 1e-12
    assert torch.equal(cosine, cosine.T)

    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    inputs, targets = torch.randn(16, 5, dtype=torch.float64), torch.arange(16) % 3
    monitor = sdsd.GammaMonitor(model)
    nn.functional.cross_entropy(model(inputs), targets).backward()
    measured = monitor.step()
    monitor.detach()
    rows = []
    for row, target in zip(inputs, targets, strict=True):
        loss = nn.functional.cross_entropy(model(row[None]), target[None])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, tuple(model.parameters()))]))
    expected = sdsd.gamma_stats(torch.stack(rows))
    assert abs(measured.signal - expected.signal) < 1e-12 * expected.signal
    assert abs(measured.noise - expected.noise) < 1e-12 * expected.noise

    report = sdsd.validate(verbose=False)
    assert report.ok, report
    versions = f"torch {torch.__version__}, Python {sys.version.split()[0]}"
    print(f"sdsd {sdsd.__version__}, {versions}: {len(report.rows)} comparisons right")


if __name__ == "__main__":
    main()
