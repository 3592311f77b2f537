"""Losses that are a mean over all tokens of a batch, as causal language models have them: what a sample is then."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import sdsd

N, T, VOCABULARY = 6, 5, 11
LENGTHS = (5, 1, 3, 5, 2, 4)
TOKENS = sum(LENGTHS)
IGNORED = -100


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.norm, self.head = nn.Embedding(VOCABULARY, 4), nn.LayerNorm(4), nn.Linear(4, VOCABULARY)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.tokens(x).cumsum(1))))


def data():
    draw = torch.Generator().manual_seed(3)
    x, y = (torch.randint(VOCABULARY, (N, T), generator=draw) for _ in range(2))
    for row, length in enumerate(LENGTHS):
        y[row, length:] = IGNORED
    return x, y


def make():
    torch.manual_seed(0)
    return Model().double()


def token_losses(model, x, y):
    """(n, T), zero where the label is ignored."""
    return cross_entropy(model(x).transpose(1, 2), y, ignore_index=IGNORED, reduction="none")


def rows_by_loop(weigh):
    """weigh(tokens' losses of one sample, its length) → the loss whose gradient that sample has; float64."""
    model, (x, y) = make(), data()
    rows = []
    for row, length in enumerate(LENGTHS):
        loss = weigh(token_losses(model, x[row : row + 1], y[row : row + 1]), length)
        grads = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([grad.flatten() for grad in grads]))
    return torch.stack(rows)


def measured(*losses, **options):
    """Statistics of one step of backward passes, and its .grad."""
    model = make()
    with sdsd.GammaMonitor(model, mode="exact", **options) as monitor:
        for loss in losses:
            loss(model).backward()
        stats = monitor.step()
    return stats, torch.cat([p.grad.flatten() for p in model.parameters()])


def equal(stats, rows):
    assert stats.n == N
    assert stats.signal == pytest.approx(rows.mean(0).square().sum().item(), rel=1e-10)
    assert stats.noise == pytest.approx(rows.var(0).sum().item(), rel=1e-10)


def mean_over_tokens(model):
    x, y = data()
    return cross_entropy(model(x).flatten(0, 1), y.flatten(), ignore_index=IGNORED)


def test_two_samples_by_hand():
    """One weight; a sample of one token with gradient a = 2, one of three tokens with b = 6 each.

    The loss divides by 4 tokens: contributions a/4 and 3b/4, so g = n × contribution = 1 and 9, of mean 5 = .grad.
    Signal 25, noise ((1 − 5)² + (9 − 5)²) / 1 = 32, unbiased signal 25 − 32/2 = 9.
    """
    model = nn.Linear(1, 1, bias=False).double()
    x = torch.tensor([[2.0, 0, 0], [6, 6, 6]], dtype=torch.float64)
    mask = torch.tensor([[1.0, 0, 0], [1, 1, 1]], dtype=torch.float64)
    with sdsd.GammaMonitor(model, mode="exact") as monitor:
        ((model(x[..., None])[..., 0] * mask).sum() / mask.sum()).backward()
        stats = monitor.step()
    assert model.weight.grad.item() == pytest.approx(5)
    assert (stats.signal, stats.noise, stats.signal_unbiased) == pytest.approx((25, 32, 9))
    assert stats.noise_scale == pytest.approx(32 / 9)


def test_a_sample_counts_by_its_share_of_the_tokens():
    """g = n × contribution = (n / all tokens) ∇ Σ_t loss: of mean .grad, longer samples weigh more."""
    stats, grad = measured(mean_over_tokens)
    rows = rows_by_loop(lambda losses, length: losses.sum() * N / TOKENS)
    equal(stats, rows)
    torch.testing.assert_close(grad, rows.mean(0))


def test_a_mean_over_each_samples_tokens_first_lets_all_count_alike():
    def loss(model):
        x, y = data()
        return (token_losses(model, x, y).sum(1) / (y != IGNORED).sum(1)).mean()

    rows = rows_by_loop(lambda losses, length: losses.sum() / length)
    stats, _ = measured(loss)
    equal(stats, rows)
    by_tokens, _ = measured(mean_over_tokens)
    assert stats.noise_scale_raw != pytest.approx(by_tokens.noise_scale_raw, rel=1e-3)


def test_a_sum_over_tokens_has_the_same_noise_scale():
    stats, _ = measured(lambda model: token_losses(model, *data()).sum(), loss_reduction="sum")
    equal(stats, rows_by_loop(lambda losses, length: losses.sum()))
    mean, _ = measured(mean_over_tokens)
    assert stats.noise_scale_raw == pytest.approx(mean.noise_scale_raw, rel=1e-10)


def test_accumulation_normalised_by_all_tokens_of_the_step():
    """Two passes of unequal length, each a sum divided by the tokens of both: as one batch, at any cut."""
    x, y = data()

    def passed(start, stop):
        return lambda model: token_losses(model, x[start:stop], y[start:stop]).sum() / TOKENS

    rows = rows_by_loop(lambda losses, length: losses.sum() * N / TOKENS)
    for cut in (2, 3, 5):
        stats, grad = measured(passed(0, cut), passed(cut, N))
        equal(stats, rows)
        torch.testing.assert_close(grad, rows.mean(0))


def test_accumulation_of_means_over_each_passs_tokens_is_another_gradient():
    """Half of the mean over a pass's own tokens: what a token weighs depends on the pass it came in."""
    x, y = data()
    own = [sum(LENGTHS[:3]), sum(LENGTHS[3:])]

    def passed(index):
        part = slice(3 * index, 3 * index + 3)
        return lambda model: token_losses(model, x[part], y[part]).sum() / own[index] / 2

    stats, _ = measured(passed(0), passed(1))
    weights = iter([N / 2 / own[row // 3] for row in range(N)])
    equal(stats, rows_by_loop(lambda losses, length: losses.sum() * next(weights)))


def test_micro_batches_of_unequal_tokens():
    """Divided by the tokens of the whole step, M × what a pass adds to .grad is its gradient."""
    x, y = data()
    model = make()
    with sdsd.GammaMonitor(model, mode="micro") as monitor:
        for start in (0, 2, 4):
            (token_losses(model, x[start : start + 2], y[start : start + 2]).sum() / TOKENS).backward()
        stats = monitor.step()
    rows = rows_by_loop(lambda losses, length: losses.sum() / TOKENS).unflatten(0, (3, 2)).sum(1) * 3
    assert (stats.n, stats.samples_per_gradient) == (3, 2)
    assert stats.signal == pytest.approx(rows.mean(0).square().sum().item(), rel=1e-10)
    assert stats.noise == pytest.approx(rows.var(0).sum().item(), rel=1e-10)
