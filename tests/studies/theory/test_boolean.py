"""Functions of a few bits: formula sizes by another way, classes by definition, networks one by one."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from sdsd.studies.theory.boolean_experiment import (
    formula_sizes,
    function_classes,
    input_signs,
    make_task,
    random_networks,
    sampled_counts,
    trained_functions,
    truth_tables,
)


def sizes_by_relaxation(inputs: int) -> list[int]:
    """Leaves of the shortest formula by repeated improvement over all pairs, without classes."""
    rows = 2**inputs
    last = 2**rows - 1
    size = [math.inf] * (last + 1)
    size[0] = size[last] = 0
    for k in range(inputs):
        literal = sum(1 << row for row in range(rows) if row >> k & 1)
        size[literal] = size[last - literal] = 1
    changed = True
    while changed:
        changed = False
        for f, g in itertools.product(range(1, last), repeat=2):
            for joined in (f & g, f | g):
                if size[f] + size[g] < size[joined]:
                    size[joined] = size[f] + size[g]
                    changed = True
    return size


@pytest.mark.parametrize("inputs", [2, 3])
def test_formula_sizes_by_relaxation(inputs):
    assert formula_sizes(function_classes(inputs)).tolist() == sizes_by_relaxation(inputs)


def test_formula_sizes_of_four_bits():
    """Counts as in Knuth, The Art of Computer Programming 4A, 7.1.2; parity of 2^k bits has n² leaves (Khrapchenko)."""
    classes = function_classes()
    sizes = formula_sizes(classes)
    assert len(classes.unique()) == 222
    assert torch.bincount(sizes)[:6].tolist() == [2, 8, 48, 256, 940, 2048]
    parity = sum(1 << row for row in range(16) if row.bit_count() % 2)
    assert sizes[parity] == sizes.max() == 16
    assert sizes[0x6666] == 4  # exclusive or of two
    assert sizes[0x8888] == 2


def test_classes_by_definition():
    """Three bits: two functions are of one class iff some permutation and negations turn one into the other."""
    classes = function_classes(3)

    def moved(f: int, order: tuple[int, ...], negated: int, out: int) -> int:
        bits = 0
        for row in range(8):
            place = sum((row >> order[k] & 1) << k for k in range(3)) ^ negated
            bits |= ((f >> place & 1) ^ out) << row
        return bits

    for f in (0, 1, 0b10010110, 0b11101000, 37, 200):
        orbit = {
            moved(f, order, negated, out)
            for order in itertools.permutations(range(3))
            for negated in range(8)
            for out in (0, 1)
        }
        assert set((classes == classes[f]).nonzero().flatten().tolist()) == orbit
    assert len(classes.unique()) == 14


def test_networks_are_those_of_torch():
    draw = torch.Generator().manual_seed(0)
    weights = random_networks(5, 6, draw)
    signs = input_signs()
    assert signs[6].tolist() == [-1, 1, 1, -1]
    tables = truth_tables(weights, signs)
    for k in range(5):
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 1))
        with torch.no_grad():
            for place, layer in enumerate(model[::2]):
                layer.weight.copy_(weights[2 * place][k])
                layer.bias.copy_(weights[2 * place + 1][k, 0])
            answers = model(signs)[:, 0] > 0
        assert tables[k] == sum(1 << row for row in range(16) if answers[row])
    many = random_networks(20_000, 6, draw)
    bounds = [0.5, 0.5, 6**-0.5, 6**-0.5, 6**-0.5, 6**-0.5]
    for each, bound in zip(many, bounds, strict=True):
        assert each.abs().max() <= bound
        assert each.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_volumes_are_the_same_all_over_a_class():
    """A chi-squared test of the counts of each class of 8 functions or more that was met often."""
    draw = torch.Generator().manual_seed(1)
    counts = sampled_counts(200_000, 8, draw, lambda done, total: None)
    assert counts.sum() == 200_000
    classes = function_classes()
    statistic, degrees = 0.0, 0
    for one in classes.unique().tolist():
        found = counts[classes == one].double()
        if found.mean() >= 10:
            statistic += ((found - found.mean()).square() / found.mean()).sum().item()
            degrees += len(found) - 1
    assert degrees > 200
    assert abs(statistic - degrees) < 5 * math.sqrt(2 * degrees)


def test_training_ends_in_functions_that_fit():
    draw = torch.Generator().manual_seed(2)
    task = make_task(0x6666, 8, draw)
    assert len(task.seen.unique()) == 8
    fitting = task.fits(torch.arange(2**16))
    assert fitting.sum() == 256
    assert fitting[0x6666]
    for optimizer, rate in (("sgd", 0.5), ("adam", 0.02)):
        found = trained_functions(
            task, optimizer, networks=40, hidden=16, learning_rate=rate, batch=4, most_steps=2000, generator=draw
        )
        assert len(found) == 40
        assert bool(task.fits(found).all())
        assert len(found.unique()) > 3
    none = trained_functions(
        task, "sgd", networks=40, hidden=16, learning_rate=1e-9, batch=4, most_steps=5, generator=draw
    )
    assert len(none) < 10
