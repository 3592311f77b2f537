from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sdsd


def loss_fn(model, batch):
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))


@pytest.fixture
def loader():
    return DataLoader(TensorDataset(torch.randn(160, 5), torch.randint(0, 3, (160,))), batch_size=16)


def test_equals_the_published_pseudocode(loader):
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    stats = sdsd.compute_gamma(model, loader, loss_fn, n_samples=6)
    rows = []
    for _, batch in zip(range(6), loader, strict=False):
        gradients = torch.autograd.grad(loss_fn(model, batch), list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in gradients]))
    G = torch.stack(rows).double()
    assert stats.gamma == pytest.approx((G.mean(0).square().sum() / G.var(0).sum()).item(), rel=1e-5)
    assert (stats.n, stats.samples_per_gradient, stats.batch_size) == (6, 16, 16)
    assert list(stats.parameters) == [name for name, _ in model.named_parameters()]


def test_leaves_everything_as_it_was(model, loader):
    model.train()
    model[0].weight.grad = torch.full((8, 5), 7.0)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    sdsd.compute_gamma(model, loader, loss_fn, n_samples=3)
    assert model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model[0].weight.grad.eq(7.0).all()
    assert model[0].bias.grad is None
    assert torch.equal(torch.get_rng_state(), random_state)


def test_buffers_are_restored_after_an_error(model, loader):
    def failing(model, batch):
        loss_fn(model, batch)
        raise RuntimeError("stop")

    before = model[1].running_mean.clone()
    with pytest.raises(RuntimeError, match="stop"):
        sdsd.compute_gamma(model, loader, failing)
    assert torch.equal(model[1].running_mean, before)


def test_small_gradients_need_no_epsilon(loader):
    model = nn.Linear(5, 3)
    wanted = sdsd.compute_gamma(model, loader, loss_fn).gamma
    small = sdsd.compute_gamma(model, loader, lambda m, b: loss_fn(m, b) * 1e-7).gamma
    assert small == pytest.approx(wanted, rel=1e-4)


def test_fewer_batches_than_asked_for(loader):
    with pytest.warns(UserWarning, match="gave 10 batches, 20 were asked for; n is 10"):
        assert sdsd.compute_gamma(nn.Linear(5, 3), loader, loss_fn).n == 10


def test_an_odd_last_batch_is_left_out():
    loader = DataLoader(TensorDataset(torch.randn(50, 5), torch.randint(0, 3, (50,))), batch_size=16)
    with pytest.warns(UserWarning, match="left out 1 batch") as caught:
        stats = sdsd.compute_gamma(nn.Linear(5, 3), loader, loss_fn)
    assert stats.n == 3
    assert "left out 1 batch(es) of [2] samples" in str(caught[0].message)


def test_frozen_and_unused_parameters(loader):
    model = nn.ModuleDict({"used": nn.Linear(5, 3), "frozen": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})
    model["frozen"].requires_grad_(False)
    stats = sdsd.compute_gamma(model, loader, lambda m, b: loss_fn(m["used"], b), n_samples=4)
    assert set(stats.parameters) == {"used.weight", "used.bias", "unused.weight", "unused.bias"}
    assert stats.parameters["unused.weight"].noise == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_samples": 1}, "at least 2, got 1"),
        ({"dataloader": []}, "at least 2 batches of equal size, got 0"),
        ({"dataloader": [(torch.randn(4, 5), torch.zeros(4, dtype=torch.long))]}, "got 1"),
        ({"dataloader": ["text", "text"]}, "Pass samples_per_gradient"),
        ({"loss_fn": lambda m, b: m(b[0])}, r"expected one number.*got \(16, 3\)"),
        ({"model": nn.ReLU()}, "at least one parameter"),
    ],
)
def test_errors(change, message, loader):
    arguments = {"model": nn.Linear(5, 3), "dataloader": loader, "loss_fn": loss_fn, "n_samples": 4, **change}
    with pytest.raises(ValueError, match=message):
        sdsd.compute_gamma(**arguments)
