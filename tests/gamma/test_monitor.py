"""GammaMonitor against one backward pass a sample, and its manners towards the model it watches."""

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

import sdsd
from tests.gamma.models import (
    Bare,
    CrossAttention,
    Gpt,
    Residual,
    Reused,
    WithTable,
    mean_of_squares,
    per_sample_gradients,
    token_loss,
)

N = 6
SINGLE = 64 * torch.finfo(torch.float32).eps
"""Gradients of these models are sums of about a hundred terms through a few layers: √100 units in the last place each,
twice that in a square, and a factor of three for the order in which a machine adds."""


def images(*shape):
    """N float64 samples; the same whenever and in whatever order they are asked for."""
    generator = torch.Generator().manual_seed(len(shape) + sum(shape))
    return torch.randn(N, *shape, dtype=torch.float64, generator=generator)


def block(*layers):
    return nn.Sequential(*layers)


CASES = {
    "linear": (lambda: block(nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Linear(7, 3)), images(5)),
    "linear 3-D": (lambda: block(nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Linear(7, 3, bias=False)), images(4, 5)),
    "linear 4-D": (lambda: block(nn.Linear(5, 3)), images(2, 3, 5)),
    "one sample position": (lambda: block(nn.Linear(1, 1), nn.Linear(1, 2)), images(1)),
    "conv1d": (
        lambda: block(nn.Conv1d(4, 6, 3, groups=2, dilation=2), nn.ReLU(True), nn.Conv1d(6, 2, 1)),
        images(4, 9),
    ),
    "conv2d": (lambda: block(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 2, groups=4)), images(2, 8, 7)),
    "conv3d": (lambda: block(nn.Conv3d(2, 3, 2, padding="same")), images(2, 4, 3, 4)),
    "padding modes": (
        lambda: block(*(nn.Conv2d(2, 2, 3, padding=1, padding_mode=m) for m in ("reflect", "circular", "replicate"))),
        images(2, 6, 5),
    ),
    "padding by name": (
        lambda: block(nn.Conv2d(2, 3, 4, padding="same"), nn.Conv2d(3, 2, 3, padding="valid")),
        images(2, 6, 6),
    ),
    "transposed": (
        lambda: block(
            nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2, output_padding=1), nn.ConvTranspose1d(6, 2, 3, dilation=2)
        ),
        images(4, 5),
    ),
    "transposed 2d": (lambda: block(nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1)), images(2, 4, 5)),
    "transposed 3d": (lambda: block(nn.ConvTranspose3d(2, 3, 2)), images(2, 3, 2, 3)),
    "norms": (
        lambda: block(
            nn.LayerNorm([4, 5]), nn.Linear(5, 6), nn.RMSNorm(6), nn.LayerNorm(6, bias=False), nn.Linear(6, 2)
        ),
        images(3, 4, 5),
    ),
    "group norm": (lambda: block(nn.GroupNorm(2, 4), nn.Tanh(), nn.Conv2d(4, 2, 3)), images(4, 5, 6)),
    "instance norm": (
        lambda: block(nn.InstanceNorm2d(4, affine=True), nn.PReLU(4), nn.Conv2d(4, 2, 3), nn.PReLU()),
        images(4, 5, 6),
    ),
    "batch norm in eval mode": (
        lambda: block(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4).eval(), nn.ReLU()),
        images(2, 5, 5),
    ),
    "instance norm with running statistics": (
        lambda: block(nn.InstanceNorm1d(3, affine=True, track_running_stats=True).eval()),
        images(3, 7),
    ),
    "reused": (Reused, images(3, 5)),
    "bare parameters": (Bare, images(3, 5)),
    "unbatched output": (WithTable, images(3, 5)),
    "attention": (CrossAttention, images(3, 8)),
    "encoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True), 2),
        images(3, 8),
    ),
    "bilinear": (lambda: Pair(), images(2, 5)),
    "residual network": (Residual, images(3, 8, 8)),
}


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.bilinear = nn.Bilinear(5, 5, 3)

    def forward(self, x):
        return self.bilinear(x[:, 0], x[:, 1])


def signal_and_noise(rows):
    mean = rows.mean(0)
    return mean.square().sum().item(), (rows - mean).square().sum().item() / (len(rows) - 1)


def assert_exact(model, x, y, loss_fn, tolerance=1e-12, gradient_tolerance=1e-11, **options):
    """Signal and noise of every parameter against one backward pass a sample; gradients against the plain step."""
    x64, y64 = (t.double() if t.is_floating_point() else t for t in (x, y))
    wanted = per_sample_gradients(copy.deepcopy(model).double(), x64, y64, loss_fn)
    trainable = [p for p in model.parameters() if p.requires_grad]
    plain = torch.autograd.grad(loss_fn(model(x), y), trainable, allow_unused=True)
    with sdsd.GammaMonitor(model, mode="exact", **options) as monitor:
        loss_fn(model(x), y).backward()
        stats = monitor.step()
        assert set(stats.parameters) == set(wanted)
        assert all(monitor.coverage.values())
    everything = {"total": torch.cat([rows.reshape(len(x), -1) for rows in wanted.values()], 1), **wanted}
    largest = everything["total"].square().sum(1).mean().item()
    for name, rows in everything.items():
        # A parameter whose gradient is rounding error alone has no digits to compare.
        scale = max(rows.reshape(len(x), -1).square().sum(1).mean().item(), 1e-14 * largest)
        signal, noise = signal_and_noise(rows)
        found = stats if name == "total" else stats.parameters[name]
        allowed = tolerance * scale
        assert abs(found.noise - noise) <= allowed, f"noise of {name}: {found.noise}, expected {noise}"
        assert abs(found.signal - signal) <= allowed, f"signal of {name}: {found.signal}, expected {signal}"
    assert (stats.n, stats.samples_per_gradient) == (len(x), 1)
    for parameter, gradient in zip(trainable, plain, strict=True):
        if gradient is None:
            assert parameter.grad is None or not parameter.grad.any()
        else:
            torch.testing.assert_close(parameter.grad, gradient, rtol=gradient_tolerance, atol=gradient_tolerance)
    model.zero_grad()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_layers(name, dtype):
    make, x = CASES[name]
    torch.manual_seed(1)
    y = torch.randn(N, dtype=dtype)
    tolerance = 1e-12 if dtype == torch.float64 else SINGLE
    assert_exact(
        make().to(dtype), x.to(dtype), y, mean_of_squares, tolerance, 1e-11 if dtype == torch.float64 else 1e-3
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_gpt(tied, dtype):
    ids = torch.randint(0, 13, (N, 5))
    targets = torch.randint(0, 13, (N, 5))
    tolerance = 1e-12 if dtype == torch.float64 else SINGLE
    assert_exact(
        Gpt(tied=tied).to(dtype), ids, targets, token_loss, tolerance, 1e-11 if dtype == torch.float64 else 1e-4
    )


def test_embedding_with_padding_and_repeats():
    model = nn.Sequential(nn.Embedding(5, 4, padding_idx=0), nn.Linear(4, 3)).double()
    ids = torch.randint(0, 5, (N, 9))
    ids[:, ::4] = 0
    assert_exact(model, ids, torch.randn(N, dtype=torch.float64), mean_of_squares)


def test_tied_embedding_with_padding():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.head = nn.Embedding(7, 4, padding_idx=2), nn.Linear(4, 7, bias=False)
            self.head.weight = self.tokens.weight

        def forward(self, ids):
            return self.head(torch.tanh(self.tokens(ids)))

    ids = torch.randint(0, 7, (N, 5))
    assert_exact(Tied().double(), ids, torch.randint(0, 7, (N, 5)), token_loss)


def test_scratch_bound_changes_nothing():
    for make, x in (CASES["conv2d"], CASES["reused"], CASES["bare parameters"], CASES["linear 3-D"]):
        assert_exact(make().double(), x, torch.randn(N, dtype=torch.float64), mean_of_squares, max_bytes=1)


def test_subclasses():
    class Renamed(nn.Linear):
        pass

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = nn.Sequential(Renamed(5, 4), Doubled(4, 3)).double()
    monitor = sdsd.GammaMonitor(model)
    assert monitor.coverage["0.weight"] == "linear"
    assert monitor.coverage["1.weight"].startswith("generic")
    monitor.detach()
    assert_exact(model, images(5), torch.randn(N, dtype=torch.float64), mean_of_squares)


def test_frozen_parameters():
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 7), nn.LayerNorm(7), nn.Linear(7, 3)).double()
    model[0].requires_grad_(False)
    model[2].weight.requires_grad_(False)
    model[3].bias.requires_grad_(False)
    assert_exact(model, images(4, 5), torch.randn(N, dtype=torch.float64), mean_of_squares)


def test_low_rank_adapter_on_a_frozen_base():
    class Adapted(nn.Module):
        def __init__(self):
            super().__init__()
            self.base, self.down, self.up = nn.Linear(5, 4), nn.Linear(5, 2, bias=False), nn.Linear(2, 4, bias=False)
            self.base.requires_grad_(False)

        def forward(self, x):
            return self.base(x) + self.up(self.down(x))

    assert_exact(Adapted().double(), images(3, 5), torch.randn(N, dtype=torch.float64), mean_of_squares)


@pytest.mark.parametrize(
    "change", [lambda x: x[:, :1].expand(N, 4, 5), lambda x: x.transpose(1, 2)[..., :5], lambda x: x[:, ::2]]
)
def test_views_and_expanded_inputs(change):
    x = change(images(6, 5) if change(images(6, 5)).shape[-1] == 5 else images(5, 6))
    model = nn.Sequential(nn.Linear(x.shape[-1], 4), nn.Tanh(), nn.Linear(4, 2)).double()
    assert_exact(model, x, torch.randn(N, dtype=torch.float64), mean_of_squares)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_architectures(data):
    torch.manual_seed(data.draw(st.integers(0, 2**20)))
    # A norm of two features, or of a norm, passes hardly any gradient back: there rounding is all there is to compare.
    width, positions = data.draw(st.integers(3, 6)), data.draw(st.integers(1, 4))
    layers: list[nn.Module] = []
    size = width
    for _ in range(data.draw(st.integers(1, 5))):
        kind = data.draw(st.sampled_from(["linear", "norm", "rms", "tanh", "again", "prelu"]))
        if kind == "linear":
            new = data.draw(st.integers(3, 6))
            layers.append(nn.Linear(size, new, bias=data.draw(st.booleans())))
            size = new
        elif kind in ("norm", "rms"):
            layers += [nn.LayerNorm(size) if kind == "norm" else nn.RMSNorm(size), nn.Tanh()]
        elif kind == "again" and layers and not isinstance(layers[-1], nn.Linear):
            layers.append(layers[-1])
        else:
            layers.append(nn.PReLU() if kind == "prelu" else nn.Tanh())
    layers.append(nn.Linear(size, 2))
    x = torch.randn(N, positions, width, dtype=torch.float64)
    assert_exact(
        nn.Sequential(*layers).double(), x, torch.randn(N, dtype=torch.float64), mean_of_squares, tolerance=1e-11
    )


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


class TestManners:
    def test_detach_leaves_no_trace(self):
        model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Conv1d(4, 2, 1))
        before = [(module, type(module), dict(module.__dict__)) for module in model.modules()]
        monitor = sdsd.GammaMonitor(model)
        assert type(model[0]) is not nn.Linear
        assert isinstance(model[0], nn.Linear)
        monitor.detach()
        monitor.detach()
        for module, kind, entries in before:
            assert type(module) is kind
            assert module.__dict__ == entries
        assert all(not parameter._backward_hooks for parameter in model.parameters())

    def test_names_parameters_and_state_are_the_model_s_own(self):
        model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4))
        names, text = [name for name, _ in model.named_parameters()], repr(model)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        with sdsd.GammaMonitor(model):
            assert [name for name, _ in model.named_parameters()] == names
            assert list(model.state_dict()) == list(state)
            assert repr(model) == text

    @pytest.mark.parametrize(
        "clone",
        [
            copy.deepcopy,
            lambda model: pickle.loads(pickle.dumps(model)),
            lambda model: _saved(model),
        ],
    )
    def test_copies_are_unmonitored(self, clone):
        model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 2))
        with sdsd.GammaMonitor(model) as monitor:
            other = clone(model)
            assert all(type(a) is type(b)._sdsd_original for a, b in zip(other.modules(), model.modules(), strict=True))
            assert all("_sdsd" not in key for module in other.modules() for key in module.__dict__)
            assert all(a is not b for a, b in zip(other.parameters(), model.parameters(), strict=True))
            x = torch.randn(N, 5)
            assert torch.equal(other(x), model(x))
            other(x).sum().backward()
            with pytest.raises(RuntimeError, match="needs a backward pass"):
                monitor.step()

    def test_shallow_copy(self):
        model = nn.Linear(5, 4)
        with sdsd.GammaMonitor(model):
            other = copy.copy(model)
        assert type(other) is nn.Linear
        assert "_sdsd_gamma" not in other.__dict__

    def test_two_monitors_are_refused(self):
        model = nn.Sequential(nn.Linear(5, 4))
        with sdsd.GammaMonitor(model), pytest.raises(ValueError, match="watches it already"):
            sdsd.GammaMonitor(model)
        sdsd.GammaMonitor(model).detach()

    def test_a_refused_attachment_leaves_the_model_alone(self):
        model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4))
        with pytest.raises(ValueError, match=r"1: BatchNorm in train mode mixes the samples"):
            sdsd.GammaMonitor(model)
        assert type(model[0]) is nn.Linear

    def test_evaluation_in_between(self):
        model, x, y = (
            nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2)).double(),
            images(5),
            torch.randn(N, dtype=torch.float64),
        )
        with sdsd.GammaMonitor(model, mode="exact") as monitor:
            with torch.no_grad():
                model(images(3, 5))
            mean_of_squares(model(x), y).backward()
            first = monitor.step().noise
            model.zero_grad()
            mean_of_squares(model(x), y).backward()
            assert monitor.step().noise == pytest.approx(first, rel=1e-12)

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_checkpointing(self, reentrant):
        class Checkpointed(nn.Module):
            def __init__(self):
                super().__init__()
                self.first, self.shared, self.last = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 2)
                self.on = False

            def forward(self, x):
                run = (lambda f, x: checkpoint(f, x, use_reentrant=reentrant)) if self.on else (lambda f, x: f(x))
                x = torch.tanh(self.first(x))
                x = run(lambda x: torch.tanh(self.shared(x)), x)
                return self.last(run(lambda x: torch.tanh(self.shared(x)), x))

        model, x, y = Checkpointed().double(), images(3, 5), torch.randn(N, dtype=torch.float64)
        found = []
        for model.on in (False, True):
            model.zero_grad()
            with sdsd.GammaMonitor(model, mode="exact") as monitor:
                mean_of_squares(model(x), y).backward()
                found.append(monitor.step().noise)
        assert found[0] == pytest.approx(found[1], rel=1e-12)

    def test_checkpointing_keeps_nothing_of_layers_used_once(self):
        class Once(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner, self.last = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4)), nn.Linear(4, 2)

            def forward(self, x):
                return self.last(checkpoint(self.inner, x, use_reentrant=False))

        model = Once()
        with sdsd.GammaMonitor(model) as monitor:
            model(torch.randn(N, 5)).square().mean().backward()
            (ledger,) = monitor._session.passes
            assert not ledger.kept
            assert len(ledger.squares) == len(list(model.parameters()))

    def test_every(self):
        model, x = nn.Linear(5, 2), torch.randn(N, 5)
        with sdsd.GammaMonitor(model, every=3) as monitor:
            measured = []
            for _ in range(7):
                model.zero_grad()
                model(x).square().mean().backward()
                measured.append(monitor.step() is not None)
        assert measured == [True, False, False, True, False, False, True]

    def test_observers(self):
        model, seen = nn.Linear(5, 2), []
        with sdsd.GammaMonitor(model) as monitor:
            remove = monitor.add_observer(lambda monitor, stats: seen.append((monitor, stats)))
            for _ in range(2):
                model.zero_grad()
                model(torch.randn(N, 5)).square().mean().backward()
                stats = monitor.step()
                remove() if len(seen) == 1 and _ else None
            assert seen[-1] == (monitor, stats)

    def test_a_non_finite_step_is_flagged_and_leaves_the_averages(self):
        model = nn.Linear(5, 2)
        with sdsd.GammaMonitor(model) as monitor:
            for value in (1.0, float("inf"), 1.0):
                model.zero_grad()
                model(torch.ones(N, 5) * value + torch.arange(N)[:, None]).square().mean().backward()
                before = monitor.state_dict()["averages"]
                stats = monitor.step()
                if math.isinf(value):
                    with pytest.warns(RuntimeWarning, match="NaN or infinity"):
                        assert not stats.finite
                    after = monitor.state_dict()["averages"]
                    assert all(torch.equal(after[key], before[key]) for key in after)


def _saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


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


class TestPreconditioning:
    @pytest.mark.parametrize(
        "make",
        [
            lambda p: torch.optim.Adam(p, lr=1e-2),
            lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True),
            lambda p: torch.optim.RMSprop(p, lr=1e-2, centered=True),
        ],
    )
    @pytest.mark.parametrize("positions", [(), (4,)])
    def test_metric_of_the_optimizer(self, make, positions):
        model = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 2)).double()
        optimizer = make(model.parameters())
        with sdsd.GammaMonitor(model, precondition=optimizer) as monitor:
            for step in range(3):
                x, y = images(*positions, 5), torch.randn(N, dtype=torch.float64)
                D = torch.cat([_diagonal(optimizer, p).flatten() for p in model.parameters()]) if step else None
                if step:
                    monitor.detach()
                    rows = (
                        torch.cat(
                            [g.flatten(1) for g in per_sample_gradients(model, x, y, mean_of_squares).values()], 1
                        )
                        * D
                    )
                    monitor._attachment.attach(monitor._parameters)
                    monitor._begin_step()
                optimizer.zero_grad()
                mean_of_squares(model(x), y).backward()
                stats = monitor.step()
                if step == 0:
                    assert stats is None, "the optimizer has no state before its first step"
                else:
                    assert stats.noise == pytest.approx(rows.var(0).sum().item(), rel=1e-9)
                    assert stats.signal == pytest.approx(rows.mean(0).square().sum().item(), rel=1e-9)
                optimizer.step()

    def test_other_optimizers_are_refused(self):
        model = nn.Linear(2, 2)
        with pytest.raises(ValueError, match="expected an Adam, AdamW or RMSprop optimizer, got SGD"):
            sdsd.GammaMonitor(model, precondition=torch.optim.SGD(model.parameters(), lr=0.1))
        with pytest.raises(ValueError, match="the optimizer does not hold"):
            sdsd.GammaMonitor(model, precondition=torch.optim.Adam(nn.Linear(2, 2).parameters()))


def _diagonal(optimizer, parameter):
    state, group = optimizer.state[parameter], optimizer.param_groups[0]
    if "square_avg" in state:
        return 1 / ((state["square_avg"] - state["grad_avg"] ** 2).sqrt() + group["eps"])
    second = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    return 1 / ((second / (1 - group["betas"][1] ** float(state["step"]))).sqrt() + group["eps"])


class TestSmoothing:
    def run(self, monitor, model, steps):
        stats = None
        for _ in range(steps):
            model.zero_grad()
            x = torch.randn(N, 5, dtype=torch.float64)
            (model(x).squeeze(1) - 1).square().mean().backward()
            stats = monitor.step()
        return stats

    def test_ratio_of_averages(self):
        model = nn.Linear(5, 1).double()
        signals, noises = [], []
        with sdsd.GammaMonitor(model, ema=0.8) as monitor:
            monitor.add_observer(lambda _, s: (signals.append(s.signal_unbiased), noises.append(s.noise)))
            smoothed = self.run(monitor, model, 12).smoothed
        weights = torch.tensor([0.8 ** (11 - k) for k in range(12)], dtype=torch.float64)
        weights = weights / weights.sum()
        s, v = torch.tensor(signals, dtype=torch.float64), torch.tensor(noises, dtype=torch.float64)
        S, V = (weights * s).sum(), (weights * v).sum()
        assert smoothed.gamma_unbiased == pytest.approx((S / V).item())
        assert smoothed.noise == pytest.approx(V.item())
        w = (weights**2).sum()
        residual = (weights * (s - S / V * v) ** 2).sum()
        low, high = smoothed.interval
        half = _t(0.975, (1 / w - 1).item()) * math.sqrt(w / (1 - w) * residual) / V.item()
        assert (high - low) / 2 == pytest.approx(half, rel=1e-6)
        assert smoothed.parameters["weight"].noise < smoothed.noise

    def test_one_step_has_no_interval(self):
        model = nn.Linear(5, 1).double()
        with sdsd.GammaMonitor(model) as monitor:
            stats = self.run(monitor, model, 1)
        assert stats.interval is None
        assert stats.smoothed.interval is None
        assert stats.smoothed.noise == pytest.approx(stats.noise)

    def test_earlier_results_do_not_change(self):
        model = nn.Linear(5, 1).double()
        with sdsd.GammaMonitor(model) as monitor:
            first = self.run(monitor, model, 2)
            value = pickle.loads(pickle.dumps(first.smoothed)).noise
            self.run(monitor, model, 3)
            monitor._results.averages.reset()
            assert first.smoothed.noise == value

    def test_resume(self):
        torch.manual_seed(3)
        model = nn.Linear(5, 1).double()
        with sdsd.GammaMonitor(model, every=2) as monitor:
            self.run(monitor, model, 5)
            state = copy.deepcopy(monitor.state_dict())
            random = torch.get_rng_state()
            wanted = [self.run(monitor, model, 1) for _ in range(2)]
        torch.set_rng_state(random)
        with sdsd.GammaMonitor(model, every=2) as monitor:
            monitor.load_state_dict(state)
            found = [self.run(monitor, model, 1) for _ in range(2)]
        assert [stats is None for stats in found] == [stats is None for stats in wanted] == [True, False]
        assert found[1].smoothed.noise_scale_raw == pytest.approx(wanted[1].smoothed.noise_scale_raw)

    def test_state_of_another_model(self):
        with sdsd.GammaMonitor(nn.Linear(5, 1)) as one, sdsd.GammaMonitor(nn.Sequential(nn.Linear(5, 1))) as two:
            with pytest.raises(ValueError, match="other parameters than this monitor's"):
                two.load_state_dict(one.state_dict())
            with pytest.raises(ValueError, match="averages, steps, mode, parameters, population is missing"):
                two.load_state_dict({})


def _t(probability, degrees):
    from scipy import stats

    return stats.t.ppf(probability, degrees)


class TestStatistics:
    """A linear model whose gradient noise is known: g = −2(y − wx)x at w = 0 with y = μ + ε, x = 1 direction."""

    def draws(self, mu, steps, ema=0.98):
        """Monitor a bare location model: per-sample gradient −2(y_n − 0), y ~ N(μ, 1) in 12 dimensions."""
        model = nn.Linear(1, 12, bias=False).double()
        nn.init.zeros_(model.weight)
        found = []
        with sdsd.GammaMonitor(model, ema=ema) as monitor:
            for _ in range(steps):
                model.zero_grad()
                y = torch.randn(8, 12, dtype=torch.float64) + mu
                (y - model(torch.ones(8, 1, dtype=torch.float64))).square().sum(1).mean().backward()
                found.append(monitor.step())
        return found

    def test_unbiased_where_the_naive_ratio_has_a_floor(self):
        found = self.draws(0.2, 600)
        signal = sum(s.signal_unbiased for s in found) / len(found)
        noise = sum(s.noise for s in found) / len(found)
        assert noise == pytest.approx(4 * 12, rel=0.03)
        assert signal == pytest.approx(4 * 12 * 0.2**2, abs=0.15)
        naive = sum(s.gamma for s in found) / len(found)
        assert naive == pytest.approx(0.04 + 1 / 8, abs=0.03)

    def test_smoothed_intervals_cover(self):
        truth = 0.3**2
        hits = 0
        for _ in range(60):
            low, high = self.draws(0.3, 40, ema=0.95)[-1].smoothed.interval
            hits += low <= truth <= high
        assert hits >= 50


class TestPopulation:
    """Batches drawn without replacement from few samples, the weights held still: every way to draw them."""

    def setup_method(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        self.x, self.y = torch.randn(6, 3).double(), torch.randn(6).double()
        rows = per_sample_gradients(self.model, self.x, self.y, mean_of_squares)
        self.rows = torch.cat([each.flatten(1) for each in rows.values()], 1)
        self.truth = self.rows.mean(0).square().sum().item()

    def measure(self, steps, population=6, **options):
        """Statistics of each step, the samples of whose backward passes are listed."""
        with sdsd.GammaMonitor(self.model, population=population, **options) as monitor:
            for parts in steps:
                self.model.zero_grad()
                for part in map(list, parts):
                    (mean_of_squares(self.model(self.x[part]), self.y[part]) / len(parts)).backward()
                yield monitor.step()

    def is_unbiased(self, found):
        mean = sum(stats.signal_unbiased for stats in found) / len(found)
        return abs(mean - self.truth) <= 1e-12 * self.rows.square().sum(1).mean().item()

    def test_epochs(self):
        steps, ends = [], []
        for first in itertools.combinations(range(6), 3):
            rest = [k for k in range(6) if k not in first]
            found = list(self.measure([[first], [rest]], mode="exact", ema=0.7))
            steps += found
            ends.append(found[-1].smoothed)
        assert self.is_unbiased(steps)
        assert self.is_unbiased(ends)
        assert {stats.population for stats in (*steps, *ends, *ends[0].parameters.values())} == {6}

    def test_epochs_with_an_odd_last_batch(self):
        steps, ends = [], []
        for first in itertools.combinations(range(6), 4):
            rest = [k for k in range(6) if k not in first]
            found = list(self.measure([[first], [rest]], mode="exact", ema=0.7))
            steps += found
            ends.append(found[-1].smoothed)
            s, v = zip(*[(stats.signal_unbiased, stats.noise) for stats in found], strict=True)
            assert ends[-1].gamma_unbiased == pytest.approx((0.7 * s[0] + s[1]) / (0.7 * v[0] + v[1]), rel=1e-12)
        for found in (steps[::2], steps[1::2], ends):
            assert self.is_unbiased(found)

    @pytest.mark.parametrize("sizes", [(2, 2), (1, 3), (2, 1, 1)])
    def test_micro_batches(self, sizes):
        found = []
        for order in itertools.permutations(range(6), sum(sizes)):
            cuts = list(itertools.accumulate((0, *sizes)))
            found += self.measure([[order[a:b] for a, b in itertools.pairwise(cuts)]], mode="micro")
        assert self.is_unbiased(found)
        assert self.is_unbiased([stats.smoothed for stats in found])

    @pytest.mark.parametrize(
        ("parts", "options"),
        [
            ([range(6)], {"mode": "exact"}),
            ([range(3), range(3, 6)], {"mode": "micro"}),
            ([range(4), [4, 5]], {"mode": "micro"}),
            ([range(3), range(3, 6)], {"mode": "exact"}),
        ],
    )
    def test_full_batches_have_no_bias_to_take_away(self, parts, options):
        for population in (6, None):
            stats = list(self.measure([parts, parts], population, **options))[-1]
            assert (stats.signal_unbiased == stats.signal) == (population == 6)
            assert (stats.smoothed.signal_unbiased == stats.smoothed.signal) == (population == 6)
            assert stats.signal == pytest.approx(self.truth, rel=1e-12)

    def test_unbiased_with_a_step_that_is_not_finite(self):
        self.x[0] = math.inf
        found = list(self.measure([[[1, 2, 3]], [[0, 4]], [[4, 5]]], mode="exact", ema=0.5))
        with pytest.warns(RuntimeWarning, match="NaN or infinity"):
            assert math.isnan(found[1].signal_unbiased)
        (a, b), (v, w) = ([getattr(found[k], key) for k in (0, 2)] for key in ("signal_unbiased", "noise"))
        assert found[2].smoothed.gamma_unbiased == pytest.approx((a + 2 * b) / (v + 2 * w), rel=1e-12)

    def test_more_samples_than_there_are(self):
        with pytest.raises(ValueError, match=r"at least the 6 samples seen \(6 gradients of 1\), got 5"):
            list(self.measure([[range(6)]], 5, mode="exact"))
        with pytest.raises(ValueError, match=r"at least the 6 samples seen \(2 gradients of 3\), got 5"):
            list(self.measure([[range(3), range(3, 6)]], 5, mode="micro"))

    def test_none_is_as_ever(self):
        steps = [[[0, 1, 2]], [[3, 4, 5]]]
        found, endless = (list(self.measure(steps, each, mode="exact"))[-1] for each in (None, 10**18))
        assert found.signal_unbiased == found.signal - found.noise / 3
        assert endless.signal_unbiased == pytest.approx(found.signal_unbiased, rel=1e-12)
        assert endless.smoothed.interval == pytest.approx(found.smoothed.interval, rel=1e-12)

    def test_averages_of_another_population_are_refused(self):
        states = {}
        for population in (None, 6, 7):
            with sdsd.GammaMonitor(self.model, population=population) as monitor:
                states[population] = monitor.state_dict()
        for mine, other in itertools.product(states, states):
            with sdsd.GammaMonitor(self.model, population=mine) as monitor:
                if mine == other:
                    monitor.load_state_dict(states[other])
                    continue
                message = f"with population={other}, this monitor's would be of population={mine}"
                with pytest.raises(ValueError, match=message):
                    monitor.load_state_dict(states[other])


def test_a_plain_dictionary_for_loggers():
    model = nn.Linear(5, 2)
    with sdsd.GammaMonitor(model) as monitor:
        for _ in range(3):
            model.zero_grad()
            model(torch.randn(N, 5)).square().mean().backward()
            stats = monitor.step()
    values = stats.to_dict()
    assert values["noise_scale"] == stats.noise_scale
    assert values["smoothed"]["interval"] == stats.smoothed.interval
    assert set(values["parameters"]) == {"weight", "bias"}


def test_the_last_measured_step_stays_readable_between_measured_steps():
    model = nn.Linear(3, 2)
    monitor = sdsd.GammaMonitor(model, every=3)
    for read in (lambda: monitor.stats, lambda: monitor.smoothed):
        with pytest.raises(RuntimeError, match="none of the 0 so far"):
            read()
    measured = None
    for step in range(7):
        model.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        found = monitor.step()
        assert (found is None) == (step % 3 != 0)
        measured = found or measured
        assert monitor.stats is measured
        assert monitor.smoothed is measured.smoothed
