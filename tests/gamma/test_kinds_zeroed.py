"""What begins where gradients are added to a .grad that is there: zeroed in place, or of a step's earlier passes."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

import sdsd
from tests.zoo.parts import class_loss

from .priced import MODELS
from .test_kinds_by_turns import Sentences
from .test_kinds_later import ON, PENALTIES, Loop, X, Y, penalty, plain
from .test_price_of_host import calls_of

FOREIGN = {
    **PENALTIES,
    "a head called in the loss": lambda model: 1e-2 * model[2](torch.ones(1, 5).double()).square().sum(),
}


class Zeroed(Loop):
    def __init__(self, backward, **options):
        super().__init__(backward, **options)
        self.model.zero_grad = lambda: nn.Module.zero_grad(self.model, set_to_none=False)


def in_two_passes(of, since=ON):
    """Begins in the second one."""

    def backward(model, k):
        (class_loss(model, X.double()[:3], Y[:3]) / 2).backward()
        loss = class_loss(model, X.double()[3:], Y[3:]) / 2
        (loss + of(model) if k >= since else loss).backward()

    return backward


LOOPS = {
    "zeroed": lambda of: Zeroed(penalty(of)),
    "two passes": lambda of: Loop(in_two_passes(of)),
    "two passes, zeroed": lambda of: Zeroed(in_two_passes(of)),
}


@pytest.mark.parametrize("kind", LOOPS)
@pytest.mark.parametrize("name", FOREIGN)
def test_what_begins_is_seen_at_once(name, kind):
    loop = LOOPS[kind](FOREIGN[name]).until(ON)
    with pytest.warns(UserWarning, match=r"step skipped: \.grad of .* did not come as in the steps before"):
        assert loop.step() is None
    for _ in range(2):
        with pytest.raises(ValueError, match="does not prove itself"):
            loop.step()
    loop.backward = plain
    assert loop.right(loop.step())


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("kind", LOOPS)
def test_what_is_always_there_costs_no_step(kind, every):
    loop = LOOPS[kind](lambda model: torch.zeros(()))
    loop.monitor.detach()
    loop.monitor = sdsd.GammaMonitor(loop.model, every=every)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k in range(30):
            stats = loop.step()
            assert (stats is not None) == (k % every == 0)
            assert stats is None or loop.right(stats), k


@pytest.mark.parametrize("kind", ["attention", "recurrent", "rows"])
def test_sentences_of_changing_length_cost_no_step(kind):
    """Gradients come by other operations, or after more additions, where more words are in a sentence."""
    torch.manual_seed(0)
    rows = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    model = (rows if kind == "rows" else Sentences(kind)).double()
    monitor, generator = sdsd.GammaMonitor(model), torch.Generator().manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for k in range(25):
            model.zero_grad(set_to_none=False)
            words = torch.randint(0, 11, (len(X), 2 + k % 9), generator=generator)
            given = torch.randn(len(X), 1 + k % 9, 8, generator=generator).double() if kind == "rows" else words
            model(given).square().mean().backward()
            assert monitor.step() is not None, k


def test_a_parameter_frozen_on_the_way_breaks_no_backward_pass():
    loop = Loop(plain).until(1)
    loop.model[0].weight.requires_grad_(False)
    loop.model.zero_grad()
    for _ in range(3):
        nn.Module.zero_grad(loop.model, set_to_none=False)
        plain(loop.model, 0)
        assert set(loop.monitor.step().parameters) >= {"0.bias", "2.weight", "2.bias"}


def test_gradients_are_watched_as_long_as_they_are_measured():
    loop = Zeroed(plain).until(ON)
    marks = loop.monitor._session.marks
    nodes = [node for node, _ in marks._watched.values()]
    assert len(nodes) == 4
    assert marks.came.keys() == dict(loop.model.named_parameters()).keys()
    loop.monitor.detach()
    assert not marks._watched
    marks.came.clear()
    plain(loop.model, 0)
    assert not marks.came


@pytest.mark.parametrize("name", MODELS)
def test_python_calls_of_a_step_whose_gradients_are_zeroed(name, monkeypatch):
    """One a parameter more than where they are set to None, whose number tests/gamma/test_price_of_host.py holds."""
    monkeypatch.setenv("SDSD_BACKEND", "torch")
    torch.manual_seed(0)
    model, x, y = (make() for make in MODELS[name])
    found = []
    for none in (True, False):
        own = copy.deepcopy(model)
        monitor = sdsd.GammaMonitor(own)

        def step(own=own, monitor=monitor, none=none):
            F.cross_entropy(own(x).flatten(0, -2), y.flatten()).backward()
            monitor.step()
            own.zero_grad(set_to_none=none)

        for _ in range(5):
            step()
        found.append(calls_of(step))
        monitor.detach()
    parameters = len(list(model.parameters()))
    assert parameters <= found[1] - found[0] <= parameters + 2
