"""Which dimension counts samples is never read off a size: a length equal to the batch changes no verdict."""

from __future__ import annotations

import pytest

from tests.zoo.parts import N
from tests.zoo.programs.sizes import LENGTHS, SIZED
from tests.zoo.verdict import judge


@pytest.mark.parametrize("name", SIZED)
def test_the_verdict_does_not_depend_on_the_length(name):
    verdicts = {length: judge(SIZED[name](t)) for length, t in LENGTHS.items()}
    assert len({verdict.kind for verdict in verdicts.values()}) == 1, verdicts


def test_the_lengths_hold_the_batch_and_others():
    assert N in LENGTHS.values()
    assert any(t < N for t in LENGTHS.values())
    assert any(t > N for t in LENGTHS.values())
