"""The tables beside Torch-Pruning are written from the committed results, and say what is in them."""

from __future__ import annotations

import copy
import json

import pytest

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


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path, capsys):
    kept, ran = tmp_path / "out" / "kept.json", []

    def task(name, stops=False):
        def run():
            ran.append(name)
            if stops:
                raise KeyboardInterrupt
            return [{"name": name}]

        return run

    made = dict.fromkeys(side.PACKAGES, "1")
    with pytest.raises(KeyboardInterrupt):
        side.measured({"cut: a": task("a"), "cut: b": task("b", stops=True)}, kept, made)
    tasks = {"cut: a": task("a"), "cut: b": task("b"), "quality: c": task("c")}
    cases = side.measured(tasks, kept, made)
    assert ran == ["a", "b", "b", "c"]
    assert side.results_of(cases, made) == {
        "cut": [{"name": "a"}, {"name": "b"}],
        "quality": [{"name": "c"}],
        "versions": made,
    }
    assert "3/3 quality: c" in capsys.readouterr().err
    side.measured(tasks, kept, {**made, "torch": "2"})
    assert ran[4:] == ["a", "b", "c"]


def test_results_are_of_all_draws_and_bold_is_what_is_least_in_every_draw():
    draws = {(case["network"], case["seed"]) for case in results()["quality"]}
    assert draws == {(name, seed) for name in side.NETWORKS for seed in range(side.SEEDS)}
    costs = {side.BY_COST: (1.0, 3.0), side.BY_COSINE: (2.0, 2.5), side.MAGNITUDE: (4.0, 5.0)}
    case = {"network": "net", "measure": "loss"}
    cases = [
        {
            **case,
            "seed": seed,
            "share": share,
            "method": method,
            "cost": cost + (share > 1 / 8 and method != side.BY_COST),
        }
        for share in side.SHARES
        for method, each in costs.items()
        for seed, cost in enumerate(each)
    ]
    first, second, _ = side.quality_table(cases).splitlines()[2:]
    assert first == "| net | loss | 12% | 2 (1 to 3) | 2.2 (2 to 2.5) | 4.5 (4 to 5) |"
    assert second == "| net | loss | 25% | **2** (1 to 3) | 3.2 (3 to 3.5) | 5.5 (5 to 6) |"
