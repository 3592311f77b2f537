"""The zoo's runner on models of plain torch, which need none of its libraries."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

import sdsd
from tests.zoo import runner
from tests.zoo.architectures import plain
from tests.zoo.architectures.base import Architecture, of_values, values
from tests.zoo.parts import Net, parameter
from tests.zoo.runner import Row, examine, limit, table, without_chance
from tests.zoo.verdict import Verdict


def small(make, **options):
    return Architecture(make, lambda n, t: values(n, t, 8), of_values, **options)


LINEAR = small(lambda: nn.Sequential(nn.Linear(8, 5), nn.Dropout(0.5), nn.Tanh(), nn.Linear(5, 3)))


@pytest.mark.parametrize("name", plain.MODELS)
def test_models_of_plain_torch(name):
    row = examine("torch", name, plain.MODELS[name])
    assert row.good, row


def test_right_and_unchanged():
    row = examine("family", "linear", LINEAR)
    assert (row.verdict.kind, row.training, row.good) == ("right", "same", True)
    assert row.verdict.error < 1e-12


def test_a_monitor_that_draws_random_numbers_is_seen(monkeypatch):
    class Drawing(sdsd.GammaMonitor):
        def step(self):
            torch.rand(())
            return super().step()

    monkeypatch.setattr(sdsd, "GammaMonitor", Drawing)
    row = examine("family", "linear", LINEAR)
    assert not row.good
    assert "random streams" in row.training


def test_a_wrong_number_is_seen(monkeypatch):
    real = sdsd.GammaStats.noise
    monkeypatch.setattr(sdsd.GammaStats, "noise", property(lambda self: 1.001 * real.fget(self)))
    assert examine("family", "linear", LINEAR).verdict.kind == "wrong"


def test_samples_mixed_have_to_be_refused():
    architecture = small(lambda: nn.Linear(8, 3), mixes="it does not, but says so")
    assert examine("family", "linear", architecture).verdict.kind == "wrong"


def test_a_model_that_cannot_be_built_fails():
    row = examine("family", "broken", small(lambda: nn.Linear(7, 3)))
    assert row.verdict.kind == "crash"
    assert not row.good


def test_chance_that_dropout_does_not_explain_fails():
    noisy = Net(lambda m, x: m.last(x + torch.rand(x.shape)), last=nn.Linear(8, 3))
    assert "random" in examine("family", "noisy", small(lambda: noisy)).verdict.why


def test_the_limit(monkeypatch):
    monkeypatch.setattr(runner, "LIMIT", 1)
    slow = Net(lambda m, x: (time.sleep(5), m.last(x))[1], last=nn.Linear(8, 3))
    begun = time.monotonic()
    row = examine("family", "slow", small(lambda: slow))
    assert time.monotonic() - begun < 4
    assert "took more than 1 s" in row.verdict.why
    with limit(5):
        pass


def test_without_chance_stills_every_kind_of_dropout():
    class StochasticDepth(nn.Module):
        p = 0.5

    encoder = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.4)
    model = Net(lambda m, x: x, encoder=encoder, depth=StochasticDepth(), drop_path=0.3, table=parameter(2))
    without_chance(model)
    assert model.depth.p == model.drop_path == encoder.self_attn.dropout == encoder.dropout1.p == 0.0


def test_the_table_is_sorted_and_holds_no_times():
    rows = [
        Row("b", "two", Verdict("refused", "x | y\nz", 3e-15, 4, 5), "refused"),
        Row("b", "One", Verdict("right", "", 3e-9, 5, 5), "same"),
        Row("a", "three", Verdict("crash", "KeyError: 'a'"), "changed: step 1"),
    ]
    written = table(rows, {"torch": "1.2"})
    assert written == table(rows[::-1], {"torch": "1.2"})
    assert "1 right, 1 refused, 1 wrong, of 3; torch 1.2." in written
    lines = [line for line in written.splitlines() if line.startswith(("| three", "| One", "| two"))]
    assert lines == [
        "| three | **wrong**: KeyError: 'a' | – | – | **changed: step 1** |",
        "| One | right | < 1e-8 | 5 of 5 | same |",
        "| two | refused: x \\| y z | < 1e-12 | 4 of 5 | refused |",
    ]
