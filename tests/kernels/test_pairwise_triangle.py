"""The triangle of tiles: each is met once, on the device as in its twin."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from sdsd_kernels._backend import unusable

if unusable("triton", torch.device("cuda" if torch.cuda.is_available() else "cpu")):
    pytest.skip("no Triton", allow_module_level=True)


pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton", "ignore::RuntimeWarning:numpy")


def triangle(tiles: int) -> int:
    return tiles * (tiles + 1) // 2


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
        found = [twin(index, tiles, group) for index in range(triangle(tiles))]
        assert sorted(found) == [(row, column) for row in range(tiles) for column in range(row, tiles)]
        assert [place_of(row, column, tiles, group) for row, column in found] == list(range(len(found)))


@pytest.mark.parametrize("tiles", [333, 1000, 2047])
def test_thousands_of_tiles_on_the_device(tiles, device):
    """All indices of the device function, each tile met once."""
    problem = unusable("triton", device)
    if problem:
        pytest.skip(problem)
    count = triangle(tiles)
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
    last = triangle(tiles) - 1
    indices = [0, last, last // 2, *(generator.randint(0, last) for _ in range(300))]
    indices += [index for index in (2**31 - 1, 2**31, 2**31 + 1, 2**32, 2**32 + 1) if index <= last]
    row, column = on_device(torch.tensor(indices, device=device), tiles, group)
    found = list(zip(row.tolist(), column.tolist(), strict=True))
    assert found == [twin(index, tiles, group) for index in indices]
    assert [place_of(*place, tiles, group) for place in found] == indices


def test_a_band_walks_its_columns_together():
    """Programs side by side read few panels: 128 of them at most 8 rows and 18 columns, twice where two bands meet."""
    for start in range(0, 1500, 128):
        window = [twin(index, 64, 8) for index in range(start, min(start + 128, triangle(64)))]
        panels = len({row for row, _ in window}) + len({column for _, column in window})
        assert panels <= 2 * (8 + 18)
