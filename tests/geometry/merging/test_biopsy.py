"""Biopsy, mass consolidation, plasticity and their controls, on networks that learned real digits."""

from __future__ import annotations

import copy
import doctest
import importlib
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sdsd.geometry import neuron_cosine_matrix
from sdsd.geometry.merging.biopsy import biopsy, mass_consolidation
from sdsd.geometry.merging.controls import shuffled_pixels, trained, untrained, weight_cosine
from sdsd.geometry.merging.merge import merge
from sdsd.geometry.merging.plasticity import plasticity, sgd_training
from sdsd.geometry.merging.sensitivity import cosine_to_untouched, kl_to_untouched, mean_loss
from tests.geometry.networks import cnn, mlp

SEEDS = range(5)
LAYER, READER = "2", 4


def digit_loss(model, batch):
    return cross_entropy(model(batch[0]), batch[1])


class Digits:
    """A perceptron with two hidden layers of 128, trained for 30 epochs; biopsies are on all digits."""

    def __init__(self, seed: int, shuffled: bool = False) -> None:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(seed))
        images = (torch.from_numpy(pixels).float() / 16 - 0.3)[order]
        self.images = shuffled_pixels(images, seed) if shuffled else images
        self.labels = torch.from_numpy(labels).long()[order]
        self.loader = list(zip(self.images[:1347].split(64), self.labels[:1347].split(64), strict=True))
        torch.manual_seed(seed)
        layers = [nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)]
        self.network = trained(nn.Sequential(*layers), sgd_training(self.loader, digit_loss, lr=0.1), 30, seed)
        self.loss = ([(self.images, self.labels)], digit_loss)

    def activations(self, network: nn.Module | None = None) -> torch.Tensor:
        with torch.no_grad():
            return (network or self.network)[:READER](self.images)

    def accuracy(self, network: nn.Module) -> torch.Tensor:
        return (network(self.images[1347:]).argmax(1) == self.labels[1347:]).float().mean()


@pytest.fixture(scope="module", params=SEEDS)
def digits(request):
    pytest.importorskip("sklearn")
    return Digits(request.param)


# ---- directions on real digits ---------------------------------------------------------------------------------------


def test_near_pairs_cost_less_than_far_ones(digits, record_property):
    result = biopsy(digits.network, LAYER, digits.loss, activations=digits.activations())
    assert [len(cohort.pairs) for cohort in (result.near, result.random, result.far)] == [50, 50, 50]
    assert result.ratio > 2
    assert result.interval[0] < result.ratio < result.interval[1]
    assert result.interval[0] > 1
    assert result.near.mean < result.random.mean
    by_weights = biopsy(digits.network, LAYER, digits.loss, cosine=weight_cosine(digits.network, LAYER))
    record_property("far / near by activations", result.ratio)
    record_property("far / near by weights", by_weights.ratio)  # reported: it does as well here
    print(result, by_weights, sep="\n")


def test_geometry_consolidates_better_than_chance(digits):
    result = mass_consolidation(digits.network, LAYER, digits.loss, activations=digits.activations())
    assert len(result.random) == 8
    assert result.ratio > 3
    assert abs(result.geometry) < min(map(abs, result.random))
    print(result)


def test_a_merged_network_learns_as_well(digits):
    train = sgd_training(digits.loader, digit_loss, lr=0.02)
    result = plasticity(digits.network, LAYER, train, digits.accuracy, activations=digits.activations(), epochs=2)
    assert abs(result.difference) < 0.02
    assert max(result.untouched) - max(result.geometry) < 0.02
    assert [len(curve) for curve in (result.geometry, result.random, result.untouched)] == [2, 2, 2]
    print(result)


# ---- what is measured ------------------------------------------------------------------------------------------------


X = torch.rand(40, 5, generator=torch.Generator().manual_seed(3))
Y = torch.arange(40) % 3


def small_loss(model):
    return cross_entropy(model(X), Y)


def small(how="mean", model=None, **options):
    model = model or mlp()
    options = {"activations": model[:2](X).detach(), **options}
    return biopsy(model, "0", small_loss, 2, how=how, **options)


@pytest.mark.parametrize("how", ["mean", "act", "absorb"])
def test_loss_changes_against_merging_by_hand(how):
    model = mlp()
    activations = model[:2](X).detach()
    result = small(how, model)
    with torch.no_grad():
        before = small_loss(model).item()
        assert result.loss_before == before
        for cohort in (result.near, result.random, result.far):
            for pair, change in zip(cohort.pairs, cohort.loss_changes, strict=True):
                with merge(model, "0", [pair], how, activations=activations):
                    assert change == small_loss(model).item() - before
        mass = mass_consolidation(model, "0", small_loss, 2, how=how, activations=activations, random_pairings=3)
        with merge(model, "0", mass.pairs, how, activations=activations):
            assert mass.geometry == small_loss(model).item() - before
    cosine = neuron_cosine_matrix(activations)
    alive = cosine.diagonal() > 0
    others = cosine[alive][:, alive].fill_diagonal_(0)
    assert result.near.pairs[0].cosine == pytest.approx(others.max().item(), rel=1e-5)
    assert result.far.pairs[0].cosine == pytest.approx(others.fill_diagonal_(1).min().item(), rel=1e-5)
    sizes = np.abs(result.far.loss_changes)
    assert result.far.mean == pytest.approx(sizes.mean())
    assert result.far.std == pytest.approx(sizes.std(ddof=1))
    assert result.ratio == pytest.approx(sizes.mean() / np.abs(result.near.loss_changes).mean())
    assert result.single_ratio == pytest.approx(sizes[0] / abs(result.near.loss_changes[0]))
    assert mass.ratio == pytest.approx(np.abs(mass.random).mean() / abs(mass.geometry))


def test_interval_against_a_bootstrap_of_its_own():
    generator = np.random.default_rng(0)
    far, near = generator.gamma(2.0, size=40), generator.gamma(2.0, size=30) / 4
    ratio = importlib.import_module("sdsd.geometry.merging.biopsy")._ratio
    value, (low, high) = ratio(far, near, 0.9, 0)
    draws = [generator.choice(far, len(far)).mean() / generator.choice(near, len(near)).mean() for _ in range(10_000)]
    assert value == pytest.approx(far.mean() / near.mean())
    assert low == pytest.approx(np.quantile(draws, 0.05), rel=0.02)
    assert high == pytest.approx(np.quantile(draws, 0.95), rel=0.02)
    assert ratio(far, near, 0.9, 0) == (value, (low, high))
    assert ratio(far, near, 0.9, 1)[1] != (low, high)
    assert ratio([1.0], [0.0, -0.0], 0.9, 0) == (None, None)


def test_the_model_is_left_as_it_was_and_evaluated_in_eval_mode():
    model = cnn().train()
    model[1].eval()
    x = torch.rand(9, 2, 8, 8)
    seen = []

    def loss(network):
        seen.append([module.training for module in network.modules()])
        assert not torch.is_grad_enabled()
        return network(x).square().mean()

    before = copy.deepcopy(model.state_dict())
    biopsy(model, "0", loss, 2, cosine=weight_cosine(model, "0"))
    mass_consolidation(model, "0", loss, 2, cosine=weight_cosine(model, "0"))
    assert not np.any(seen)
    assert [module.training for module in model] == [True, False] + 5 * [True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def stops(network):
        network[0].weight.zero_()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        biopsy(model, "0", stops, 2, cosine=weight_cosine(model, "0"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model[0].training


def test_same_seed_same_result_and_the_global_generator_is_left_alone():
    model, state = mlp(), torch.get_rng_state()
    assert small(model=model, seed=1) == small(model=model, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    pairings = {small(seed=seed).random.pairs for seed in range(8)}
    assert len(pairings) > 2


def test_fewer_pairs_where_neurons_do_not_suffice_and_dead_ones_left_out():
    model = mlp()
    activations = model[:2](X).detach()
    activations[:, 2] = 0
    activations[:, 4] *= 1e-5
    result = biopsy(model, "0", small_loss, activations=activations)
    for cohort in (result.near, result.random, result.far):
        assert len(cohort.pairs) == 2
        assert {2, 4}.isdisjoint(neuron for pair in cohort.pairs for neuron in pair[:2])
    alive = torch.tensor([True, True, False, False, False, False])
    result = biopsy(model, "0", small_loss, cosine=neuron_cosine_matrix(activations), alive=alive)
    assert [pair[:2] for pair in result.far.pairs] == [(0, 1)]
    assert result.far.std is None
    assert "–" in str(result)


def test_activations_of_convolutions_and_of_tokens():
    model = nn.Sequential(nn.Conv1d(2, 4, 1), nn.ReLU(), nn.Conv1d(4, 3, 1))
    x = torch.rand(3, 2, 5)
    result = biopsy(model, "0", lambda m: m(x).mean(), 1, activations=model[:2](x))
    same = biopsy(model, "0", lambda m: m(x).mean(), 1, activations=model[:2](x).mT.flatten(0, 1))
    assert result.near.pairs[0][:2] == same.near.pairs[0][:2]


def test_merges_that_change_nothing_have_no_ratio():
    result = biopsy(mlp(), "0", lambda model: 1.0, 2, activations=torch.rand(9, 6))
    assert result.ratio is None
    assert result.interval is None
    assert "no ratio" in str(result)
    assert "no ratio" in str(mass_consolidation(mlp(), "0", lambda model: 1.0, 2, activations=torch.rand(9, 6)))


def test_prints_a_table():
    lines = str(small()).splitlines()
    assert lines[0] == "'0', 2 pairs a cohort, each merged alone (how='mean')"
    assert [line.split()[0] for line in lines[2:5]] == ["near", "random", "far"]
    assert "95% interval" in lines[5]


# ---- resuming --------------------------------------------------------------------------------------------------------


class Counted:
    """A loss that counts its calls, and stops before call `stop`."""

    def __init__(self, stop=None):
        self.calls, self.stop = 0, stop

    def __call__(self, model):
        if self.calls == self.stop:
            raise KeyboardInterrupt
        self.calls += 1
        return small_loss(model)


def test_a_stopped_run_goes_on_from_its_file(tmp_path):
    model, path = mlp(), tmp_path / "new" / "biopsy.jsonl"
    activations = model[:2](X).detach()
    whole = biopsy(model, "0", small_loss, 3, activations=activations)
    stopped = Counted(stop=4)
    with pytest.raises(KeyboardInterrupt):
        biopsy(model, "0", stopped, 3, activations=activations, resume=path)
    with path.open("a") as file:
        file.write('{"pairs": [[0, 1')  # cut off while it was written
    goes_on = Counted()
    done = []
    result = biopsy(
        model, "0", goes_on, 3, activations=activations, resume=str(path), progress=lambda *at: done.append(at)
    )
    assert (result.near, result.random, result.far, result.ratio) == (whole.near, whole.random, whole.far, whole.ratio)
    different = {pair[:2] for cohort in (whole.near, whole.random, whole.far) for pair in cohort.pairs}
    assert goes_on.calls == 1 + len(different) - 3
    total = 3 * len(whole.near.pairs)
    assert done == [(k, total) for k in range(1, total + 1)]
    again = Counted()
    mass_consolidation(model, "0", again, 2, activations=activations, resume=path)
    assert again.calls > 1
    again = Counted()
    mass_consolidation(model, "0", again, 2, activations=activations, resume=path)
    assert again.calls == 1
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_an_earlier_result_is_extended():
    model = mlp()
    activations = model[:2](X).detach()
    first = biopsy(model, "0", small_loss, 1, activations=activations)
    known = len(first.measurements.losses)
    counted = Counted()
    second = biopsy(model, "0", counted, 2, activations=activations, resume=first.measurements)
    assert second.near.loss_changes[0] == first.near.loss_changes[0]
    assert counted.calls == 1 + len(second.measurements.losses) - known


@pytest.mark.parametrize("change", ["weights", "loss", "layer", "how", "file", "type"])
def test_measurements_of_something_else_are_refused(tmp_path, change):
    model, path = mlp(), tmp_path / "biopsy.jsonl"
    cosine = weight_cosine(model, "0")
    options = {"cosine": cosine, "resume": path, "gram": cosine + 1}
    biopsy(model, "0", small_loss, 1, **options)
    layer, loss, error, says = "0", small_loss, ValueError, "other weights"
    if change == "weights":
        model[4].bias.data[0] += 1e-3
    if change == "loss":
        loss, says = (lambda model: small_loss(model) * 1.001), "another loss or other data"
    if change == "layer":
        layer, says = "2", "layer '0'"
    if change == "how":
        options["how"], says = "act", "how 'mean'"
    if change == "file":
        path.write_text("a diary\n")
        says = "does not hold measurements"
    if change == "type":
        options["resume"], error, says = 3, TypeError, "expected a path"
    with pytest.raises(error, match=says):
        biopsy(model, layer, loss, 1, **options)


# ---- sensitivities ---------------------------------------------------------------------------------------------------


def test_mean_loss_weighs_batches_by_size():
    batches = list(zip(X.split(16), Y.split(16), strict=True))
    model = mlp()
    loss = mean_loss(batches, digit_loss)
    assert loss(model) == pytest.approx(small_loss(model).item(), rel=1e-6)
    named = [{"x": x, "y": y} for x, y in batches]
    by_name = mean_loss(named, lambda model, batch: cross_entropy(model(batch["x"]), batch["y"]))
    assert by_name(model) == loss(model)


def test_kl_and_cosine_against_torch():
    model = mlp().train()
    batches = [X[:25], X[25:]]
    divergence, turned = kl_to_untouched(model, batches), cosine_to_untouched(model, [(x, 0) for x in batches])
    assert model.training
    assert divergence(model) == 0
    assert abs(turned(model)) < 1e-12
    with torch.no_grad():
        before = model(X)
        with merge(model, "0", [(0, 1)]):
            now = model(X)
            kl = nn.functional.kl_div(now.log_softmax(1), before.log_softmax(1), log_target=True, reduction="batchmean")
            assert divergence(model) == pytest.approx(kl.item(), rel=1e-4)
            assert turned(model) == pytest.approx(
                (1 - nn.functional.cosine_similarity(before, now)).mean().item(), rel=1e-4
            )
    named = kl_to_untouched(model, [{"input": x} for x in batches])
    assert named(model) == 0
    forward = kl_to_untouched(model, batches, lambda model, batch: model(-batch))
    assert forward(model) == 0


# ---- controls --------------------------------------------------------------------------------------------------------


def test_untrained_networks_are_fresh_copies():
    model = cnn()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    fresh = untrained(model, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.manual_seed(5)
    torch.testing.assert_close(fresh[0].weight, nn.Conv2d(2, 6, 3).weight)
    assert fresh[1].running_var.eq(1).all()
    assert torch.equal(untrained(model, 5)[6].weight, fresh[6].weight)
    assert not torch.equal(untrained(model, 6)[6].weight, fresh[6].weight)
    model.token = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="'token' belong to modules without reset_parameters"):
        untrained(model)


@pytest.mark.parametrize("shape", [(20, 64), (20, 3, 4, 5), (20, 2, 3, 2, 2)])
def test_shuffled_pixels_keep_what_is_in_an_image(shape):
    images = torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(shape)
    shuffled = shuffled_pixels(images, seed=1)
    assert shuffled.shape == images.shape
    assert torch.equal(shuffled_pixels(images, seed=1), shuffled)
    flat, mixed = (t.reshape(20, 1 if len(shape) == 2 else shape[1], -1) for t in (images, shuffled))
    assert torch.equal(mixed.sort(2).values, flat)
    orders = (mixed - flat[:, :, :1]).long()
    assert (orders == orders[:, :1]).all()  # one order for all channels of an image
    assert len({tuple(order.tolist()) for order in orders[:, 0]}) == 20  # another for each image


def test_weight_cosine_against_numpy():
    for model, layer, dim in ((cnn(), "0", 0), (nn.Sequential(nn.ConvTranspose1d(2, 5, 3)), "0", 1)):
        rows = model[0].weight.detach().movedim(dim, 0).flatten(1).numpy().astype(np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        assert np.allclose(weight_cosine(model, layer).numpy(), rows @ rows.T, atol=1e-6)


def test_the_control_network_learns_nothing_of_shuffled_images():
    pytest.importorskip("sklearn")
    control = Digits(0, shuffled=True)
    assert control.accuracy(control.network) < 0.4
    assert control.accuracy(trained(control.network, sgd_training(control.loader, digit_loss), 0)) == control.accuracy(
        control.network
    )


def test_trained_does_not_touch_what_it_copies():
    model = mlp().train()
    before = copy.deepcopy(model.state_dict())
    data, state = [(X, Y)], torch.get_rng_state()
    once, twice = (trained(model, sgd_training(data, digit_loss), 2, seed=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(once[0].weight, twice[0].weight)
    assert not torch.equal(once[0].weight, model[0].weight)
    assert small_loss(once) < small_loss(model)


# ---- bad input -------------------------------------------------------------------------------------------------------


CASES = [
    ({"layer": "hidden"}, ValueError, "no layer 'hidden'. Did you mean"),
    ({"how": "median"}, ValueError, "how: expected one of"),
    ({"how": "act", "layer": "4", "activations": torch.rand(9, 3)}, ValueError, "the model's output"),
    ({"pairs": 0}, ValueError, "pairs: expected a whole number"),
    ({"pairs": 1.5}, ValueError, "pairs: expected a whole number"),
    ({"seed": -1}, ValueError, "seed: expected a whole number"),
    ({"confidence": 95}, ValueError, "confidence: expected a number between 0 and 1"),
    ({"activations": None}, ValueError, "expected one of them, got neither"),
    ({"cosine": torch.eye(6)}, ValueError, "expected one of them, got both"),
    ({"activations": None, "cosine": torch.eye(5)}, ValueError, r"expected \(6, 6\).*got \(5, 5\)"),
    ({"activations": None, "cosine": torch.eye(6), "how": "absorb"}, ValueError, "needs activations= or gram="),
    ({"activations": None, "cosine": torch.eye(6), "alive": torch.ones(6)}, ValueError, "6 booleans"),
    ({"activations": torch.rand(9, 7)}, ValueError, "samples of 6 neurons, got 7"),
    ({"activations": torch.rand(0, 6)}, ValueError, "0 samples"),
    ({"activations": torch.zeros(9, 6)}, ValueError, "0 of the 6 neurons of '0' are alive"),
    ({"activations": torch.eye(6)[:1].expand(9, 6)}, ValueError, "1 of the 6 neurons of '0' are alive"),
    ({"loss": 3.0}, TypeError, "expected a function of the model"),
    ({"loss": ([], digit_loss)}, ValueError, "loader: expected at least one batch"),
    ({"loss": (iter([(X, Y)]), digit_loss)}, ValueError, "A generator is empty after its first reading"),
    ({"loss": lambda model: model(X)}, TypeError, r"expected one number.*shape \(40, 3\)"),
    ({"loss": lambda model: None}, TypeError, "expected one number.*NoneType"),
    ({"loss": lambda model: torch.tensor(torch.nan)}, ValueError, "got nan of the untouched network"),
    ({"progress": "bar"}, TypeError, "progress: expected"),
]


@pytest.mark.parametrize("measure", [biopsy, mass_consolidation])
@pytest.mark.parametrize(("changed", "error", "says"), CASES, ids=[case[2] for case in CASES])
def test_bad_input(changed, error, says, measure):
    model = mlp().train()
    before = copy.deepcopy(model.state_dict())
    options = {"layer": "0", "loss": small_loss, "pairs": 2, "activations": torch.rand(9, 6), **changed}
    with pytest.raises(error, match=says):
        measure(model, **options)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_loss_that_is_nan_after_a_merge_names_it():
    model = mlp()
    weight = model[0].weight.clone()

    def loss(network):
        return torch.tensor(torch.nan) if not torch.equal(network[0].weight, weight) else network(X).mean()

    with pytest.raises(ValueError, match=r"got nan with pair \(\d, \d\) merged"):
        biopsy(model, "0", loss, 2, activations=torch.rand(9, 6))
    with pytest.raises(ValueError, match="got nan with 2 pairs merged"):
        mass_consolidation(model, "0", loss, 2, activations=torch.rand(9, 6))
    assert torch.equal(model[0].weight, weight)


def test_bad_input_elsewhere():
    model = mlp()
    activations = torch.rand(9, 6)
    with pytest.raises(ValueError, match="random_pairings"):
        mass_consolidation(model, "0", small_loss, activations=activations, random_pairings=1)
    train = sgd_training([(X, Y)], digit_loss)
    with pytest.raises(ValueError, match="epochs"):
        plasticity(model, "0", train, small_loss, activations=activations, epochs=0)
    with pytest.raises(ValueError, match="yields after each of 5 epochs, got 0"):
        plasticity(model, "0", lambda model: iter(()), small_loss, activations=activations)
    with pytest.raises(ValueError, match="loader: expected at least one batch"):
        plasticity(model, "0", sgd_training([], digit_loss), small_loss, activations=activations)
    with pytest.raises(TypeError, match="accuracy: expected one number"):
        plasticity(model, "0", train, lambda model: model(X), activations=activations)
    for make in (kl_to_untouched, cosine_to_untouched):
        with pytest.raises(ValueError, match="loader: expected at least one batch"):
            make(model, [])
        with pytest.raises(ValueError, match="the same 1 batches each time, got 0"):
            make(model, iter([X]))(model)
    for shape in ((3,), (3, 8, 8)):
        with pytest.raises(ValueError, match=r"unsqueeze\(1\)"):
            shuffled_pixels(torch.rand(shape))
    with pytest.raises(TypeError, match="which is ReLU"):
        weight_cosine(model, "1")


@pytest.mark.parametrize("module", ["biopsy", "plasticity", "sensitivity"])
def test_examples_in_the_docstrings(module):
    assert doctest.testmod(importlib.import_module(f"sdsd.geometry.merging.{module}")).failed == 0
