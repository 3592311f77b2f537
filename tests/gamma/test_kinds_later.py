"""What goes wrong only after the first steps, which prove themselves: named at once, or as soon as it can be seen."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import sdsd
from sdsd.gamma.monitor.proof import EVERY_ON_CPU, Prover
from sdsd.gamma.uses import project
from tests.zoo.parts import N, class_loss, classes, numbers, perceptron
from tests.zoo.verdict import compare, per_sample

X, Y = numbers(N, 8), classes()
ON = 4
"""The step from which on a loop does what it did not do before; three steps prove themselves."""


class Loop:
    """A training loop of a perceptron, watched; `backward(model, k)` is the k-th step's passes."""

    def __init__(self, backward, **options):
        torch.manual_seed(0)
        self.model, self.backward, self.k = perceptron().double(), backward, 0
        self.monitor = sdsd.GammaMonitor(self.model, **options)

    def step(self):
        self.model.zero_grad()
        self.backward(self.model, self.k)
        self.k += 1
        return self.monitor.step()

    def until(self, k):
        while self.k < k:
            assert self.right(self.step())
        return self

    def right(self, stats):
        twin = perceptron().double()
        twin.load_state_dict(self.model.state_dict())
        rows = per_sample(twin, lambda m, i: class_loss(m, X[i : i + 1].double(), Y[i : i + 1]) / N, N)
        return compare(stats, rows).kind == "right"


def plain(model, k):
    class_loss(model, X.double(), Y).backward()


def slope_penalty(model, k):
    x = X.double().requires_grad_()
    out = model(x)
    loss = F.cross_entropy(out, Y)
    if k >= ON:
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        loss = loss + slope.square().sum(1).mean()
    loss.backward()


def clip(model):
    nn.utils.clip_grad_norm_(model.parameters(), 0.01)


def double_one(model):
    model[2].bias.grad.mul_(2)


def replace(model):
    for p in model.parameters():
        p.grad = 0.5 * p.grad


def through_data(model):
    with torch.no_grad():
        model[0].weight.grad.zero_()


def changed_by(change, since=ON):
    def backward(model, k):
        plain(model, k)
        if k >= since:
            change(model)

    return backward


def test_a_penalty_on_slopes():
    loop = Loop(slope_penalty).until(ON)
    with pytest.raises(ValueError, match="does not prove itself"):
        loop.step()


def test_a_penalty_on_slopes_of_the_second_of_two_batches():
    """The first one's backward pass is over, and was not looked at closely."""

    def backward(model, k):
        (class_loss(model, X.double()[:3], Y[:3]) / 2).backward()
        x = X.double()[3:].requires_grad_()
        out = model(x)
        loss = F.cross_entropy(out, Y[3:]) / 2
        if k >= ON:
            (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
            loss = loss + slope.square().sum(1).mean()
        loss.backward()

    loop = Loop(backward).until(ON)
    with pytest.warns(UserWarning, match=r"step skipped: an inner autograd\.grad"):
        assert loop.step() is None
    with pytest.raises(ValueError, match="does not prove itself"):
        loop.step()


def test_a_look_at_curvature_is_no_penalty():
    def backward(model, k):
        loss = class_loss(model, X.double(), Y)
        gradients = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        torch.autograd.grad(gradients, list(model.parameters()), gradients, retain_graph=True)
        loss.backward()

    Loop(backward).until(ON + 2)


@pytest.mark.parametrize("change", [clip, double_one, replace, through_data])
def test_gradients_changed_after_the_backward_pass(change):
    """The first such step proves nothing, and says so; the next ones are refused."""
    loop = Loop(changed_by(change)).until(ON)
    with pytest.warns(UserWarning, match=r"step skipped: \.grad of .* was written to after a backward pass"):
        assert loop.step() is None
    for _ in range(2):
        with pytest.raises(ValueError, match="does not prove itself"):
            loop.step()
    loop.backward = plain
    assert loop.right(loop.step())


def test_writing_that_changes_nothing_is_proved_step_by_step():
    """As clipping is that does not clip: until it does."""
    loop = Loop(changed_by(lambda model: nn.utils.clip_grad_norm_(model.parameters(), 1e6), since=0)).until(ON + 2)
    loop.backward = changed_by(clip)
    with pytest.raises(ValueError, match="does not prove itself"):
        loop.step()


PENALTIES = {
    "on the size of all": lambda model: 1e-3 * sum(p.square().sum() for p in model.parameters()),
    "on the size of one": lambda model: 1e-2 * model[2].weight.square().sum(),
    "on the sum of sizes": lambda model: 1e-2 * model[0].weight.abs().sum(),
    "on rows that are not orthogonal": lambda model: 1e-2 * (model[2].weight @ model[2].weight.T).square().sum(),
    "towards other weights": lambda model: 1e-2 * sum((p - 1).square().sum() for p in model.parameters()),
}


def penalty(of, since=ON):
    def backward(model, k):
        loss = class_loss(model, X.double(), Y)
        (loss + of(model) if k >= since else loss).backward()

    return backward


@pytest.mark.parametrize("name", PENALTIES)
def test_a_small_penalty_is_one_addition_more(name):
    loop = Loop(penalty(PENALTIES[name])).until(ON)
    with pytest.warns(UserWarning, match=r"step skipped: \.grad of .* did not come as in the steps before"):
        assert loop.step() is None
    for _ in range(4):
        with pytest.raises(ValueError, match="does not prove itself"):
            loop.step()
    loop.backward = plain
    assert all(loop.right(loop.step()) for _ in range(5))


def test_a_head_called_in_the_loss_is_seen_at_the_next_proof():
    """Torch adds gradients of two linear layers into memory of its own, which tells nothing."""
    loop = Loop(penalty(lambda model: 1e-2 * model[2](torch.ones(1, 5, dtype=torch.float64)).square().sum())).until(ON)
    while loop.k < EVERY_ON_CPU:
        loop.step()
    with pytest.raises(ValueError, match=r"does not prove itself.*\n  2\.weight"):
        loop.step()


def test_a_penalty_on_a_layer_whose_gradient_is_ours():
    """Into that memory, or into another, goes what is added to it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, monitor = numbers(N, 4, 8), sdsd.GammaMonitor(model)
    for k in range(ON + 2):
        model.zero_grad()
        loss = model(x).square().mean()
        if k >= ON:
            loss = loss + 1e-2 * model[2](torch.ones(1, 5, dtype=torch.float64)).square().sum()
        loss.backward()
        if k < ON:
            assert monitor.step() is not None
        elif k == ON:
            with pytest.warns(UserWarning, match=r"step skipped: \.grad of 2\.weight, 2\.bias did not come as"):
                assert monitor.step() is None
        else:
            with pytest.raises(ValueError, match="does not prove itself"):
                monitor.step()


def test_a_hook_on_a_parameter():
    def backward(model, k):
        if k == ON:
            model[2].weight.register_hook(lambda gradient: gradient / 2)
        plain(model, k)

    loop = Loop(backward).until(ON)
    with pytest.warns(UserWarning, match=r"step skipped: \.grad of 2\.weight did not come as"):
        assert loop.step() is None
    with pytest.raises(ValueError, match=r"does not prove itself.*\n  2\.weight \("):
        loop.step()


def test_gradients_that_are_not_cleared_any_more():
    """Of the second layer alone, which the first parameter says nothing of."""
    loop = Loop(plain).until(ON)
    loop.model.zero_grad = lambda: loop.model[0].zero_grad()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"2\.weight: its \.grad still held"):
            loop.step()


def test_gradients_that_are_made_smaller_instead_of_cleared():
    loop = Loop(plain).until(ON)
    loop.model.zero_grad = lambda: [p.grad.mul_(0.5) for p in loop.model.parameters()]
    with pytest.raises(ValueError, match="its .grad still held"):
        loop.step()


def test_a_model_compiled_later():
    """Compiled code is asked when it has added to .grad already, which is no gradient that was not cleared."""
    loop = Loop(plain).until(ON)
    loop.model.compile(backend="aot_eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        steps = [loop.step() for _ in range(4)]
    assert steps.count(None) <= 1
    assert all(loop.right(stats) for stats in steps if stats is not None)


def test_what_comes_now_so_and_now_so_is_skipped_but_twice():
    loop = Loop(plain).until(ON)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        skipped = 0
        for k in range(12):
            loop.model.zero_grad = lambda none=k % 5 > 0: nn.Module.zero_grad(loop.model, set_to_none=none)
            stats = loop.step()
            skipped += stats is None
            assert stats is None or loop.right(stats)
    assert skipped <= 2


@pytest.mark.parametrize("shape", [(4, 6), (6,), (3, 2, 2, 2)])
def test_no_gradient_of_signs_is_at_right_angles_to_a_direction(shape):
    """As signs alone would be, to one in three of |w|'s of 24 weights."""
    signs = torch.randint(0, 2, (100, *shape), generator=torch.Generator().manual_seed(0)).mul(2).sub(1).double()
    direction = Prover().direction("weight", torch.empty(shape))
    assert min(abs(project(each, direction).item()) for each in signs) > 1e-3


def test_unscaling_is_no_writing():
    torch.manual_seed(0)
    model, twin = (perceptron() for _ in range(2))
    twin.load_state_dict(model.state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    monitor = sdsd.GammaMonitor(model, scaler=scaler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k in range(ON + 2):
            optimizer.zero_grad()
            scaler.scale(class_loss(model, X.float(), Y)).backward()
            scaler.unscale_(optimizer)
            assert monitor._session.directions is None or k < 3
            stats = monitor.step()
            scaler.step(optimizer)
            scaler.update()
    rows = per_sample(twin, lambda m, i: class_loss(m, X[i : i + 1].float(), Y[i : i + 1]) / N, N)
    assert compare(stats, rows, tolerance=1e-4).kind == "right"


def test_noise_is_never_negative_without_a_word():
    """A gradient that n contributions of this size cannot make; from there on steps prove themselves again."""

    def backward(model, k):
        loss = class_loss(model, X.double(), Y)
        if k >= ON:
            loss = loss + (50 if k == ON else 0.1) * model[0].weight.square().sum()
        loss.backward()

    loop = Loop(backward).until(ON)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"does not prove itself.*\n  0\.weight \("):
            loop.step()
    lenient = Loop(backward, strict=False).until(ON)
    with pytest.warns(UserWarning, match=r"left out of Γ from here on:\n  0\.weight: what arrived in \.grad"):
        stats = lenient.step()
    assert "0.weight" not in stats.parameters
    assert stats.noise > 0


def test_equal_samples_are_no_impossible_gradient():
    """All contributions alike reach the bound; rounding goes beyond it."""
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        model = perceptron().to(dtype)
        monitor = sdsd.GammaMonitor(model)
        x, y = X[:1].to(dtype).expand(N, -1), Y[:1].expand(N)
        for _ in range(ON + 2):
            model.zero_grad()
            class_loss(model, x, y).backward()
            assert monitor.step() is not None


class Sometimes(nn.Sequential):
    """Mixes the samples first, or uses the last of its layers, when told to."""

    mixes = whole = False

    def forward(self, x):
        x = x.softmax(0) if self.mixes else x
        for layer in list(self)[: None if self.whole else -1]:
            x = layer(x)
        return x


def test_what_was_left_out_by_a_step_that_raised_breaks_no_backward_pass():
    """Its gradient has a mark still when the next one comes."""
    torch.manual_seed(0)
    model = Sometimes(*perceptron(), nn.Linear(3, 3)).double()
    monitor = sdsd.GammaMonitor(model, strict=False)
    for mixes in (False, True):
        model.mixes = mixes
        model.zero_grad()
        plain(model, 0)
        if not mixes:
            monitor.step()
    with (
        pytest.warns(UserWarning, match="left out of Γ"),
        pytest.raises(ValueError, match=r"no parameter that was used is left to measure:\n.*2\.bias.*softmax over the"),
    ):
        monitor.step()
    model.mixes, model.whole = False, True
    model.zero_grad()
    plain(model, 0)
    assert set(monitor.step().parameters) == {"3.weight", "3.bias"}
