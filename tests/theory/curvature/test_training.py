"""In a model and a training loop."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import sdsd
from sdsd.theory import CurvatureObserver, curvature_gamma

from .bowls import bowl, cross_entropy, explicit, mean_of_outputs, network, samples, take


def test_nothing_is_left_behind():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.ReLU(), nn.Linear(4, 3)).double()
    batch = samples(32)
    model[0].weight.grad = torch.full((4, 3), 7.0).double()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    stats = curvature_gamma(model, cross_entropy, batch, learning_rate=0.1, batch_size=8, samples_per_gradient=8)
    assert stats.n == 4
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model[0].weight.grad.eq(7).all()
    assert model[4].weight.grad is None
    assert torch.equal(torch.get_rng_state(), random_state)


def test_parameters_that_do_not_train_are_left_out():
    model, batch = network(), samples(16)
    model[0].weight.requires_grad_(False)
    stats = curvature_gamma(model, cross_entropy, batch, learning_rate=0.1, batch_size=1)
    rows = []
    for i in range(16):
        parameters = [p for p in model.parameters() if p.requires_grad]
        loss = cross_entropy(model, take(batch, slice(i, i + 1)))
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    assert stats.noise == pytest.approx(torch.stack(rows).var(0).sum().item(), rel=1e-10)


def test_attention_has_second_derivatives():
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 3)).double()
    batch = torch.randn(6, 3, 4).double(), torch.randint(0, 3, (6,))
    stats = curvature_gamma(model, cross_entropy, batch, learning_rate=0.1, batch_size=2, curvature_batch=batch)
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative, which curvature_gamma sees to
        gradients, hessian = explicit(model, cross_entropy, batch, [slice(i, i + 1) for i in range(6)])
    assert stats.curvature_noise == pytest.approx((hessian @ gradients.T.cov()).trace().item() / 2, rel=1e-8)


@pytest.mark.parametrize("mode", ["exact", "micro"])
def test_the_observer_measures_along_a_run_and_the_monitor_does_not_notice(mode):
    def run(watched):
        torch.manual_seed(0)
        model, batches = network(), [samples(16) for _ in range(6)]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        monitor = sdsd.GammaMonitor(model, mode=mode)
        observer = CurvatureObserver(cross_entropy, batches[:2], optimizer=optimizer, every=2)
        if watched:
            monitor.add_observer(observer)
        seen, points = [], []
        for batch in batches:
            points.append({name: value.clone() for name, value in model.state_dict().items()})
            for part in (slice(0, 8), slice(8, 16)):
                (cross_entropy(model, take(batch, part)) / 2).backward()
            seen.append(monitor.step().to_dict())
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        monitor.detach()
        return seen, observer.history, points, batches

    plain, _, _, _ = run(watched=False)
    seen, history, points, batches = run(watched=True)
    assert str(seen) == str(plain)
    assert [step for step, _ in history] == [0, 2, 4]
    assert [stats.learning_rate for _, stats in history] == pytest.approx([0.1, 0.025, 0.00625])
    assert {stats.batch_size for _, stats in history} == {16}
    model = network()
    model.load_state_dict(points[2])
    again = curvature_gamma(model, cross_entropy, batches[1], learning_rate=0.025, batch_size=16)
    assert history[1][1].to_dict() == again.to_dict()


def test_the_observer_takes_the_scale_of_adam_and_waits_for_its_first_step():
    model, batch = network(), samples(16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    monitor = sdsd.GammaMonitor(model)
    observer = CurvatureObserver(
        cross_entropy, lambda: batch, optimizer=optimizer, every=1, precondition=True, batch_size=4, probes=8
    )
    remove = monitor.add_observer(observer)
    for _ in range(3):
        optimizer.zero_grad()
        cross_entropy(model, batch).backward()
        monitor.step()
        if observer.history:
            scale = {
                name: 1 / ((state["exp_avg_sq"] / (1 - 0.999 ** state["step"].item())).sqrt() + 1e-8)
                for name, state in ((name, optimizer.state[p]) for name, p in model.named_parameters())
            }
            wanted = curvature_gamma(
                model, cross_entropy, batch, learning_rate=0.01, batch_size=4, precondition=scale, probes=8
            )
            assert observer.history[-1][1].expected_change == pytest.approx(wanted.expected_change, rel=1e-9)
        optimizer.step()
    assert [step for step, _ in observer.history] == [1, 2]
    assert observer.history[0][1].curvature_noise_error > 0
    remove()


def test_the_report_says_what_to_do():
    model, x = bowl(), torch.randn(30, 4).double()
    noisy = {"learning_rate": 0.01, "batch_size": 8}
    text = str(curvature_gamma(model, mean_of_outputs, x / 100, **noisy))
    assert text.startswith("a step of 0.01 on 8 samples lowers the loss: E[ΔL] = -")
    assert "largest learning rate" in text
    text = str(curvature_gamma(model, mean_of_outputs, x / 100, learning_rate=1000.0, batch_size=8))
    assert text.startswith("a step of 1000 on 8 samples raises the loss")
    with torch.no_grad():
        model.theta.copy_(-torch.linalg.solve(model.matrix, x.mean(0)))
    text = str(curvature_gamma(model, mean_of_outputs, x[:10], **noisy))
    assert text.startswith("a step of 0.01 on 8 samples lowers or raises the loss, the samples cannot tell")
