"""Every kernel and shipped configuration compiles for every target: no spill, shared memory in bounds, right MMA."""

from __future__ import annotations

import collections
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sdsd_kernels._backend import triton_problem
from tests import aot

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(triton_problem() is not None, reason=f"no Triton to compile with: {triton_problem()}")


def examine(package: str, *search: Path, options: Sequence[str] = ()) -> list[dict]:
    """Run tests/aot.py in a process where kernels are compiled, not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [*search, ROOT]))
    command = [sys.executable, str(ROOT / "tests" / "aot.py"), "--json", "--package", package, *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.stdout or done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def reports() -> list[dict]:
    return examine("sdsd_kernels", options=["--brief"])


def test_every_kernel_declares_cases(reports):
    folders = {path.parent.name for path in (ROOT / "sdsd_kernels").glob("*/kernel.py")}
    assert {report["kernel"] for report in reports} == folders


def test_every_case_is_sound(reports):
    unsound = [(report["kernel"], report["case"], report["target"], report["problems"]) for report in reports]
    assert not [line for line in unsound if line[-1]], "\n".join(str(line) for line in unsound if line[-1])


def test_every_kernel_is_compiled_for_every_target(reports):
    targets: dict[str, set[str]] = {}
    for report in reports:
        targets.setdefault(report["kernel"], set()).add(report["target"])
    for kernel, found in targets.items():
        assert found == {"sm_80", "sm_90", "sm_100", "gfx942"}, kernel


def kernels_of(cases) -> dict[tuple[str, tuple], list]:
    """Cases by kernel and target, whichever folder declares them."""
    found: dict[tuple[str, tuple], list] = {}
    for _, _, case in cases:
        found.setdefault((case.function.__name__, case.target), []).append(case)
    return found


def test_nothing_is_compiled_twice():
    compiled = collections.Counter(
        (module, case.function.__name__, str([case.signature, case.constexprs, case.target, case.options, case.attrs]))
        for module, _, case in aot.chosen("sdsd_kernels", brief=False)
    )
    assert len(compiled) > 300
    assert not [what for what, count in compiled.items() if count > 1]


def test_the_brief_list_has_every_kernel_for_every_target_and_the_full_one_everything():
    full, brief = aot.chosen("sdsd_kernels", brief=False), aot.chosen("sdsd_kernels", brief=True)
    declared = [(module, len(aot.cases_of(module))) for module in aot.discover("sdsd_kernels")]
    assert [place[:2] for place in full] == [(module, index) for module, count in declared for index in range(count)]
    assert [place[:2] for place in brief] == [(module, index) for module, index, case in full if not case.thorough]
    assert len(brief) < len(full) / 2, "what is thorough is most"
    assert {(module, case.target) for module, _, case in brief} == {(module, case.target) for module, _, case in full}
    every, few = kernels_of(full), kernels_of(brief)
    assert set(few) == set(every)
    for (kernel, target), cases in every.items():
        if target[1] == 90:
            for promise in ("expect_mma", "expect_tma", "expect_load_bits", "expect_ptx"):
                wanted = {getattr(case, promise) for case in cases}
                assert wanted <= {getattr(case, promise) for case in few[kernel, target]} | {None, False, ()}, kernel


def test_what_the_brief_list_demands_of_sm_90():
    demanded: dict[str, set[Any]] = {}
    for _, _, case in aot.chosen("sdsd_kernels", brief=True):
        if case.target[1] == 90:
            promises = (case.expect_mma, case.expect_tma and "UTMALDG", case.expect_load_bits)
            demanded.setdefault(case.function.__name__, set()).update(promises)
    products = ("triangle_kernel", "rectangle_kernel", "totals_kernel", "past_threshold_kernel", "topk_kernel")
    for kernel in (*products, "boxes_kernel", "gram_kernel"):
        assert {"HGMMA", "UTMALDG"} <= demanded[kernel], kernel
    for kernel in ("stream_kernel", "samples_kernel", "two_walks_kernel"):
        assert 128 in demanded[kernel], kernel


UNSOUND = """
import triton
import triton.language as tl

from sdsd_kernels._aot import AotCase, aligned, target_of
from sdsd_kernels._device import RECORDS

SM80, SM90, SM100, GFX942 = (target_of(RECORDS[name]) for name in ("sm_80", "sm_90", "sm_100", "gfx942"))


@triton.jit
def _product_kernel(x_ptr, y_ptr, out_ptr, SIZE: tl.constexpr):
    index = tl.arange(0, SIZE)
    tile = index[:, None] * SIZE + index[None, :]
    tl.store(out_ptr + tile, tl.dot(tl.load(x_ptr + tile), tl.load(y_ptr + tile)))


@triton.jit
def _crowded_kernel(x_ptr, out_ptr, SIZE: tl.constexpr):
    index = tl.arange(0, SIZE)
    values = tl.load(x_ptr + index)
    tl.store(out_ptr + index, values - tl.sum(values))


@triton.jit
def _adding_kernel(x_ptr, out_ptr, SIZE: tl.constexpr):
    index = tl.arange(0, SIZE)
    tl.store(out_ptr + index, tl.load(x_ptr + index) + 1)


@triton.jit
def _faulty_kernel(x_ptr, out_ptr, SIZE: tl.constexpr):
    tl.store(out_ptr + tl.arange(0, SIZE), tl.load(x_ptr + tl.arange(0, 2 * SIZE)))


PRODUCT = {"x_ptr": "*bf16", "y_ptr": "*bf16", "out_ptr": "*fp32", "SIZE": "constexpr"}
PLAIN = {"x_ptr": "*fp32", "out_ptr": "*fp32", "SIZE": "constexpr"}


def aot_cases():
    known = aligned(PLAIN, "x_ptr", "out_ptr")
    for target in (SM80, SM90, SM100, GFX942):
        yield AotCase("adding", _adding_kernel, PLAIN, {"SIZE": 1024}, target, attrs=known)
    yield AotCase("spilling", _crowded_kernel, PLAIN, {"SIZE": 4096}, SM90, {"num_warps": 1, "maxnreg": 32})
    yield AotCase("spilling", _crowded_kernel, PLAIN, {"SIZE": 8192}, GFX942, {"num_warps": 1, "waves_per_eu": 8})
    yield AotCase("no matrix instruction", _adding_kernel, PLAIN, {"SIZE": 1024}, SM90, expect_mma="HGMMA")
    yield AotCase("matrix instruction", _product_kernel, PRODUCT, {"SIZE": 64}, SM90, expect_mma="HGMMA")
    yield AotCase("matrix instruction", _product_kernel, PRODUCT, {"SIZE": 64}, SM80, expect_mma="HMMA")
    yield AotCase("matrix instruction", _product_kernel, PRODUCT, {"SIZE": 128}, SM100, expect_mma="UTCHMMA")
    yield AotCase("matrix instruction", _product_kernel, PRODUCT, {"SIZE": 64}, GFX942, expect_mma="v_mfma")
    yield AotCase("other matrix instruction", _product_kernel, PRODUCT, {"SIZE": 64}, SM80, expect_mma="HGMMA")
    yield AotCase("narrow loads", _adding_kernel, PLAIN, {"SIZE": 1024}, SM90, expect_load_bits=128)
    yield AotCase("no descriptor", _product_kernel, PRODUCT, {"SIZE": 64}, SM90, expect_tma=True)
    yield AotCase("plain addition", _adding_kernel, PLAIN, {"SIZE": 1024}, SM90, expect_ptx=("add.rz.f32",))
    yield AotCase("faulty", _faulty_kernel, PLAIN, {"SIZE": 64}, SM90)
"""


@pytest.fixture(scope="module")
def unsound(tmp_path_factory) -> Path:
    """A folder with a package of such kernels."""
    root = tmp_path_factory.mktemp("unsound")
    folder = root / "unsound_kernels" / "crowded"
    folder.mkdir(parents=True)
    for path in (folder, folder.parent):
        (path / "__init__.py").touch()
    (folder / "aot.py").write_text(UNSOUND)
    return root


def test_unsound_kernels_are_found(unsound):
    found = {(report["case"], report["target"]): report for report in examine("unsound_kernels", unsound)}
    problems = {key: " ".join(report["problems"]) for key, report in found.items()}

    for target in ("sm_80", "sm_90", "sm_100", "gfx942"):
        assert problems["adding", target] == ""
        assert problems["matrix instruction", target] == ""
        assert set(found["adding", target]["loads"]) == {"128"}
        assert found["adding", target]["registers"] > 0
    assert "spills" in problems["spilling", "sm_90"]
    assert "spills" in problems["spilling", "gfx942"]
    assert "no HGMMA" in problems["no matrix instruction", "sm_90"]
    assert "no HGMMA" in problems["other matrix instruction", "sm_80"]
    assert "loads of 128 bits" in problems["narrow loads", "sm_90"]
    assert "UTMALDG" in problems["no descriptor", "sm_90"]
    assert "no add.rz.f32" in problems["plain addition", "sm_90"]
    assert "does not compile" in problems["faulty", "sm_90"]


@pytest.mark.parametrize(
    ("loads", "most"),
    [
        ({"128": 5}, True),
        ({"128": 5, "64": 5, "32": 2}, True),
        ({"128": 1, "32": 16}, False),
        ({"64": 9}, False),
        ({"TMA": 9}, False),
        ({}, False),
    ],
)
def test_most_has_to_come_by_wide_loads(loads, most):
    problems = aot.Report("kernel", "case", "sm_90", loads=loads, expect_load_bits=128).problems()
    assert ["128 bits" in problem for problem in problems] == [True] * (not most)


def test_shared_memory_beyond_the_target_is_found():
    limit = aot.SHARED_LIMIT[90]
    assert aot.Report("kernel", "case", "sm_90", shared=limit, shared_limit=limit).problems() == []
    assert "shared memory" in aot.Report("kernel", "case", "sm_90", shared=limit + 1, shared_limit=limit).problems()[0]
