"""The monitor's numbers are exact, layer by layer and for random architectures."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import sdsd
from tests.gamma.models import (
    Bare,
    CrossAttention,
    Gpt,
    Residual,
    Reused,
    WithTable,
    mean_of_squares,
    token_loss,
)

from .exact import N, assert_exact, images

SINGLE = 64 * torch.finfo(torch.float32).eps
"""Gradients of these models are sums of about a hundred terms through a few layers: √100 units in the last place each,
twice that in a square, and a factor of three for the order in which a machine adds."""


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
        with pytest.raises(RuntimeError, match="of this monitor that gave statistics, and there was none yet"):
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
