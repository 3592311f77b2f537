"""What weight_grad_stats costs in Python before the device has its work, and which launches it chooses: no device."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch

import sdsd_kernels
from sdsd_kernels import available_backends
from sdsd_kernels._device import INTERPRETED, RECORDS
from sdsd_kernels.per_sample import config, layout, method
from sdsd_kernels.per_sample.config import DIRECT, ONE_TERM, THREE_TERMS
from sdsd_kernels.per_sample.layout import Layout

if "triton" not in available_backends("cpu"):
    pytest.skip("counted under Triton's interpreter", allow_module_level=True)

from sdsd_kernels.per_sample import launch, squares
from sdsd_kernels.per_sample.convolution import LINEAR
from tests.kernels.calls import Calls

H100 = RECORDS["sm_90"]


INPUTS, GRADS = torch.randn(3, 16, 32), torch.randn(3, 16, 16)
IMAGES, IMAGE_GRADS = torch.randn(2, 16, 6, 6), torch.randn(2, 8, 6, 6)
CALLS = {
    "halves": (
        lambda: sdsd_kernels.weight_grad_stats(INPUTS.half(), GRADS.half(), method="fused", backend="triton"),
        2,
    ),
    "float32": (lambda: sdsd_kernels.weight_grad_stats(INPUTS, GRADS, method="fused", backend="triton"), 4),
    "scaled": (
        lambda: sdsd_kernels.weight_grad_stats(INPUTS.half(), GRADS.half(), scale=torch.ones(16, 32), backend="triton"),
        2,
    ),
    "gram": (
        lambda: sdsd_kernels.weight_grad_stats(
            INPUTS.half(), GRADS.half(), method="gram", weight_grad=False, backend="triton"
        ),
        2,
    ),
    "rank1": (lambda: sdsd_kernels.weight_grad_stats(INPUTS[:, 0], GRADS[:, 0], backend="triton"), 2),
    "convolution": (
        lambda: sdsd_kernels.conv_weight_grad_stats(IMAGES.half(), IMAGE_GRADS.half(), 3, padding=1, backend="triton"),
        2,
    ),
    "three channels": (
        lambda: sdsd_kernels.conv_weight_grad_stats(IMAGES[:, :3], IMAGE_GRADS, 3, padding=1, backend="triton"),
        2,
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_few_calls_and_few_launches(monkeypatch, name):
    calls = Calls(monkeypatch)
    call, launches = CALLS[name]
    count = calls.before_last_launch(call)
    assert len(calls.at_launch) == launches
    assert 5 < count <= 40, [(name.rpartition(os.sep)[2], times) for name, times in calls.names.most_common()]


def test_plans_are_found_by_everything_they_rest_on(monkeypatch, allow_tf32):
    """Whatever changes the launch changes the key; the same call finds its plan."""
    monkeypatch.setattr(launch, "PLANS", {})
    monkeypatch.setattr(squares, "PLANS", launch.PLANS)
    half, grads = INPUTS.half(), GRADS.half()
    wide = torch.zeros(3, 16, 40, dtype=torch.float16)
    calls = [
        lambda: launch.launch_fused(half, grads, None, LINEAR, True, torch.float16, False, 2**20),
        lambda: launch.launch_fused(half, grads, None, LINEAR, True, torch.float32, False, 2**20),
        lambda: launch.launch_fused(half, grads, None, LINEAR, False, torch.float16, False, 2**20),
        lambda: launch.launch_fused(half, grads, None, LINEAR, True, torch.float16, False, 1),
        lambda: launch.launch_fused(half, grads, torch.ones(16, 32), LINEAR, True, torch.float16, False, 2**20),
        lambda: launch.launch_fused(half, grads, torch.ones(32, 16).T, LINEAR, True, torch.float16, False, 2**20),
        lambda: launch.launch_fused(wide[..., :32], grads, None, LINEAR, True, torch.float16, False, 2**20),
        lambda: launch.launch_fused(wide[..., 1:33], grads, None, LINEAR, True, torch.float16, False, 2**20),
        lambda: squares.launch_squares(half, grads, "gram"),
    ]
    for count, call in enumerate(calls, 1):
        for _ in range(2):
            call()
            assert len(launch.PLANS) == count
    allow_tf32(False)
    launch.launch_fused(INPUTS, GRADS, None, LINEAR, True, torch.float32, False, 2**20)
    allow_tf32(True)
    launch.launch_fused(INPUTS, GRADS, None, LINEAR, True, torch.float32, False, 2**20)
    assert len(launch.PLANS) == len(calls) + 2


def best(candidates, samples, out_size, d, p, taps=1, sets=1, record=H100, flat=False, most_ranges=1000):
    return config.best_plan(
        candidates,
        record,
        samples=samples,
        out_size=out_size,
        d=d,
        p=p,
        sets=sets,
        taps=taps,
        flat=flat,
        most_ranges=most_ranges,
    )


MEASURED = {
    # samples, output size, d, p, taps: tile, box, ranges that were fastest
    (16, (1, 1024), 1024, 4096, 1): ((128, 256, 64), (1, 64), 1),
    (8, (1, 1024), 1024, 4096, 1): ((128, 256, 64), (1, 64), 1),
    (8, (1, 1024), 4096, 1024, 1): ((128, 256, 64), (1, 64), 1),
    (8, (1, 1024), 1024, 3072, 1): ((128, 256, 64), (1, 64), 1),
    (8, (1, 1024), 1024, 32_768, 1): ((128, 256, 64), (1, 64), 1),
    (8, (1, 1024), 1024, 1024, 1): ((128, 128, 128), (1, 128), 2),
    (64, (1, 197), 384, 1536, 1): ((128, 128, 128), (1, 128), 3),
    (256, (8, 8), 128, 128, 9): ((64, 128, 64), (8, 8), 14),
    (64, (14, 14), 256, 256, 9): ((64, 128, 64), (4, 16), 3),
    (64, (56, 56), 64, 64, 9): ((64, 64, 64), (8, 8), 32),
    (64, (28, 28), 512, 128, 1): ((64, 128, 64), (2, 32), 32),
}


@pytest.mark.parametrize("shape", MEASURED, ids=str)
def test_what_was_measured_to_be_fastest_is_chosen(shape):
    samples, out_size, d, p, taps = shape
    candidates = config.tiles(
        H100,
        DIRECT,
        itemsize=2,
        pointers=False,
        flat=False,
        boxes=out_size[0] > 1,
        narrow=min(d, p) <= 64,
        scaled=False,
    )
    plan = best(candidates, samples, out_size, d, p, taps)
    tile = plan.tile
    assert ((tile.block_p, tile.block_d, tile.block_t), plan.box, plan.ranges) == MEASURED[shape]


@pytest.mark.parametrize("samples", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("most_ranges", [1, 3, 1000])
def test_every_sample_is_in_one_range(samples, most_ranges):
    for d, p in ((16, 16), (64, 300), (4096, 4096)):
        plan = best(config.LINEAR, samples, (1, 64), d, p, most_ranges=most_ranges)
        assert (plan.ranges - 1) * plan.samples_each < samples <= plan.ranges * plan.samples_each
        assert 1 <= plan.ranges <= most_ranges


def test_boxes_hold_as_many_positions_as_the_tile():
    for block_t in (16, 32, 64, 128):
        for size in ((1, 1), (1, 500), (500, 1), (7, 9), (56, 56)):
            height, width = config.box_shape(block_t, *size)
            assert height * width == block_t
    assert config.box_shape(64, 8, 8) == (8, 8)
    assert config.box_shape(64, 500, 1) == (64, 1)


def test_tiles_fit_their_kind():
    chosen = lambda kind=DIRECT, record=H100, **more: config.tiles(  # noqa: E731
        record,
        kind,
        **{"itemsize": 2, "pointers": False, "flat": False, "boxes": False, "narrow": False, "scaled": False} | more,
    )
    assert chosen() is chosen(ONE_TERM) is config.WIDE
    assert chosen(record=RECORDS["sm_100"]) is config.LINEAR
    assert chosen(THREE_TERMS) is config.THREE
    assert chosen(THREE_TERMS, boxes=True) is chosen(THREE_TERMS, record=RECORDS["sm_100"]) is config.THREE_BOXES
    assert chosen(THREE_TERMS, scaled=True) is config.THREE_NARROW
    assert chosen(scaled=True, boxes=True) is config.SCALED
    assert chosen(pointers=True, flat=True) is config.FEW_CHANNELS
    ampere, instinct = RECORDS["sm_80"], RECORDS["gfx942"]
    assert chosen(record=ampere, pointers=True) is config.POINTER_HALF
    assert chosen(record=ampere, pointers=True, scaled=True) is config.POINTER_SCALED
    assert chosen(record=ampere, pointers=True, narrow=True) is config.POINTER_HALF_SMALL
    assert chosen(record=ampere, pointers=True, itemsize=4) is config.POINTER_FLOAT
    assert chosen(record=instinct, pointers=True) is config.HIP_HALF
    assert chosen(record=instinct, pointers=True, itemsize=4) is config.HIP_FLOAT
    assert chosen(record=instinct, pointers=True, flat=True) is config.FEW_CHANNELS_HIP


def test_the_copy_engine_needs_room():
    """An sm_120 has a copy engine, and 99 KiB of shared memory where the tiles for it take up to 192."""
    assert {name for name, record in RECORDS.items() if config.reads_boxes(record)} == {
        "sm_90",
        "sm_100",
        "sm_103",
        "interpreted",
    }


def test_groups_of_a_set_divide_all_groups():
    for groups in (1, 2, 6, 7, 32, 30):
        for group_d, group_p in ((1, 1), (4, 4), (8, 16), (100, 3), (3, 100)):
            several, sets = launch._sets(groups, group_d, group_p, H100)
            assert several * sets == groups
            assert several == 1 or (several * group_d <= 64 and several * group_p <= 64)
    assert launch._sets(32, 4, 4, H100) == (16, 2)


def test_what_the_copy_engine_cannot_read_is_copied():
    half = torch.float16
    packed = Layout((2, 3, 4, 16), (192, 64, 16, 1), (0, 3, 1, 2))
    assert layout.described(packed, half, 0) == (packed, None)
    for change, address in (
        ({"strides": (192, 64, 16, 2)}, 0),
        ({"strides": (0, 64, 16, 1)}, 0),
        ({"strides": (192, 64, 17, 1)}, 0),
        ({}, 2),
    ):
        found, copy = layout.described(packed._replace(**change), half, address)
        assert found.strides == packed.strides
        assert copy is not None
    found, copy = layout.described(packed, half, 0, (2, 2))
    assert found.shape == (2, 4, 4, 16)
    assert copy is not None
    copied = copy.of(torch.ones(2, 16, 3, 4, dtype=half)).view(2, 4, 4, 16)
    assert copied[:, :3].eq(1).all()
    assert copied[:, 3].eq(0).all(), "padding is zero"
    narrow = Layout((2, 3, 4, 5), (60, 20, 5, 1), (0, 3, 1, 2))
    assert layout.described(narrow, half, 0)[0].strides == (96, 32, 8, 1)
    single = Layout((1, 1, 4, 16), (7, 0, 16, 1), (0, 2, 3))
    assert layout.described(single, half, 0) == (single._replace(strides=(8, 8, 16, 1)), None)


class TestMethod:
    def test_what_was_measured_to_be_fastest_is_chosen(self):
        """With a weight gradient forming every sample's was fastest, without one its products of positions were."""
        for shape in ((8, 2048, 4096, 4096), (16, 1024, 1024, 4096), (64, 128, 1024, 1024)):
            fused, gram = method.gpu_seconds(config.HALF_RATES, 132, *shape, True)
            assert fused < gram
            fused, gram = method.gpu_seconds(config.HALF_RATES, 132, *shape, False)
            assert gram < fused

    def test_the_model_is_near_what_was_measured(self):
        for shape, plain, fused, gram in (
            ((8, 2048, 4096, 4096), 682e-6, 859e-6, 528e-6),
            ((16, 1024, 1024, 4096), 198e-6, 218e-6, 178e-6),
        ):
            found_fused, alone = method.gpu_seconds(config.HALF_RATES, 132, *shape, False)
            both = method.gpu_seconds(config.HALF_RATES, 132, *shape, True)[1]
            assert found_fused == pytest.approx(fused, rel=0.1)
            assert alone == pytest.approx(gram, rel=0.1)
            assert both - alone == pytest.approx(plain, rel=0.2)

    @pytest.mark.parametrize("rates", [config.HALF_RATES, config.FLOAT_RATES])
    def test_few_positions_go_by_products(self, rates):
        for d, p in ((1024, 1024), (4096, 1024)):
            fused, gram = method.gpu_seconds(rates, 132, 64, 8, d, p, False)
            assert gram < fused
            fused, gram = method.gpu_seconds(rates, 132, 64, 4096, d, p, True)
            assert fused < gram

    def test_the_device_decides(self, monkeypatch):
        monkeypatch.setattr(method, "device_record", lambda _: replace(INTERPRETED, multiprocessors=132))
        inputs, grads = torch.empty(64, 16, 1024, device="meta").half(), torch.empty(64, 16, 1024, device="meta").half()
        assert method.choose_method(inputs, grads, False, True) == "gram"
        assert method.choose_method(inputs, grads, True, True) == "fused"
        assert method.choose_method(inputs[:, :1], grads[:, :1], True, True) == "rank1"
