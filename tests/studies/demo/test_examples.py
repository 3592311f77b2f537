"""What the demo says of the pairs it shows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("matplotlib")

from sdsd.studies.demo import report


def cohort(example, changes):
    pairs = [
        {"first": 2 * place, "second": 2 * place + 1, "cosine": 0.5, "loss_change": change}
        for place, change in enumerate(changes)
    ]
    return {"pairs": pairs, "example": example, "together_loss_change": [sum(changes)]}


def test_the_farthest_is_called_so_only_where_it_is():
    """The first of the farthest pairs may have a neuron that hardly ever fires; another is the example then, and said
    to be of neurons that do fire."""
    cohorts = {"near": cohort(0, [0.01, 0.02]), "far": cohort(1, [0.3, 0.4]), "random": cohort(0, [0.1, 0.2])}
    merges = {"pairs_in_a_cohort": 2, "cohorts": cohorts}
    result = SimpleNamespace(results={"training": None, "config": {}, "merges": merges}, folder=Path("out"))
    near, far, *_ = report.summary_lines(result)
    assert near == "Merging the nearest pair, 0 and 1 (cosine 0.500): loss +0.01 nats."
    assert far == (
        "Merging the farthest pair of neurons that answer at least 10% as strongly as the median one, 2 and 3 "
        "(cosine 0.500): loss +0.4 nats."
    )
