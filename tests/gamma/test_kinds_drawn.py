"""Programs drawn at random: right or refused by name, and the same whether sizes are those of the batch or not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdsd.gamma.following import table
from sdsd.gamma.uses.rules import elementwise
from tests.zoo.drawn import Draft, alike, judged, with_sizes_apart
from tests.zoo.drawn.losses import Ending
from tests.zoo.drawn.model import Step

PROGRAMS, EACH = 160, 20


@pytest.mark.parametrize("first", range(0, PROGRAMS, EACH))
def test_right_or_refused_in_every_size(first):
    kinds = []
    for seed in range(first, first + EACH):
        draft = Draft.drawn(seed)
        apart = with_sizes_apart(draft)
        verdicts = judged(draft), judged(apart)
        for each, verdict in zip((draft, apart), verdicts, strict=True):
            assert verdict.kind in ("right", "refused", "unfit"), (seed, verdict, each)
        kinds += [verdict.kind for verdict in verdicts]
        if set(kinds[-2:]) == {"right", "refused"}:
            assert not alike(draft, apart), (seed, verdicts, draft)
    assert kinds.count("right") > EACH, kinds


def of(name: str, seed: int) -> Draft:
    """One operation between layers."""
    steps = (Step("linear", 5, "a"), Step(name, seed, "b"), Step("linear", 9, "c"))
    return Draft(0, 3, (4, 3, 2), "sequences", "", False, steps, Ending("weighted squares", False, "plain"), "plain")


def test_sees_samples_that_are_taken_for_each_other(monkeypatch):
    """What keeps the sum of the gradients, so that the step proves itself all the same."""
    real = elementwise.apart
    assert all(judged(of("broadcast", seed)).kind == "right" for seed in range(6))
    monkeypatch.setattr(
        elementwise,
        "apart",
        lambda values, track, n, shape: real((values + values.flip(track.axis)) / 2, track, n, shape),
    )
    assert "wrong" in {judged(of("broadcast", seed)).kind for seed in range(6)}


def test_sees_samples_that_meet_unseen(monkeypatch):
    mixing = [of("over_samples", seed) for seed in range(20)]
    assert {judged(draft).kind for draft in mixing} == {"refused"}
    for name in ("cumsum", "softmax", "flip", "roll", "index_select", "sort"):
        monkeypatch.setitem(table.RULES, getattr(Tensor, name), table.RULES[torch.relu])
    assert "wrong" in {judged(draft).kind for draft in mixing}
