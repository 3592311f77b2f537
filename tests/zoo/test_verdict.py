"""The judge itself: every fault a monitor can have is seen, and only a refusal that helps passes for one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sdsd
from sdsd.gamma import monitor
from sdsd.gamma.layers import UnsupportedError
from tests.zoo.parts import N, class_loss, classes, numbers, perceptron
from tests.zoo.verdict import Program, judge, names_it

PROGRAM = Program(perceptron, (numbers(N, 8), classes()), class_loss)


def with_monitor(monkeypatch, **methods):
    monkeypatch.setattr(sdsd, "GammaMonitor", type("Faulty", (sdsd.GammaMonitor,), methods))


def raise_as_library(kind, text):
    """An error as if the library had raised it itself."""
    namespace: dict = {}
    exec(compile("def fail(kind, text): raise kind(text)", monitor.__file__, "exec"), namespace)
    namespace["fail"](kind, text)


def refusing(text, kind=UnsupportedError):
    def step(self):
        sdsd.GammaMonitor.__mro__[1].step(self)
        raise_as_library(kind, text)

    return step


def test_the_monitor_is_right():
    verdict = judge(PROGRAM)
    assert verdict.kind == "right"
    assert verdict.error < 1e-12
    assert (verdict.measured, verdict.parameters) == (4, 4)


@pytest.mark.parametrize("factor", [1 + 1e-5, 1 - 1e-5, 2, 0, float("nan")])
@pytest.mark.parametrize("field", ["signal", "noise"])
def test_sees_a_wrong_number(monkeypatch, factor, field):
    real = getattr(sdsd.GammaStats, field)
    monkeypatch.setattr(sdsd.GammaStats, field, property(lambda self: factor * real.fget(self)))
    assert judge(PROGRAM).kind == "wrong"


def test_sees_a_wrong_count(monkeypatch):
    monkeypatch.setattr(sdsd.GammaStats, "n", property(lambda self: 7, lambda self, value: None), raising=False)
    assert judge(PROGRAM).kind in ("wrong", "crash")


def test_sees_a_parameter_left_out_in_silence(monkeypatch):
    def only_some(self, model, **options):
        sdsd.GammaMonitor.__mro__[1].__init__(self, model, parameters=["0.*"], **options)

    with_monitor(monkeypatch, __init__=only_some)
    assert judge(PROGRAM).kind == "wrong"


def test_sees_a_changed_gradient(monkeypatch):
    def step(self):
        stats = sdsd.GammaMonitor.__mro__[1].step(self)
        self.model[0].weight.grad.mul_(1 + 1e-6)
        return stats

    with_monitor(monkeypatch, step=step)
    assert "0.weight" in judge(PROGRAM).why


def test_sees_what_ought_to_be_refused():
    changed = Program(perceptron, PROGRAM.batch, class_loss, hopeless=True)
    assert judge(changed).kind == "wrong"


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("0.weight: it is used outside of its layer. Use mode='micro'.", UnsupportedError, "refused"),
        ("0.weight: it is used outside of its layer. Use mode='micro'.", RuntimeError, "refused"),
        ("0.weight: it is used outside of its layer. Use mode='micro'.", KeyError, "crash"),
        ("a parameter is used outside of its layer. Use mode='micro'.", UnsupportedError, "crash"),
        ("0.weight: it is used outside of its layer.", UnsupportedError, "crash"),
        ("10.weight.x: it is used outside of its layer. Use mode='micro'.", UnsupportedError, "crash"),
    ],
)
def test_what_passes_for_a_refusal(monkeypatch, text, kind, expected):
    with_monitor(monkeypatch, step=refusing(text, kind))
    assert judge(PROGRAM).kind == expected


def test_an_error_of_torch_is_no_refusal(monkeypatch):
    def step(self):
        torch.zeros(2) @ torch.zeros(3)

    with_monitor(monkeypatch, step=step)
    assert judge(PROGRAM).kind == "crash"


def test_a_refusal_that_leaves_the_monitor_unusable_is_a_crash(monkeypatch):
    refuse, calls = refusing("0.weight: stale. Clear gradients."), []

    def step(self):
        calls.append(self)
        if len(calls) == 1:
            refuse(self)
        refusing("2.weight: never again. Attach a new monitor.")(self)

    with_monitor(monkeypatch, step=step)
    assert judge(PROGRAM).kind == "crash"


def test_a_refusal_that_leaves_the_model_changed_is_wrong(monkeypatch):
    def attach(self, model, **options):
        model[0].__class__ = type("Swapped", (nn.Linear,), {})
        raise_as_library(UnsupportedError, "0.weight: no rule. Use mode='micro'.")

    with_monitor(monkeypatch, __init__=attach)
    assert judge(PROGRAM).kind == "wrong"


def test_names():
    assert names_it("blocks.1.fc.weight: used", ["blocks.1.fc.weight"])
    assert names_it("blocks.1.fc: used", ["blocks.1.fc"])
    assert not names_it("blocks.1.fc2: used", ["blocks.1.fc"])
    assert names_it("h: used", ["h"])
    assert not names_it("in the h of it", ["h"])
