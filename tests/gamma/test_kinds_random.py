"""Programs at random of operations that choose, order, cut and join rows: right or refused, never wrong.

Every operation is done to the activations and to the numbers of their samples, which autograd never sees: whose an
output is says the oracle, and nothing of the code under test.
"""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

import sdsd
from tests.zoo.verdict import compare

N = 6
PROGRAMS, EACH = 240, 40


class Random(nn.Module):
    def __init__(self, operations):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.table, self.gru = nn.Embedding(5, 8), nn.GRU(8, 8, batch_first=True)
        self.gain = nn.Parameter(torch.randn(8))
        self.operations = operations

    def forward(self, x, samples=None):
        for operation in self.operations:
            x, samples = operation(self, x, samples)
        return (self.layers[2](x), samples)


def alike(f):
    """The same done to activations and to the numbers of their samples."""
    return lambda m, x, samples: (f(x), None if samples is None else f(samples))


def computed(f):
    """What changes the values and not where they are."""
    return lambda m, x, samples: (f(m, x), samples)


def of_matrices(operation):
    return lambda m, x, samples: operation(m, x, samples) if x.dim() == 2 else (x, samples)


def of_sequences(operation):
    return lambda m, x, samples: operation(m, x, samples) if x.dim() == 3 else (x, samples)


def where(choose):
    def operation(m, x, samples):
        index = choose(x)
        return x[index], None if samples is None else samples[index]

    return operation


def order(x, seed):
    return torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))


def filled(m, x):
    out = torch.zeros_like(x)
    for i in range(len(x)):
        out[i] = m.layers[0](x[i])
    return out


def halves_written(m, x):
    out, half = torch.zeros_like(x), max(1, len(x) // 2)
    out[:half], out[half:] = m.layers[0](x[:half]), 0.3 * x[half:]
    return out


def masked_write(m, x):
    out, mask = torch.zeros_like(x), x[..., 0] > 0
    out[mask] = m.layers[1](x[mask])
    return out + x


def added_back(m, x):
    places = (x[:, 0] > 0).nonzero().squeeze(1)
    return x.index_add(0, places, m.layers[1](x[places]))


OPERATIONS = [
    computed(lambda m, x: torch.tanh(m.layers[0](x))),
    computed(lambda m, x: torch.tanh(m.layers[1](x))),
    computed(lambda m, x: x * m.gain),
    computed(lambda m, x: x + m.table((3 * x[..., 0].detach()).long().clamp(0, 4))),
    of_sequences(computed(lambda m, x: m.gru(x)[0])),
    of_sequences(computed(lambda m, x: x.cumsum(1))),
    computed(filled),
    computed(halves_written),
    computed(masked_write),
    of_matrices(computed(added_back)),
    computed(lambda m, x: torch.stack([m.layers[1](x[i]) for i in range(len(x))])),
    where(lambda x: x[..., 0] > -0.4),
    where(lambda x: (x[..., 0] > -0.4).nonzero(as_tuple=True)),
    of_matrices(where(lambda x: (10 * x[:, 0]).long().argsort())),
    where(lambda x: torch.arange(len(x)) % 3 != 1),
    where(lambda x: order(x, 1)),
    where(lambda x: order(x, 2)),
    where(lambda x: order(x, 3)[torch.arange(4) % max(1, len(x))]),
    alike(lambda x: x[1:] if len(x) > 1 else x),
    alike(lambda x: x[::2]),
    alike(lambda x: x[len(x) // 2 : len(x) // 2 + 1]),
    alike(lambda x: torch.cat(list(x.split(2))[::-1])),
    alike(lambda x: torch.cat([x[:1], x[2:]])),
    alike(lambda x: torch.stack([x[i] for i in range(len(x) - 1, -1, -1)])),
    alike(lambda x: x.index_select(0, torch.arange(len(x) - 1, -1, -1))),
    alike(lambda x: x.flip(0)),
    alike(lambda x: x.roll(1, 0)),
    alike(lambda x: x.repeat_interleave(2, 0)),
    alike(lambda x: torch.cat([x, x])),
    of_sequences(alike(lambda x: x.flatten(0, 1))),
    of_sequences(alike(lambda x: x[:, 0])),
    of_sequences(alike(lambda x: x.transpose(0, 1))),
    of_matrices(alike(lambda x: x.unflatten(0, (-1, 2)) if len(x) % 2 == 0 else x)),
]


def judged(seed):
    """One of "right", "wrong" with what differs, "refused", or None of a program that leaves nothing."""
    draw = random.Random(seed)
    length, operations = draw.choice([2, 4, N]), draw.choices(OPERATIONS, k=draw.randint(2, 6))
    torch.manual_seed(seed)
    model, x = Random(operations), torch.randn(N, length, 8)
    out, owners = model(x, torch.arange(N)[:, None].expand(N, length))
    if not out.numel():
        return None
    parameters = dict(model.named_parameters())
    rows = {name: [] for name in parameters}
    for i in range(N):
        loss = (out.square().sum(-1) * (owners == i)).sum()
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, retain_graph=True)
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            rows[name].append(torch.zeros_like(parameter) if gradient is None else gradient)
    with sdsd.GammaMonitor(model) as monitor:
        (model(x)[0].square().sum() / N).backward()
        try:
            stats = monitor.step()
        except ValueError as error:
            return f"program {seed}: {error}" if "does not prove itself" in str(error) else "refused"
    rows = {name: torch.stack(each) for name, each in rows.items() if name in stats.parameters}
    verdict = compare(stats, rows)
    return verdict.kind if verdict.kind == "right" else f"program {seed}: {verdict.why}"


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("first", range(0, PROGRAMS, EACH))
def test_right_or_refused(first):
    verdicts = [judged(seed) for seed in range(first, first + EACH)]
    wrong = [each for each in verdicts if each not in ("right", "refused", None)]
    assert not wrong, wrong[0]
    assert verdicts.count("right") > EACH // 4, "hardly anything was measured, so that nothing was tested"
