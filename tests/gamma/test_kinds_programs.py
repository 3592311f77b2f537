"""Every program of the zoo is measured right or refused by name, and the next batch is measured again."""

from __future__ import annotations

import pytest

from tests.zoo.programs import ALL
from tests.zoo.verdict import judge


@pytest.mark.parametrize("name", ALL)
def test_right_or_refused_by_name(name):
    verdict = judge(ALL[name])
    assert verdict.sound, verdict.why


@pytest.mark.parametrize("name", [name for name, program in ALL.items() if program.measured])
def test_measured(name):
    verdict = judge(ALL[name])
    assert verdict.kind == "right", verdict.why


@pytest.mark.parametrize("name", ALL)
def test_strict_false_leaves_out_by_name_what_it_cannot_measure(name):
    verdict = judge(ALL[name], strict=False)
    assert verdict.sound, verdict.why


def test_a_function_out_of_sight_is_named():
    """Not only does the step not prove itself: what hides samples is known by their history."""
    assert "whose inside PyTorch does not show" in judge(ALL["own functions: a script that mixes samples"]).why


def test_a_script_is_named_and_not_the_caller():
    """A layer of TorchScript first of all: the parameters in it, and after it, are refused for it."""
    why = judge(ALL["layers: a scripted layer"]).why
    assert "TorchScript" in why, why
    assert "call the model as a whole" not in why, why
