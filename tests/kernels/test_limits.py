"""Launches of shapes that no test can run: grids, numbers and addresses a GPU takes. Nothing is computed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sdsd_kernels
from sdsd_kernels import NORMS_WIDTH, available_backends

if "triton" not in available_backends("cpu"):
    pytest.skip("launches come from files that import Triton", allow_module_level=True)

from triton.runtime.jit import JITFunction

from sdsd_kernels._device import RECORDS
from sdsd_kernels._launch import Launch
from sdsd_kernels.cosine_pairs.kernel import launch_cosine_pairs, launch_cosine_totals
from sdsd_kernels.cosine_topk.kernel import launch_cosine_topk
from sdsd_kernels.gamma_moments.launch import launch_gamma_moments
from sdsd_kernels.lookup_squares_into import launch as lookup
from sdsd_kernels.pairwise.config import Request
from sdsd_kernels.pairwise.launch import launch_cosine_between, launch_cosine_matrix
from sdsd_kernels.per_sample import config
from sdsd_kernels.per_sample.checks import MOST_ROWS, lacks_kernel
from sdsd_kernels.per_sample.squares import launch_squares
from sdsd_kernels.scale_shift_grads import launch as scale_shift
from sdsd_kernels.weight_grad_into import launch as into
from tests.launches import MOST_PROGRAMS, unwatched

FOLDER = Path(sdsd_kernels.__file__).parent
CARDS = [record for record in RECORDS.values() if record.compile_ahead]
F32 = torch.float32
MANY = 300_000
"""More samples than the second and third dimension of a grid may have programs."""


def meta(*shape: int, dtype: torch.dtype = F32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def norms() -> Tensor:
    return meta(2, NORMS_WIDTH, dtype=torch.float64)


def weights(inputs: Tensor, grads: Tensor, *, convolution: Any = None) -> Any:
    return into.launch_into(inputs, grads, norms(), 0, 1, convolution, F32, False, 2**26)


REQUEST = Request(center=False, max_bytes=2**50)


CALLS: dict[str, Callable[[], Any]] = {
    "moments": lambda: launch_gamma_moments([meta(2, 2**31)], False),
    "moments of samples": lambda: launch_gamma_moments([meta(3_000_000, 5)], True),
    "moments of several": lambda: launch_gamma_moments([meta(3_000_000, 5), meta(3_000_000, 3)], True),
    "moments of many tensors": lambda: launch_gamma_moments([meta(2, 3)] * 60_000, False),
    "rank1 and bias": lambda: weights(meta(MANY, 1, 64), meta(MANY, 1, 64)),
    "fused and bias": lambda: weights(meta(MANY, 3, 8), meta(MANY, 3, 8)),
    "gram": lambda: launch_squares(meta(MANY, 2, 64), meta(MANY, 2, 64), "gram"),
    "gram of long samples": lambda: launch_squares(meta(2, 2**17, 8), meta(2, 2**17, 8), "gram"),
    "convolution": lambda: weights(
        meta(MANY, 4, 8, 8), meta(MANY, 8, 8, 8), convolution=((3, 3), (1, 1), (1, 1), (1, 1), 1)
    ),
    "depthwise": lambda: weights(
        meta(MANY, 8, 8, 8), meta(MANY, 8, 8, 8), convolution=((3, 3), (1, 1), (1, 1), (1, 1), 8)
    ),
    "lookup": lambda: lookup.launch(meta(MANY, 4, 64), meta(MANY, 4, dtype=torch.int64), norms(), 0, -1),
    "layer norm": lambda: scale_shift.launch(
        meta(MANY, 4, 64), meta(MANY, 4, 64), meta(MANY, 4, 1), meta(MANY, 4, 1), norms(), 0, 1, F32
    ),
    "bias of channels first": lambda: scale_shift.launch(
        meta(MANY, 64, 16).transpose(1, 2), None, None, None, norms(), -1, 0, F32
    ),
    "matrix": lambda: launch_cosine_matrix(
        meta(MANY, 1, 64), precision="float32", out_dtype=F32, zero="zero", center=True
    ),
    "matrix of long neurons": lambda: launch_cosine_matrix(
        meta(3, 1, 2**30), precision="float32", out_dtype=F32, zero="zero", center=True
    ),
    "between": lambda: launch_cosine_between(meta(MANY, 1, 64), meta(2 * MANY, 1, 64), center=False, zero="zero"),
    "topk": lambda: launch_cosine_topk(meta(16_000_000, 1, 16), None, 10, False, REQUEST),
    "histogram": lambda: launch_cosine_totals(meta(16_000_000, 1, 16), "histogram", 100, REQUEST),
    "pairs": lambda: launch_cosine_pairs(meta(MANY, 1, 16), 0.9, True, REQUEST),
}


MODULES = (
    "gamma_moments.launch",
    "lookup_squares_into.launch",
    "pairwise.launch",
    "per_sample.launch",
    "per_sample.method",
    "per_sample.squares",
    "scale_shift_grads.launch",
    "weight_grad_into.launch",
)


@pytest.mark.parametrize("record", CARDS, ids=lambda record: record.name)
@pytest.mark.parametrize("name", CALLS)
def test_grids_are_within_what_a_gpu_takes(name, record, monkeypatch):
    unwatched(monkeypatch)  # memory without data cannot be filled
    grids = []

    def launched(launch: Launch, *tensors: Any, grid: tuple[int, int, int] | None = None) -> None:
        grids.append((launch.kernel.__name__, grid or launch.grid))

    monkeypatch.setattr(Launch, "__call__", launched)
    for name_of in MODULES:
        module = importlib.import_module(f"sdsd_kernels.{name_of}")
        for attribute in ("_plans", "_one", "_many", "_finish", "PLANS"):
            if hasattr(module, attribute):
                monkeypatch.setattr(module, attribute, {})
        monkeypatch.setattr(module, "device_record", lambda device: record)
    CALLS[name]()
    assert grids
    for kernel, grid in grids:
        assert all(1 <= programs <= most for programs, most in zip(grid, MOST_PROGRAMS, strict=True)), (kernel, grid)


VARYING = {
    "row": "a row of square norms",
    "bias_row": "a row of square norms",
    "scale_row": "a row of square norms",
    "shift_row": "a row of square norms",
    "first_row_tile": "rows of tiles are fewer than neurons, which are fewer than 2³¹",
    "k": "at most 32",
    "tiles_per_split": "fewer than neurons",
    "past_threshold_kernel.first": "counters of 2³¹ chunks would take 16 times the memory there is",
}
"""Numbers that change from call to call of one plan and that 32 bits hold, with the reason."""


def kernels() -> list[tuple[str, Any]]:
    pairs = []
    for path in sorted(FOLDER.glob("*/*kernel*.py")):
        module = importlib.import_module(f"sdsd_kernels.{path.parent.name}.{path.stem}")
        for name, value in vars(module).items():
            if hasattr(value, "arg_names") and value.fn.__module__ == module.__name__ and name.endswith("_kernel"):
                pairs.append((name, value))
    return pairs


def test_numbers_that_change_from_call_to_call_have_64_bits_or_need_none():
    """A launch goes to what the first call was compiled for; a larger number would be cut off without a word."""
    seen = set()
    for name, kernel in kernels():
        fixed = kernel.kwargs.get("do_not_specialize") or []
        parameters = {each.name: each for each in JITFunction(kernel.fn, do_not_specialize=fixed).params}
        for argument in fixed:
            reason = {argument, f"{name}.{argument}"} & VARYING.keys()
            assert bool(reason) != (parameters[argument].annotation_type == "i64"), (name, argument)
            seen |= reason
            seen.add(name)
    assert seen > VARYING.keys()
    assert {"mean_kernel", "totals_kernel", "lookup_kernel"} <= seen


@pytest.mark.parametrize("shape", [(2**31, 2), (1, 2**31)])
def test_more_neurons_or_samples_than_32_bits_count_are_refused(shape):
    x = torch.ones(1, 1).expand(shape)
    with pytest.raises(ValueError, match=r"activations: expected fewer than 2³¹ .* Use backend='torch'"):
        sdsd_kernels.cosine_matrix(x, backend="triton")


@pytest.mark.parametrize(
    ("shape", "strides", "served"),
    [
        ((2**18, 2**13), (2**13, 1), True),
        ((2**18 + 128, 2**13), (1, 2**18 + 128), False),
        ((2**18, 2**12), (1, 2**18), True),
        ((8, 2**12, 3, 3), (1, 2**20, 2**10, 2**5), False),
        ((8, 2**23), (2**23, 1), False),
    ],
)
def test_a_scale_that_32_bits_do_not_reach_over_is_left_to_torch(shape, strides, served):
    scale = torch.empty_strided(shape, strides, device="meta")
    assert (lacks_kernel(torch.ones(1, 1), scale) is None) == served


def test_no_tile_of_a_scale_is_taller_than_checks_take_it_for():
    tiles = [each for value in vars(config).values() if isinstance(value, tuple) for each in value]
    assert max(each.block_p for each in tiles if isinstance(each, config.Tile)) == MOST_ROWS
