"""The loss between two networks, where it is known."""

from __future__ import annotations

import copy
import doctest
import math

import pytest
import torch
from torch import nn

import sdsd
from sdsd.geometry import LossBarrier, mean_loss
from sdsd.geometry.comparing import barrier as module

X = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))


def squares(model, batch):
    return model(batch).square().mean()


class Cubic(nn.Module):
    """A loss that is θ³ − θ at every input: from −1 to 1 it is above the line between its ends in one half."""

    def __init__(self, at):
        super().__init__()
        self.at = nn.Parameter(torch.tensor(float(at)))


def test_the_loss_of_every_point():
    found = sdsd.loss_barrier(Cubic(-1), Cubic(1), lambda model: model.at**3 - model.at, points=21)
    points = [-1 + 2 * place / 20 for place in range(21)]
    assert found.shares == tuple(place / 20 for place in range(21))
    assert found.losses == pytest.approx([point**3 - point for point in points], abs=1e-6)
    assert found.barrier == pytest.approx(max(point**3 - point for point in points), abs=1e-6)


def test_the_barrier_is_measured_from_the_line_between_the_ends():
    found = LossBarrier((0.0, 0.5, 1.0), (1.0, 3.0, 2.0))
    assert found.heights == (0.0, 1.5, 0.0)
    assert found.barrier == 1.5
    assert str(found) == "loss 1 and 2, barrier 1.5 at 0.5 of the way (3 points)"
    assert LossBarrier((0.0, 0.5, 1.0), (1.0, 0.0, 2.0)).barrier == 0


def test_both_networks_stay_as_they_are():
    one, other = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(2))
    other[1].running_mean.add_(1)
    before = [copy.deepcopy(model.state_dict()) for model in (one, other)]
    one.train()
    found = sdsd.loss_barrier(one, other, ([X], squares), points=3)
    for model, state in zip((one, other), before, strict=True):
        assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert one.training
    ends = [mean_loss([X], squares)(model.eval()) for model in (one, other)]
    assert (found.losses[0], found.losses[-1]) == pytest.approx(ends, abs=1e-7)


def batch_normed(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
    for _ in range(50):
        model(X)
    return model.eval()


@pytest.mark.parametrize("batches", [[X], list(X.split(16))])
def test_statistics_between_are_means_over_the_batches(batches):
    one, other = batch_normed(0), batch_normed(1)
    found = sdsd.loss_barrier(one, other, ([X], squares), points=3, statistics=(batches, squares))
    middle = copy.deepcopy(one)
    with torch.no_grad():
        for value, a, b in zip(middle.parameters(), one.parameters(), other.parameters(), strict=True):
            value.copy_((a.double() + b.double()) / 2)
        hidden = [middle[0](batch) for batch in batches]
        middle[1].running_mean.copy_(torch.stack([each.mean(0) for each in hidden]).mean(0))
        middle[1].running_var.copy_(torch.stack([each.var(0) for each in hidden]).mean(0))
        wanted = squares(middle, X).item()
        middle[1].running_mean.copy_((one[1].running_mean + other[1].running_mean) / 2)
        middle[1].running_var.copy_((one[1].running_var + other[1].running_var) / 2)
        interpolated = squares(middle, X).item()
    assert found.losses[1] == pytest.approx(wanted, rel=1e-5)
    assert abs(found.losses[1] - interpolated) > 1e-3


def test_a_run_that_leaves_out_a_batch_norm():
    one, other = batch_normed(0), batch_normed(1)
    with pytest.raises(ValueError, match="statistics: expected a run of every BatchNorm in training, got none of '1'"):
        sdsd.loss_barrier(one, other, ([X], squares), statistics=lambda model: 0.0)
    with pytest.raises(ValueError, match="got none of '1'"):
        sdsd.loss_barrier(one, other, ([X], squares), statistics=lambda model: squares(model.eval(), X))


def test_a_norm_without_statistics_needs_no_run():
    one, other = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False)) for _ in range(2))
    assert sdsd.loss_barrier(one, other, lambda model: squares(model, X), statistics=lambda model: 0.0).barrier >= 0


def test_refusals():
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    with pytest.raises(TypeError, match="model_b: expected an nn.Module, got int"):
        sdsd.loss_barrier(one, 3, ([X], squares))
    with pytest.raises(ValueError, match="model_b: expected the architecture of model_a, got another 'bias'"):
        sdsd.loss_barrier(one, nn.Linear(3, 2, bias=False), ([X], squares))
    with pytest.raises(ValueError, match="points: "):
        sdsd.loss_barrier(one, other, ([X], squares), points=2)
    with pytest.raises(ValueError, match="loss: expected a finite number, got nan at 0 of the way"):
        sdsd.loss_barrier(one, other, lambda model: math.nan)
    with pytest.raises(TypeError, match="loss: expected a function of the model"):
        sdsd.loss_barrier(one, other, 3)


def test_the_picture():
    pytest.importorskip("matplotlib")
    found = LossBarrier((0.0, 0.5, 1.0), (1.0, 3.0, 2.0))
    figure, axes = found.plot()
    assert axes.get_title(loc="left") == "Barrier 1.5"
    assert axes.lines[0].get_ydata().tolist() == [1.0, 3.0, 2.0]
    assert found.plot(axes=axes) == (figure, axes)


def test_examples():
    assert doctest.testmod(module).failed == 0
