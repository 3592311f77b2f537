"""Policies, densities, label sequences, and points: what is drawn, sorted, solved for, or looked up between points."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import distributions, nn

from tests.zoo.parts import N, Net, any_loss, numbers, parameter, tokens
from tests.zoo.programs.common import IMAGES, SEQUENCES, SQUARE, X, Y, linear, of
from tests.zoo.verdict import Program


def of_shape(*shape: int):
    return lambda: parameter(*shape)


def gaussian_policy(m, state, action):
    mean = m.last(torch.tanh(m.first(state)))
    return distributions.Normal(mean, m.log_std.exp()).log_prob(action).sum(-1, keepdim=True)


def full_covariance(m, state, action):
    return distributions.MultivariateNormal(m.first(state), scale_tril=m.factor.tril()).log_prob(action)[:, None]


def mixture(m, x, _):
    weights = distributions.Categorical(logits=m.logits)
    parts = distributions.Independent(distributions.Normal(m.means, m.log_std.exp()), 1)
    return distributions.MixtureSameFamily(weights, parts).log_prob(m.first(x))[:, None]


def coupled(m, x):
    """RealNVP: two affine couplings and the logarithm of their determinant."""
    z, log_det = x, torch.zeros(len(x)).to(x)
    for scale, shift in ((m.scale_one, m.shift_one), (m.scale_two, m.shift_two)):
        a, b = z.chunk(2, -1)
        log_scale = torch.tanh(scale(a))
        z, log_det = torch.cat([b * log_scale.exp() + shift(a), a], -1), log_det + log_scale.sum(-1)
    return (z.square().sum(-1) / 2 - log_det)[:, None]


def invertible(m, x):
    """Glow: a learned 1 × 1 convolution, whose log-determinant every sample gets."""
    z = F.conv2d(x, m.mix[:, :, None, None])
    log_det = torch.slogdet(m.mix)[1] * z[0, 0].numel()
    return torch.cat([z.flatten(1), log_det.expand(len(x), 1)], 1)


def random_field(m, x, labels):
    """A linear chain: the score of the labels against that of all sequences."""
    scores = m.first(x)
    score = scores.gather(2, labels[..., None]).squeeze(2).sum(1) + m.moves[labels[:, :-1], labels[:, 1:]].sum(1)
    forward = m.start + scores[:, 0]
    for t in range(1, x.shape[1]):
        forward = torch.logsumexp(forward.unsqueeze(2) + m.moves + scores[:, t].unsqueeze(1), 1)
    return (torch.logsumexp(forward, 1) - score)[:, None]


def alignments(m, x, labels):
    log_p = m.first(x).log_softmax(-1).transpose(0, 1)
    lengths = torch.full((len(x),), x.shape[1]), torch.full((len(x),), labels.shape[1])
    return F.ctc_loss(log_p, labels, *lengths, reduction="none")[:, None]


def frequent_words_first(m, x, words):
    return m.softmax(m.first(x), words).output[:, None]


def long_filters(m, x):
    """A filter as long as the sequence, applied by Fourier transforms."""
    length = x.shape[1]
    kernel = m.filter[:length] * torch.exp(-m.decay.abs() * torch.arange(length).to(x)[:, None])
    y = torch.fft.irfft(torch.fft.rfft(x, n=2 * length, dim=1) * torch.fft.rfft(kernel, n=2 * length, dim=0), dim=1)
    return m.last(y[:, :length] + x * m.skip)


def field_at_points(m, points):
    """A learned plane of features, a sample a point."""
    at = F.grid_sample(m.plane, points.tanh().view(1, -1, 1, 2), align_corners=True)
    return m.last(at.flatten(2).squeeze(0).T)


def field_at_sets(m, points):
    """The same with several points a sample."""
    at = F.grid_sample(m.plane.expand(len(points), -1, -1, -1), points.tanh()[:, :, None], align_corners=True)
    return m.last(at.squeeze(-1).transpose(1, 2))


def hashed(m, points):
    cells = (points * 7).long()
    rows = (cells[..., 0] ^ cells[..., 1] * 2654435761) % 16
    return m.last(m.table[rows] * (points * 7 - cells).abs().prod(-1, keepdim=True))


def nearest_of_the_same_set(m, x):
    nearest = torch.cdist(x, x).topk(2, largest=False)[1]
    own = torch.arange(len(x)).view(-1, 1, 1).expand_as(nearest)
    return m.last(torch.relu(m.first(x[own, nearest])).amax(2))


def nearest_by_flat_index(m, x):
    """DGCNN: indices into the points of all samples, one set after another."""
    nearest = torch.cdist(x, x).topk(2, largest=False)[1] + torch.arange(len(x)).view(-1, 1, 1) * x.shape[1]
    return m.last(torch.relu(m.first(x.flatten(0, 1)[nearest.flatten()].view(*nearest.shape, -1))).amax(2))


def unpooled(m, x):
    pooled, places = F.max_pool2d(m.down(x), 2, return_indices=True)
    return m.up(F.max_unpool2d(pooled, places, 2))


def modulated(m, x, style):
    """StyleGAN2: a kernel for each sample, the batch as groups of one image."""
    n = len(x)
    kernels = m.kernel * m.style(style).view(n, 1, 3, 1, 1)
    kernels = kernels * (kernels.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    return F.conv2d(x.reshape(1, n * 3, 8, 8), kernels.flatten(0, 1), padding=1, groups=n).view(n, 4, 8, 8)


def modulated_constant(m, style):
    """StyleGAN2's first layers: one learned image for all, already convolved, under a kernel for each sample."""
    n = len(style)
    kernels = m.kernel * m.style(style).view(n, 1, 3, 1, 1)
    image = m.before(m.image.repeat(n, 1, 1, 1))
    return F.conv2d(image.reshape(1, n * 3, 4, 4), kernels.flatten(0, 1), padding=1, groups=n).view(n, 4, 4, 4)


def blurred(m, x):
    """One learned kernel for every channel of every sample, the batch as groups of one image."""
    n = len(x)
    kernel = m.kernel.flatten().softmax(0).view(1, 1, 3, 3).expand(n * 3, -1, -1, -1)
    wide = F.conv_transpose2d(x.reshape(1, n * 3, 8, 8), kernel, m.shift.repeat(n), stride=2, groups=n * 3)
    return F.conv2d(wide, m.kernel.repeat(n * 3, 1, 1, 1), groups=n * 3).view(n, 3, -1)


DENSITIES = {
    "a policy with a learned spread": of(
        gaussian_policy, (X, numbers(N, 3)), first=linear(), last=linear(8, 3), log_std=of_shape(3)
    ),
    "a normal with a learned factor of its covariance": of(
        full_covariance,
        (X, numbers(N, 3)),
        first=linear(8, 3),
        factor=lambda: nn.Parameter(torch.eye(3) + 0.1),
    ),
    "a mixture of normals": of(
        mixture, (X, Y), first=linear(8, 3), logits=of_shape(4), means=of_shape(4, 3), log_std=of_shape(4, 3)
    ),
    "affine couplings": of(
        coupled, scale_one=linear(4, 4), shift_one=linear(4, 4), scale_two=linear(4, 4), shift_two=linear(4, 4)
    ),
    "an invertible convolution": of(invertible, IMAGES, mix=of_shape(3, 3)),
    "a conditional random field": of(
        random_field, (SEQUENCES, tokens(N, 4, below=3)), first=linear(8, 3), moves=of_shape(3, 3), start=of_shape(3)
    ),
    "alignments by CTC": of(alignments, (numbers(N, 7, 8), tokens(N, 2, below=3) + 1), first=linear(8, 5)),
    "a softmax of frequent words first": Program(
        lambda: Net(
            frequent_words_first,
            first=nn.Linear(8, 32),
            softmax=nn.AdaptiveLogSoftmaxWithLoss(32, 11, [3, 7], div_value=2.0),
        ),
        (X, torch.tensor([0, 2, 4, 6, 8, 10])),
        any_loss,
        measured=True,
    ),
}
POINTS = {
    "filters as long as the sequence, T = N": of(
        long_filters, SQUARE, filter=of_shape(N, 8), decay=of_shape(8), skip=of_shape(8), last=linear()
    ),
    "a plane of features, a point a sample": of(
        field_at_points, numbers(N, 2), plane=of_shape(1, 4, 5, 5), last=linear(4, 3)
    ),
    "a plane of features, points of a sample": of(
        field_at_sets, numbers(N, 3, 2), plane=of_shape(1, 4, 5, 5), last=linear(4, 3)
    ),
    "a table of hashed cells": of(hashed, numbers(N, 2), table=of_shape(16, 4), last=linear(4, 3)),
    "the nearest points of the same set": of(nearest_of_the_same_set, SEQUENCES, first=linear(), last=linear(8, 3)),
    "the nearest points by a flat index": of(nearest_by_flat_index, SEQUENCES, first=linear(), last=linear(8, 3)),
    "pooled and put back": of(
        unpooled, IMAGES, down=lambda: nn.Conv2d(3, 4, 3, padding=1), up=lambda: nn.Conv2d(4, 2, 3)
    ),
    "a learned image under a kernel for each sample": of(
        modulated_constant,
        X,
        style=linear(8, 3),
        kernel=of_shape(4, 3, 3, 3),
        image=of_shape(1, 3, 4, 4),
        before=lambda: nn.Conv2d(3, 3, 3, padding=1),
    ),
    "one kernel for every channel of every sample": of(blurred, IMAGES, kernel=of_shape(1, 1, 3, 3), shift=of_shape(3)),
    "a kernel for each sample": of(modulated, (IMAGES, X), style=linear(8, 3), kernel=of_shape(4, 3, 3, 3)),
}

PROGRAMS = {"densities": DENSITIES, "points": POINTS}
