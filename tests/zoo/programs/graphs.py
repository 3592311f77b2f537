"""Graphs side by side: nodes of all samples in one row, edges that name them by numbers with each sample's offset."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from tests.zoo.parts import N, Net, any_loss, numbers, tokens
from tests.zoo.programs.common import linear, of
from tests.zoo.verdict import Program


def edges_of(edges, nodes, shift=0):
    """(2, all edges) of node numbers from (N, 2, edges) of each sample's own; `shift`: to other samples."""
    n = len(edges)
    offsets = (torch.arange(n) + shift) % n * nodes
    return (edges + offsets.view(n, 1, 1)).permute(1, 0, 2).reshape(2, -1)


def passing(collect, read=lambda h, at: h[at], shift=0):
    """A layer of messages: from the features at an edge's ends, collected where it leads to."""

    def compute(m, x, edges):
        n, nodes, width = x.shape
        source, target = edges_of(edges, nodes, shift)
        h = x.reshape(n * nodes, width)
        messages = torch.tanh(m.message(torch.cat([read(h, source), read(h, target)], -1)))
        h = m.update(torch.cat([h, collect(messages, target, n * nodes)], -1))
        return m.last(h.view(n, nodes, -1).mean(1))

    return compute


def added(messages, at, nodes):
    return messages.new_zeros(nodes, messages.shape[1]).index_add_(0, at, messages)


def added_elsewhere(messages, at, nodes):
    return torch.zeros(nodes, messages.shape[1]).to(messages).index_add(0, at, messages)


def scattered(messages, at, nodes):
    at = at[:, None].expand_as(messages)
    return torch.zeros(nodes, messages.shape[1]).to(messages).scatter_add_(0, at, messages)


def largest(messages, at, nodes):
    at = at[:, None].expand_as(messages)
    zeros = torch.zeros(nodes, messages.shape[1]).to(messages)
    return zeros.scatter_reduce(0, at, messages, "amax", include_self=False)


def put(messages, at, nodes):
    return torch.zeros(nodes, messages.shape[1]).to(messages).index_put((at,), messages, accumulate=True)


def mean(messages, at, nodes):
    edges = torch.zeros(nodes).to(messages).index_add_(0, at, torch.ones(len(at)).to(messages))
    return added(messages, at, nodes) / edges.clamp(min=1)[:, None]


def attended(messages, at, nodes):
    """A softmax over the edges that lead to a node."""
    scores = messages[:, 0]
    top = torch.full((nodes,), -9.0).to(messages).scatter_reduce(0, at, scores, "amax")
    weights = (scores - top[at]).exp()
    total = torch.zeros(nodes).to(messages).scatter_add(0, at, weights)
    return added(messages * (weights / total[at])[:, None], at, nodes)


def pooled(collect):
    """Nodes collected by the number of their graph, a constant."""

    def compute(m, x, _):
        n, nodes, width = x.shape
        graph = torch.arange(n).repeat_interleave(nodes)
        return m.last(collect(torch.tanh(m.update(x.reshape(-1, width).repeat(1, 2))), graph, n))

    return compute


def nearest(read):
    """DGCNN: the neighbours of every point, all points in one row."""

    def compute(m, x, _):
        n, points, width = x.shape
        neighbours = torch.cdist(x, x).topk(2, largest=False).indices
        flat = (neighbours + torch.arange(n).view(n, 1, 1) * points).reshape(-1)
        around = read(x.reshape(n * points, width), flat).view(n, points, 2, width)
        joined = torch.cat([around - x.unsqueeze(2), x.unsqueeze(2).expand_as(around)], -1)
        return m.last(torch.tanh(m.message(joined)).amax(2).mean(1))

    return compute


READS = {
    "by brackets": lambda h, at: h[at],
    "by index_select": lambda h, at: h.index_select(0, at),
    "by gather": lambda h, at: h.gather(0, at[:, None].expand(-1, h.shape[1])),
    "by a lookup": lambda h, at: F.embedding(at, h),
}
COLLECTED = {
    "added": added,
    "added elsewhere": added_elsewhere,
    "scattered": scattered,
    "the largest": largest,
    "put": put,
    "the mean": mean,
    "attended to": attended,
}


def graph(compute, nodes, measured=True):
    batch = numbers(N, nodes, 8), tokens(N, 2, 7, below=nodes)
    parts = {"message": linear(16, 8), "update": linear(16, 8), "last": linear(8, 3)}
    return of(compute, batch, measured=measured, **parts)


def hopeless(compute):
    return Program(
        lambda: Net(compute, message=nn.Linear(16, 8), update=nn.Linear(16, 8), last=nn.Linear(8, 3)),
        (numbers(N, 4, 8), tokens(N, 2, 7, below=4)),
        any_loss,
        hopeless=True,
    )


LENGTHS = {"T = N": N, "T ≠ N": 4}
PROGRAMS = {
    f"graphs ({length})": {
        **{f"messages {name}": graph(passing(collect), nodes) for name, collect in COLLECTED.items()},
        **{f"read {name}": graph(passing(added, read), nodes) for name, read in READS.items()},
        **{f"neighbours {name}": graph(nearest(read), nodes) for name, read in READS.items()},
        **{f"pooled, {name}": graph(pooled(COLLECTED[name]), nodes) for name in ("added", "scattered", "the mean")},
    }
    for length, nodes in LENGTHS.items()
}
PROGRAMS["graphs that meet"] = {
    **{f"read {name}": hopeless(passing(added, read, shift=1)) for name, read in READS.items()},
    **{
        f"messages {name}": hopeless(
            lambda m, x, edges, collect=collect: m.last(
                collect(m.update(x.repeat(1, 2, 2)[:, :7].flatten(0, 1)), edges_of(edges, 4, shift=1)[0], len(x) * 4)
                .view(len(x), -1, 8)
                .mean(1)
            )
        )
        for name, collect in COLLECTED.items()
    },
}
