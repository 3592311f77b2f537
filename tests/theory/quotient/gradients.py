"""Gradients, labels and vectors of models."""

from __future__ import annotations

import torch


def tiny_eps(model, eps=1e-30):
    """Make scale before a norm an exact symmetry."""
    for module in model.modules():
        if hasattr(module, "eps"):
            module.eps = eps
    return model


def squared_norm(tensors):
    return sum(tensor.double().square().sum().item() for tensor in tensors)


def labels(model, x):
    return torch.randint(0, 3, model(x).shape[:-1]).flatten()


def flat(vectors):
    return torch.cat([vectors[name].flatten() for name in vectors])


def random_vectors(model):
    return {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
