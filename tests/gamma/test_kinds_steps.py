"""Steps as people write them: stale gradients, calls that look alike, checks."""

from __future__ import annotations

import copy
import re
import warnings
from collections import UserDict
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import sdsd
from tests.zoo.parts import N, Net, class_loss, classes, numbers, perceptron
from tests.zoo.programs import ALL
from tests.zoo.verdict import float64_default

from .steps import X, Y, assert_right, attempt, message


@pytest.fixture(autouse=True)
def double():
    with float64_default():
        yield


@dataclass
class Fields:
    inputs: UserDict
    labels: torch.Tensor


class TestStaleGradients:
    """Gradients that go on adding up: squares are of one batch, .grad of all so far."""

    def test_never_cleared(self):
        model = perceptron()
        with sdsd.GammaMonitor(model) as monitor:
            class_loss(model, 3 * X, Y).backward()
            monitor.step()
            class_loss(model, X, Y).backward()
            found = attempt(monitor, model)
            assert getattr(found, "kind", "") == "refused", found
            model.zero_grad()
            class_loss(model, X, Y).backward()
            assert_right(monitor.step(), model)

    def test_cleared_only_every_other_step(self):
        model = perceptron()
        with sdsd.GammaMonitor(model) as monitor:
            for k in range(4):
                if k % 2 == 0:
                    model.zero_grad()
                class_loss(model, (k + 1) * X, Y).backward()
                found = attempt(monitor, model)
                if k % 2 == 0:
                    assert_right(found, model, (k + 1) * X)
                else:
                    assert getattr(found, "kind", "") == "refused", found

    def test_one_parameter_left_out_of_zero_grad(self):
        model = perceptron()
        optimizer = torch.optim.SGD([p for name, p in model.named_parameters() if name != "2.weight"], 0.1)
        with sdsd.GammaMonitor(model) as monitor:
            class_loss(model, X, Y).backward()
            assert_right(monitor.step(), model)
            optimizer.zero_grad()
            class_loss(model, X, Y).backward()
            found = attempt(monitor, model)
            assert found.kind == "refused"
            assert "2.weight" in found.why

    def test_gradients_from_before_the_monitor(self):
        model = perceptron()
        class_loss(model, 3 * X, Y).backward()
        with sdsd.GammaMonitor(model) as monitor:
            class_loss(model, X, Y).backward()
            assert getattr(attempt(monitor, model), "kind", "") == "refused"

    def test_strict_false_warns_and_leaves_them_out(self):
        model = perceptron()
        with sdsd.GammaMonitor(model, strict=False) as monitor:
            class_loss(model, X, Y).backward()
            monitor.step()
            class_loss(model, X, Y).backward()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = attempt(monitor, model)
            said = " ".join(str(each.message) for each in caught)
            assert getattr(found, "kind", "") == "refused" or re.search(r"0\.weight|all parameters", said), found


class TestCallsThatLookAlike:
    """Where a call puts the samples is remembered from the steps before: what looks alike has to be alike."""

    @pytest.mark.parametrize("name", [name for name, program in ALL.items() if program.measured and not program.step])
    def test_later_steps_say_what_the_first_said(self, name):
        program = ALL[name].doubled()
        model = program.made()
        with sdsd.GammaMonitor(model, **program.options) as monitor:
            found = []
            for _ in range(3):
                model.zero_grad()
                program.plain(model)
                stats = monitor.step()
                found.append([(each.signal, each.noise) for each in (stats, *stats.parameters.values())])
        for later in found[1:]:
            for (signal, noise), (first_signal, first_noise) in zip(later, found[0], strict=True):
                scale = 1e-9 * (first_signal + first_noise)
                assert signal == pytest.approx(first_signal, rel=1e-9, abs=scale)
                assert noise == pytest.approx(first_noise, rel=1e-9, abs=scale)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (lambda x: x.std(1).unsqueeze(1), lambda x: x.std(True).expand(N, 1)),
            (lambda x: x + x[torch.arange(N)], lambda x: x + x[torch.arange(N) // 2]),
            (lambda x: x.sum(dim=1, keepdim=True), lambda x: x.sum(dim=0, keepdim=True)[:, :N].T),
            (lambda x: x[:, :1] + x, lambda x: x[:1] + x),
            (lambda x: x.view(N, 2, 4).sum(1), lambda x: x.view(2, N, 4).sum(0)),
            (lambda x: x.index_select(0, torch.arange(N)), lambda x: x.index_select(0, torch.arange(N) // 2)),
            (
                lambda x: x.gather(0, torch.arange(N)[:, None].expand(N, 8)),
                lambda x: x.gather(0, torch.arange(N).flip(0)[:, None].expand(N, 8)),
            ),
        ],
        ids=[
            "1 and True",
            "two index tensors",
            "two dimensions",
            "two slices",
            "two views",
            "two selections",
            "two gathers",
        ],
    )
    def test_calls_that_differ_in_what_counts(self, one, other):
        """The first keeps samples apart, the second mixes them; each says so after the other."""
        model = Net(
            lambda m, x, f: m.last(f(torch.tanh(m.first(x))).sum(1, keepdim=True)),
            first=nn.Linear(8, 8),
            last=nn.Linear(1, 3),
        )
        with sdsd.GammaMonitor(model) as monitor:
            for _ in range(2):
                model.zero_grad()
                F.cross_entropy(model(X, one), Y).backward()
                assert_right(monitor.step(), model, loss=lambda m, x, y: F.cross_entropy(alone(m, x, one), y))
                model.zero_grad()
                F.cross_entropy(model(X, other), Y).backward()
                with pytest.raises(ValueError, match="first.weight"):
                    monitor.step()


def alone(model, x, f):
    """The model on the whole batch, cut to one sample, for what `f` reads holds positions of the batch."""
    return model(X, f)[(x == X).all(1)]


@pytest.mark.parametrize("where", ["after the backward pass", "inside it, as ZeRO does"])
def test_gradients_that_are_gone_are_refused_and_no_signal_of_zero(where):
    model = perceptron()
    with sdsd.GammaMonitor(model) as monitor:
        handles = []
        if where == "inside it, as ZeRO does":
            for p in model.parameters():
                handles.append(p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None)))
        class_loss(model, X, Y).backward()
        model.zero_grad()
        with pytest.raises(RuntimeError, match=r"0\.weight.*measured, but \.grad is None"):
            monitor.step()
        for handle in handles:
            handle.remove()
        class_loss(model, X, Y).backward()
        assert_right(monitor.step(), model)


class TestCheck:
    """`monitor.check(loss_fn, batch)`: the loop over samples as a user's own call."""

    @staticmethod
    def loss(model, batch):
        return class_loss(model, *batch)

    def test_prints_the_difference_by_parameter(self, capsys):
        model = perceptron()
        with sdsd.GammaMonitor(model) as monitor:
            monitor.check(self.loss, (X, Y))
        printed = capsys.readouterr().out
        for name, _ in model.named_parameters():
            assert name in printed

    def test_changes_nothing(self):
        model = nn.Sequential(nn.Linear(8, 5), nn.Dropout(0.0), nn.BatchNorm1d(5).eval(), nn.Linear(5, 3))
        before = copy.deepcopy(model.state_dict())
        with sdsd.GammaMonitor(model) as monitor:
            class_loss(model, X, Y).backward()
            gradients = [p.grad.clone() for p in model.parameters()]
            stream = torch.get_rng_state()
            monitor.check(self.loss, (X, Y))
            assert torch.equal(stream, torch.get_rng_state())
            for p, kept in zip(model.parameters(), gradients, strict=True):
                assert torch.equal(p.grad, kept)
            for name, value in model.state_dict().items():
                assert torch.equal(value, before[name]), name
            assert_right(monitor.step(), model)

    def test_names_what_is_wrong(self, capsys):
        """A penalty outside of the samples is refused or shown as a difference, by name."""
        model = perceptron()
        with sdsd.GammaMonitor(model) as monitor:

            def penalised(m, batch):
                return class_loss(m, *batch) + m[0].weight.square().sum()

            said = message(lambda: monitor.check(penalised, (X, Y)))
        assert "0.weight" in said or "0.weight" in capsys.readouterr().out

    @pytest.mark.parametrize("kind", ["a number that left torch", "a hook that looks at the batch"])
    def test_shows_what_nobody_can_see(self, kind, capsys):
        """Samples mixed by a number, or on the way back: autograd knows of neither."""
        if kind == "a number that left torch":
            model = Net(lambda m, x: m.last(torch.tanh(x / x.abs().max().item())), last=nn.Linear(8, 3))
        else:

            def compute(m, x):
                h = torch.tanh(m.first(x))
                h.register_hook(lambda g: g / g.norm())
                return m.last(h)

            model = Net(compute, first=nn.Linear(8, 8), last=nn.Linear(8, 3))
        with sdsd.GammaMonitor(model) as monitor:
            report = monitor.check(self.loss, (X, Y))
        assert report.difference > 0.01

    def test_dictionaries(self, capsys):
        model = perceptron()
        with sdsd.GammaMonitor(model) as monitor:
            monitor.check(lambda m, batch: class_loss(m, batch["x"], batch["y"]), {"x": X, "y": Y})
        assert "0.weight" in capsys.readouterr().out

    def test_batches_as_libraries_give_them(self):
        """A mapping as tokenizers give it (UserDict), a dataclass, one inside the other; not what hides its tensors."""
        by_name = lambda m, batch: class_loss(m, batch["x"], batch["y"])  # noqa: E731
        of_fields = lambda m, batch: class_loss(m, batch.inputs["x"], batch.labels)  # noqa: E731
        hidden = type("Hidden", (), {"inputs": {"x": X}, "labels": Y})()
        with sdsd.GammaMonitor(perceptron()) as monitor:
            plain = monitor.check(by_name, {"x": X, "y": Y})
            for loss, batch in ((by_name, UserDict(x=X, y=Y, name="a")), (of_fields, Fields(UserDict(x=X), Y))):
                report = monitor.check(loss, batch)
                assert report.difference < 1e-5
                assert report.parameters == plain.parameters
            with pytest.raises(ValueError, match=r"batch: expected tensors with its \d+ samples .* got Hidden"):
                monitor.check(of_fields, hidden)

    def test_several_rows_a_sample(self):
        """Pairs, one after the other, with one number each."""
        rows, wanted = numbers(2 * N, 8), numbers(N).abs()

        def apart(m, batch):
            pairs = m(batch[0]).view(-1, 2, 3)
            return (pairs.diff(dim=1).square().sum((1, 2)) * batch[1]).mean()

        with float64_default(), sdsd.GammaMonitor(perceptron().double(), batch_size=N) as monitor:
            assert monitor.check(apart, (rows, wanted)).difference < 1e-9
            assert monitor.check(lambda m, x: apart(m, (x, torch.ones(1))), rows).difference < 1e-9

    def test_time_first(self):
        """Labels and masks of what lies time first have the samples in their first dimension."""
        model = Net(lambda m, x, seen: (m.last(x) * seen.T.unsqueeze(-1)).mean(0), last=nn.Linear(8, 3)).double()
        batch = numbers(4, N, 8), numbers(N, 4) > 0, Y
        with float64_default(), sdsd.GammaMonitor(model, batch_dim=1) as monitor:
            loss = lambda m, batch: F.cross_entropy(m(*batch[:2]), batch[2])  # noqa: E731
            assert monitor.check(loss, batch).difference < 1e-9


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (lambda: nn.Linear(8, 3), torch.randn(0, 8)),
        (lambda: nn.Conv1d(3, 4, 3), torch.randn(0, 3, 9)),
        (lambda: nn.GroupNorm(1, 3), torch.randn(0, 3, 9)),
        (lambda: nn.LayerNorm(4), torch.randn(0, 4)),
        (lambda: nn.Embedding(5, 4), torch.zeros(0, 3, dtype=torch.long)),
        (lambda: Net(lambda m, x: x * m.gain, gain=nn.Parameter(torch.ones(4))), torch.randn(0, 4)),
        (perceptron, torch.randn(0, 8)),
    ],
    ids=["linear", "convolution", "group norm", "layer norm", "embedding", "scale", "perceptron"],
)
def test_an_empty_batch_is_skipped_with_a_warning_or_refused_by_name(make, x):
    model = make().double()
    x, found = x.double() if x.is_floating_point() else x, []
    with sdsd.GammaMonitor(model) as monitor, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        said = message(lambda: (model(x).sum().backward(), found.append(monitor.step())))
    assert said or found == [None]
    assert "sample" in (said or str(caught[-1].message))
    model.zero_grad()
    with sdsd.GammaMonitor(model) as monitor:
        message(lambda: (model(x).sum().backward(), monitor.step()))
        model.zero_grad()
        model(torch.ones(4, *x.shape[1:], dtype=x.dtype)).square().mean().backward()
        assert monitor.step().n == 4


def test_compute_gamma_leaves_a_monitored_model_alone():
    model = perceptron()
    data = [(numbers(4, 8, seed=k), classes(4)) for k in range(3)]
    alone = sdsd.compute_gamma(copy.deepcopy(model), data, lambda m, b: class_loss(m, *b), 3)
    with sdsd.GammaMonitor(model) as monitor:
        class_loss(model, X, Y).backward()
        watched = sdsd.compute_gamma(model, data, lambda m, b: class_loss(m, *b), 3)
        assert_right(monitor.step(), model)
        assert monitor.mode == "exact"
    assert (watched.signal, watched.noise) == pytest.approx((alone.signal, alone.noise), rel=1e-12)


def test_compute_gamma_takes_dictionaries_from_a_loader():
    model = perceptron()
    rows = [{"x": numbers(8, seed=k), "label": torch.tensor(k % 3)} for k in range(12)]
    loader = torch.utils.data.DataLoader(rows, batch_size=4)
    stats = sdsd.compute_gamma(model, loader, lambda m, b: class_loss(m, b["x"], b["label"]), 3)
    batches = [(numbers_of(rows[k : k + 4])) for k in (0, 4, 8)]
    plain = sdsd.compute_gamma(model, batches, lambda m, b: class_loss(m, *b), 3)
    assert (stats.signal, stats.noise) == pytest.approx((plain.signal, plain.noise), rel=1e-12)


def numbers_of(rows):
    return torch.stack([row["x"] for row in rows]), torch.stack([row["label"] for row in rows])


def test_a_derivative_forward_inside_the_model_is_refused_by_name():
    model = Net(lambda m, x: torch.func.jvp(m.inner, (x,), (torch.ones_like(x),))[1], inner=perceptron())
    with sdsd.GammaMonitor(model) as monitor:
        class_loss(model, X, Y).backward()
        with pytest.raises(ValueError, match=r"inner\.0\.weight(.|\n)*inside torch\.func\.jvp"):
            monitor.step()
