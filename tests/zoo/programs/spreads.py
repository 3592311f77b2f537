"""Parameters expanded to the shape of samples before anything has joined them: learned spreads of policies."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import distributions

from tests.zoo.parts import N, numbers, parameter
from tests.zoo.programs.common import SEQUENCES, X, linear, of


def of_shape(*shape: int):
    return lambda: parameter(*shape)


def returned(m, x):
    """As rl libraries have it: the mean and its spread go out, and the loss joins them."""
    mean = m.last(x)
    return torch.cat([mean, m.log_std.expand_as(mean)], 1)


def returned_apart(m, x):
    mean = m.last(x)
    return torch.stack([mean, F.softplus(m.log_std).expand_as(mean)], 1)


def entropy(m, x):
    mean = m.last(x)
    spread = m.log_std.expand_as(mean).exp()
    return torch.cat([mean, distributions.Normal(mean, spread).entropy()], 1)


def entropy_by_broadcasting(m, x):
    spread = F.softplus(m.log_std)
    policy = distributions.Independent(distributions.Normal(m.last(x), spread), 1)
    return torch.stack([policy.entropy(), policy.log_prob(x[:, :3]), (m.last(x) * spread).sum(1)], 1)


def joined_later_too(m, x):
    spread = F.softplus(m.log_std)
    return m.last(x) * spread + spread.expand_as(m.last(x)).square()


def of_every_position(m, x):
    hidden = m.first(x)
    return hidden.tanh() + m.shift.expand_as(hidden).sigmoid()


def as_long_as_the_batch(m, x, rows):
    """A table with a row for every sample is not expanded along them: each has its own."""
    mean = m.last(x)
    return mean * (m.table if len(x) == N else m.table[rows]).expand_as(mean)


def two_of_three(m, x):
    mean, spread, shift = torch.broadcast_tensors(m.last(x), m.log_std.exp(), m.shift)
    return torch.cat([mean, spread.square(), shift.sin()], 1)


def expanded_in_place(m, x):
    mean = m.last(x)
    spread = m.log_std.expand_as(mean).clone()
    spread[:, 0] += mean[:, 1]
    return spread.exp()


SPREADS = {
    "returned with the mean": of(returned, last=linear(8, 3), log_std=of_shape(1, 3)),
    "computed, returned apart": of(returned_apart, last=linear(8, 3), log_std=of_shape(3)),
    "an entropy": of(entropy, last=linear(8, 3), log_std=of_shape(3)),
    "an entropy of what torch.distributions broadcasts": of(
        entropy_by_broadcasting, last=linear(8, 3), log_std=of_shape(1, 3)
    ),
    "expanded and joined": of(joined_later_too, last=linear(8, 3), log_std=of_shape(3)),
    "at every position, T = N": of(of_every_position, numbers(N, N, 8), first=linear(), shift=of_shape(1, 1, 8)),
    "at every position": of(of_every_position, SEQUENCES, first=linear(), shift=of_shape(8)),
    "broadcast, two of three": of(two_of_three, last=linear(8, 3), log_std=of_shape(3), shift=of_shape(1)),
    "written into": of(expanded_in_place, last=linear(8, 3), log_std=of_shape(3)),
    "a table as long as the batch": of(
        as_long_as_the_batch, (X, torch.arange(N)), last=linear(8, 3), table=of_shape(N, 3)
    ),
}

PROGRAMS = {"spreads": SPREADS}
