"""Losses made of more than the model's output, losses of gradients, and parameters replaced after attaching."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from tests.zoo.parts import N, Net, any_loss, class_loss, classes, numbers, parameter, perceptron
from tests.zoo.verdict import Program

X, Y = numbers(N, 8), classes()


def assigned(model):
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)


def new_head(model):
    torch.manual_seed(4)
    model[2] = nn.Linear(5, 3).double()


def new_weight(model):
    model[0].weight = nn.Parameter(model[0].weight.detach() + 0.1)


def new_data(model):
    model[0].weight.data = model[0].weight.data * 1.5


def added_layer(model):
    torch.manual_seed(4)
    model.append(nn.Linear(3, 3).double())


def after(change, **options):
    def step(model):
        change(model)
        class_loss(model, X.double(), Y).backward()

    return Program(perceptron, (X, Y), class_loss, step=step, permanent=True, **options)


REPLACED = {
    "load_state_dict(assign=True)": after(assigned),
    "a new head": after(new_head),
    "a new weight": after(new_weight),
    "new data in the same parameter": after(new_data, measured=True),
    "a layer more": after(added_layer),
    "a layer frozen": after(lambda model: model[0].requires_grad_(False), measured=True),
}


def fast_weights(change):
    def loss(model, x, y):
        weights = {name: change(p) for name, p in model.named_parameters()}
        return F.cross_entropy(torch.func.functional_call(model, weights, (x,)), y)

    return Program(perceptron, (X, Y), loss)


def inner_step(model, x, y):
    """One step of gradient descent on half of each sample's loss inside the loss, as MAML does."""
    weights = dict(model.named_parameters())
    out = torch.func.functional_call(model, weights, (x,))
    gradients = torch.autograd.grad(out.square().sum(), list(weights.values()), create_graph=True)
    moved = {name: p - 0.01 * g for (name, p), g in zip(weights.items(), gradients, strict=True)}
    return F.cross_entropy(torch.func.functional_call(model, moved, (x,)), y)


def penalised(penalty, model=perceptron):
    return Program(model, (X, Y), lambda m, x, y: class_loss(m, x, y) + penalty(m), measured=False)


IN_THE_LOSS = {
    "functional_call with the parameters themselves": fast_weights(lambda p: p),
    "functional_call with computed weights": fast_weights(lambda p: p * p.abs()),
    "functional_call with scaled weights": fast_weights(lambda p: 2 * p),
    "a penalty on one weight": penalised(lambda m: 0.1 * m[0].weight.square().sum()),
    "a penalty on all parameters": penalised(lambda m: 0.01 * sum(p.abs().sum() for p in m.parameters())),
    "a penalty that makes rows orthogonal": penalised(
        lambda m: (m[0].weight @ m[0].weight.T - torch.eye(5)).square().sum()
    ),
    "a penalty on a bias alone": penalised(lambda m: m[2].bias.square().sum()),
    "the head in the loss, its module unused": Program(
        lambda: Net(lambda m, x: torch.tanh(m.body(x)), body=nn.Linear(8, 8), head=nn.Linear(8, 3)),
        (X, Y),
        lambda m, x, y: F.cross_entropy(F.linear(F.normalize(m(x)), F.normalize(m.head.weight)), y),
    ),
    "the head called outside of the model": Program(
        lambda: Net(lambda m, x: torch.tanh(m.body(x)), body=nn.Linear(8, 8), head=nn.Linear(8, 3)),
        (X, Y),
        lambda m, x, y: F.cross_entropy(m.head(m(x)), y),
    ),
    "a temperature in the loss": Program(
        lambda: Net(lambda m, x: m.body(x), body=nn.Linear(8, 3), log_scale=nn.Parameter(torch.zeros(()))),
        (X, Y),
        lambda m, x, y: F.cross_entropy(m(x) * m.log_scale.exp(), y),
    ),
    "centres looked up in the loss": Program(
        lambda: Net(lambda m, x: m.body(x), body=nn.Linear(8, 3), centres=parameter(3, 3)),
        (X, Y),
        lambda m, x, y: (m(x) - m.centres[y]).square().sum(1).mean(),
    ),
    "parts called, the model itself never": Program(
        perceptron,
        (X, Y),
        lambda m, x, y: F.cross_entropy(m[2](m[1](m[0](x))), y),
        situation="forward|the model",
    ),
}


X_OF_WORDS, VALID = numbers(N, 4, 8), (numbers(N, 4) > -0.5).double()
VALID[:, 0] = 1


def over_valid_words(count):
    """A mean over all valid words of the batch, computed in the model."""

    def errors(m, x, valid):
        return ((m.last(torch.tanh(m.first(x))).squeeze(-1) - 1).square() * valid).sum()

    return Program(
        lambda: Net(lambda m, *x: errors(m, *x) / count(x[1]), first=nn.Linear(8, 8), last=nn.Linear(8, 1)),
        (X_OF_WORDS, VALID),
        lambda m, *batch: m(*batch),
        contribution=lambda m, i: errors(m, X_OF_WORDS[i : i + 1], VALID[i : i + 1]) / count(VALID),
        measured=True,
    )


OVER_WORDS = {
    "divided by their number": over_valid_words(lambda valid: valid.sum()),
    "divided by their number, at least one": over_valid_words(lambda valid: valid.sum().clamp(min=1)),
    "divided by the larger of their number and one": over_valid_words(
        lambda valid: torch.max(valid.sum(), torch.ones_like(valid.sum()))
    ),
}


def input_gradient(norm):
    def loss(model, x):
        x = x.clone().requires_grad_()
        out = model(x)
        (g,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return out.mean() + 10 * norm(g)

    return Program(lambda: nn.Sequential(nn.Linear(8, 5), nn.Softplus(), nn.Linear(5, 1)), (X,), loss)


def parameter_gradient(model, x, y):
    loss = class_loss(model, x, y)
    gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
    return loss + sum(g.square().sum() for g in gradients)


def forces(m, x):
    x = x.detach().requires_grad_()
    energy = m.out(F.softplus(m.body(x)))
    return torch.autograd.grad(energy.sum(), x, create_graph=True)[0]


OF_GRADIENTS = {
    "gradient penalty towards one (WGAN-GP)": input_gradient(lambda g: ((g.norm(dim=1) - 1) ** 2).mean()),
    "gradient penalty towards zero (R1)": input_gradient(lambda g: g.square().sum(1).mean()),
    "forces from an energy": Program(
        lambda: Net(forces, body=nn.Linear(8, 6), out=nn.Linear(6, 1, bias=False)), (X,), any_loss
    ),
    # Both mix the samples: gradients of the whole batch are multiplied with each other.
    "penalty on the gradient of the parameters": Program(perceptron, (X, Y), parameter_gradient, hopeless=True),
    "an inner step of gradient descent": Program(perceptron, (X, Y), inner_step, hopeless=True),
}

PROGRAMS = {"replaced": REPLACED, "in the loss": IN_THE_LOSS, "of gradients": OF_GRADIENTS, "over words": OVER_WORDS}
