"""Where it is called from, and what it leaves alone; memory and products."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sdsd.geometry import neuron_cosine_matrix
from sdsd.geometry.gram import layout
from sdsd.geometry.gram.accumulator import GramAccumulator
from tests.helpers import assert_within, cosine_error, summation_error

from .streams import bits, check_values, least_bytes, streamed


@pytest.mark.parametrize("center", [False, True])
def test_hooks_under_inference_mode_autocast_and_other_defaults(center):
    x = torch.randn(90, 40)
    wanted = streamed(x, 30, center=center, max_bytes=30 * least_bytes(40)).cosine_matrix()
    gram = GramAccumulator(40, center=center, max_bytes=30 * least_bytes(40))
    with torch.inference_mode():
        gram.update(x[:30].clone())
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            gram.update(x[30:60])
            gram.update(x[60:].clone().requires_grad_())
        with torch.inference_mode():
            inside = gram.cosine_matrix()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_default_dtype(before)
        torch.set_float32_matmul_precision("highest")
    outside = gram.cosine_matrix()
    assert torch.equal(inside, wanted)
    assert torch.equal(outside, wanted)
    assert not outside.requires_grad
    outside.mul_(2)


def test_a_forward_hook_streams_a_data_set():
    layer = torch.nn.Linear(7, 12)
    gram = GramAccumulator(12, center=True)
    handle = layer.register_forward_hook(lambda module, inputs, output: gram.update(output))
    data = torch.randn(50, 7)
    for batch in data.split(8):
        layer(batch)
    handle.remove()
    # The layer's own outputs may be rounded otherwise in batches of another size: samples of eight products.
    seen = layer(data).detach()
    moved = 2 * summation_error(8) * (data.abs() @ layer.weight.abs().T + layer.bias.abs()).norm(dim=0).double()
    moved = moved / (seen.double() - seen.double().mean(0)).norm(dim=0)
    allowed = 2 * cosine_error(seen.T, center=True) + moved[:, None] + moved
    assert_within(gram.cosine_matrix(), neuron_cosine_matrix(seen, center=True), allowed.detach())


def test_the_batch_is_not_written():
    for center in (False, True):
        x = torch.randn(40, 9) * 1e25
        kept = x.clone()
        streamed(x, 20, center=center, max_bytes=20 * least_bytes(9)).cosine_matrix()
        assert torch.equal(x, kept)


def test_a_batch_may_be_overwritten_afterwards():
    x = torch.randn(3, 5, 9)
    gram, buffer = GramAccumulator(9), torch.empty(5, 9)
    for batch in x:
        gram.update(buffer.copy_(batch))
    check_values(gram.cosine_matrix(), x.flatten(0, 1))


def test_empty_batches_change_nothing():
    gram = GramAccumulator(4)
    gram.update(torch.ones(0, 4))
    gram.update(torch.ones(2, 0, 4))
    assert gram.samples == 0
    gram.update(torch.ones(2, 4))
    assert gram.samples == 2


def test_same_numbers_twice():
    x = torch.randn(90, 40)
    assert bits(streamed(x, 13)) == bits(streamed(x, 13))


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_memory_stays_within_two_triangles_and_max_bytes():
    """12 MB of halves would be 24 MB in float32, and a square of float64 sums 18 MB."""
    script = """
import torch
from benchmarks.harness import peak_resident_growth
from sdsd.geometry import GramAccumulator
torch.set_num_threads(1)
x = torch.randn(4000, 1500).half()
def run():
    gram = GramAccumulator(1500, center=True, max_bytes=2**22)
    gram.update(x)
    gram.update(x[:300])
    return gram
print(peak_resident_growth(run))
"""
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=True)
    triangle = 8 * (1500 * 1500 / 2 + 1500 * 128)
    assert int(done.stdout.splitlines()[-1]) <= 2 * triangle + 2**22 + 2**21


@pytest.mark.parametrize("n", [1, 7, 300])
def test_tiles_cover_the_triangle_once(n):
    for side in (1, 5, 64, 100, 128, 1024):
        if n // side > 60:
            continue
        count = torch.zeros(n, n, dtype=torch.int)
        for rows, columns in layout.Triangle(n).tiles(side):
            assert rows.stop - rows.start <= side
            assert columns.stop - columns.start <= side
            count[rows, columns] += 1
        assert (count.triu() == torch.ones(n, n, dtype=torch.int).triu()).all()


@pytest.mark.parametrize("n", [1024, 4096, 5000, 10_000])
def test_products_are_half_of_a_full_product_and_little_more(n):
    computed = sum(
        (rows.stop - rows.start) * (columns.stop - columns.start)
        for rows, columns in layout.Triangle(n).tiles(layout.TILE)
    )
    assert computed <= n * n * (0.5 + 64 / n)
