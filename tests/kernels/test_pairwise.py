"""The engine of pairs of neurons: every way, dtype, layout and precision; plans and settings."""

from __future__ import annotations

import dataclasses
import importlib
import itertools

import pytest
import torch
from torch import Tensor

import sdsd
from sdsd_kernels._aot import compiled_ahead
from sdsd_kernels._backend import unusable
from sdsd_kernels._checks import PRECISIONS, RETIRED
from sdsd_kernels._device import RECORDS, device_record
from sdsd_kernels._rows import as_rows
from sdsd_kernels.pairwise import config
from sdsd_kernels.pairwise.config import Tile
from tests.helpers import assert_within, summation_error, unit_roundoff
from tests.kernels.matrices import (
    INF,
    NAN,
    check,
    check_precision,
    check_promises,
    check_values,
    oracle,
)

if unusable("triton", torch.device("cuda" if torch.cuda.is_available() else "cpu")):
    pytest.skip("no Triton", allow_module_level=True)

from sdsd_kernels import _launch
from sdsd_kernels.pairwise import launch, sums

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton", "ignore::RuntimeWarning:numpy")


SQUARE, WIDE = Tile(16, 16, 32, 4, 1, 1, group=2), Tile(16, 32, 32, 4, 1, 1, group=2)

OF_THREE: dict[Tile, Tile] = {}

if torch.cuda.is_available():
    # Tiles of 16 neurons are there for the interpreter; a GPU gets what is shipped for it.
    family = device_record(torch.device("cuda")).family
    SQUARE, WIDE = config.ONE_TERM[family][-1][1], config.ONE_TERM[family][0][1]
    # Three terms read twice as much, for which shared memory has to do.
    OF_THREE = {SQUARE: config.THREE_TERMS[family][-1][1], WIDE: config.THREE_TERMS[family][0][1]}


@dataclasses.dataclass(frozen=True)
class Way:
    """How products are to be taken."""

    tile: Tile = SQUARE
    ranges: int = 1
    every: int | None = None
    pointers: bool = False


WAYS = {
    "squares": Way(),
    "wide, 2 ranges": Way(WIDE, 2),
    "added every 2 steps": Way(every=2),
    "added every step, 3 ranges": Way(ranges=3, every=1),
    "pointers, wide": Way(WIDE, pointers=True),
}

SHAPES = [(33, 7), (110, 37)]
"""(samples, neurons): less than a tile, and several tiles and steps, ragged in both."""

if torch.cuda.is_available():
    SHAPES += [(256, 512), (300, 333)]


@pytest.fixture(params=WAYS)
def way(request, monkeypatch) -> Way:
    return forced(monkeypatch, WAYS[request.param])


def forced(monkeypatch: pytest.MonkeyPatch, way: Way) -> Way:
    """Take products in this way alone; plans made otherwise are forgotten, before and after."""
    launch._plans.clear()
    monkeypatch.setattr(launch, "_plans", {})
    monkeypatch.setattr(config, "tile_of", lambda *_: OF_THREE.get(way.tile, way.tile) if _[-1] else way.tile)

    def length(work: int, samples: int, neurons: int, tile: Tile, record: object) -> int:
        return -(-samples // (way.ranges * tile.samples)) * tile.samples

    monkeypatch.setattr(config, "range_samples", length)
    if not torch.cuda.is_available():
        monkeypatch.setattr(config, "strip", lambda *_: 16)  # wide tiles in two strips
    if way.every is not None:
        monkeypatch.setattr(config, "sums_every", lambda *_, three, **__: 1 if three else way.every)
    if way.pointers:
        monkeypatch.setattr(config, "reads_boxes", lambda record: False)
    return way


def by(x: Tensor, **options) -> Tensor:
    """Cosines of (samples, neurons)."""
    options = {"precision": "float32", "out_dtype": torch.float32, "zero": "zero", "center": False, **options}
    return launch.launch_cosine_matrix(as_rows(x, 1), **options)[0]


def layouts(samples: int, neurons: int, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """The same numbers with neurons adjacent, with samples adjacent, and where no descriptor can read halves."""
    x = torch.randn(samples, neurons, device=device).to(dtype)
    pad = torch.zeros(samples, -neurons % 16, device=device, dtype=dtype)
    wide = torch.cat([x, pad], 1)[:, :neurons]
    tall = torch.cat([x.T, torch.zeros(neurons, -samples % 16, device=device, dtype=dtype)], 1)[:, :samples].T
    strange = torch.stack([x, x], 2)[..., 0]
    return {"neurons adjacent": wide, "samples adjacent": tall, "strange": strange}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_way_dtype_and_layout(shape, dtype, way, device):
    for layout, x in layouts(*shape, dtype, device).items():
        check(by(x), x)
        readable = dtype != torch.float32 and layout != "strange"
        assert launch.descriptors_can_read(as_rows(x, 1)) == readable
        prepared = next(reversed(launch._plans.values())).prepare
        square = way.tile.rows == way.tile.columns
        assert prepared.in_place == (readable and (dtype == torch.float16 or square))
        assert prepared.scratch <= max(x.numel() * 4, 64 * x.shape[1]) * 1.5


def test_every_way_gives_the_same_bits_twice(way, device):
    x = layouts(*SHAPES[-1], torch.bfloat16, device)["samples adjacent"]
    assert torch.equal(by(x), by(x))


@pytest.mark.parametrize("sum_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["samples adjacent", "strange"])
def test_every_way_adds_to_a_sum(layout, sum_dtype, way, device):
    """What `gram_accumulate` does."""
    x = layouts(*SHAPES[-1], torch.bfloat16, device)[layout]
    start = torch.randn(x.shape[1], x.shape[1], dtype=sum_dtype, device=device)
    gram = start.clone()
    sums.add_batch(gram, as_rows(x, 1), gram, strips=0)
    rows = x.T.float().cpu()
    wanted = start.cpu().double().triu() + (rows.double() @ rows.double().T).triu()
    magnitude = (rows.double().abs() @ rows.double().abs().T).triu()
    allowed = summation_error(x.shape[0]) * magnitude + 2 * unit_roundoff(sum_dtype) * (magnitude + wanted.abs())
    assert_within(gram.triu(), wanted, allowed)


@pytest.mark.parametrize("layout", ["samples adjacent", "neurons adjacent"])
def test_every_way_with_neurons_out_of_range_dead_and_broken(layout, way, device):
    x = torch.randn(40, 36, device=device)
    for neuron, scale in enumerate([1e-30, 1e30, 1e-20, 1e20, 1e-38, 3e37]):
        x[:, 7 * neuron] *= scale
    for dtype, zero in ((torch.float32, "zero"), (torch.bfloat16, "nan")):
        rows = layouts(40, 36, dtype, device)[layout]
        rows.copy_(x if dtype == torch.float32 else x.clamp(-1e35, 1e35) * (x.abs() > 1e-35))
        clean = by(rows, zero=zero)
        check_promises(clean, dead=(rows == 0).all(0).cpu())
        alive = (rows != 0).any(0).cpu()
        check_values(clean[alive][:, alive], rows[:, alive.to(device)])
        rows[3, 1], rows[5, 2], rows[:, 3] = NAN, -INF, 0
        bad = torch.zeros(36, dtype=torch.bool)
        bad[[1, 2, 3]] = True
        cosine = by(rows, zero=zero).cpu()
        good = ~bad & alive
        assert torch.equal(cosine[good][:, good], clean.cpu()[good][:, good])
        assert cosine[[1, 2]].isnan().all()
        assert (cosine[3, good] == 0).all() if zero == "zero" else cosine[3].isnan().all()


def test_every_way_with_duplicates(way, device):
    x = layouts(60, 40, torch.float32, device)["samples adjacent"]
    x[:, 20:] = -2 * x[:, :20]
    check(by(x), x)


@pytest.mark.parametrize(("precision", "center"), [*itertools.product(PRECISIONS, (False, True))])
def test_every_way_and_precision(precision, center, way, device):
    x = layouts(*SHAPES[-1], torch.float32, device)["samples adjacent"]
    x += 0.3
    cosine = by(x, precision=precision, center=center)
    check_promises(cosine)
    check_precision(cosine, x, precision, center)


@pytest.mark.parametrize("name", RETIRED)
def test_retired_precisions_are_taken_with_a_warning(name, device):
    x = torch.randn(40, 36, device=device)
    with pytest.warns(DeprecationWarning, match=f"precision='{name}' is retired: '{RETIRED[name]}' serves"):
        found = sdsd.neuron_cosine_matrix(x, precision=name, backend="triton")
    assert torch.equal(found, sdsd.neuron_cosine_matrix(x, precision=RETIRED[name], backend="triton"))


@pytest.mark.parametrize(
    ("samples", "neurons", "center"),
    [(64, 48, False), (300, 33, True), (3000, 20, False), *[(1_000_000, 64, False)] * torch.cuda.is_available()],
)
def test_float32_errs_less_than_torch_s_float32_product(samples, neurons, center, device):
    """Root mean square error over all pairs, against float64."""
    x = torch.randn(samples, neurons, device=device) + 0.5
    exact = oracle(x, center=center)
    rows = x.T.contiguous()
    rows = rows - rows.mean(1, keepdim=True) if center else rows
    unit = rows / rows.norm(dim=1, keepdim=True)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    plain = unit @ unit.T
    torch.set_float32_matmul_precision(before)
    apart = ~torch.eye(neurons, dtype=torch.bool)
    own, theirs = (
        (found.cpu().double() - exact)[apart].square().mean().sqrt() for found in (by(x, center=center), plain)
    )
    assert own <= theirs
    assert own <= 1e-7


def test_promotion_keeps_the_error_from_growing(device):
    """The matrix unit truncates, the interpreter does not: only a GPU can fail this."""
    if device.type == "cpu":
        pytest.skip("the interpreter adds as float32 does")
    for samples in (4096, 65_536):
        x = torch.rand(samples, 256, device=device).to(torch.bfloat16)
        assert (by(x).cpu() - oracle(x)).abs().max() < 2e-5


def test_norms_over_ranges_of_samples(device, monkeypatch):
    monkeypatch.setattr(launch, "_plans", {})
    for x in (torch.randn(700, 5, device=device) + 3, torch.randn(5, 700, device=device).T + 3):
        for center in (False, True):
            launch._plans.clear()
            check(by(x, center=center), x, center=center)
            prepared = next(iter(launch._plans.values())).prepare
            assert device.type == "cuda" or prepared.ranges > 1


def test_a_first_sample_far_from_the_others_costs_no_digits(device):
    x = torch.randn(1000, 20, device=device)
    x[0] = 1e4
    check_values(by(x, center=True), x, center=True)


def test_four_dimensions_and_strange_strides(way, device):
    for x, dim in (
        (torch.randn(3, 34, 4, 5, device=device), 1),
        (torch.randn(60, 70, device=device)[::3, 1:40], 1),
        (torch.randn(60, 1, device=device).expand(-1, 35), 1),
        (torch.randn(3, 34, 4, 5, device=device).half(), 1),
    ):
        options = {"precision": "float32", "out_dtype": torch.float32, "zero": "zero", "center": False}
        check(launch.launch_cosine_matrix(as_rows(x, dim), **options)[0], x, dim)


@pytest.mark.parametrize(
    ("view", "readable"),
    [
        (lambda x: x, True),
        (lambda x: x[:, :60], True),  # rows of 64: 128 bytes
        (lambda x: x[:, 8:], True),  # begins 16 bytes in
        (lambda x: x[:, 1:], False),
        (lambda x: x[::2], True),
        (lambda x: x[:, ::2], False),
        (lambda x: x.reshape(-1)[: 63 * 64].view(64, 63), False),  # rows of 126 bytes
        (lambda x: x.t(), True),
        (lambda x: x.t()[:, 1:], True),
        (lambda x: x.t()[1:], False),
        (lambda x: x[:1].expand(10, -1), False),
        (lambda x: x.float(), False),
    ],
)
def test_what_descriptors_can_read(view, readable, device):
    rows = view(torch.randn(64, 64, device=device).bfloat16()).unsqueeze(1)
    assert launch.descriptors_can_read(rows) == readable


@pytest.mark.parametrize(
    ("version", "interpreted", "readable"), [("3.5.0", "1", False), ("3.5.1", "0", True), ("3.6.0", "1", True)]
)
def test_the_interpreter_of_triton_3_5_wants_strides_of_16_elements(version, interpreted, readable, monkeypatch):
    monkeypatch.setattr(launch, "TRITON", version)
    monkeypatch.setenv("TRITON_INTERPRET", interpreted)
    assert launch.descriptors_can_read(torch.randn(8, 1, 24).half()) == readable
    assert launch.descriptors_can_read(torch.randn(8, 1, 32).half())


def test_plans_are_kept_for_one_alignment(device, monkeypatch):
    """A kernel is compiled for an address that is a multiple of 16 bytes, or for one that is not."""
    monkeypatch.setattr(launch, "_plans", {})
    storage = torch.randn(201, device=device)
    for start in (0, 1, 0):
        x = storage[start : start + 200].view(2, 100)
        check(by(x), x)
    assert len(launch._plans) == 2


def test_plans_of_sums_are_kept_for_what_there_is(device, monkeypatch):
    """A compiled kernel has no place for a tensor that was absent, and adds to one dtype."""
    monkeypatch.setattr(launch, "_plans", {})
    rows, weight = torch.randn(5, 40, device=device), torch.ones(5, device=device)
    for dtype in (torch.float32, torch.float64):
        gram = torch.zeros(5, 5, dtype=dtype, device=device)
        for before, factors in ((None, None), (gram, None), (gram, weight), (gram, None)):
            sums.add_batch(before, rows, gram, strips=0, weight=factors)
        assert torch.allclose(gram.triu().double(), 4 * (rows.double() @ rows.double().T).triu(), rtol=1e-5, atol=1e-5)
    assert len(launch._plans) == 6


def test_plans_that_become_too_many_are_forgotten(device, monkeypatch):
    monkeypatch.setattr(launch, "_plans", {})
    monkeypatch.setattr(_launch, "MOST_PLANS", 3)
    for samples in range(1, 6):
        by(torch.randn(samples, 3, device=device))
    assert 1 <= len(launch._plans) <= 3


def test_ranges_fill_the_machine():
    record = RECORDS["sm_90"]
    for neurons, samples in ((512, 50_000), (64, 10_000_000), (1024, 1024), (8192, 8192), (512, 300)):
        for three in (False, True):
            tile = config.tile_of(record, neurons, samples, three)
            work = config.pieces(neurons, tile)
            length = config.range_samples(work, samples, neurons, tile, record)
            ranges = -(-samples // length)
            assert length % tile.samples == 0
            assert ranges * neurons**2 * 4 <= config.MOST_PARTIAL_BYTES or ranges == 1
            assert ranges == 1 or length >= 2048
            programs = tile.resident * record.multiprocessors
            assert work * ranges <= programs or ranges == 1
            if samples >= 2048 * programs:
                assert work * ranges > programs // 2 or ranges == config.MOST_RANGES


@pytest.mark.parametrize("family", ["sm_80", "sm_90", "sm_100", "hip", "interpreted"])
def test_every_size_has_a_tile(family):
    record = next(record for record in RECORDS.values() if record.family == family)
    for neurons, samples, three in itertools.product((1, 64, 2048, 100_000), (1, 4096, 10**7), (False, True)):
        tile = config.tile_of(record, neurons, samples, three)
        assert tile.columns % tile.rows == 0
        every = config.sums_every(tile, samples, record, three=three)
        assert every == 1 if three else (every > 0) == (samples >= (2 * 64 if family == "interpreted" else 8192))


def test_few_configurations_are_shipped():
    tables = (*config.ONE_TERM.values(), *config.THREE_TERMS.values())
    assert len({tile for table in tables for _, tile in table}) <= 20


@pytest.mark.parametrize(
    ("precision", "dtype", "center", "wanted"),
    [
        ("float32", torch.float32, False, (False, True)),
        ("fp16", torch.float32, False, (False, False)),
        ("float32", torch.bfloat16, False, (True, False)),
        ("fp16", torch.bfloat16, False, (True, False)),
        ("float32", torch.float16, True, (False, True)),
        ("fp16", torch.float16, True, (False, False)),
    ],
)
def test_what_is_multiplied(precision, dtype, center, wanted):
    assert config.served(precision, dtype, center=center) == wanted


def test_aot_cases_cover_every_tile():
    cases = list(importlib.import_module("sdsd_kernels.pairwise.aot").aot_cases())
    assert len({(case.name, case.target) for case in cases}) == len(cases)
    for record in compiled_ahead():
        for three, table in ((False, config.ONE_TERM), (True, config.THREE_TERMS)):
            for _, tile in table[record.family]:
                assert any(
                    case.target == record.target
                    and (how := case.constexprs.get("HOW"))
                    and (how.three, how.rows, how.columns, how.samples)
                    == (three, tile.rows, tile.columns, tile.samples)
                    and case.options == {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
                    for case in cases
                ), (record.name, three, tile)
