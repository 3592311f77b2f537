"""BackPACK and Opacus against one backward pass a sample: where they agree with the monitor, and where they are wrong.

`make test-peers` installs them; without them these tests are skipped.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sdsd
from tests.gamma.models import mean_of_squares, per_sample_gradients

N = 6
PEERS = ("BackPACK", "Opacus", "Opacus ghost")


class TwoTied(nn.Module):
    """Two linear layers with one weight."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.two.weight = self.one.weight

    def forward(self, x):
        return self.two(torch.tanh(self.one(x)))


class Again(nn.Module):
    """One layer used twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))


class Renamed(nn.Linear):
    pass


class Scaled(nn.Module):
    """A bare parameter beside a layer."""

    def __init__(self):
        super().__init__()
        self.layer, self.gain = nn.Linear(4, 4), nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.layer(x) * self.gain


class Positions(nn.Module):
    """A table of positions read with arange, without a batch dimension."""

    def __init__(self):
        super().__init__()
        self.tokens, self.table, self.head = nn.Embedding(7, 4), nn.Embedding(3, 4), nn.Linear(4, 7)

    def forward(self, ids):
        return self.head(self.tokens(ids) + self.table(torch.arange(3)))


def tokens(length: int) -> Tensor:
    return torch.randint(0, 7, (N, length))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), lambda: torch.randn(N, 4)),
    "linear 3-D": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), lambda: torch.randn(N, 7, 4)),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3)),
        lambda: torch.randn(N, 2, 8, 8),
    ),
    "norms": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(2), nn.LayerNorm(9), nn.Linear(9, 2)
        ),
        lambda: torch.randn(N, 2, 5, 5),
    ),
    "embedding": (lambda: nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7)), lambda: tokens(5)),
    "groups": (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Flatten()), lambda: torch.randn(N, 4, 4, 4)),
    "padding token": (lambda: nn.Sequential(nn.Embedding(7, 4, padding_idx=0), nn.Linear(4, 2)), lambda: tokens(5)),
    "positions": (Positions, lambda: tokens(3)),
    "tied": (TwoTied, lambda: torch.randn(N, 4)),
    "again": (Again, lambda: torch.randn(N, 4)),
    "subclass": (lambda: nn.Sequential(Renamed(4, 5), nn.Linear(5, 3)), lambda: torch.randn(N, 4)),
    "bare": (Scaled, lambda: torch.randn(N, 4)),
}
AGREE = {
    "linear": PEERS,
    "linear 3-D": PEERS,
    "convolution": PEERS,
    "norms": ("Opacus", "Opacus ghost"),
    "embedding": ("Opacus", "Opacus ghost"),
    "groups": ("Opacus", "Opacus ghost"),
    "tied": ("Opacus",),
    "again": ("Opacus",),
    "subclass": ("Opacus", "Opacus ghost"),
    "bare": ("Opacus", "Opacus ghost"),
}
WRONG: list[tuple[str, str, str, float | None]] = [
    # The peer's Σ‖g‖² over the true one; None: the parameter is left out without a word.
    ("BackPACK", "tied", "one.weight", 0.318),
    ("BackPACK", "groups", "0.weight", 1.985),
    ("BackPACK", "subclass", "0.weight", None),
    ("BackPACK", "bare", "gain", None),
    ("BackPACK", "norms", "1.weight", None),
    ("BackPACK", "norms", "4.weight", None),
    ("Opacus", "padding token", "0.weight", 1.009),
    ("Opacus ghost", "padding token", "0.weight", 1.009),
    ("Opacus", "positions", "table.weight", 1.460),
    ("Opacus ghost", "positions", "table.weight", 1.460),
]
REFUSED = [
    ("BackPACK", "again", AttributeError),
    ("BackPACK", "padding token", NotImplementedError),
    ("BackPACK", "embedding", RuntimeError),  # in float64
    ("Opacus ghost", "tied", NotImplementedError),
    ("Opacus ghost", "again", NotImplementedError),
]


def make(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model, inputs = (part() for part in MODELS[name])
    return model.double(), inputs.double() if inputs.is_floating_point() else inputs, torch.zeros(N)


def truth(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    return {name: g.square().sum().item() for name, g in per_sample_gradients(model, x, y, mean_of_squares).items()}


def monitored(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    with sdsd.GammaMonitor(model, mode="exact") as monitor:
        mean_of_squares(model(x), y).backward()
        stats = monitor.step()
    return {name: each.noise * (each.n - 1) + each.n * each.signal for name, each in stats.parameters.items()}


@pytest.mark.filterwarnings("ignore")
def measured(peer: str, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """Σ‖g‖² of the parameters that `peer` has a number for."""
    model = copy.deepcopy(model)
    if peer == "BackPACK":
        backpack = pytest.importorskip("backpack", reason="backpack-for-pytorch is not installed: make test-peers")
        extensions = pytest.importorskip("backpack.extensions")
        model = backpack.extend(model)
        with backpack.backpack(extensions.BatchL2Grad()):
            mean_of_squares(model(x), y).backward()
        found = {n: p.batch_l2.sum() * N**2 for n, p in model.named_parameters() if hasattr(p, "batch_l2")}
    else:
        opacus = pytest.importorskip("opacus.grad_sample", reason="opacus is not installed: make test-peers")
        if peer == "Opacus":
            wrapped = opacus.GradSampleModule(model)
        else:
            wrapped = opacus.GradSampleModuleFastGradientClipping(model, use_ghost_clipping=True, max_grad_norm=1.0)
        mean_of_squares(wrapped(x), y).backward()
        field = "grad_sample" if peer == "Opacus" else "_norm_sample"
        found = {n: getattr(p, field).square().sum() for n, p in model.named_parameters()}
    return {name: value.item() for name, value in found.items()}


@pytest.mark.parametrize("name", MODELS)
def test_the_monitor_is_right_everywhere(name):
    model, x, y = make(name)
    assert monitored(model, x, y) == pytest.approx(truth(model, x, y), rel=1e-9)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("peer", "name"), [(peer, name) for name, peers in AGREE.items() for peer in peers])
def test_agreement(peer, name):
    model, x, y = make(name)
    assert measured(peer, model, x, y) == pytest.approx(monitored(model, x, y), rel=1e-9)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("peer", "name", "parameter", "ratio"), WRONG)
def test_known_errors_of_the_peers(peer, name, parameter, ratio):
    model, x, y = make(name)
    found = measured(peer, model, x, y).get(parameter)
    if ratio is None:
        assert found is None
    else:
        assert found / truth(model, x, y)[parameter] == pytest.approx(ratio, abs=2e-3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("peer", "name", "error"), REFUSED)
def test_what_the_peers_refuse(peer, name, error):
    model, x, y = make(name)
    with pytest.raises(error):
        measured(peer, model, x, y)
