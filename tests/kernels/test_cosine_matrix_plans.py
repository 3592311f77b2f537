"""Every way to compute the cosine matrix in Triton, forced: pointers, descriptors, splits, a library's product."""

from __future__ import annotations

import importlib
import itertools
import random

import pytest
import torch
from torch import Tensor

from sdsd_kernels._aot import compiled_ahead
from sdsd_kernels._backend import unusable
from sdsd_kernels._device import device_record
from sdsd_kernels._rows import as_rows
from sdsd_kernels.cosine_matrix import config, waves
from sdsd_kernels.cosine_matrix.waves import Plan
from tests.helpers import assert_within, cosine_error, summation_error, unit_roundoff
from tests.kernels.test_cosine_matrix import (
    INF,
    NAN,
    check,
    check_precision,
    check_promises,
    check_values,
    oracle,
    rounded_way,
)

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton", "ignore::RuntimeWarning:numpy")

SQUARE = config.MatrixConfig(32, 32, 32, num_warps=4, num_stages=2, resident=1, group=2)
SMALL = config.MatrixConfig(16, 16, 16, num_warps=4, num_stages=2, resident=1, group=4)
WIDE = config.MatrixConfig(16, 32, 32, num_warps=4, num_stages=2, resident=1, group=2)
PLANS = {
    "pointer": Plan("pointer", SQUARE),
    "pointer, 3 splits": Plan("pointer", SMALL, 3),
    "descriptor": Plan("descriptor", SQUARE),
    "descriptor, wide": Plan("descriptor", WIDE),
    "descriptor, wide, 2 splits": Plan("descriptor", WIDE, 2),
    "dense": Plan("dense", None),
}
if torch.cuda.is_available():
    # Tiles of 16 and 32 neurons are there for the interpreter; a GPU gets what is shipped for it.
    arch = device_record(torch.device("cuda")).family
    pointer, descriptor = config.pointer_configs(arch, "native"), config.descriptor_configs(arch, "native")
    PLANS = {"dense": PLANS["dense"]} | {
        f"{kernel} {launch.block_rows}×{launch.block_columns}, {splits} splits": Plan(kernel, launch, splits)
        for kernel, launches in (("pointer", pointer), ("descriptor", descriptor))
        for launch, splits in itertools.product(launches, (1, 3))
    }


SHAPES = [(33, 7), (70, 45)]
"""(samples, neurons): less than a tile, and several tiles and steps, ragged in both."""
if torch.cuda.is_available():
    SHAPES += [(256, 512), (300, 333)]
LAUNCHED = [name for name, plan in PLANS.items() if plan.kernel != "dense"]
POSSIBLE = [
    (name, precision, center)
    for (name, plan), precision, center in itertools.product(PLANS.items(), config.PRECISIONS, (False, True))
    # Operands that change on their way are read by pointers, and a library multiplies halves as they are.
    if plan.kernel == "pointer"
    or (plan.kernel == "descriptor" and not center and precision != "fp16")
    or (plan.kernel == "dense" and not center and precision == "float32")
]


@pytest.fixture(params=PLANS)
def plan(request, device) -> Plan:
    problem = unusable("triton", device)
    if problem:
        pytest.skip(problem)
    return PLANS[request.param]


def kernels():
    return importlib.import_module("sdsd_kernels.cosine_matrix.kernel")


def by(plan: Plan, x: Tensor, **options) -> Tensor:
    """Cosines of (samples, neurons) by a plan."""
    options = {"precision": "float32", "out_dtype": torch.float32, "zero": "zero", "center": False, **options}
    return kernels().launch_cosine_matrix(as_rows(x, 1), plan=plan, **options)[0]


def layouts(samples: int, neurons: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """The same numbers with samples adjacent, with neurons adjacent, and in a wider matrix; aligned for descriptors."""
    x = torch.randn(samples, neurons, device=device).to(dtype)
    pad = torch.zeros(samples, -neurons % 16, device=device, dtype=dtype)
    wide = torch.cat([x, pad], 1)[:, :neurons]
    tall = torch.cat([x.T, torch.zeros(neurons, -samples % 16, device=device, dtype=dtype)], 1)[:, :samples].T
    return {"neurons adjacent": wide, "samples adjacent": tall}


def can(plan: Plan, x: Tensor) -> bool:
    """Whether a plan can serve; a launch with another would be a mistake of the caller."""
    return plan.kernel == "pointer" or kernels().descriptors_can_read(as_rows(x, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_plan_dtype_and_layout(shape, dtype, plan, device):
    served = 0
    for x in layouts(*shape, dtype, device).values():
        if not can(plan, x):
            assert dtype == torch.float32 or plan.kernel == "dense"
            continue
        served += 1
        check(by(plan, x), x)
    assert served >= 1


def test_every_plan_gives_the_same_bits_twice(plan, device):
    x = layouts(*SHAPES[-1], torch.bfloat16, device)["samples adjacent"]
    assert torch.equal(by(plan, x), by(plan, x))


@pytest.mark.parametrize("sum_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("plan", LAUNCHED, indirect=True)
def test_every_plan_adds_to_a_sum(sum_dtype, plan, device):
    """What `gram_accumulate` does with a plan."""
    x = layouts(*SHAPES[-1], torch.bfloat16, device)["samples adjacent"]
    start = torch.randn(x.shape[1], x.shape[1], dtype=sum_dtype, device=device)
    gram = start.clone()
    add = importlib.import_module("sdsd_kernels.gram_accumulate.kernel").launch_gram_accumulate
    add(gram, as_rows(x, 1), None, None, precision="float32", plan=plan)
    rows = x.T.float().cpu()
    wanted = start.cpu().double().triu() + (rows.double() @ rows.double().T).triu()
    magnitude = (rows.double().abs() @ rows.double().abs().T).triu()
    allowed = summation_error(x.shape[0]) * magnitude + 2 * unit_roundoff(sum_dtype) * (magnitude + wanted.abs())
    assert_within(gram.triu(), wanted, allowed)


def test_every_plan_with_neurons_out_of_range_dead_and_broken(plan, device):
    x = torch.randn(40, 36, device=device)
    for neuron, scale in enumerate([1e-30, 1e30, 1e-20, 1e20, 1e-38, 3e37]):
        x[:, 7 * neuron] *= scale
    for dtype, zero in ((torch.float32, "zero"), (torch.bfloat16, "nan")):
        rows = layouts(40, 36, dtype, device)["samples adjacent"]
        rows.copy_(x if dtype == torch.float32 else x.clamp(-1e35, 1e35) * (x.abs() > 1e-35))
        clean = by(plan, rows, zero=zero)
        check_promises(clean, dead=(rows == 0).all(0).cpu())
        alive = (rows != 0).any(0).cpu()
        check_values(clean[alive][:, alive], rows[:, alive.to(device)])
        rows[3, 1], rows[5, 2], rows[:, 3] = NAN, -INF, 0
        bad = torch.zeros(36, dtype=torch.bool)
        bad[[1, 2, 3]] = True
        cosine = by(plan, rows, zero=zero).cpu()
        good = ~bad & alive
        assert torch.equal(cosine[good][:, good], clean.cpu()[good][:, good])
        assert cosine[[1, 2]].isnan().all()
        assert (cosine[3, good] == 0).all() if zero == "zero" else cosine[3].isnan().all()


def test_every_plan_with_duplicates(plan, device):
    x = layouts(60, 40, torch.float32, device)["samples adjacent"]
    x[:, 20:] = -2 * x[:, :20]
    check(by(plan, x), x)


@pytest.mark.parametrize(("plan", "precision", "center"), POSSIBLE, indirect=["plan"])
def test_every_plan_and_precision(plan, precision, center, device):
    x = layouts(*SHAPES[-1], torch.float32, device)["samples adjacent"]
    x += 0.3
    cosine = by(plan, x, precision=precision, center=center)
    check_promises(cosine)
    # Norms of a split product are those of the rounded neurons, which errs less and never more than twice.
    check_precision(cosine, x, precision, center)


def test_what_bf16x3_leaves_out(device):
    """Neurons nearly parallel: the product of the two rests does not average out, so it is no float32."""
    problem = unusable("triton", device)
    if problem:
        pytest.skip(problem)
    x = torch.randn(256, 1, device=device) + 1e-4 * torch.randn(256, 40, device=device)
    plan = next(plan for plan in PLANS.values() if plan.kernel == "pointer" and plan.splits == 1)
    error = {
        precision: (by(plan, x, precision=precision).cpu() - oracle(x)).abs().max().item()
        for precision in ("float32", "bf16x3", "bf16")
    }
    emulated = (rounded_way(x, "bf16x3").clamp(-1, 1) - oracle(x)).abs().max().item()
    assert emulated / 2 < error["bf16x3"] <= 2 * emulated
    assert error["float32"] <= cosine_error(x.T).max()
    assert 4 * error["float32"] < error["bf16x3"] < error["bf16"] / 20


def test_four_dimensions_and_strange_strides(device):
    problem = unusable("triton", device)
    if problem:
        pytest.skip(problem)
    for plan in (plan for plan in PLANS.values() if plan.kernel == "pointer"):
        for x, dim in (
            (torch.randn(3, 34, 4, 5, device=device), 1),
            (torch.randn(60, 70, device=device)[::3, 1:40], 1),
            (torch.randn(60, 1, device=device).expand(-1, 35), 1),
        ):
            options = {"precision": "float32", "out_dtype": torch.float32, "zero": "zero", "center": False}
            cosine = kernels().launch_cosine_matrix(as_rows(x, dim), plan=plan, **options)[0]
            check(cosine, x, dim)


@pytest.mark.parametrize(
    ("view", "readable"),
    [
        (lambda x: x, True),
        (lambda x: x[:, :60], True),  # rows of 64: 256 bytes
        (lambda x: x[:, 4:], True),  # begins 16 bytes in
        (lambda x: x[:, 1:], False),
        (lambda x: x[::2], True),
        (lambda x: x[:, ::2], False),
        (lambda x: x.reshape(-1)[: 63 * 64].view(64, 63), False),  # rows of 252 bytes
        (lambda x: x.t(), False),  # float32 with neurons adjacent
        (lambda x: x.bfloat16().t(), True),
        (lambda x: x.bfloat16().t()[:, 1:], True),
        (lambda x: x.bfloat16().t()[1:], False),
        (lambda x: x[:1].expand(10, -1), False),
    ],
)
def test_what_descriptors_can_read(view, readable, device):
    problem = unusable("triton", device)
    if problem:
        pytest.skip(problem)
    rows = view(torch.randn(64, 64, device=device)).unsqueeze(1)
    assert kernels().descriptors_can_read(rows) == readable


@pytest.mark.parametrize(
    ("version", "interpreted", "readable"), [("3.5.0", "1", False), ("3.5.1", "0", True), ("3.6.0", "1", True)]
)
def test_the_interpreter_of_triton_3_5_wants_strides_of_16_elements(version, interpreted, readable, monkeypatch):
    if unusable("triton", torch.device("cpu")):
        pytest.skip("no Triton")
    monkeypatch.setattr(kernels().triton, "__version__", version)
    monkeypatch.setenv("TRITON_INTERPRET", interpreted)
    for dtype, samples in ((torch.float32, 20), (torch.float16, 24)):
        assert kernels().descriptors_can_read(torch.randn(8, 1, samples).to(dtype)) == readable
        assert kernels().descriptors_can_read(torch.randn(8, 1, 32).to(dtype))


# The triangle of tiles


def twin(index: int, tiles: int, group: int) -> tuple[int, int]:
    """_triangle_tile in Python, whose integers have no end: bands, walked in pairs from both ends."""
    odd = tiles % group
    in_odd = sum(tiles - row for row in range(odd))
    if index < in_odd:
        first, height, within = 0, odd, index
    else:
        rows, rest = tiles - odd, index - in_odd
        pair, within = divmod(rest, group * (rows + 1))
        upper = group * (rows - (pair + 1) * group) + group * (group + 1) // 2
        band = pair
        if within >= upper:
            within, band = within - upper, rows // group - 1 - pair
        first, height = odd + band * group, group
    column = 0
    while column < height and within > column:
        within -= column + 1
        column += 1
    if column == height:
        return first + within % height, first + height + within // height
    return first + within, first + column


def place_of(row: int, column: int, tiles: int, group: int) -> int:
    """The index of a tile, by adding up what comes before it."""
    odd = tiles % group
    rows = tiles - odd

    def tiles_of_band(first: int, height: int) -> int:
        return height * (height + 1) // 2 + height * (tiles - first - height)

    if row < odd:
        first, height, before = 0, odd, 0
    else:
        band, bands = (row - odd) // group, rows // group
        pair = min(band, bands - 1 - band)
        before = tiles_of_band(0, odd) + pair * group * (rows + 1)
        if band != pair:
            before += tiles_of_band(odd + pair * group, group)
        first, height = odd + band * group, group
    inside = min(column - first, height)
    return before + inside * (inside + 1) // 2 + max(0, column - first - height) * height + row - first


def on_device(indices: Tensor, tiles: int, group: int) -> tuple[Tensor, Tensor]:
    """(rows, columns) that the device function gives for many indices."""
    from tests.kernels.triangle_kernel import triangle_kernel

    row, column = torch.full((2, len(indices)), -1, dtype=torch.int32, device=indices.device)
    block = 65_536 if indices.device.type == "cpu" else 256
    programs = -(-len(indices) // block)
    triangle_kernel[(programs,)](indices, row, column, len(indices), tiles, GROUP=group, BLOCK=block)
    return row.long().cpu(), column.long().cpu()


@pytest.mark.parametrize("group", [1, 2, 4, 8])
def test_the_twin_meets_every_tile_once(group):
    for tiles in (*range(1, 40), 63, 64, 65):
        found = [twin(index, tiles, group) for index in range(waves.triangle(tiles))]
        assert sorted(found) == [(row, column) for row in range(tiles) for column in range(row, tiles)]
        assert [place_of(row, column, tiles, group) for row, column in found] == list(range(len(found)))


@pytest.mark.parametrize("tiles", [333, 1000, 2047])
def test_thousands_of_tiles_on_the_device(tiles, device):
    """All indices of the device function, each tile met once."""
    problem = unusable("triton", device)
    if problem:
        pytest.skip(problem)
    count = waves.triangle(tiles)
    row, column = on_device(torch.arange(count, device=device), tiles, 8)
    assert ((row >= 0) & (row <= column) & (column < tiles)).all()
    assert (torch.bincount(row * tiles + column) <= 1).all()
    if tiles == 333:
        found = list(zip(row.tolist(), column.tolist(), strict=True))
        assert found == [twin(index, tiles, 8) for index in range(count)]


@pytest.mark.parametrize("group", [2, 8])
@pytest.mark.parametrize("tiles", [5, 77, 46_341, 65_537, 99_991, 1_000_003])
def test_device_and_twin_agree_where_32_bits_end(tiles, group, device):
    problem = unusable("triton", device)
    if problem:
        pytest.skip(problem)
    generator = random.Random(tiles)
    last = waves.triangle(tiles) - 1
    indices = [0, last, last // 2, *(generator.randint(0, last) for _ in range(300))]
    indices += [index for index in (2**31 - 1, 2**31, 2**31 + 1, 2**32, 2**32 + 1) if index <= last]
    row, column = on_device(torch.tensor(indices, device=device), tiles, group)
    found = list(zip(row.tolist(), column.tolist(), strict=True))
    assert found == [twin(index, tiles, group) for index in indices]
    assert [place_of(*place, tiles, group) for place in found] == indices


def test_a_band_walks_its_columns_together():
    """Programs side by side read few panels: 128 of them at most 8 rows and 18 columns, twice where two bands meet."""
    for start in range(0, 1500, 128):
        window = [twin(index, 64, 8) for index in range(start, min(start + 128, waves.triangle(64)))]
        panels = len({row for row, _ in window}) + len({column for _, column in window})
        assert panels <= 2 * (8 + 18)


# What is compiled ahead of time


def test_aot_cases_cover_every_configuration():
    cases = importlib.import_module("sdsd_kernels.cosine_matrix.aot").aot_cases()
    assert len({(case.name, case.target) for case in cases}) == len(cases)
    targets = {record.family: record.target for record in compiled_ahead()}

    def compiled(kernel: str, arch: str, dot: str, choice: config.MatrixConfig) -> bool:
        rows = "BLOCK_NEURONS" if kernel == "pointer" else "BLOCK_ROWS"
        return any(
            case.name.startswith(kernel)
            and case.target == targets[arch]
            and case.constexprs["PRECISION"] == dot
            and case.constexprs[rows] == choice.block_rows
            and case.constexprs["BLOCK_SAMPLES"] == choice.block_samples
            and case.options == {"num_warps": choice.num_warps, "num_stages": choice.num_stages}
            for case in cases
        )

    shipped = [("pointer", config.POINTER), ("descriptor", config.DESCRIPTOR)]
    for kernel, table in shipped:
        for arch, dots in table.items():
            for dot, choices in dots.items():
                for choice in (*choices, config.redo_config(arch, dot)) if kernel == "pointer" else choices:
                    assert compiled(kernel, arch, dot, choice), (kernel, arch, dot, choice)


def test_about_ten_configurations_are_shipped():
    tables = (*config.POINTER.values(), *config.DESCRIPTOR.values())
    shipped = {choice for dots in tables for choices in dots.values() for choice in choices}
    assert len(shipped) <= 12


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100", "hip", "interpreted"])
def test_every_precision_has_a_configuration(arch):
    for precision, dtype, center in itertools.product(
        config.PRECISIONS, (torch.float32, torch.bfloat16), (False, True)
    ):
        dot = config.dot_precision(precision, dtype, center=center, arch=arch)
        assert config.pointer_configs(arch, dot)


@pytest.mark.parametrize(
    ("precision", "dtype", "center", "arch", "wanted"),
    [
        ("float32", torch.float32, False, "sm_90", "tf32x3"),
        ("tf32", torch.float32, False, "sm_90", "tf32"),
        ("bf16", torch.float32, True, "hip", "bf16"),
        ("bf16x3", torch.float32, False, "hip", "bf16x3"),
        ("fp16", torch.float32, False, "sm_80", "fp16"),
        ("float32", torch.float32, False, "hip", "ieee"),
        ("tf32", torch.float32, False, "hip", "ieee"),
        ("float32", torch.bfloat16, False, "sm_80", "native"),
        ("bf16", torch.float16, False, "sm_80", "native"),
        ("fp16", torch.bfloat16, False, "sm_90", "native"),
        ("float32", torch.float16, True, "sm_100", "tf32x3"),
    ],
)
def test_dot_precision(precision, dtype, center, arch, wanted):
    assert config.dot_precision(precision, dtype, center=center, arch=arch) == wanted
