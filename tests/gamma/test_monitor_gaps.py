"""No gap is silent: what is not measured is refused by name or said."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import sdsd
from tests.gamma.models import mean_of_squares
from tests.zoo.parts import Net, parameter

from .exact import N, assert_exact, images


class TestNoSilentGap:
    def test_coverage_names_every_rule(self):
        model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4))
        with sdsd.GammaMonitor(model) as monitor:
            assert dict(monitor.coverage) == {
                "0.weight": "linear",
                "0.bias": "linear",
                "1.weight": "layer norm",
                "1.bias": "layer norm",
            }

    @pytest.mark.parametrize("strict", [True, False])
    def test_samples_that_are_mixed(self, strict):
        class Mixing(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.last, self.apart = nn.Linear(5, 4), nn.Linear(4, 2), nn.Linear(5, 2)

            def forward(self, x):
                y = self.first(x)
                return self.last(y - y.mean(0)), self.apart(x)

        model, said = Mixing(), r"last.weight, last.bias: .*mean.*\n.*first.weight, first.bias: .*mean"
        with sdsd.GammaMonitor(model, strict=strict) as monitor:
            sum(part.square().mean() for part in model(torch.randn(N, 5))).backward()
            if strict:
                with pytest.raises(ValueError, match=said):
                    monitor.step()
                return
            with pytest.warns(UserWarning, match=r"left out of Γ from here on:\n  " + said):
                stats = monitor.step()
            assert set(stats.parameters) == {"apart.weight", "apart.bias"}
            assert monitor.coverage["first.weight"] is monitor.coverage["last.weight"] is None
            assert monitor.coverage["apart.weight"] == "linear"

    @pytest.mark.parametrize("affine", [True, False])
    def test_batch_norm_in_train_mode(self, affine):
        model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4, affine=affine), nn.Linear(4, 2))
        with pytest.raises(ValueError, match=r"1: BatchNorm in train mode mixes the samples.*\n.*mode='micro'"):
            sdsd.GammaMonitor(model)
        model.eval()
        with sdsd.GammaMonitor(model) as monitor:
            model.train()
            model(torch.randn(N, 5)).square().mean().backward()
            with pytest.raises(ValueError, match=r"2.weight.*: .*[Bb]atch.?[Nn]orm"):
                monitor.step()

    def test_scale_grad_by_freq(self):
        model = nn.Sequential(nn.Embedding(5, 4, scale_grad_by_freq=True))
        with sdsd.GammaMonitor(model) as monitor:
            model(torch.randint(0, 5, (N, 3))).sum().backward()
            with pytest.raises(ValueError, match="0.weight: scale_grad_by_freq divides by counts over the batch"):
                monitor.step()

    def test_a_parameter_used_outside_its_layer(self):
        class Around(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.last = nn.Linear(5, 4), nn.Linear(4, 2)

            def forward(self, x):
                return self.last(torch.tanh(F.linear(x, self.layer.weight)))

        assert_exact(Around().double(), images(3, 5), torch.randn(N, dtype=torch.float64), mean_of_squares)

    @pytest.mark.parametrize("where", ["loss", "penalty"])
    def test_a_parameter_used_outside_the_model(self, where):
        model, x = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4)), torch.randn(N, 5)
        with sdsd.GammaMonitor(model) as monitor:
            y = model(x)
            loss = (
                F.linear(y, model[2].weight) if where == "loss" else y.square().mean() + model[2].weight.square().sum()
            )
            loss.square().mean().backward()
            with pytest.raises(ValueError, match=r"(?s)does not prove itself.*2.weight.*penalty"):
                monitor.step()
            model.zero_grad()
            model(x).square().mean().backward()
            assert monitor.step().n == N

    def test_a_parameter_used_outside_is_left_out_with_strict_false(self):
        """CLIP's temperature: the model returns it, and the loss takes it."""
        model = Net(lambda m, x: (m.last(x), m.scale.exp()), last=nn.Linear(5, 4), scale=parameter(1)).double()
        x = torch.randn(N, 5, dtype=torch.float64)

        def loss(x):
            out, scale = model(x)
            return (scale * out - 1).square().mean()

        with sdsd.GammaMonitor(model) as monitor:
            loss(x).backward()
            with pytest.raises(RuntimeError, match=r"scale has a gradient.*strict=False"):
                monitor.step()
        model.zero_grad()
        with sdsd.GammaMonitor(model, strict=False) as monitor:
            loss(x).backward()
            with pytest.warns(UserWarning, match="left out of Γ(.|\n)*scale"):
                stats = monitor.step()
            assert monitor.coverage["scale"] is None
            assert set(stats.parameters) == {"last.weight", "last.bias"}
            names = [name for name, _ in model.named_parameters()]
            rows = [torch.autograd.grad(loss(x[i : i + 1]), list(model.parameters())) for i in range(N)]
            for name, each in zip(names, zip(*rows, strict=True), strict=True):
                if name != "scale":
                    noise = torch.stack(each).var(0).sum().item()
                    assert stats.parameters[name].noise == pytest.approx(noise)

    def test_a_parameter_that_starts_to_train_later(self):
        model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2))
        model[0].requires_grad_(False)
        with sdsd.GammaMonitor(model) as monitor:
            model[0].requires_grad_(True)
            model(torch.randn(N, 5)).sum().backward()
            with pytest.raises(RuntimeError, match=r"0.weight has a gradient but did not train when"):
                monitor.step()

    def test_recurrent_layers(self):
        class Tagger(nn.Module):
            def __init__(self, kind):
                super().__init__()
                self.inner, self.last = kind(5, 4, num_layers=2, batch_first=True), nn.Linear(4, 2)

            def forward(self, x):
                return self.last(self.inner(x)[0])

        for kind in (nn.LSTM, nn.GRU, nn.RNN):
            model = Tagger(kind).double()
            assert_exact(model, images(3, 5), torch.randn(N, dtype=torch.float64), mean_of_squares, 1e-11)

    def test_random_custom_layers(self):
        class Noisy(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight, self.dropout = nn.Parameter(torch.randn(5)), nn.Dropout(0.5)

            def forward(self, x):
                return self.dropout(x * self.weight)

        model, x = Noisy().double(), images(5)
        torch.manual_seed(3)
        mask = F.dropout(torch.ones_like(x), 0.5)
        rows = (2 / (N * 5)) * (x * mask).square() * model.weight.detach() * N
        with sdsd.GammaMonitor(model) as monitor:
            torch.manual_seed(3)
            model(x).square().mean().backward()
            assert monitor.step().noise == pytest.approx(rows.var(0).sum().item(), rel=1e-10)

    def test_chosen_parameters(self):
        model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2))
        with sdsd.GammaMonitor(model, parameters=["1.*"]) as monitor:
            model(torch.randn(N, 5)).square().mean().backward()
            assert set(monitor.step().parameters) == {"1.weight", "1.bias"}
        with pytest.raises(ValueError, match="'2.*' matches none"):
            sdsd.GammaMonitor(model, parameters=["2.*"])

    def test_step_without_backward(self):
        with sdsd.GammaMonitor(nn.Linear(5, 2)) as monitor, pytest.raises(RuntimeError, match="after loss.backward"):
            monitor.step()

    def test_one_sample(self):
        model = nn.Linear(5, 2)
        with sdsd.GammaMonitor(model) as monitor:
            model(torch.randn(1, 5)).sum().backward()
            with pytest.warns(UserWarning, match="step skipped: it held 1 sample"):
                assert monitor.step() is None
            model.zero_grad()
            model(torch.randn(N, 5)).square().mean().backward()
            assert monitor.step().n == N

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"every": 0}, "every: expected a whole number"),
            ({"mode": "fast"}, "mode: expected one of 'auto', 'exact', 'micro', got 'fast'"),
            ({"batch_dim": -1}, "batch_dim: expected a dimension counted from the front"),
            ({"batch_size": 2.0}, "batch_size: expected a whole number"),
            ({"loss_reduction": "none"}, "loss_reduction: expected one of 'mean', 'sum', got 'none'"),
            ({"population": 0}, "population: expected a whole number of samples .*got 0"),
            ({"population": 60.0}, "population: expected a whole number of samples .*got 60.0"),
            ({"ema": 1.0}, "0 ≤ ema < 1, got 1.0"),
            ({"confidence": 2}, "confidence: expected a level"),
            ({"max_bytes": 0}, "max_bytes: expected a whole number"),
        ],
    )
    def test_bad_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            sdsd.GammaMonitor(nn.Linear(2, 2), **arguments)

    def test_nothing_to_measure(self):
        with pytest.raises(ValueError, match="at least one parameter that requires a gradient"):
            sdsd.GammaMonitor(nn.ReLU())
