"""How losses are scaled, where the samples lie, and micro-batches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sdsd
from tests.gamma.models import (
    Gpt,
    mean_of_squares,
    per_sample_gradients,
    token_loss,
)

from .exact import N, assert_exact, images


class TestScaling:
    model = staticmethod(lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double())

    def truth(self, model, x, y):
        rows = torch.cat([g.flatten(1) for g in per_sample_gradients(model, x, y, mean_of_squares).values()], 1)
        return rows.mean(0).square().sum().item(), rows.var(0).sum().item()

    def test_sum_reduction(self):
        model, x, y = self.model(), images(5), torch.randn(N, dtype=torch.float64)
        signal, noise = self.truth(model, x, y)
        with sdsd.GammaMonitor(model, mode="exact", loss_reduction="sum") as monitor:
            (mean_of_squares(model(x), y) * N).backward()
            stats = monitor.step()
        assert (stats.signal, stats.noise) == pytest.approx((signal, noise), rel=1e-10)

    @pytest.mark.parametrize("divide", [True, False])
    def test_gradient_accumulation(self, divide):
        model, x, y = self.model(), images(5), torch.randn(N, dtype=torch.float64)
        signal, noise = self.truth(model, x, y)
        with sdsd.GammaMonitor(model, mode="exact") as monitor:
            for part in (slice(0, 2), slice(2, 4), slice(4, 6)):
                (mean_of_squares(model(x[part]), y[part]) / (3 if divide else 1)).backward()
            stats = monitor.step()
        factor = 1 if divide else 9
        assert stats.n == N
        assert (stats.signal, stats.noise) == pytest.approx((factor * signal, factor * noise), rel=1e-10)

    def test_grad_scaler(self):
        model, x, y = self.model().float(), images(5).float(), torch.randn(N)
        signal, noise = self.truth(model, x, y)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        with sdsd.GammaMonitor(model, mode="exact", scaler=scaler) as monitor:
            for unscale in (False, True):
                scaler.scale(mean_of_squares(model(x), y)).backward()
                if unscale:
                    scaler.unscale_(optimizer)
                stats = monitor.step()
                assert (stats.signal, stats.noise) == pytest.approx((signal, noise), rel=1e-4)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()

    @pytest.mark.parametrize("positions", [(), (4,)])
    def test_autocast(self, positions):
        model, x, y = self.model().float(), images(*positions, 5).float(), torch.randn(N)
        signal, noise = self.truth(model, x, y)
        with sdsd.GammaMonitor(model, mode="exact") as monitor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = mean_of_squares(model(x).float(), y)
            loss.backward()
            stats = monitor.step()
        assert (stats.signal, stats.noise) == pytest.approx((signal, noise), rel=0.05)
        assert model[0].weight.grad.dtype == torch.float32

    def test_tiny_half_gradients_do_not_underflow(self):
        model = nn.Sequential(nn.Linear(5, 4)).to(torch.float16)
        x = torch.randn(N, 3, 5).half()
        with sdsd.GammaMonitor(model, mode="exact") as monitor:
            (model(x).float().square().mean() * 1e-3).half().backward()
            stats = monitor.step()
        assert stats.noise > 0
        assert stats.finite


class TestBatchAxis:
    def test_flattened_rows_are_followed(self):
        class Flat(nn.Module):
            def __init__(self):
                super().__init__()
                self.embed, self.last = nn.Linear(5, 4), nn.Linear(4, 2)

            def forward(self, x):
                return self.last(torch.tanh(self.embed(x.flatten(0, 1)))).unflatten(0, x.shape[:2])

        model, x, y = Flat().double(), images(4, 5), torch.randn(N, dtype=torch.float64)
        assert_exact(model, x, y, mean_of_squares)
        assert_exact(model, x, y, mean_of_squares, batch_size=N)

    def test_rows_of_the_input_that_batch_size_divides(self):
        model, x = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double(), images(4, 5)
        found = []
        for batch, options in ((x, {}), (x.flatten(0, 1), {"batch_size": N})):
            model.zero_grad()
            with sdsd.GammaMonitor(model, mode="exact", **options) as monitor:
                model(batch).square().sum().backward()
                found.append(monitor.step())
        assert found[0].n == found[1].n == N
        assert found[0].noise == pytest.approx(found[1].noise, rel=1e-12)

    def test_a_smaller_last_batch_with_batch_size(self):
        model = nn.Linear(5, 2)
        with sdsd.GammaMonitor(model, batch_size=N) as monitor:
            model(torch.randn(N - 2, 5)).square().mean().backward()
            assert monitor.step().n == N - 2

    def test_sequence_first(self):
        model, x = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double(), images(3, 5)
        y = torch.randn(N, dtype=torch.float64)
        with sdsd.GammaMonitor(model, mode="exact") as monitor:
            mean_of_squares(model(x), y).backward()
            wanted = monitor.step().noise
        with sdsd.GammaMonitor(model, mode="exact", batch_dim=1) as monitor:
            model.zero_grad()
            mean_of_squares(model(x.transpose(0, 1)).transpose(0, 1), y).backward()
            assert monitor.step().noise == pytest.approx(wanted, rel=1e-12)

    def test_as_many_positions_as_samples(self):
        ids, targets = torch.randint(0, 13, (5, 5)), torch.randint(0, 13, (5, 5))
        assert_exact(Gpt().double(), ids, targets, token_loss)

    def test_two_forward_passes_before_one_backward(self):
        model, x = nn.Linear(5, 2), torch.randn(N, 5)
        with sdsd.GammaMonitor(model) as monitor:
            (model(x).sum() + model(2 * x).sum()).backward()
            with pytest.raises(ValueError, match="ran forward 2 times before one backward"):
                monitor.step()
            model.zero_grad()
            model(x).sum().backward()
            assert monitor.step().n == N

    def test_two_forward_passes_of_the_same_samples(self):
        class Twice(nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def forward(self, x):
                return self.inner(x) * self.inner(x.flip(-1))

        inner, x = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double(), images(5)
        y = torch.randn(N, dtype=torch.float64)
        rows = torch.cat([g.flatten(1) for g in per_sample_gradients(Twice(inner), x, y, mean_of_squares).values()], 1)
        with sdsd.GammaMonitor(inner, batch_size=N) as monitor:
            mean_of_squares(inner(x) * inner(x.flip(-1)), y).backward()
            stats = monitor.step()
        assert (stats.n, stats.noise) == (N, pytest.approx(rows.var(0).sum().item(), rel=1e-10))


class TestMicroBatches:
    def test_two_batch_estimator(self):
        model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2)).double()
        x, y = torch.randn(24, 5).double(), torch.randn(24).double()
        rows = []
        for k in range(6):
            part = slice(4 * k, 4 * k + 4)
            gradients = torch.autograd.grad(mean_of_squares(model(x[part]), y[part]), list(model.parameters()))
            rows.append(torch.cat([g.flatten() for g in gradients]))
        G = torch.stack(rows)
        with sdsd.GammaMonitor(model, mode="micro") as monitor:
            for k in range(6):
                part = slice(4 * k, 4 * k + 4)
                (mean_of_squares(model(x[part]), y[part]) / 6).backward()
            stats = monitor.step()
        assert (stats.n, stats.samples_per_gradient, stats.batch_size) == (6, 4, 24)
        assert stats.noise == pytest.approx(G.var(0).sum().item(), rel=1e-10)
        assert stats.signal == pytest.approx(G.mean(0).square().sum().item(), rel=1e-10)
        assert stats.noise_scale_raw == pytest.approx(4 * stats.noise / stats.signal_unbiased)

    def test_auto_switches_and_says_so(self):
        model, x = nn.Linear(5, 2), torch.randn(N, 5)
        with sdsd.GammaMonitor(model) as monitor:
            for backwards, mode in ((1, "exact"), (3, "exact"), (4, "exact"), (4, "micro"), (2, "micro")):
                assert monitor.mode == mode
                model.zero_grad()
                for _ in range(backwards):
                    (model(x + torch.randn(N, 5)).square().mean() / backwards).backward()
                if backwards == 4 and mode == "exact":
                    with pytest.warns(UserWarning, match="mode 'micro'.*running averages start anew"):
                        stats = monitor.step()
                else:
                    stats = monitor.step()
                assert stats.samples_per_gradient == (1 if mode == "exact" else N)
        assert type(model) is nn.Linear
        assert not model.weight._backward_hooks

    def test_exact_never_switches(self):
        model = nn.Linear(5, 2)
        with sdsd.GammaMonitor(model, mode="exact") as monitor:
            for _ in range(5):
                model(torch.randn(N, 5)).square().mean().backward()
            assert monitor.step().n == 5 * N
            assert monitor.mode == "exact"

    def test_any_layer(self):
        class Recurrent(nn.Module):
            def __init__(self):
                super().__init__()
                self.gru, self.last = nn.GRU(5, 4, batch_first=True), nn.Linear(4, 2)

            def forward(self, x):
                return self.last(self.gru(x)[0])

        model = Recurrent()
        with sdsd.GammaMonitor(model, mode="micro") as monitor:
            for _ in range(3):
                model(torch.randn(N, 4, 5)).square().mean().backward()
            assert monitor.step().noise > 0
            assert all(monitor.coverage.values())

    @pytest.mark.parametrize("reduction", ["mean", "sum"])
    @pytest.mark.parametrize("sizes", [(4, 4, 4), (4, 4, 3), (2, 6, 1, 5)])
    def test_unequal_micro_batches_are_weighted_by_size(self, sizes, reduction):
        model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)).double()
        batches = [(torch.randn(size, 5).double(), torch.randn(size).double()) for size in sizes]
        rows = []
        for x, y in batches:
            gradients = torch.autograd.grad(mean_of_squares(model(x), y), list(model.parameters()))
            rows.append(torch.cat([g.flatten() for g in gradients]))
        G, b = torch.stack(rows), torch.tensor(sizes, dtype=torch.float64)
        mean = (b[:, None] * G).sum(0) / b.sum()
        trace = ((b * G.square().sum(1)).sum() - b.sum() * mean.square().sum()) / (len(sizes) - 1)  # of one sample
        with sdsd.GammaMonitor(model, mode="micro", loss_reduction=reduction) as monitor:
            for x, y in batches:
                loss = mean_of_squares(model(x), y)
                (loss / len(sizes) if reduction == "mean" else loss * len(x)).backward()
            stats = monitor.step()
        assert stats.samples_per_gradient == pytest.approx(sum(sizes) / len(sizes))
        assert stats.noise * stats.samples_per_gradient == pytest.approx(trace.item(), rel=1e-9)
        assert stats.signal == pytest.approx(mean.square().sum().item(), rel=1e-9)
        assert stats.signal_unbiased == pytest.approx((mean.square().sum() - trace / b.sum()).item(), rel=1e-9)
        assert stats.smoothed.noise == pytest.approx(trace.item(), rel=1e-9)
        assert stats.smoothed.noise_scale_raw == pytest.approx(stats.noise_scale_raw, rel=1e-9)
