"""A step, and what it should have measured."""

from __future__ import annotations

import copy

from tests.zoo.parts import N, class_loss, classes, numbers
from tests.zoo.verdict import compare, per_sample, refused

X, Y = numbers(N, 8), classes()


def truth(model, x=X, y=Y, loss=class_loss):
    model = copy.deepcopy(model)
    model.zero_grad()
    return per_sample(model, lambda m, i: loss(m, x[i : i + 1], y[i : i + 1]) / len(x), len(x))


def assert_right(stats, model, x=X, y=Y, loss=class_loss):
    verdict = compare(stats, truth(model, x, y, loss))
    assert verdict.kind == "right", verdict.why


def attempt(monitor, model):
    """Stats of a step, or the refusal as a `Verdict`."""
    try:
        return monitor.step()
    except Exception as error:
        return refused(error, model, r"\.grad|gradient")


def message(run):
    """What `run` refuses with; an empty text where it does not."""
    try:
        run()
    except (ValueError, RuntimeError) as error:
        return str(error)
    return ""
