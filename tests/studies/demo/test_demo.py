"""The demonstration, small: what it writes, that it repeats itself, that an interrupt keeps what was finished."""

from __future__ import annotations

import base64
import json
import math
import re
import sys

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("rich")

import sdsd
from sdsd._extras import MissingExtraError
from sdsd.studies.demo import report as demo_report
from sdsd.studies.demo import run as demo
from sdsd.studies.demo.merges import merge_facts, merge_sentence, pair_table
from sdsd.studies.demo.neurons import judged_links, link_words
from sdsd.studies.demo.noise import noise_sentence
from sdsd.studies.digits import split_digits
from sdsd.studies.engine.display import LiveTable, PlainLines, Quiet, choose_display, gamma_columns, table_row

from ..strict_json import strict_json

TINY = demo.DemoConfig(epochs=2, hidden=(16, 12), pairs=3, random_pairings=2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return demo.run_demo(tmp_path_factory.mktemp("demo"), TINY, quiet=True)


def test_what_is_written(finished):
    names = {path.name for path in finished.written}
    figures = {"noise_scale", "layers", "pairs", "neuron_map", "cosine_matrix", "merges", "overview"}
    assert names == {"report.html", "results.json", "history.jsonl"} | {f"{name}.png" for name in figures}
    assert all(path.exists() for path in finished.written)
    assert not list(finished.folder.glob("*.part"))
    results = strict_json(finished.folder / "results.json")
    assert results["status"] == "complete"
    assert results["config"]["hidden"] == [16, 12]
    series = results["training"]["series"]
    assert len(series["step"]) == results["training"]["steps_planned"] == 22
    assert set(series["layers"]) == {"hidden1", "hidden2", "head", "whole network"}
    assert series["accuracy"][-1] > 0.3
    cohorts = results["merges"]["cohorts"]
    assert [len(cohorts[name]["pairs"]) for name in ("near", "random", "far")] == [3, 3, 3]
    assert len(cohorts["random"]["together_loss_change"]) == 2
    assert results["merges"]["restored_exactly"]


def test_near_pairs_are_nearer_than_far_pairs(finished):
    neuron_map = finished.neuron_map
    assert min(pair.cosine for pair in neuron_map.nearest) > max(pair.cosine for pair in neuron_map.farthest)
    assert not set(neuron_map.dead) & set(neuron_map.order)


def test_same_seed_same_numbers_whatever_the_threads(finished, tmp_path):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1 if threads > 1 else 2)
    try:
        again = demo.run_demo(tmp_path, TINY, quiet=True)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)
    for part in ("training", "map", "merges"):
        assert json.dumps(again.results[part]) == json.dumps(finished.results[part])
    other = demo.run_demo(tmp_path, demo.DemoConfig(seed=1, epochs=1, hidden=(16, 12), pairs=3), quiet=True)
    assert other.results["training"]["series"]["train_loss"][0] != again.results["training"]["series"]["train_loss"][0]


def test_report_needs_nothing_from_outside(finished):
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    for resource in re.findall(r'(?:src|href)\s*=\s*"([^"]*)"|url\(([^)]*)\)', page):
        assert "".join(resource).startswith(("#", "data:"))
    assert "<script" not in page
    assert "@import" not in page
    identifiers = re.findall(r'\bid="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))
    for image in re.findall(r"data:image/png;base64,([^\"]+)", page):
        assert base64.b64decode(image).startswith(b"\x89PNG")
    assert "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.DOTALL).lower().split()


class Interrupting(Quiet):
    """Ctrl-C after a few steps."""

    def update(self, step, headline, header, rows):
        if step == 15:
            raise KeyboardInterrupt


def test_interrupt_in_training_keeps_the_finished_steps(tmp_path, finished):
    result = demo.run_demo(tmp_path, TINY, display=Interrupting())
    assert result.interrupted
    results = strict_json(tmp_path / "results.json")
    assert results["status"] == "interrupted"
    assert results["map"] is None
    series = results["training"]["series"]
    assert series["train_loss"] == finished.results["training"]["series"]["train_loss"][: len(series["step"])]
    assert 14 <= len(series["step"]) <= 15
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "was interrupted" in page
    assert "Figure 2" in page
    assert "Figure 3" not in page


def test_interrupt_in_mid_step_cuts_all_series_alike(tmp_path, monkeypatch):
    calls = 0
    whole = demo.table_row

    def row(*arguments):
        nonlocal calls
        calls += 1
        if calls == 4 * 13 + 2:
            raise KeyboardInterrupt
        return whole(*arguments)

    monkeypatch.setattr(demo, "table_row", row)
    series = demo.run_demo(tmp_path, TINY, quiet=True).results["training"]["series"]
    lengths = {len(values) for layer in series["layers"].values() for values in layer.values()}
    assert lengths | {len(series["step"]), len(series["accuracy"])} == {13}
    assert series["exact"]["step"] == [1, 12]


@pytest.mark.parametrize("phase", ["split_digits", "map_last_hidden_layer", "merge_cohorts"])
def test_interrupt_in_other_phases(tmp_path, monkeypatch, phase):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo, phase, interrupt)
        result = demo.run_demo(tmp_path, TINY, quiet=True)
    assert result.interrupted
    results = strict_json(tmp_path / "results.json")
    assert results["merges"] is None
    assert (results["training"] is None) == (phase == "split_digits")
    assert (results["map"] is None) == (phase != "merge_cohorts")
    assert "was interrupted" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert demo_report.summary_lines(result)[-1].startswith("Report:")


def test_unwritable_folder_is_told_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "train", lambda *_: pytest.fail("training started"))
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError, match="file is a file"):
            demo.run_demo(out, TINY, quiet=True)


def test_missing_extra_is_told_before_training(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"pip install '(\.|sdsd)\[report\]"):
        demo.run_demo(tmp_path / "out", TINY, quiet=True)
    assert not (tmp_path / "out").exists()


def loss_of(network, images, labels):
    return torch.nn.functional.cross_entropy(network(images), labels)


def test_true_noise_scale_against_one_backward_pass_an_image():
    config = demo.DemoConfig(hidden=(8,))
    digits, network = split_digits(config.seed, config.held_out), demo.build_network(config).double()
    images, labels = digits.images[:20].double(), digits.labels[:20]
    loss_of(network, images, labels).backward()
    before = [parameter.grad.clone() for parameter in network.parameters()]
    losses = [loss_of(network, image[None], label[None]) for image, label in zip(images, labels, strict=True)]
    gradients = [torch.autograd.grad(loss, network.parameters()) for loss in losses]
    rows = torch.stack([torch.cat([part.flatten() for part in gradient]) for gradient in gradients])
    noise = (rows - rows.mean(0)).square().sum(1).mean() / rows.mean(0).square().sum()
    assert demo.noise_scale_over(network, images, labels) == pytest.approx(noise.item(), rel=1e-10)
    assert all(torch.equal(p.grad, g) for p, g in zip(network.parameters(), before, strict=True))


def test_smoothed_gamma_is_the_ratio_of_the_monitors_averages():
    config = demo.DemoConfig(hidden=(8,))
    digits, network = split_digits(config.seed, config.held_out), demo.build_network(config)
    found = []
    with sdsd.GammaMonitor(network, mode="exact", ema=0.9) as monitor:
        for start in (0, 20, 40):
            loss_of(network, digits.images[start : start + 20], digits.labels[start : start + 20]).backward()
            found.append(monitor.step())
            network.zero_grad()
    signal, noise = (
        sum(weight * getattr(stats, field) for weight, stats in zip((0.81, 0.9, 1), found, strict=True))
        for field in ("signal_unbiased", "noise")
    )
    shown = demo.smoothed_gamma(found[-1])
    assert list(shown) == ["hidden1", "head", "whole network"]
    gamma, low, high = shown["whole network"]
    assert gamma == pytest.approx(signal / noise)
    assert low < gamma < high
    assert math.isnan(demo.smoothed_gamma(found[0])["head"][1])


def test_the_monitor_leaves_training_as_it_was(finished):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(TINY.seed)
        digits, network = split_digits(TINY.seed, TINY.held_out), demo.build_network(TINY)
    optimizer = torch.optim.SGD(network.parameters(), lr=TINY.learning_rate, momentum=TINY.momentum)
    draw = torch.Generator().manual_seed(TINY.seed + 1)
    losses = []
    for _ in range(22):
        chosen = torch.randint(len(digits.images), (TINY.batch_size,), generator=draw)
        loss = loss_of(network, digits.images[chosen], digits.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert finished.results["training"]["series"]["train_loss"] == pytest.approx(losses, rel=1e-4)


def story(**changes):
    facts = {"lowest": 30.0, "lowest_step": 9, "last": 900.0, "ever_below": True, "above_from_step": 78}
    return noise_sentence({**facts, **changes}, 128, 330)


def test_the_sentence_on_noise_follows_the_numbers():
    assert "From step 78 on" in story()
    assert "88% of" in story()
    assert "does not show" in story(last=100.0)
    assert "throughout" in story(ever_below=False, above_from_step=None, lowest=300.0)
    assert "no signal could be told" in story(last=math.inf)


@pytest.mark.parametrize(
    ("near", "far", "single_far", "says"),
    [
        (0.01, 0.3, 5e-3, "did predict"),
        (0.01, 0.3, 1e-3, "Together the difference is plain"),
        (0.5, 0.3, 5e-3, "does not show it"),
        (0.5, 0.3, 1e-3, "does not show that nearness"),
    ],
)
def test_the_sentence_on_merges_follows_the_numbers(near, far, single_far, says):
    def cohort(single, together):
        return {"pairs": [{"loss_change": single}] * 3, "together_loss_change": together}

    facts = merge_facts(
        {
            "cohorts": {
                "near": cohort(1e-3, [near]),
                "random": cohort(2e-3, [0.1, 0.2]),
                "far": cohort(single_far, [far]),
            }
        }
    )
    assert says in merge_sentence(facts, 3)


def test_links_of_the_map_are_judged_by_what_merging_cost(finished):
    cohorts, neuron_map = finished.results["merges"]["cohorts"], finished.neuron_map
    costs = sorted(abs(pair["loss_change"]) for pair in cohorts["random"]["pairs"])
    cheap, dear, words = judged_links(neuron_map, finished.results["merges"])
    named = [tuple(neuron_map.order[place] for place in link) for link in (*cheap, *dear)]
    changes = {(pair["first"], pair["second"]): abs(pair["loss_change"]) for pair in cohorts["near"]["pairs"]}
    assert set(named) == set(changes) == {pair[:2] for pair in neuron_map.nearest}
    assert [changes[pair] < costs[1] for pair in named] == [True] * len(cheap) + [False] * len(dear)
    assert words == link_words(len(cheap), len(dear), costs[1])
    assert f"{words}</figcaption>" in (finished.folder / "report.html").read_text(encoding="utf-8")
    links, none, words = judged_links(neuron_map, None)
    assert (links, none, words) == (neuron_map.links(10), [], "Lines: the 3 nearest pairs.")


@pytest.mark.parametrize(
    ("cheap", "dear", "says"),
    [(3, 0, "Merging any of them"), (0, 3, "merging none of them"), (2, 1, "2 that are solid changes the loss less")],
)
def test_the_words_on_links_follow_the_numbers(cheap, dear, says):
    words = link_words(cheap, dear, 0.00141)
    assert words.startswith("Lines: the 3 nearest pairs. ")
    assert says in words
    assert "(0.0014)" in words


def test_the_table_holds_the_pairs_in_their_order(finished):
    cohorts = finished.results["merges"]["cohorts"]
    rows = pair_table(cohorts).rows
    assert len(rows) == 3
    for row, near, far in zip(rows, cohorts["near"]["pairs"], cohorts["far"]["pairs"], strict=True):
        assert row[1] == f"{near['first']} – {near['second']}"
        assert row[4] == f"{far['first']} – {far['second']}"
        for text, pair in ((row[3], near), (row[6], far)):
            assert float(text.replace("−", "-")) == pytest.approx(pair["loss_change"], rel=0.06)


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [(0.01, 0.05, "20 – 100"), (-0.01, 0.05, "20 – ∞"), (-0.05, -0.01, "–"), (math.nan,) * 2 + ("–",)],
)
def test_a_row_has_an_interval_where_there_is_one(low, high, shown):
    row = table_row("weight", 0.02, low, high, 8)
    assert row[3] == shown
    assert row[4] == ("–" if math.isnan(low) else "diffusion")


def test_plain_lines_are_few_and_end_with_the_last_step(capsys):
    lines = PlainLines(lines=4)
    lines.start(10)
    for step in range(1, 11):
        lines.update(step, "loss 1", gamma_columns("layer", 32, 0.95), [("whole network", "2", "64", "–", "…")])
    printed = capsys.readouterr().out.splitlines()
    assert 4 <= len(printed) <= 6
    assert printed[-1] == "step 10/10 · loss 1 · Γ of a batch of 32: 2 · noise scale: 64"


@pytest.mark.parametrize("width", [80, 100])
def test_live_table_shows_every_layer_and_whole_numbers(width):
    from io import StringIO

    from rich.console import Console

    screen, table = StringIO(), LiveTable()
    table.console = Console(file=screen, force_terminal=True, width=width)
    table.start(2)
    name = "transformer.encoder.layers.0.self_attention.output.weight"
    rows = [(name, "3.3", "1,200,000", "30,000 – 5,000,000", "diffusion"), ("whole network",) + ("1",) * 4]
    table.update(1, "loss 0.5", gamma_columns("layer", 256, 0.9), rows)
    table.stop()
    table.stop()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    for text in (
        "3.3",
        "1,200,000",
        "30,000 – 5,000,000",
        "diffusion ",
        "loss 0.5",
        "Γ of a batch ",
        "of 256 ",
        "scale",
        "90% interval",
    ):
        assert text in shown
    assert "…" not in shown
    assert name in "".join(line.split()[0] for line in shown.splitlines() if line.split())


def test_a_terminal_too_narrow_for_the_table_gets_lines(monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    for columns, kind in ((79, PlainLines), (80, LiveTable)):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert type(choose_display()) is kind
    assert type(choose_display(quiet=True)) is Quiet


def test_the_first_random_pairing_is_the_one_merged_pair_by_pair():
    live = [0, 2, 3, 5, 8, 9, 11]
    pairings = demo.random_pairings(live, 3, 4, seed=7)
    alive = torch.zeros(12, dtype=torch.bool)
    alive[live] = True
    drawn = sdsd.disjoint_pairs(None, 3, "random", cosine=torch.eye(12), alive=alive, seed=7)
    assert pairings[0] == [(pair.first, pair.second) for pair in drawn]
    assert len({tuple(pairing) for pairing in pairings}) == 4
    for pairing in pairings:
        assert len({neuron for pair in pairing for neuron in pair} & set(live)) == 6
        assert all(first < second for first, second in pairing)


def test_together_is_what_merging_the_cohort_costs(finished):
    merges = finished.results["merges"]
    digits = split_digits(TINY.seed, TINY.held_out)
    network = demo.build_network(TINY)
    assert merges["loss_before"] == finished.results["training"]["series"]["held_out_loss"][-1]
    pairs = [(pair["first"], pair["second"]) for pair in merges["cohorts"]["far"]["pairs"]]
    assert pairs == [pair[:2] for pair in finished.neuron_map.farthest]
    neuron_map = sdsd.NeuronMap.from_activations(network[:-1](digits.held_out_images).detach(), pairs=3)
    again = demo.merge_cohorts(network, digits, TINY, neuron_map)
    before = loss_of(network, digits.held_out_images, digits.held_out_labels).item()
    assert again["loss_before"] == pytest.approx(before, rel=1e-6)
    for name in ("near", "random", "far"):
        cohort = again["cohorts"][name]
        with sdsd.merge(network, "hidden2", [(pair["first"], pair["second"]) for pair in cohort["pairs"]]):
            after = loss_of(network, digits.held_out_images, digits.held_out_labels).item()
        assert cohort["together_loss_change"][0] == pytest.approx(after - before, abs=1e-6)
        for pair in cohort["pairs"]:
            with sdsd.merge(network, "hidden2", [(pair["first"], pair["second"])]):
                after = loss_of(network, digits.held_out_images, digits.held_out_labels).item()
            assert pair["loss_change"] == pytest.approx(after - before, abs=1e-6)


def test_a_layer_that_is_dead_has_nothing_to_merge(tmp_path, monkeypatch):
    whole = demo.train

    def train(network, *arguments):
        whole(network, *arguments)
        with torch.no_grad():
            network.hidden2.bias.fill_(-1e3)

    monkeypatch.setattr(demo, "train", train)
    result = demo.run_demo(tmp_path, TINY, quiet=True)
    merges = result.results["merges"]
    assert (merges["pairs_in_a_cohort"], merges["cohorts"], merges["restored_exactly"]) == (0, {}, True)
    assert "Can neurons that do the same job be merged?" not in (tmp_path / "report.html").read_text(encoding="utf-8")
