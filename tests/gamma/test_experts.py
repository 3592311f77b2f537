"""Mixtures of experts as Hugging Face writes them: loops over experts that occur, tokens sorted by expert.

The oracle is a loop over samples of a float64 twin that runs every expert on every token, weighted by zero where it was
not chosen.
"""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import sdsd

EXPERTS, WIDTH, HIDDEN = 4, 8, 12


class Experts(nn.Module):
    """Two experts a token, gated; `run` says how they are run."""

    def __init__(self, run, bias=False):
        super().__init__()
        self.run = run
        self.first, self.gate = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, EXPERTS)
        self.up = nn.Parameter(torch.randn(EXPERTS, 2 * HIDDEN, WIDTH) * 0.3)
        self.down = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN) * 0.3)
        self.bias = nn.Parameter(torch.randn(EXPERTS, WIDTH)) if bias else None
        self.last = nn.Linear(WIDTH, 3)

    def forward(self, x):
        tokens = torch.tanh(self.first(x)).reshape(-1, WIDTH)
        weights, chosen = torch.softmax(self.gate(tokens), -1).topk(2, -1)
        return self.last(self.run(self, tokens, weights, chosen).view(x.shape).mean(1))


def gated(x):
    one, other = x.chunk(2, -1)
    return F.silu(one) * other


def dense(m, tokens, weights, chosen):
    """Every expert on every token."""
    out = torch.zeros_like(tokens)
    for k in range(EXPERTS):
        share = (weights * (chosen == k)).sum(-1, keepdim=True)
        here = gated(tokens @ m.up[k].T) @ m.down[k].T
        out = out + share * (here if m.bias is None else here + m.bias[k])
    return out


def masks(chosen):
    with torch.no_grad():
        mask = F.one_hot(chosen, EXPERTS + 1).permute(2, 1, 0)
        return mask, torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero()


def looped(m, tokens, weights, chosen):
    """Over the experts that occur, each by one number (transformers 5)."""
    out = torch.zeros_like(tokens)
    mask, hit = masks(chosen)
    for k in hit:
        k = k[0]
        if k == EXPERTS:
            continue
        place, token = torch.where(mask[k])
        here = F.linear(gated(F.linear(tokens[token], m.up[k])), m.down[k])
        out.index_add_(0, token, here * weights[token, place, None])
    return out


def looped_by_rows(m, tokens, weights, chosen):
    """The same with rows of one number (transformers 4)."""
    out = torch.zeros_like(tokens)
    mask, hit = masks(chosen)
    for k in hit:
        place, token = torch.where(mask[k].squeeze(0))
        here = F.linear(gated(F.linear(tokens[token], m.up[k].squeeze(0))), m.down[k].squeeze(0))
        out.index_add_(0, token, here * weights[token, place, None])
    return out


def sorted_tokens(m, tokens, weights, chosen, shift=0):
    """Tokens sorted by expert, one product for all (transformers 5, by default)."""
    experts, order = torch.sort(chosen.reshape(-1))
    rows = tokens[order // 2]
    ends = torch.histc(experts.float(), bins=EXPERTS, min=0, max=EXPERTS - 1).cumsum(0, dtype=torch.int32)
    ends = (ends - shift).clamp(min=0) if shift else ends
    up, down = (each.transpose(-2, -1) for each in (m.up, m.down))
    here = torch._grouped_mm(gated(torch._grouped_mm(rows, up, offs=ends)), down, offs=ends)
    if m.bias is not None:
        here.add_(m.bias[experts])
    here = here * weights.reshape(-1)[order].unsqueeze(-1)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order))
    return here[back].view(len(tokens), 2, WIDTH).sum(1)


def shifted(m, tokens, weights, chosen):
    """Parts that end one row early: a token of each expert meets the next one's matrix."""
    return sorted_tokens(m, tokens, weights, chosen, shift=1)


def elsewhere(m, tokens, weights, chosen):
    """Rows put back in another order."""
    order = chosen.reshape(-1).argsort()
    rows = tokens[order // 2] * weights.reshape(-1)[order].unsqueeze(-1)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order)).roll(1)
    return rows[back].view(-1, 2, WIDTH).sum(1)


def by_loop(model, x, y):
    """Signal and noise of every parameter, from a float64 twin that runs every expert."""
    twin = copy.deepcopy(model).double()
    twin.run = dense
    parameters = dict(twin.named_parameters())
    rows = {name: [] for name in parameters}
    for k in range(len(x)):
        loss = F.cross_entropy(twin(x[k : k + 1].double()), y[k : k + 1])
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for name, parameter, gradient in zip(parameters, parameters.values(), gradients, strict=True):
            rows[name].append((torch.zeros_like(parameter) if gradient is None else gradient).flatten())
    stacked = {name: torch.stack(each) for name, each in rows.items()}
    return {name: (r.mean(0).square().sum().item(), r.var(0).sum().item()) for name, r in stacked.items()}


def data(samples=5, positions=6):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(samples, positions, WIDTH, generator=generator), torch.arange(samples) % 3


def measured(model, x, y):
    with sdsd.GammaMonitor(model) as monitor:
        F.cross_entropy(model(x), y).backward()
        return monitor.step()


@pytest.mark.parametrize("positions", [6, 5])  # T = N as well
@pytest.mark.parametrize(
    ("run", "bias"), [(looped, False), (looped_by_rows, False), (sorted_tokens, False), (sorted_tokens, True)]
)
def test_measured_as_by_a_loop(run, bias, positions):
    torch.manual_seed(1)
    model = Experts(run, bias)
    x, y = data(positions=positions)
    twin = copy.deepcopy(model)
    stats = measured(model, x, y)
    F.cross_entropy(twin(x), y).backward()
    for (name, parameter), own in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, own.grad, rtol=1e-5, atol=1e-7, msg=name)
    for name, (signal, noise) in by_loop(model, x, y).items():
        size = signal + noise
        assert stats.parameters[name].signal == pytest.approx(signal, abs=1e-5 * size), name
        assert stats.parameters[name].noise == pytest.approx(noise, abs=1e-5 * size), name


def test_an_expert_that_no_token_chose():
    torch.manual_seed(1)
    for run in (looped, sorted_tokens):
        model = Experts(run)
        with torch.no_grad():
            model.gate.bias[2] = -50
        x, y = data()
        stats, wanted = measured(model, x, y), by_loop(model, x, y)
        assert stats.parameters["up"].noise == pytest.approx(wanted["up"][1], rel=1e-5)


def test_in_the_optimizers_metric():
    torch.manual_seed(1)
    model = Experts(sorted_tokens)
    x, y = data()
    optimizer = torch.optim.Adam(model.parameters())
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()
    second = optimizer.state[model.up]["exp_avg_sq"]
    scale = 1 / ((second / (1 - 0.999)).sqrt() + 1e-8)
    twin = copy.deepcopy(model)
    twin.run = dense
    rows = torch.stack(
        [torch.autograd.grad(F.cross_entropy(twin(x[k : k + 1]), y[k : k + 1]), twin.up)[0] for k in range(len(x))]
    )
    with sdsd.GammaMonitor(model, precondition=optimizer) as monitor:
        F.cross_entropy(model(x), y).backward()
        stats = monitor.step()
    wanted = (rows * scale).double().flatten(1).var(0).sum().item()
    assert stats.parameters["up"].noise == pytest.approx(wanted, rel=1e-3)


def trimmed(m, tokens, weights, chosen):
    """Every expert that occurs, on every token."""
    return sum(F.linear(gated(F.linear(tokens, m.up[k[0]])), m.down[k[0]]) for k in masks(chosen)[1])


def last_that_occurs(m, tokens, weights, chosen):
    return F.linear(gated(F.linear(tokens, m.up[masks(chosen)[1][-1, 0]])), m.down[0])


def all_that_occur(m, tokens, weights, chosen):
    up = m.up[masks(chosen)[1][:, 0]].mean(0)
    return F.linear(gated(F.linear(tokens, up)), m.down[0])


def columns_that_occur(m, tokens, weights, chosen):
    keep = (tokens.detach() > 1.0).any(0).nonzero().flatten()
    return tokens[:, keep].mean(1, keepdim=True) * m.down[0, :, 0]


def number_as_a_value(m, tokens, weights, chosen):
    out = dense(m, tokens, weights, chosen)
    for k in masks(chosen)[1]:
        out = out * (1 + k[0])
    return out


@pytest.mark.parametrize(
    "run",
    [shifted, elsewhere, trimmed, last_that_occurs, all_that_occur, columns_that_occur, number_as_a_value],
    ids=lambda run: run.__name__,
)
def test_what_other_samples_decide_is_refused(run):
    torch.manual_seed(1)
    x, y = data()
    with pytest.raises(ValueError, match="no exact per-sample gradient for"):
        measured(Experts(run), x, y)
