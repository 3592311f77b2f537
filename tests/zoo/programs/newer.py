"""Newer kinds of layers by hand: scans, fast weights, slots, tables of keys, tokens that are merged or left out."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from tests.zoo.parts import N, Net, any_loss, numbers, parameter
from tests.zoo.programs.sizes import LENGTHS
from tests.zoo.verdict import Program


def selective_scan(m, x):
    """Mamba's block: a convolution in time, steps and matrices that the input says, a gate."""
    u, gate = m.first(x).chunk(2, -1)
    u = F.silu(m.conv(u.mT)[..., : x.shape[1]].mT)
    step, b, c = m.second(u).split([8, 3, 3], -1)
    step = F.softplus(step + m.bias)
    state, outputs = x.new_zeros(len(x), 8, 3), []
    for t in range(x.shape[1]):
        decay = torch.exp(-step[:, t, :, None] * m.decay.exp())
        state = decay * state + step[:, t, :, None] * b[:, t, None] * u[:, t, :, None]
        outputs.append((state @ c[:, t, :, None]).squeeze(-1))
    return m.last((torch.stack(outputs, 1) + u * m.skip) * F.silu(gate)).mean(1)


def scan_by_doubling(m, x):
    a, b, length, width = torch.sigmoid(m.first(x)), m.second(x), x.shape[1], 1
    while width < length:
        before = F.pad(a, (0, 0, width, 0), value=1.0)[:, :length]
        b = a * F.pad(b, (0, 0, width, 0))[:, :length] + b
        a, width = a * before, 2 * width
    return m.last(b).mean(1)


def time_mixing(m, x):
    """RWKV's: sums weighted by decays, kept in range by the largest exponent so far."""
    earlier = F.pad(x, (0, 0, 1, -1))
    keys, values = (layer(x * mix + earlier * (1 - mix)) for layer, mix in ((m.first, m.mix), (m.second, m.other)))
    above = below = torch.zeros_like(keys[:, 0])
    largest, outputs = torch.full_like(above, -1e30), []
    for key, value in zip(keys.unbind(1), values.unbind(1), strict=True):
        top = torch.maximum(largest, m.bonus + key)
        old, new = torch.exp(largest - top), torch.exp(m.bonus + key - top)
        outputs.append((old * above + new * value) / (old * below + new))
        top = torch.maximum(largest - m.decay.exp(), key)
        old, new = torch.exp(largest - m.decay.exp() - top), torch.exp(key - top)
        above, below, largest = old * above + new * value, old * below + new, top
    return m.last(torch.stack(outputs, 1)).mean(1)


def matrix_memory(m, x):
    """xLSTM's mLSTM, all steps at once."""
    q, k, v = m.first(x).chunk(3, -1)
    enter, forget = m.second(x).unbind(-1)
    kept = F.logsigmoid(forget).cumsum(1)
    later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    weights = (kept[:, :, None] - kept[:, None] + enter[:, None]).masked_fill(later, -torch.inf)
    scores = q @ k.mT * torch.exp(weights - weights.amax(-1, keepdim=True))
    return m.last(scores / scores.sum(-1, keepdim=True).abs().clamp(min=1) @ v).mean(1)


def delta_rule(m, x):
    """Weights that every sample writes for itself; the first ones are learned."""
    weights, outputs = m.weight.expand(len(x), 8, 8), []
    for step in x.unbind(1):
        key, value, rate = m.first(step).softmax(-1), m.second(step), m.rate(step).sigmoid()
        wrong = value - torch.einsum("nij,nj->ni", weights, key)
        weights = weights + rate[..., None] * torch.einsum("ni,nj->nij", wrong, key)
        outputs.append(torch.einsum("nij,nj->ni", weights, step))
    return m.last(torch.stack(outputs, 1)).mean(1)


def slots(m, x):
    keys, values = m.first(x), m.second(x)
    state = (m.mean + m.spread.exp() * torch.cos(torch.arange(24.0)).view(3, 8)).expand(len(x), 3, 8)
    for _ in range(2):
        shares = (keys @ m.query(m.norm(state)).mT / 3).softmax(-1) + 1e-8
        read = (shares / shares.sum(1, keepdim=True)).mT @ values
        state = m.cell(read.reshape(-1, 8), state.reshape(-1, 8)).view(len(x), 3, 8)
    return m.last(state).mean(1)


def product_keys(m, x):
    """Values of the best pairs of two halves of keys, in a bag of weighted rows."""
    halves = m.first(x).flatten(0, 1).chunk(2, -1)
    (one, i), (other, j) = ((half @ keys.T).topk(2) for half, keys in zip(halves, (m.left, m.right), strict=True))
    scores, best = (one[:, :, None] + other[:, None]).flatten(1).topk(2)
    rows = (i[:, :, None] * 4 + j[:, None]).flatten(1).gather(1, best)
    bags = F.embedding_bag(rows, m.values, per_sample_weights=scores.softmax(-1), mode="sum")
    return m.last(bags.view(x.shape)).mean(1)


def relative_shift(m, x):
    """Transformer-XL's: distances by padding, viewing otherwise and cutting."""
    n, t, _ = x.shape
    q, k, v = m.first(x).chunk(3, -1)
    distances = m.second(torch.linspace(1, 0, t)[:, None] * torch.ones(8))
    by_place = F.pad(torch.einsum("ntd,sd->nts", q + m.by_place, distances), (1, 0)).view(n, t + 1, t)[:, 1:]
    return m.last((torch.einsum("ntd,nsd->nts", q + m.by_content, k) + by_place.view(n, t, t)).softmax(-1) @ v).mean(1)


def some_tokens_deeper(m, x):
    scores = m.first(x).squeeze(-1)
    values, chosen = scores.topk(max(1, x.shape[1] // 2), 1)
    places = chosen[..., None].expand(-1, -1, 8)
    return m.last(x.scatter_add(1, places, m.second(x.gather(1, places)) * values[..., None].sigmoid())).mean(1)


def merged_tokens(m, x):
    even, odd = x[:, ::2], x[:, 1::2]
    nearest = (F.normalize(even, dim=-1) @ F.normalize(odd, dim=-1).mT).argmax(-1)
    merged = odd.scatter_reduce(1, nearest[..., None].expand(-1, -1, 8), even, "mean")
    return m.last(m.first(merged)).mean(1)


def linear(inputs=8, outputs=8):
    return lambda: nn.Linear(inputs, outputs)


def vector():
    return parameter(8)


NEWER = {
    "a selective scan": (
        selective_scan,
        {
            "first": linear(8, 16),
            "conv": lambda: nn.Conv1d(8, 8, 3, padding=2, groups=8),
            "second": linear(8, 14),
            "bias": vector,
            "decay": lambda: parameter(8, 3),
            "skip": vector,
        },
    ),
    "a scan by doubling": (scan_by_doubling, {"first": linear(), "second": linear()}),
    "time mixing": (
        time_mixing,
        {"first": linear(), "second": linear(), "mix": vector, "other": vector, "bonus": vector, "decay": vector},
    ),
    "a memory of matrices": (matrix_memory, {"first": linear(8, 24), "second": linear(8, 2)}),
    "fast weights by the delta rule": (
        delta_rule,
        {"first": linear(), "second": linear(), "rate": linear(8, 1), "weight": lambda: parameter(8, 8)},
    ),
    "slots": (
        slots,
        {
            "first": linear(),
            "second": linear(),
            "query": linear(),
            "norm": lambda: nn.LayerNorm(8),
            "mean": lambda: parameter(1, 1, 8),
            "spread": lambda: parameter(1, 1, 8),
            "cell": lambda: nn.GRUCell(8, 8),
        },
    ),
    "product keys": (
        product_keys,
        {
            "first": linear(),
            "left": lambda: parameter(4, 4),
            "right": lambda: parameter(4, 4),
            "values": lambda: parameter(16, 8),
        },
    ),
    "distances by a shift": (
        relative_shift,
        {"first": linear(8, 24), "second": linear(), "by_content": vector, "by_place": vector},
    ),
    "some tokens deeper": (some_tokens_deeper, {"first": linear(8, 1), "second": linear()}),
    "merged tokens": (merged_tokens, {"first": linear()}),
}


def program(name, length):
    compute, parts = NEWER[name]

    def made():
        return Net(compute, **{key: make() for key, make in parts.items()}, last=nn.Linear(8, 3))

    return Program(made, (numbers(N, length, 8),), any_loss, measured=True)


PROGRAMS = {f"newer ({where})": {name: program(name, t) for name in NEWER} for where, t in LENGTHS.items()}
