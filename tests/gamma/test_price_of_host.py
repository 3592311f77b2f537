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
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sdsd
from sdsd.gamma.uses.combining import combine
from sdsd.gamma.uses.pieces import PART_BYTES, Lookup, Product
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


class Made(TorchDispatchMode):
    """Counts the tensors that get memory of their own, by operation and bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[tuple[str, int]] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and t.untyped_storage().data_ptr() not in given:
                self.found[str(func).removeprefix("aten."), t.untyped_storage().nbytes()] += 1
        return out


def made_beyond(model: nn.Module, x: Tensor) -> tuple[collections.Counter[tuple[str, int]], sdsd.GammaStats]:
    """What a measured step makes beyond a plain one, after those that are proved; and its statistics."""
    counts, stats = [], None
    for monitored in (False, True):
        own = copy.deepcopy(model)
        monitor = sdsd.GammaMonitor(own) if monitored else None
        for _ in range(5):
            with Made() as made:
                own(x).square().mean().backward()
                stats = monitor.step() if monitor else None
                own.zero_grad()
        counts.append(made.found)
    assert stats is not None
    return counts[1] - counts[0], stats


def squares_by_loop(model: nn.Module, x: Tensor) -> dict[str, float]:
    """Σ‖g_n‖² of every parameter, of gradients of the samples' own losses, in float64."""
    model = copy.deepcopy(model).double()
    squares = dict.fromkeys(dict(model.named_parameters()), 0.0)
    for sample in x.detach().double():
        gradients = torch.autograd.grad(model(sample.unsqueeze(0)).square().mean(), list(model.parameters()))
        for name, gradient in zip(squares, gradients, strict=True):
            squares[name] += gradient.square().sum().item()
    return squares


NORMS = {
    "layer norm": (lambda: nn.LayerNorm(256), lambda: torch.randn(25, 64, 256) * torch.arange(1.0, 26).view(-1, 1, 1)),
    "group norm": (lambda: nn.GroupNorm(4, 16), lambda: torch.randn(25, 16, 32, 32).cumsum(0)),
    "channels last": (
        lambda: nn.GroupNorm(4, 16),
        # torch 2.13 ends the process in the backward pass where this needs no gradient
        lambda: torch.randn(25, 16, 32, 32).cumsum(0).contiguous(memory_format=torch.channels_last).requires_grad_(),
    ),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms_are_squared_a_part_at_a_time(name, monkeypatch):
    """Products as large as what the norm reads would come in new memory, a page fault for every page."""
    monkeypatch.setenv("SDSD_BACKEND", "torch")
    torch.manual_seed(0)
    model, x = (make() for make in NORMS[name])
    nn.init.uniform_(model.weight, 0.5, 1.5)
    assert x.nbytes > PART_BYTES
    made, stats = made_beyond(model, x)
    assert made
    assert max(size for _, size in made) <= PART_BYTES, made
    for parameter, square in squares_by_loop(model, x).items():
        one = stats.parameters[parameter]
        assert one.noise * (one.n - 1) + one.n * one.signal == pytest.approx(square, rel=1e-5)


def test_a_tie_is_squared_a_part_at_a_time():
    """The product of a table's use as a matrix and as a table needs two numbers for every pair of positions."""
    torch.manual_seed(0)
    a, b, g = torch.randn(9, 256, 8), torch.randn(9, 256, 32), torch.randn(9, 256, 8)
    pieces = [Product(a, b), Lookup(torch.randint(0, 32, (9, 256)), g, 32, None)]
    with Made() as made:
        squares = combine(pieces, None, 2**26)
    assert max(size for _, size in made.found) <= PART_BYTES < 4 * 9 * 256 * 256, made.found
    assert not any(name.startswith("cat.") for name, _ in made.found), "what one use reads was copied"
    formed = sum(piece.each(0, 9).double() for piece in pieces).square().sum().item()
    assert float(squares) == pytest.approx(formed, rel=1e-6)


def test_rows_are_squared_in_memory_that_is_there(monkeypatch):
    """Of layers with one position a sample a step makes single numbers and nothing else."""
    monkeypatch.setenv("SDSD_BACKEND", "torch")
    torch.manual_seed(0)
    made, _ = made_beyond(MODELS["MLP"][0](), torch.randn(6, 12))
    assert made
    assert max(size for _, size in made) <= 8, made
