"""Inputs and batches as people give them: in several parts, in nests, one after another."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn
from torch.utils.checkpoint import checkpoint

from tests.zoo.parts import N, Net, any_loss, class_loss, numbers, parameter, perceptron, tokens
from tests.zoo.programs.common import IDS, IMAGES, SEQUENCES, SQUARE, X, Y, linear, of
from tests.zoo.verdict import Program


def two_towers(m, batch):
    text = m.text(m.emb(batch["ids"]).mean(1))
    image = m.image(batch["pixels"].flatten(2).mean(-1))
    return F.cosine_similarity(text, image, dim=-1)[:, None] * m.scale.exp()


def video(m, x):
    """(N, C, T, H, W)."""
    h = torch.relu(m.conv(x))
    return m.last(h.mean((3, 4)).transpose(1, 2)).mean(1)


def frame_by_frame(m, x):
    n, c, t, h, w = x.shape
    frames = x.transpose(1, 2).reshape(n * t, c, h, w)
    each = m.conv(frames).mean((2, 3)).view(n, t, -1)
    return m.last(m.time(each.transpose(1, 2)).transpose(1, 2).mean(1))


def points(m, x):
    """PointNet: shared layers on every point, the largest over points."""
    return m.last(torch.relu(m.first(x.transpose(1, 2))).amax(-1))


def in_two_halves(m, x):
    """As data-parallel replicas would: each half by itself, joined again."""
    return torch.cat([m.last(torch.tanh(m.first(half))) for half in x.chunk(2)])


def sample_by_sample(m, x):
    return torch.cat([m.last(torch.tanh(m.first(row))) for row in x.split(1)])


def unpadded(m, x):
    return torch.stack([m.last(m.first(row)) for row in x])


def checkpointed(m, x):
    return m.last(checkpoint(lambda h: torch.tanh(m.first(h)) * m.gain, x, use_reentrant=False))


def siamese(m, a, b):
    one, two = m.body(a), m.body(b)
    return m.head((one - two).abs())


def scaled_loss(model):
    (1024.0 * class_loss(model, X, Y)).backward()
    for p in model.parameters():
        p.grad.div_(1024.0)


def functional_head(m, x):
    """A function that the user reuses on two parameters."""

    def block(h, weight, bias):
        return torch.tanh(torch.nn.functional.linear(h, weight, bias))

    return block(block(x, m.first.weight, m.first.bias), m.first.weight, m.second.bias)


def sequence_first(m, ids):
    """(T, N) token ids, as torch's language models take them."""
    h = m.emb(ids) + m.pos[: len(ids)].unsqueeze(1)
    return m.last(m.layer(h, torch.full((len(ids), len(ids)), -torch.inf).triu(1))).transpose(0, 1)


def einsum_attention(m, x):
    q, k, v = (torch.einsum("ntd,dhe->nhte", x, w) for w in (m.q, m.k, m.v))
    return torch.einsum("nhte,hed->ntd", (q @ k.mT / math.sqrt(4)).softmax(-1) @ v, m.o)


def mixture_of_logistics(m, x):
    return torch.logsumexp(m.first(x).log_softmax(-1) - (x.mean(-1, keepdim=True) - m.centres).square(), -1)[:, None]


def rbf(m, x):
    return m.last(torch.exp(-torch.cdist(x, m.centres).square() * m.width.exp()))


def quantised(m, x):
    """VQ: the nearest code of every position, straight through, and the commitment in the output."""
    z = m.first(x)
    nearest = (z.unsqueeze(-2) - m.codes).square().sum(-1).argmin(-1)
    q = m.codes[nearest]
    return torch.cat([m.last(z + (q - z).detach()), (q - z.detach()).square(), (z - q.detach()).square()], -1)


def reparameterised(m, x):
    mean, log_var = m.encode(x).chunk(2, -1)
    z = mean + (0.5 * log_var).exp() * 0.3
    return torch.cat([m.decode(z), 0.5 * (mean.square() + log_var.exp() - log_var - 1)], -1)


def unet(m, x):
    a = torch.relu(m.down(x))
    b = torch.relu(m.middle(F.max_pool2d(a, 2)))
    return m.up(torch.cat([F.interpolate(b, scale_factor=2), a], 1))


def film(m, x, c):
    scale, shift = m.condition(c).unsqueeze(-1).unsqueeze(-1).chunk(2, 1)
    return m.last(m.conv(x) * (1 + scale) + shift)


def timestep(m, x, t):
    angles = t.to(x)[:, None] * torch.exp(-torch.arange(4).to(x))
    e = m.time(torch.cat([angles.sin(), angles.cos()], -1))
    return m.last(torch.tanh(m.first(x) + e))


def gated(m, x):
    a, b = m.up(x).chunk(2, -1)
    return m.down(F.silu(a) * b)


def rms(m, x):
    return m.last(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + m.weight))


def deep_equilibrium(m, x):
    z = torch.zeros_like(x)
    with torch.no_grad():
        for _ in range(5):
            z = torch.tanh(m.first(z) * 0.3 + x)
    return m.last(torch.tanh(m.first(z) * 0.3 + x))


def gradients_summed(model):
    """Accumulated over batches of two and four, each weighted by its part."""
    for part in (slice(0, 2), slice(2, 6)):
        (class_loss(model, X[part], Y[part]) * (part.stop - part.start) / N).backward()


def of_ids(ids):
    return Program(
        lambda: Net(
            sequence_first,
            emb=nn.Embedding(11, 8),
            pos=parameter(7, 8),
            layer=nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0),
            last=nn.Linear(8, 3),
        ),
        (ids,),
        lambda m, ids: any_loss(m, ids.T),
        options={"batch_dim": 1},
        measured=True,
    )


BATCHES = {
    "dictionaries of several modalities": Program(
        lambda: Net(
            two_towers,
            emb=nn.Embedding(11, 8),
            text=nn.Linear(8, 4),
            image=nn.Linear(3, 4),
            scale=nn.Parameter(torch.zeros(())),
        ),
        ({"ids": IDS, "pixels": IMAGES},),
        any_loss,
        measured=True,
    ),
    "video by a convolution in three dimensions": of(
        video, numbers(N, 2, 4, 5, 5), conv=lambda: nn.Conv3d(2, 4, 3, padding=1), last=linear(4, 3)
    ),
    "video by frames, T = N": of(
        frame_by_frame,
        numbers(N, 2, N, 5, 5),
        conv=lambda: nn.Conv2d(2, 4, 3),
        time=lambda: nn.Conv1d(4, 4, 3),
        last=linear(4, 3),
    ),
    "sets of points": of(points, SEQUENCES, first=lambda: nn.Conv1d(8, 6, 1), last=linear(6, 3)),
    "the batch in two halves": of(in_two_halves, measured=False, first=linear(), last=linear(8, 3)),
    "sample by sample, joined": of(sample_by_sample, SEQUENCES, first=linear(), last=linear(8, 3)),
    "sample by sample, stacked": of(unpadded, SEQUENCES, first=linear(), last=linear(8, 3)),
    "a checkpoint round parameters": of(checkpointed, first=linear(), gain=lambda: parameter(8), last=linear(8, 3)),
    "two inputs through one encoder": of(siamese, (X, X.flip(0)), body=linear(), head=linear(8, 3)),
    "a loss scaled up and gradients scaled down": Program(
        perceptron, (X, Y), class_loss, step=scaled_loss, situation="grad"
    ),
    "one function for several layers": of(functional_head, first=linear(), second=linear()),
    "token ids, sequence first": of_ids(IDS),
    "token ids, sequence first, T = N": of_ids(tokens(N, N)),
    "attention by einsum": of(
        einsum_attention,
        SEQUENCES,
        q=lambda: parameter(8, 2, 4),
        k=lambda: parameter(8, 2, 4),
        v=lambda: parameter(8, 2, 4),
        o=lambda: parameter(2, 4, 8),
    ),
    "attention by einsum, T = N": of(
        einsum_attention,
        SQUARE,
        q=lambda: parameter(8, 2, 4),
        k=lambda: parameter(8, 2, 4),
        v=lambda: parameter(8, 2, 4),
        o=lambda: parameter(2, 4, 8),
    ),
    "a mixture density": of(mixture_of_logistics, first=linear(8, 4), centres=lambda: parameter(4)),
    "radial basis functions": of(
        rbf, centres=lambda: parameter(N, 8), width=lambda: nn.Parameter(torch.zeros(())), last=linear(N, 3)
    ),
    "a code book": of(quantised, SEQUENCES, first=linear(), codes=lambda: parameter(7, 8), last=linear(8, 3)),
    "a variational autoencoder": of(reparameterised, encode=linear(8, 8), decode=linear(4, 8)),
    "a U-Net": of(
        unet,
        IMAGES,
        down=lambda: nn.Conv2d(3, 4, 3, padding=1),
        middle=lambda: nn.Conv2d(4, 6, 3, padding=1),
        up=lambda: nn.Conv2d(10, 3, 3, padding=1),
    ),
    "features modulated by a condition": of(
        film, (IMAGES, X), conv=lambda: nn.Conv2d(3, 4, 3), condition=linear(8, 8), last=lambda: nn.Conv2d(4, 2, 3)
    ),
    "a time step beside the input": of(
        timestep, (X, torch.arange(N)), first=linear(), time=linear(), last=linear(8, 3)
    ),
    "one looked-up row for all positions": of(
        lambda m, ids: m.last(torch.tanh(m.emb(ids) + m.pos(torch.full((len(ids), 1), 3)))).mean(1),
        IDS,
        emb=lambda: nn.Embedding(11, 8),
        pos=lambda: nn.Embedding(7, 8),
        last=linear(8, 3),
    ),
    "gated units": of(gated, SEQUENCES, up=linear(8, 12), down=linear(6, 8)),
    "a norm with one plus its weight": of(rms, SEQUENCES, weight=lambda: parameter(8), last=linear(8, 3)),
    "a fixed point, the last step with a graph": of(deep_equilibrium, first=linear(), last=linear(8, 3)),
    "accumulated, weighted by size": Program(
        perceptron, (X, Y), class_loss, step=gradients_summed, options={"mode": "exact"}, measured=True
    ),
}

PROGRAMS = {"written so": BATCHES}
