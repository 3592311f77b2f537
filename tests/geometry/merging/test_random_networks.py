"""Random networks, cut: `python -m tests.geometry.merging.random_networks FIRST COUNT` draws more of them."""

from __future__ import annotations

import random

import pytest

from sdsd.graphs import tensors
from sdsd.graphs.cut import RULES

from .random_networks.judging import CAUGHT, FAILURES, judged
from .random_networks.networks import Program, draw, finished, minimised, started
from .random_networks.steps import STEPS, lines_of

SEEDS = range(16)
LAYERS = {
    "R": "R . $a = nn.Linear(D, 6) : $a(H)",
    "W": "W . $a = nn.Linear(D, 6) : $a(H)",
    "S": "S . $a = nn.Conv1d(D, 6, 1) : $a(H)",
    "P": "P . $a = nn.Conv2d(D, 8, 1) : $a(H)",
}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_network_is_cut_or_refused_by_name(seed):
    wrong = [verdict for verdict in judged(draw(seed), seed, thorough=seed == 0) if verdict.kind in FAILURES]
    assert not wrong, "\n".join(map(str, [*wrong, draw(seed).source()]))


def with_line(line: str, seed: int, layer: bool = True) -> Program | None:
    """A layer, a line behind it, and a head; None where the line does not fit."""
    chosen = random.Random(seed)
    kind = chosen.choice(line.split()[0])
    drawing = started((kind, kind), (4, 6), chosen)
    if layer and kind in LAYERS:
        drawing.add(LAYERS[kind])
    return finished(drawing) if drawing.add(line) else None


@pytest.mark.parametrize("section", STEPS)
def test_every_line_is_drawn(section):
    for line in lines_of(section):
        assert any(with_line(line, seed, layer=seed % 2 == 0) for seed in range(12)), line


BROKEN = {"roll": "RW . : H.roll(1, C)", "order": "RW . : H.sort(C).values"}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_rule_is_seen_and_what_has_no_part_in_it_left_out(kind, monkeypatch):
    """Neurons that change places are taken for neurons that stay."""

    def broken(walk, step):
        for out in tensors(step.out):
            walk.give(out, walk.axes(step.args[0]))

    drawing, source = started(("R",), (4, 6), random.Random(0)), "h0"
    for each in (LAYERS["R"], "R . : H.relu()", BROKEN[kind], "R . : torch.tanh(H) * 0.5", "R . : H * 2 + 1"):
        assert drawing.add(each.split(maxsplit=2)[2], source)
        source = drawing.program.steps[-1].target
    program = finished(drawing)

    def is_seen(candidate: Program) -> bool:
        return any(verdict.kind == CAUGHT for verdict in judged(candidate, 0, thorough=False))

    assert not is_seen(program)
    monkeypatch.setitem(RULES, kind, broken)
    assert is_seen(program)
    assert len(minimised(program, is_seen).steps) == 3
