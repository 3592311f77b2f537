"""Models whose Hessian is known."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


def cross_entropy(model, batch):
    return functional.cross_entropy(model(batch[0]), batch[1])


def network(dtype=torch.float64):
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype)


def samples(count, dtype=torch.float64):
    return torch.randn(count, 3, dtype=dtype), torch.randint(0, 3, (count,))


class Bowl(nn.Module):
    """Loss ½θᵀAθ + x·θ of a sample x: H = A, the gradient Aθ + x, and a step's change exactly of second order."""

    def __init__(self, matrix, start):
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.theta = nn.Parameter(start.clone())

    def forward(self, x):
        return x @ self.theta + self.theta @ self.matrix @ self.theta / 2


def mean_of_outputs(model, batch):
    return model(batch).mean()


def bowl(dim=4):
    root = torch.randn(dim, dim).double()
    return Bowl(root @ root.T / dim, torch.randn(dim).double())


def explicit(model, loss_fn, batch, rows):
    """Gradients (one for each of `rows`, index ranges) and Hessian of the whole batch, by plain autograd."""
    parameters = list(model.parameters())
    sizes = [p.numel() for p in parameters]
    gradients = [
        torch.cat([g.flatten() for g in torch.autograd.grad(loss_fn(model, take(batch, row)), parameters)])
        for row in rows
    ]
    names = [name for name, _ in model.named_parameters()]

    def loss(vector):
        pieces = [piece.view_as(p) for piece, p in zip(vector.split(sizes), parameters, strict=True)]
        swapped = torch.func.functional_call
        return loss_fn(lambda x: swapped(model, dict(zip(names, pieces, strict=True)), (x,)), batch)

    point = torch.cat([p.detach().flatten() for p in parameters])
    hessian = torch.autograd.functional.hessian(loss, point)
    return torch.stack(gradients) if gradients else None, hessian


def take(batch, row):
    return tuple(part[row] for part in batch) if isinstance(batch, tuple) else batch[row]
