"""Stopped in the middle, as a report, and with bad input."""

from __future__ import annotations

import copy
import json
import os
import signal
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

from sdsd.geometry import (
    ConsolidationPlan,
    consolidate_model,
    plan_consolidation,
)
from sdsd.geometry.merging import plan as plan_module
from tests.geometry.merging.networks import Gated, made, tokens

from .deep import deep


def state_of(model: nn.Module):
    tensors = [
        (name, id(each), each.detach().clone()) for name, each in [*model.named_parameters(), *model.named_buffers()]
    ]
    modules = [
        (
            name,
            id(module),
            module.training,
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            {key: value for key, value in vars(module).items() if isinstance(value, (int, str, tuple))},
        )
        for name, module in model.named_modules()
    ]
    return tensors, modules


def assert_untouched(before, model: nn.Module) -> None:
    tensors, modules = state_of(model)
    assert [each[:2] for each in tensors] == [each[:2] for each in before[0]]
    assert all(torch.equal(one[2], two[2]) for one, two in zip(tensors, before[0], strict=True))
    assert modules == before[1]


def stops_at(step: int):
    def report(done, total):
        report.calls += 1
        if report.calls == step:
            raise KeyboardInterrupt

    report.calls = 0
    return report


@pytest.mark.parametrize("norms", ["refuse", "repeat"])
@pytest.mark.parametrize("inplace", [False, True])
def test_ctrl_c_at_any_step_leaves_the_model_as_it_was(inplace, norms):
    model, x = made(Gated()).train(), tokens(4, 7, 5)
    before = state_of(model)
    options = {"above": -1, "norms": norms, "inplace": inplace, "evaluate": lambda net: net(x).mean()}
    counted = stops_at(-1)
    consolidate_model(copy.deepcopy(model), [x, x], **options, progress=counted)
    assert counted.calls > 6
    for step in range(1, counted.calls):  # the last one says that all is done
        with pytest.raises(KeyboardInterrupt):
            consolidate_model(model, [x, x], **options, progress=stops_at(step))
        assert_untouched(before, model)

    def loader():
        yield x
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consolidate_model(model, loader(), **options, example_input=x)
    assert_untouched(before, model)


def test_ctrl_c_while_the_model_is_changed_waits_until_it_is_whole(monkeypatch):
    model, x = deep()
    wanted, _ = consolidate_model(model, [x], budget=0.25)
    own = plan_module.given_back

    def interrupted(*given):
        os.kill(os.getpid(), signal.SIGINT)
        return own(*given)

    monkeypatch.setattr(plan_module, "given_back", interrupted)
    with pytest.raises(KeyboardInterrupt):
        consolidate_model(model, [x], budget=0.25, inplace=True)
    assert torch.equal(model(x), wanted(x))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.words, self.attributes = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.words.append(data)


@torch.no_grad()
def test_the_report_is_json_and_a_page(tmp_path):
    model, x = deep()
    named = nn.ModuleDict({"<b>": model[0]})
    model[0] = nn.Identity()

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.rest = named, model

        def forward(self, x):
            return self.rest(self.first["<b>"](x))

    _, report = consolidate_model(Named().double(), [x], budget=0.25, evaluate=lambda net: net(x).mean())
    facts = json.loads(json.dumps(report.to_dict()))
    assert facts["parameters"] == list(report.parameters)
    assert [row["layer"] for row in facts["layers"]] == [row.layer for row in report.layers]
    page = report.save_html(tmp_path / "report.html").read_text(encoding="utf-8")
    seen = Page(page)
    assert "b" not in seen.tags
    assert "first.<b>" in " ".join(seen.words)
    assert "http" not in page
    strips = [value for name, value in seen.attributes if name == "aria-label" and "neurons" in value]
    assert strips == [f"{row.neurons[0]} neurons, {len(row.pairs)} gone" for row in report.layers]
    assert sum(1 for name, value in seen.attributes if (name, value) == ("class", "gone")) >= 3
    assert all(f"{row.foretold:.2%}" in page for row in report.layers if row.pairs)
    assert f"{report.evaluated[1]:.6g}" in page
    _, report = consolidate_model(deep()[0], [x], budget=0.25, check=False)
    page = report.save_html(tmp_path / "plain.html").read_text(encoding="utf-8")
    assert "Evaluated" not in page
    assert "evaluated alone" not in page
    assert "The smaller network was not compared with the merged one." in page


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"budget": 0.1, "multiple": 0}, "multiple: expected at least 1"),
        ({"below": 1}, "below: it goes with by='cost'"),
        ({"above": 0.5, "loss": ([], None)}, "loss: it goes with by='cost'"),
        ({"above": 0.5, "by": "cost"}, "above: it goes with by='cosine'"),
        ({"by": "cost", "below": -1}, "a cost, at least 0"),
        ({"by": "cast", "below": 1}, "'cosine', 'cost'"),
        ({"budget": 0}, "budget"),
        ({"above": 0.5, "norms": "keep"}, "'refuse', 'repeat'"),
    ],
)
def test_bad_input(options, says):
    model, x = deep()
    with pytest.raises(ValueError, match=says):
        consolidate_model(model, [x], **options)


def test_bad_plans(tmp_path):
    model, x = deep()
    with pytest.raises(TypeError, match="budget"):
        plan_consolidation(model, [x], budget=True)
    plan = plan_consolidation(model, [x], budget=0.1)
    with pytest.raises(ValueError, match="no layer of the plan matches 'nine'"):
        plan.without("nine")
    file = tmp_path / "plan.json"
    file.write_text("{}", encoding="utf-8")
    other = plan.save(tmp_path / "other.json")
    other.write_text(other.read_text(encoding="utf-8").replace("consolidation plan", "shopping list"), encoding="utf-8")
    for path in (file, other, tmp_path / "none.json"):
        with pytest.raises(ValueError, match="expected a file that ConsolidationPlan.save wrote"):
            ConsolidationPlan.load(path)
    with pytest.raises(ValueError, match="no layer '.'"):
        plan.carry_out(nn.ReLU(), example_input=x)
