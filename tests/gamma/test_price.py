"""What measuring adds to a step where kernels serve: operations, launches, Python calls. Counted, so without a GPU.

A launch is a kernel of ours, or an operation of torch that is no view; torch's own operations may launch several.
"""

from __future__ import annotations

import collections
import copy
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

import sdsd
from sdsd_kernels import available_backends
from tests.launches import unwatched

from .priced import MODELS, Operations, owners

if torch.cuda.is_available() or "triton" not in available_backends("cpu"):
    pytest.skip("counted under Triton's interpreter", allow_module_level=True)

import triton
from triton.runtime.interpreter import GridExecutor

TRITON = os.path.dirname(triton.__file__)
VIEWS = (
    "alias",
    "as_strided",
    "detach",
    "empty",
    "expand",
    "permute",
    "select",
    "slice",
    "split",
    "squeeze",
    "t.",
    "transpose",
    "unbind",
    "unsqueeze",
    "view",
    "_unsafe_view",
)
WAITING = ("_local_scalar_dense", "nonzero", "_unique2", "masked_select", "equal", "is_nonzero", "_to_cpu")
"""Operations that wait for the device."""


class Counted(NamedTuple):
    operations: collections.Counter[str]
    kernels: int
    calls: int

    @property
    def launches(self) -> int:
        """Operators of ours are their kernels."""
        own = (n for name, n in self.operations.items() if not name.startswith((*VIEWS, "sdsd.")))
        return self.kernels + sum(own)


class Counter:
    """Counts what a call does; calls of Python without those of the interpreter, which a compiled kernel has not."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kernels, self.calls, self._inside = 0, 0, False
        run = GridExecutor.__call__

        def counted(executor: Any, *args: Any, **kwargs: Any) -> Any:
            self.kernels, self._inside = self.kernels + 1, True
            try:
                return run(executor, *args, **kwargs)
            finally:
                self._inside = False

        monkeypatch.setattr(GridExecutor, "__call__", counted)
        unwatched(monkeypatch)

    def _event(self, frame: Any, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if (
            event == "call"
            and not self._inside
            and not file.startswith((TRITON, "<frozen importlib"))
            and file != __file__
        ):
            self.calls += 1

    def of(self, call: Callable[[], Any], ready: Callable[[], Any] = lambda: None) -> Counted:
        """`ready` goes before each call, and is not counted."""
        ready()
        self.kernels = self.calls = 0
        with Operations() as operations:
            call()
        kernels = self.kernels
        ready()
        before = sys.getprofile()
        sys.setprofile(self._event)
        try:
            call()
        finally:
            sys.setprofile(before)
        return Counted(operations.found, kernels, self.calls)


class Price(NamedTuple):
    plain: Counted
    measured: Counted
    modules: int

    def more(self, of: str) -> float:
        """A module."""
        one, other = (getattr(each, of) for each in (self.measured, self.plain))
        if isinstance(one, collections.Counter):
            one, other = one.total(), other.total()
        return (one - other) / self.modules


@pytest.fixture(params=MODELS)
def passes(request, monkeypatch) -> Iterator[Callable[[str], Price]]:
    """Counts the forward pass, the backward pass, both, or the whole step, of a plain model and a measured one that is
    not proved."""
    monkeypatch.setenv("SDSD_BACKEND", "triton")
    model, x, y = (make() for make in MODELS[request.param])
    modules = owners(model)
    counter = Counter(monkeypatch)

    def count(what: str) -> Price:
        found = []
        for each, monitor in ((copy.deepcopy(model), None), (own := copy.deepcopy(model), sdsd.GammaMonitor(own))):

            def forward(each: nn.Module = each) -> Tensor:
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    return F.cross_entropy(each(x).flatten(0, -2).float(), y.flatten())

            def finish(each: nn.Module = each, monitor: Any = monitor) -> None:
                if monitor is not None:
                    monitor.step()
                each.zero_grad()

            for _ in range(4):  # what is found once is kept, and three steps are proved
                forward().backward()
                finish()
            if what == "forward":
                found.append(counter.of(forward))
            elif what == "backward":
                losses: list[Tensor] = []

                # A step each: a second backward pass of a step is one that adds to gradients.
                def ready(losses: list[Tensor] = losses, forward: Any = forward, finish: Any = finish) -> None:
                    if losses:
                        finish()
                    losses[:] = [forward()]

                found.append(counter.of(lambda losses=losses: losses[0].backward(), ready))
            elif what == "step":

                def step(forward: Any = forward, finish: Any = finish) -> None:
                    forward().backward()
                    finish()

                found.append(counter.of(step))
            else:
                found.append(counter.of(lambda forward=forward: forward().backward()))
        return Price(*found, modules)

    return count


def test_operations_and_launches(passes):
    price = passes("both")
    assert price.measured.kernels > 0
    assert price.more("operations") <= 3, (price.measured.operations - price.plain.operations).most_common()
    assert price.more("launches") <= 2, (price.measured.operations - price.plain.operations).most_common()


def test_nothing_waits_for_the_device(passes):
    price = passes("both")
    more = price.measured.operations - price.plain.operations
    assert not [name for name in more if name.startswith(WAITING)]


def test_python_calls_of_the_backward_pass(passes):
    """What a backward pass takes beside its modules, some 25 calls, is shared out among few of them here."""
    price = passes("backward")
    assert 0 < price.more("calls") <= 16 + 25 / price.modules


MOST_CALLS = {"GPT": 39, "CNN": 40, "MLP": 52}
"""Python calls a module. Those of a pass and of step() whatever the model, some 68, are shared by three in the MLP."""


def test_python_calls_of_the_step(passes, request):
    """Forward, backward and step()."""
    price = passes("step")
    assert 0 < price.more("calls") <= MOST_CALLS[request.node.callspec.params["passes"]]
