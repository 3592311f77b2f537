"""`sdsd study NAME --model FILE.py`: what studies measure, on a network of one's own."""

from __future__ import annotations

import json

import pytest

from sdsd._extras import MissingExtraError
from sdsd.cli import main
from sdsd.report import figures
from sdsd.studies import CATALOGUE, OWN, check_own
from sdsd.studies.own import REFUSALS

NET = """
import torch
from torch import nn

torch.manual_seed(0)
inputs, labels = torch.randn(96, 6), torch.arange(96) % 3
inputs[:, 0] += labels
model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
loader = list(zip(inputs.split(16), labels.split(16)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.3)


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


for _ in range(60):
    optimizer.zero_grad()
    loss(model, (inputs, labels)).backward()
    optimizer.step()
"""


@pytest.fixture
def net(tmp_path):
    (tmp_path / "net.py").write_text(NET, encoding="utf-8")
    return tmp_path / "net.py"


def measured(net, capsys, *words):
    assert main(["study", *words, "--model", str(net), "--quick", "--json", "--out", str(net.parent / "own")]) == 0
    return json.loads(capsys.readouterr().out)


def test_numbers_that_do_not_depend_on_the_representative_stay(net, capsys):
    found, sharp = measured(net, capsys, "quotient", "flatness")
    numbers = found["numbers"]
    assert max(numbers["squared_gradients"]) > 1.5 * min(numbers["squared_gradients"])
    assert max(numbers["quotient_gammas"]) < (1 + 1e-4) * min(numbers["quotient_gammas"])
    assert numbers["vertical"]["gradient"] < 1e-9 < numbers["vertical"]["isotropic noise"]
    assert max(sharp["numbers"]["canonical"]) < 1.01 * min(sharp["numbers"]["canonical"])
    assert max(sharp["numbers"]["as_it_is"]) > 1.5 * min(sharp["numbers"]["as_it_is"])
    for name in ("quotient", "flatness"):
        folder = net.parent / "own" / name
        assert (folder / f"{name}.png").stat().st_size > 1000
        assert json.loads((folder / "results.json").read_text(encoding="utf-8"))["study"] == name


def test_the_other_numbers(net, capsys):
    results = measured(net, capsys, "learning-coefficient", "basin", "occam", "orbit", "phase")
    numbers = {each["study"]: each["numbers"] for each in results}
    assert len(numbers["learning-coefficient"]["acceptance"]) == 4
    assert numbers["basin"]["lower_bound"] < numbers["basin"]["log_volume"]
    assert numbers["occam"]["bits"] > 0
    assert 0 < numbers["orbit"]["0"]["entropy"] < 2.78  # log 16
    assert numbers["phase"]["learning_rate"] == 0.3
    assert all(each["lines"] for each in results)


def test_merges_of_a_layer(net, capsys):
    cost, foretold = measured(net, capsys, "merge-cost-mlp", "redundancy", "--layer", "0")
    assert cost["study"] == "merge-cost"
    assert set(cost["numbers"]["costs"]) == {"near by cosine", "near by foretold cost", "random"}
    assert set(foretold["numbers"]["correlation"]) == {"1 − cos", "foretold cost"}
    assert main(["study", "redundancy", "--model", str(net)]) == 2
    assert "--layer: name the layer to examine. Its Linear layers and convolutions: 0, 2." in capsys.readouterr().err


def test_every_study_takes_a_network_or_says_why_not():
    for name in CATALOGUE:
        try:
            assert check_own(name, CATALOGUE) in OWN
        except ValueError as error:
            assert f"study {name} has networks of its own, because" in str(error)  # noqa: PT017
    assert set(REFUSALS) <= set(CATALOGUE)
    assert not set(REFUSALS) & set(OWN)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["grokking", "--model", "{}"], "study grokking has networks of its own, because what it is about shows in"),
        (["rank", "--model", "{}"], "study rank has networks of its own, because it follows a process"),
        (["geometry-mnist", "--model", "{}"], "sdsd geometry --model FILE"),
        (["quotiant", "--model", "{}"], "there is no study 'quotiant'. Did you mean 'quotient'?"),
        (["quotient", "--model", "{}", "--samples", "16"], "expected at least 2 batches"),
        (["quotient", "--model", "{}", "--seeds", "2"], "belong to networks that a study makes"),
        (["quotient", "--layer", "0"], "pass --model FILE.py, too"),
        (["orbit", "--model", "{}", "--layer", "0"], "--layer: expected two layers, WRITER:READER, got '0'"),
        (["quotient", "--model", "missing.py"], "missing.py: there is no such file"),
    ],
)
def test_what_does_not_go_is_said_in_a_sentence(net, capsys, words, message):
    assert main(["study", *(word.format(net) for word in words), "--out", str(net.parent / "own")]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_a_network_without_hidden_layers_that_rescale_says_which_to_name(net, capsys):
    net.write_text(NET.replace("nn.ReLU()", "nn.GELU()"), encoding="utf-8")
    assert main(["study", "orbit", "--model", str(net), "--out", str(net.parent / "own")]) == 2
    said = capsys.readouterr().err
    assert "layers=[('0', '2')]" in said
    assert "--layer WRITER:READER" in said
    assert "Traceback" not in said
    [found] = measured(net, capsys, "orbit", "--layer", "0:2")
    assert found["numbers"]["0"]["caps"] == 16


def test_a_loader_without_a_batch(net, capsys):
    net.write_text(f"{NET}\nloader = []\n", encoding="utf-8")
    assert main(["study", "flatness", "--model", str(net), "--out", str(net.parent / "own")]) == 2
    assert f"{net}: loader gave no batch." in capsys.readouterr().err


def test_numbers_are_written_where_no_figure_can_be(net, capsys, monkeypatch):
    def missing(*_args):
        raise MissingExtraError("drawing figures needs matplotlib")

    monkeypatch.setattr(figures, "save_png", missing)
    [found] = measured(net, capsys, "flatness")
    assert found["lines"][-1] == "no figure: drawing figures needs matplotlib"
    assert found["numbers"]["canonical"]
    assert (net.parent / "own" / "flatness" / "results.json").exists()


def test_random_numbers_come_from_the_seed(net, capsys):
    """The file draws as many numbers as it likes before."""
    first = measured(net, capsys, "quotient")[0]["numbers"]["vertical"]
    net.write_text(NET + "\ntorch.randn(3)\n", encoding="utf-8")
    assert measured(net, capsys, "quotient")[0]["numbers"]["vertical"] == first


def test_batches_within_batches_are_counted(net, capsys):
    nested = NET.replace("batch[0]", "batch[0][0]").replace("(inputs, labels))", "((inputs,), labels))")
    nested += "\nloader = [((x, x), y) for x, y in loader]\n"
    net.write_text(nested, encoding="utf-8")
    (found,) = measured(net, capsys, "phase")
    assert "on 16 samples" in found["lines"][0]
    net.write_text(NET + "\nloader = [{'text': 'a'}]\n", encoding="utf-8")
    assert main(["study", "phase", "--model", str(net)]) == 2
    assert "loader: expected batches that hold tensors, got dict without one" in capsys.readouterr().err


def test_a_step_of_another_optimizer_is_not_called_one_of_sgd(net, capsys):
    assert len(measured(net, capsys, "phase")[0]["lines"]) == 5
    for made, what in (
        ("Adam(model.parameters())", "Adam"),
        ("SGD(model.parameters(), 0.1, 0.9)", "SGD with momentum"),
    ):
        net.write_text(f"{NET}\noptimizer = torch.optim.{made}\n", encoding="utf-8")
        lines = measured(net, capsys, "phase")[0]["lines"]
        assert lines[0].endswith(f"{what} takes other steps")
    groups = "[{'params': model[0].parameters(), 'lr': 0.1}, {'params': model[2].parameters()}]"
    net.write_text(f"{NET}\noptimizer = torch.optim.SGD({groups}, 0.2)\n", encoding="utf-8")
    assert main(["study", "phase", "--model", str(net)]) == 2
    assert "expected one learning rate for all parameters, got [0.1, 0.2]" in capsys.readouterr().err


def test_what_does_not_get_to_its_end_is_an_error_in_words(net, capsys, monkeypatch):
    def endless(*arguments, **options):
        raise RuntimeError("sharpness: after 200 products the value is not known")

    monkeypatch.setattr("sdsd.studies.own.sharpness", endless)
    assert main(["study", "flatness", "--model", str(net), "--quick"]) == 2
    assert "net.py: sharpness: after 200 products" in capsys.readouterr().err
