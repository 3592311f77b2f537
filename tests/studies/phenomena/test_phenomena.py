"""The studies of phenomena, small, over two seeds: each phenomenon shows, and its controls do not."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from sdsd.report import figures
from sdsd.studies.catalogue import GROUPS
from sdsd.studies.engine import Progress, run_study
from sdsd.studies.phenomena import lottery_ticket
from sdsd.studies.phenomena.training import Watch, geometry, judge_functional, separation, train

from ..strict_json import strict_json

PHENOMENA = {study.name: study for study in GROUPS["phenomena"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a study over two seeds, once for all tests."""
    finished = {}

    def result_of(name):
        if name not in finished:
            folder = tmp_path_factory.mktemp(name)
            finished[name] = run_study(PHENOMENA[name], folder, Progress(), seeds=(0, 1), quick=True)
            assert (folder / f"{name}.png").stat().st_size > 10_000
            assert strict_json(folder / "results.json")["status"] == "complete"
        return finished[name]

    return result_of


def shown(result):
    """The verdict on the phenomenon, which the second on its explanation stands on."""
    phenomenon, explanation, *_ = result.verdicts
    for verdict in result.verdicts:
        assert verdict.verdict.split()[0] in verdict.rule
        assert "nan" not in verdict.corrected.lower().split()
    assert explanation.source.startswith("Symmetry-Driven Spatial Density")
    return phenomenon.verdict


def test_a_ticket_learns_and_its_controls_do_not(run):
    result = run("lottery-ticket")
    assert shown(result) in ("reproduced", "direction only")
    for series in result.series:
        assert 0.12 < series["density"] < 0.15
        ends = {arm: (rows["accuracy"][-1], rows["gamma"][-1]) for arm, rows in series["arms"].items()}
        for control in ("other start", "random mask"):
            assert ends["ticket"][0] > ends[control][0]
            starved = f"{control}, as for the whole"
            assert ends["ticket"][0] > ends[starved][0] + 0.1
            assert ends["ticket"][1] > 2 * ends[starved][1]
            assert ends[control][1] > ends[starved][1]  # what Γ told apart was also the size of the start
        assert ends["ticket, small batch"][1] < ends["ticket"][1] / 2


def test_classes_collapse_and_less_so_without_batchnorm(run):
    result = run("neural-collapse")
    shown(result)
    for series in result.series:
        collapsed, bare = series["arms"]["BatchNorm"], series["arms"]["no BatchNorm"]
        assert collapsed["nc1"][-1] < collapsed["nc1"][0] / 8
        assert collapsed["nc1"][-1] < bare["nc1"][-1]
        for key in ("nc2", "nc3", "norms"):
            assert collapsed[key][-1] < collapsed[key][0] / 2
        assert collapsed["nc4"][-1] <= 0.01 < collapsed["nc4"][0]
        assert collapsed["gamma"][-1] < 1 < collapsed["gamma_published"][0]


def test_descent_settles_at_the_edge_and_goes_on_learning(run):
    result = run("edge-of-stability")
    assert shown(result) == "reproduced"
    assert result.verdicts[1].verdict != "reproduced"
    for series in result.series:
        large, small = series["arms"]["large"], series["arms"]["small"]
        assert 0.9 < large["sharpness"][-1] < 1.3
        assert large["loss"][-1] < 0.5 * large["loss"][0]
        assert any(change > 0 for change in large["change"])
        assert not any(change > 0 for change in small["change"])


def test_error_peaks_at_as_many_features_as_samples(run):
    result = run("double-descent")
    assert shown(result) in ("reproduced", "direction only")
    widths = result.config["widths"]
    place = widths.index(result.config["samples"])
    for series in result.series:
        error = series["arms"]["15% wrong labels"]["test_error"]
        assert error[place] > 2 * max(error[1], error[-1])
        assert max(max(each) for each in series["arms"]["15% wrong labels"]["gamma"]) < 1


def test_addition_is_understood_long_after_it_is_memorised(run):
    result = run("grokking")
    assert shown(result) == "reproduced"
    assert result.verdicts[1].verdict != "reproduced"
    for series in result.series:
        assert max(series["arms"]["no weight decay"]["test_accuracy"]) < 0.5
        assert max(series["arms"]["too few sums"]["test_accuracy"]) < 0.5
        assert max(series["later"].values()) < 0.5
        assert 0 < series["memorised"] < 100


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("grokking", ("enough sums", "test_accuracy", 0.1)),
        ("edge-of-stability", ("large", "change", -1e-3)),
        ("double-descent", ("15% wrong labels", "test_error", 0.3)),
        ("neural-collapse", ("BatchNorm", "nc1", 1.0)),
        ("lottery-ticket", ("ticket", "accuracy", 0.05)),
    ],
)
def test_without_the_phenomenon_nothing_is_said_of_its_explanation(run, name, path, tmp_path):
    study, result = PHENOMENA[name], copy.deepcopy(run(name))
    arm, key, value = path
    for series in result.series:
        rows = series["arms"][arm]
        rows[key] = [value] * len(rows[key])
    result.verdicts = study.judge(result)
    phenomenon, explanation = (verdict.verdict for verdict in result.verdicts[:2])
    # At the edge the sharpness is still there when no step is left that raises the loss.
    assert phenomenon == {"lottery-ticket": "opposite", "edge-of-stability": "inconclusive"}.get(name, "no effect")
    assert explanation == "untestable here"
    assert not any("nan" in verdict.corrected.lower() or " inf" in verdict.corrected for verdict in result.verdicts)
    figures.save_png(study.draw(result), tmp_path / "figure.png")


def test_separation_is_the_area_under_the_curve_of_hits_over_false_alarms():
    scores = [0.1, 0.4, 0.35, 0.8, 0.4]
    chosen = [False, False, True, True, True]
    by_hand = (1 + 2 + 1.5) / 6  # of two others 0.35 beats one, 0.8 both, and 0.4 one and ties with the other
    assert separation(scores, chosen) == pytest.approx(by_hand)
    assert separation([5 * score for score in scores], chosen) == separation(scores, chosen)
    assert math.isnan(separation(scores, [True] * 5))


def test_a_masked_weight_neither_moves_nor_counts():
    """Whatever is logged of a pruned network is that of a smaller one which has only what is left."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(64, 4), torch.randn(64, 1)
    whole, part = (nn.Sequential(nn.Linear(size, 3), nn.ReLU(), nn.Linear(3, 1)) for size in (4, 2))
    masks = [torch.ones_like(parameter) for parameter in whole.parameters()]
    masks[0][:, 1::2] = 0
    with torch.no_grad():
        whole[0].weight.mul_(masks[0])
        part.load_state_dict({**whole.state_dict(), "0.weight": whole[0].weight[:, ::2]})

    def series(model, inputs, masks):
        watch = Watch(32, every=2, micro=8)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        return train(
            model,
            (inputs, targets),
            lambda model, batch: (model(batch[0]) - batch[1]).square().mean(),
            optimizer,
            watch,
            steps=6,
            batch_size=32,
            masks=masks,
        )

    masked, smaller = series(whole, inputs, masks), series(part, inputs[:, ::2], None)
    assert torch.equal(whole[0].weight == 0, masks[0] == 0)
    for key in ("gamma", "gamma_published", "batch_loss"):
        assert masked[key] == pytest.approx(smaller[key], rel=1e-4), key
    for key in ("gamma_canonical", "gamma_star", "expected_change", "entropy"):
        here, there = (look["geometry"][key] for look in (masked, smaller))
        assert len(here) == 4
        assert here == pytest.approx(there, rel=1e-3), key


def test_gamma_of_all_samples_is_that_of_the_definition():
    """Full-batch looks: ‖∇L‖² over the variance of single samples' gradients, times the batch."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(40, 3), torch.randn(40)
    model = nn.Linear(3, 1, bias=False)
    rows = ((inputs @ model.weight.detach()[0]) - targets)[:, None].double() * 2 * inputs.double()
    found = train(
        model,
        (inputs, targets),
        lambda model, batch: (model(batch[0])[:, 0] - batch[1]).square().mean(),
        torch.optim.SGD(model.parameters(), 0.1),
        Watch(16, every=1, geometry_every=0),
        steps=0,
    )
    expected = 16 * rows.mean(0).square().sum() / rows.var(0).sum()
    assert found["gamma"] == pytest.approx([expected.item()], rel=1e-5)


def test_gamma_of_micro_batches_is_that_of_their_mean_gradients():
    """Batches in parts: Γ_U of the parts' mean gradients, in the unit of the batch asked for; loss and step stay."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(64, 3), torch.randn(64)
    model = nn.Linear(3, 1, bias=False)
    weight = model.weight.detach().double().clone()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(5))
    x, error = inputs[order].double(), (inputs[order].double() @ weight[0] - targets[order])
    parts = (2 * error[:, None] * x).unflatten(0, (8, 8)).mean(1)
    found = train(
        model,
        (inputs, targets),
        lambda model, batch: (model(batch[0])[:, 0] - batch[1]).square().mean(),
        torch.optim.SGD(model.parameters(), 0.1),
        Watch(32, every=1, geometry_every=0, micro=8, smoothing=0.0),
        steps=1,
        batch_size=64,
        seed=5,
    )
    noise = parts.var(0).sum()
    expected = parts.mean(0).square().sum() / noise * 32 / 8  # of all 64 samples: nothing to take away
    assert found["gamma"][0] == pytest.approx(expected.item(), rel=1e-4)
    assert found["gamma_published"][0] == pytest.approx(expected.item(), rel=1e-4)
    assert found["batch_loss"][0] == pytest.approx(error.square().mean().item(), rel=1e-5)
    moved = weight - 0.1 * parts.mean(0)
    final = x @ moved[0] - targets[order]
    assert found["batch_loss"][1] == pytest.approx(final.square().mean().item(), rel=1e-5)


def test_gamma_at_the_canonical_point_is_in_the_unit_of_the_batch():
    """From a part of the samples, in micro-batches: Γ_U of their gradients, times batch over micro-batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    data = torch.randn(80, 3), torch.randn(80, 1)

    def loss(model, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    watch = Watch(32, every=1, micro=8, layers=(("0", "2"),), canonical=False, samples=64, cap_samples=64)
    found = geometry(model, data, loss, watch, torch.optim.SGD(model.parameters(), 0.1))
    parameters = list(model.parameters())
    parts = [
        torch.autograd.grad(loss(model, (data[0][k : k + 8], data[1][k : k + 8])), parameters) for k in range(0, 64, 8)
    ]
    rows = torch.stack([torch.cat([each.flatten() for each in part]) for part in parts]).double()
    expected = (rows.mean(0).square().sum() / rows.var(0).sum() - (1 / 8 - 8 / 80)) * 32 / 8
    assert found["gamma_canonical"] == pytest.approx(expected.item(), rel=1e-4)


def test_the_angle_of_v_leaves_it_room_both_ways():
    """Caps of 60° round 128 random directions in 65 dimensions do not overlap, and V would be 128 at any time."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    data = torch.randn(32, 64), torch.randn(32, 10)

    def loss(model, batch):
        return (model(batch[0]) - batch[1]).square().mean()

    def volume(**options):
        watch = Watch(16, every=1, samples=16, **options)
        return geometry(model, data, loss, watch, torch.optim.SGD(model.parameters(), 0.1))["volume"]

    assert 50 < volume() < 80
    with pytest.warns(UserWarning, match="caps of 60°"):
        assert volume(angle=math.radians(60)) > 127.5


def test_functional_verdict_needs_both_to_fall_more_than_in_controls():
    def run(entropy, volume):
        return {"geometry": {"entropy": [4.0, entropy], "volume": [100.0, volume]}}

    still = {"control": [run(3.9, 99.0)]}
    assert judge_functional("X", [run(3.0, 80.0)], still).verdict == "reproduced"
    assert judge_functional("X", [run(3.0, 80.0)], {"control": [run(2.0, 99.0)]}).verdict == "direction only"
    assert judge_functional("X", [run(3.0, 99.9)], still).verdict == "direction only"
    assert judge_functional("X", [run(4.1, 50.0)], still).verdict == "no effect"
    assert judge_functional("X", [run(4.3, 50.0)], still).verdict == "opposite"
    assert judge_functional("X", [run(3.0, 80.0), run(4.1, 80.0)], {"c": [run(3.9, 99.0)] * 2}).verdict == (
        "inconclusive"
    )


def test_controls_of_the_ticket_start_as_large_as_their_connections_ask_for():
    torch.manual_seed(0)
    start = [torch.randn(50, 400), torch.zeros(50)]
    mask = (torch.rand(50, 400) < 0.13).float()
    scaled, bias = lottery_ticket._as_large_as_needed(start, [mask, torch.ones(50)])
    inputs = torch.randn(400, 2000)
    whole, starved, pruned = (weight @ inputs for weight in (start[0], start[0] * mask, scaled * mask))
    assert pruned.std() == pytest.approx(whole.std().item(), rel=0.03)
    assert starved.std() < 0.5 * whole.std()
    assert torch.equal(bias, start[1])
