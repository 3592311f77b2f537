"""The tables beside Torch-Pruning are written from the committed results, and say what is in them."""

from __future__ import annotations

import copy
import json

from benchmarks import torch_pruning as side


def results():
    return json.loads(side.FILE.read_text(encoding="utf-8"))


def test_the_page_has_the_tables_of_the_committed_results():
    page = side.PAGE.read_text(encoding="utf-8")
    assert side.with_tables(page, results()) == page
    assert "| model | structure |" in page
    assert "| network |" in page


def test_other_results_give_another_page():
    page, other = side.PAGE.read_text(encoding="utf-8"), results()
    other["cut"][0][side.OURS]["cut"] ^= True
    assert side.with_tables(page, other) != page
    other = copy.deepcopy(results())
    other["quality"][0]["cost"] += 1
    assert side.with_tables(page, other) != page


def test_verdicts():
    case = {"same": None, side.OURS: {"cut": True, "why": ""}, side.THEIRS: {"cut": False, "why": "no rule"}}
    assert [side.verdict(case, each) for each in (side.OURS, side.THEIRS)] == ["yes", "no"]
    case[side.THEIRS] = {"cut": True, "why": ""}
    assert side.verdict({**case, "same": False}, side.THEIRS) == "yes, other outputs"
    assert side.verdict({**case, "same": True}, side.THEIRS) == "yes"


def test_where_both_cut_they_cut_as_much_and_agree():
    both = [case for case in results()["cut"] if case[side.OURS]["cut"] and case[side.THEIRS]["cut"]]
    assert len(both) > 10
    assert all(case["same"] and case[side.OURS]["parameters"] == case[side.THEIRS]["parameters"] for case in both)
    sizes: dict = {}
    for case in results()["quality"]:
        sizes.setdefault((case["network"], case["seed"], case["share"]), set()).add(case["parameters"])
    assert all(len(each) == 1 for each in sizes.values())
