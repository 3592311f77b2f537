"""Losses that compare samples with each other, or with what another model says; checkpoints in each other."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from tests.zoo.parts import N, Net, class_loss, classes, numbers, perceptron
from tests.zoo.programs.common import IDS
from tests.zoo.programs.passes import X, Y, program
from tests.zoo.verdict import Program

VIEW = X + 0.3 * numbers(N, 8, seed=9)


def of_embeddings(loss, *views, **options):
    """A loss of all embeddings together: what a sample contributes is its gradient through its own embeddings."""

    def step(model):
        loss(*(model(view) for view in views)).backward()

    def contribution(model, i):
        with torch.no_grad():
            others = [model(view) for view in views]
        own = [torch.cat([z[:i], model(v[i : i + 1]), z[i + 1 :]]) for z, v in zip(others, views, strict=True)]
        return loss(*own)

    options = {"batch_size": N} if len(views) > 1 else {}
    return program(step, contribution=contribution, options=options, measured=True)


def info_nce(a, b):
    a, b = F.normalize(a), F.normalize(b)
    return F.cross_entropy(a @ b.T / 0.5, torch.arange(len(a)))


def redundancy(a, b):
    """Barlow Twins."""
    a, b = (a - a.mean(0)) / a.std(0), (b - b.mean(0)) / b.std(0)
    return (a.T @ b / N - torch.eye(a.shape[1])).square().sum()


def hardest(z):
    distances = torch.cdist(z, z)
    return (distances.amax(1) - (distances + 10 * torch.eye(N)).amin(1) + 5).relu().mean()


def overlap(z):
    """Dice: one quotient for the whole batch."""
    p, wanted = z.sigmoid(), (X[:, :3] > 0).to(z)
    return 1 - 2 * (p * wanted).sum() / (p.sum() + wanted.sum())


def hard_examples(z):
    return F.cross_entropy(z, Y, reduction="none").topk(3)[0].mean()


class Queue(nn.Module):
    """MoCo: negatives from a queue that each batch adds its keys to."""

    def __init__(self):
        super().__init__()
        self.query = nn.Linear(8, 4)
        self.key = copy.deepcopy(self.query).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(4, 12), dim=0))

    def forward(self, x, view):
        q = F.normalize(self.query(x))
        with torch.no_grad():
            k = F.normalize(self.key(view))
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ self.queue.clone().detach()], 1)
        with torch.no_grad():
            self.queue[:, : len(k)] = k.T
        return logits


def of_queue(model, x, view):
    return F.cross_entropy(model(x, view), torch.zeros(len(x), dtype=torch.long))


def one_batch(model):
    before = model.queue.clone()
    of_queue(model, X, VIEW).backward()
    model.queue.copy_(before)


def one_of_it(model, i):
    before = model.queue.clone()
    loss = of_queue(model, X[i : i + 1], VIEW[i : i + 1]) / N
    model.queue.copy_(before)
    return loss


def bootstrapped(model):
    """BYOL: a target network that does not train."""
    with torch.no_grad():
        targets = model.target(VIEW), model.target(X)
    (2 - sum(F.cosine_similarity(model(x), t).mean() for x, t in zip((X, VIEW), targets, strict=True))).backward()


def one_bootstrapped(model, i):
    one, other = X[i : i + 1], VIEW[i : i + 1]
    with torch.no_grad():
        targets = model.target(other), model.target(one)
    return -sum(F.cosine_similarity(model(x), t).mean() for x, t in zip((one, other), targets, strict=True)) / N


def with_target():
    online = perceptron()
    target = copy.deepcopy(online).requires_grad_(False)
    return Net(lambda m, x: m.predictor(m.online(x)), online=online, predictor=nn.Linear(3, 3), target=target)


def preferred(model):
    """DPO: chosen and rejected one after another."""
    out = model(torch.stack([X, VIEW], 1).flatten(0, 1)).sum(-1)
    F.logsigmoid(out[0::2] - out[1::2]).mean().backward()


def one_preferred(model, i):
    return F.logsigmoid(model(X[i : i + 1]).sum(-1) - model(VIEW[i : i + 1]).sum(-1)).mean() / N


CONTRAST = {
    "two views (SimCLR)": of_embeddings(info_nce, X, VIEW),
    "redundancy of features (Barlow Twins)": of_embeddings(redundancy, X, VIEW),
    "the hardest triplet of the batch": of_embeddings(hardest, X),
    "a quotient of the batch (dice)": of_embeddings(overlap, X),
    "the hardest examples alone": of_embeddings(hard_examples, X),
    "three views (triplets)": of_embeddings(lambda a, b, c: F.triplet_margin_loss(a, b, c, 5.0), X, VIEW, X.flip(0)),
    "a queue of negatives (MoCo)": Program(
        Queue, (X, VIEW), of_queue, step=one_batch, contribution=one_of_it, measured=True
    ),
    "a target network (BYOL)": Program(
        with_target,
        (X, Y),
        class_loss,
        step=bootstrapped,
        contribution=one_bootstrapped,
        options={"batch_size": N},
        measured=True,
    ),
    "chosen and rejected (DPO)": program(
        preferred, contribution=one_preferred, options={"batch_size": N}, measured=True
    ),
}


def nested(m, x):
    inner = lambda h: torch.tanh(m.second(h))  # noqa: E731
    outer = lambda h: torch.tanh(checkpoint(inner, m.first(h), use_reentrant=False))  # noqa: E731
    return m.last(checkpoint(outer, x, use_reentrant=False))


def in_segments(m, x):
    return checkpoint_sequential(m.layers, 2, x, use_reentrant=False)


def reentrant(function, x):
    return checkpoint(function, x, use_reentrant=True)


def mixing(m, x):
    return reentrant(lambda h: torch.tanh(h - h.mean(0)), m.first(x))


def tied(m, ids):
    h = checkpoint(lambda h: torch.tanh(m.body(h)), m.emb(ids), use_reentrant=False)
    return F.linear(h, m.emb.weight).mean(1)


def three_layers(compute):
    return lambda: Net(compute, first=nn.Linear(8, 8), second=nn.Linear(8, 8), last=nn.Linear(8, 3))


def offloaded(model):
    with torch.autograd.graph.save_on_cpu():
        loss = class_loss(model, X, Y)
    loss.backward()


CHECKPOINTS = {
    "a checkpoint within a checkpoint": Program(three_layers(nested), (X, Y), class_loss, measured=True),
    "reentrant ones within each other, nothing after them": Program(
        three_layers(
            lambda m, x: reentrant(lambda h: m.last(reentrant(lambda h: reentrant(m.second, h), h)), m.first(x))
        ),
        (X, Y),
        class_loss,
        measured=True,
    ),
    "a reentrant one within another": Program(
        three_layers(
            lambda m, x: m.last(
                checkpoint(lambda h: torch.tanh(reentrant(m.second, h)), m.first(x), use_reentrant=False)
            )
        ),
        (X, Y),
        class_loss,
        measured=True,
    ),
    "another within a reentrant one": Program(
        three_layers(
            lambda m, x: reentrant(
                lambda h: m.last(checkpoint(lambda h: torch.tanh(m.second(h)), h, use_reentrant=False)), m.first(x)
            )
        ),
        (X, Y),
        class_loss,
        measured=True,
    ),
    "samples mixed in a reentrant one": Program(three_layers(mixing), (X, Y), class_loss, hopeless=True),
    "segments of a chain": Program(
        lambda: Net(in_segments, layers=nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 3))),
        (X, Y),
        class_loss,
        measured=True,
    ),
    "between a table and its tied head": Program(
        lambda: Net(tied, emb=nn.Embedding(11, 8), body=nn.Linear(8, 8)),
        (IDS, classes(below=11)),
        class_loss,
        measured=True,
    ),
    "saved on the CPU": Program(
        three_layers(lambda m, x: m.last(checkpoint(m.second, torch.tanh(m.first(x)), use_reentrant=False))),
        (X, Y),
        class_loss,
        step=offloaded,
        measured=True,
    ),
}

PROGRAMS = {"contrast": CONTRAST, "checkpoints": CHECKPOINTS}
