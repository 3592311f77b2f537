"""Every operator is registered in one way, passes opcheck, compiles whole, and costs a call next to nothing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sdsd_kernels
from sdsd_kernels import _register
from sdsd_kernels._register import Gradient, register

KERNELS = Path(sdsd_kernels.__file__).parent
X = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))


def norms() -> torch.Tensor:
    return torch.zeros(2, sdsd_kernels.NORMS_WIDTH, dtype=torch.float64)


CALLS: dict[str, Callable[[torch.Tensor], Any]] = {
    "conv_weight_grad_stats": lambda x: sdsd_kernels.conv_weight_grad_stats(
        x.view(2, 2, 5, 6), x.view(2, 2, 5, 6) + 1, 3, padding=1, backend="torch"
    ),
    "conv_weight_grad_into": lambda x: sdsd_kernels.conv_weight_grad_into(
        x.view(2, 2, 5, 6), x.view(2, 2, 5, 6) + 1, norms(), 0, 3, bias_row=1, padding=1, backend="torch"
    ),
    "cosine_between": lambda x: sdsd_kernels.cosine_between(x, x + 1),
    "cosine_matrix": lambda x: sdsd_kernels.cosine_matrix(x, backend="torch"),
    "cosine_topk": lambda x: sdsd_kernels.cosine_topk(x, 2, backend="torch"),
    "cosine_totals": lambda x: (
        *sdsd_kernels.cosine_histogram(x, 8, backend="torch"),
        sdsd_kernels.cosine_row_sums(x, backend="torch"),
    ),
    "gamma_moments": lambda x: sdsd_kernels.gamma_moments(x, backend="torch"),
    "gram_accumulate": lambda x: sdsd_kernels.gram_accumulate(torch.zeros(6, 6), x, backend="torch"),
    "lookup_squares_into": lambda x: sdsd_kernels.lookup_squares_into(
        x[None], torch.arange(20, device=x.device)[None] % 3, norms(), 0, backend="torch"
    ),
    "scale_shift_grads": lambda x: tuple(
        sdsd_kernels.scale_shift_grads(x[None], norms(), inputs=x[None] + 1, scale_row=0, shift_row=1, backend="torch")
    ),
    "weight_grad_into": lambda x: sdsd_kernels.weight_grad_into(x, x + 1, norms(), 0, bias_row=1, backend="torch"),
    "weight_grad_stats": lambda x: sdsd_kernels.weight_grad_stats(x, x + 1, backend="torch"),
}
"""One call of the public function of every operator."""


def operators() -> set[str]:
    """The operators that some op.py makes, by the schemas in its text."""
    names = set()
    for path in KERNELS.glob("*/op.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "register":
                names.add(str(ast.literal_eval(node.args[0])).partition("(")[0])
    return names


def test_every_operator_is_made_by_register_and_has_a_call_here():
    assert operators() == set(CALLS)
    for path in KERNELS.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name != "_register.py":
            assert not re.search(r"torch\.library\.\w", text), path


@pytest.mark.parametrize("path", sorted(KERNELS.glob("*/op.py")), ids=lambda path: path.parent.name)
def test_registration_comes_last(path):
    body = ast.parse(path.read_text(encoding="utf-8")).body
    registers = [isinstance(node, ast.Assign) and "register(" in ast.unparse(node) for node in body]
    assert any(registers)
    assert all(registers[registers.index(True) :])


def functions_called(call: Callable[[], Any]) -> list[str]:
    """The Python functions that `call` runs, as "file.py:name", in order."""
    call()  # what is cached is cached
    called = []

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            called.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}")

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return called


@pytest.mark.parametrize("name", sorted(set(CALLS)))
def test_torch_runs_few_functions_before_the_implementation(name):
    called = functions_called(lambda: CALLS[name](X))
    implementations = ("op.py:_compute", "op.py:_compute_conv", "op.py:_totals")
    reached = min(called.index(each) for each in implementations if each in called)
    entered = called.index("_ops.py:__call__")
    assert reached - entered == (3 if name == "cosine_matrix" else 1), called[entered : reached + 1]


@pytest.mark.parametrize("name", sorted(CALLS))
def test_every_operator_compiles_whole(name):
    wanted, found = CALLS[name](X), torch.compile(CALLS[name], fullgraph=True, backend="aot_eager")(X)
    assert type(found) is type(wanted)
    for one, other in zip(
        [wanted] if isinstance(wanted, torch.Tensor) else wanted,
        [found] if isinstance(found, torch.Tensor) else found,
        strict=True,
    ):
        assert (one is None and other is None) or torch.equal(one, other)


@pytest.fixture
def library(monkeypatch):
    """A library of its own, so that what a test registers is gone when it ends."""
    library = torch.library.Library("sdsd", "FRAGMENT")
    monkeypatch.setattr(_register, "_LIBRARY", library)
    yield library
    library._destroy()


def save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.power = inputs[1]


def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
    (x,) = ctx.saved_tensors
    return grad * ctx.power * x ** (ctx.power - 1), None


def test_a_gradient_is_the_one_given(library):
    operator = register(
        "made_up_power(Tensor x, int power) -> Tensor",
        lambda x, power: x**power,
        fake=lambda x, power: torch.empty_like(x),
        gradient=Gradient(save, backward),
    )
    x = torch.rand(3, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(operator, (x, 3))
    assert torch.autograd.gradcheck(lambda x: operator(x, 3), x)
    assert torch.autograd.gradgradcheck(lambda x: operator(x, 3), x)
    assert not operator(x.detach(), 3).requires_grad
    with torch.no_grad():
        assert not operator(x, 3).requires_grad
    compiled = torch.compile(lambda x: operator(x * 2, 2).sum(), fullgraph=True, backend="aot_eager")
    compiled(x).backward()
    assert torch.allclose(x.grad, 8 * x.detach())


def test_a_fake_of_the_wrong_shape_is_found(library):
    operator = register("made_up_sum(Tensor x) -> Tensor", lambda x: x.sum(0), fake=lambda x: torch.empty_like(x))
    with pytest.raises(Exception, match="(?i)fake|mismatch|shape"):
        torch.library.opcheck(operator, (torch.rand(3, 2),))


def test_default_values_are_refused(library):
    with pytest.raises(ValueError, match="schema: expected no default values, got 'made_up_scale"):
        register("made_up_scale(Tensor x, int by=2) -> Tensor", lambda x, by: x * by, fake=lambda x, by: x)


def test_a_call_does_not_import_the_compiler():
    code = "import sys, torch, sdsd_kernels\n"
    code += "sdsd_kernels.cosine_matrix(torch.ones(2, 3))\nprint('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
