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
from torch.utils._python_dispatch import TorchDispatchMode

import sdsd
from sdsd_kernels import available_backends

if torch.cuda.is_available() or "triton" not in available_backends("cpu"):
    pytest.skip("counted under Triton's interpreter", allow_module_level=True)

import triton
from triton.runtime.interpreter import GridExecutor

TRITON = os.path.dirname(triton.__file__)
VIEWS = (
    "alias", "as_strided", "detach", "empty", "expand", "permute", "select", "slice", "split", "squeeze", "t.",
    "transpose", "unbind", "unsqueeze", "view", "_unsafe_view",
)  # fmt: skip
WAITING = ("_local_scalar_dense", "nonzero", "_unique2", "masked_select", "equal", "is_nonzero", "_to_cpu")
"""Operations that wait for the device."""


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_one, self.norm_two = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.attention(self.norm_one(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(*heads.unbind(0), is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm_two(x))))


class Gpt(nn.Module):
    def __init__(self, width: int = 16, words: int = 20, positions: int = 8) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(words, width), nn.Embedding(positions, width)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]).expand_as(ids))
        return self.head(self.norm(self.blocks(x)))


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8)
        self.deep, self.two = nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.GroupNorm(4, 16)
        self.point, self.three = nn.Conv2d(16, 16, 1, bias=False), nn.GroupNorm(4, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(self.stem(x)))
        x = F.relu(self.two(self.deep(x)))
        return self.head(F.relu(self.three(self.point(x))).mean((2, 3)))


MODELS = {
    "GPT": (Gpt, lambda: torch.randint(0, 20, (3, 8)), lambda: torch.randint(0, 20, (3, 8))),
    "CNN": (
        lambda: Cnn().to(memory_format=torch.channels_last),
        lambda: torch.randn(3, 3, 6, 6).to(memory_format=torch.channels_last),
        lambda: torch.randint(0, 5, (3,)),
    ),
}


class Counted(NamedTuple):
    operations: collections.Counter[str]
    kernels: int
    calls: int

    @property
    def launches(self) -> int:
        """Operators of ours are their kernels."""
        own = (n for name, n in self.operations.items() if not name.startswith((*VIEWS, "sdsd.")))
        return self.kernels + sum(own)


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[str(func).removeprefix("aten.")] += 1
        return func(*args, **(kwargs or {}))


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
        # Without conftest.py's poison, which takes calls of its own.
        for name in ("empty", "empty_like", "empty_strided"):
            monkeypatch.setattr(torch, name, getattr(torch._C._VariableFunctions, name))
        monkeypatch.setattr(Tensor, "new_empty", torch._C.TensorBase.new_empty)

    def _event(self, frame: Any, event: str, _: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and not self._inside and not file.startswith(TRITON) and file != __file__:
            self.calls += 1

    def of(self, call: Callable[[], Any]) -> Counted:
        self.kernels = self.calls = 0
        with Operations() as operations:
            call()
        kernels = self.kernels
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
    """Counts the forward pass, the backward pass, or both, of a plain model and a measured one that is not proved."""
    monkeypatch.setenv("SDSD_BACKEND", "triton")
    model, x, y = (make() for make in MODELS[request.param])
    modules = sum(1 for module in model.modules() if any(True for _ in module.parameters(recurse=False)))
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
                losses = iter([forward(), forward()])
                found.append(counter.of(lambda losses=losses: next(losses).backward()))
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
    assert 0 < passes("backward").more("calls") <= 40
