"""What measuring adds to a step on a CPU: Python calls and dispatched operations, and nothing where none is measured.

Counted: Python's calls, and torch's operations, views and the reading of numbers included.
"""

from __future__ import annotations

import collections
import copy
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import sdsd
from tests.launches import unwatched

from .priced import MODELS, Operations, owners


class Step(NamedTuple):
    """Counts of one step of a model: of its passes, and of what comes after them."""

    forward: int
    backward: int
    finish: int
    operations: collections.Counter[str]


def calls_of(call: Callable[[], Any]) -> int:
    found = 0

    def event(frame: Any, kind: str, _: Any) -> None:
        nonlocal found
        found += kind == "call" and frame.f_code.co_filename != __file__

    before = sys.getprofile()
    sys.setprofile(event)
    try:
        call()
    finally:
        sys.setprofile(before)
    return found


@pytest.fixture(params=MODELS)
def priced(request, monkeypatch) -> Callable[..., tuple[Step, Step, int]]:
    """(arguments of the monitor) → a plain step, a step with it, and the number of modules."""
    monkeypatch.setenv("SDSD_BACKEND", "torch")
    unwatched(monkeypatch)
    torch.manual_seed(0)
    model, x, y = (make() for make in MODELS[request.param])

    def count(**arguments: Any) -> tuple[Step, Step, int]:
        steps = []
        for monitored in (False, True):
            own: nn.Module = copy.deepcopy(model)
            monitor = sdsd.GammaMonitor(own, **arguments) if monitored else None
            losses: list[Tensor] = []

            def forward(own: nn.Module = own, losses: list[Tensor] = losses) -> None:
                losses.append(F.cross_entropy(own(x).flatten(0, -2), y.flatten()))

            def backward(losses: list[Tensor] = losses) -> None:
                losses.pop().backward()

            def finish(own: nn.Module = own, monitor: Any = monitor) -> None:
                if monitor is not None:
                    monitor.step()
                own.zero_grad()

            for _ in range(4):  # what is found once is kept, and three steps are proved
                forward()
                backward()
                finish()
            calls = [calls_of(part) for part in (forward, backward, finish)]
            with Operations() as operations:
                forward()
                backward()
                finish()
            steps.append(Step(*calls, operations.found))
        return steps[0], steps[1], owners(model)

    return count


BUDGETS = {"MLP": (117, 41), "CNN": (269, 111), "GPT": (520, 261)}
"""Python calls, and operations, that measuring adds to a step of 3, 7 and 16 modules: at most 40 calls a module, the
price of a pass and of step(), some 65 calls whatever the model, among them."""
MORE_IN_2_9 = {"MLP": 1, "CNN": 2, "GPT": 8}
"""Operations that torch 2.9 dispatches for the same beyond these."""


def test_a_measured_step(priced, request):
    plain, measured, _ = priced()
    name = request.node.callspec.params["priced"]
    calls, operations = BUDGETS[name]
    if torch.__version__.startswith("2.9."):
        operations += MORE_IN_2_9[name]
    assert 0 < sum(measured[:3]) - sum(plain[:3]) <= calls
    more = measured.operations - plain.operations
    assert 0 < more.total() <= operations, more.most_common()


def test_steps_between_cost_nothing(priced):
    """No operation, nothing in the backward pass; a look whether code is being compiled at every module, and one at
    the model's own hooks."""
    plain, between, modules = priced(every=1000)
    assert between.operations == plain.operations
    assert between.backward == plain.backward
    assert between.forward - plain.forward <= 3 * modules + 3
    assert between.finish - plain.finish <= 6
