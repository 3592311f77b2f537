"""The quotient against oracles that know no tangents: the function itself, and the null space of its Jacobian."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import sdsd
from sdsd.theory.quotient import balance as balancing
from sdsd.theory.quotient import (
    canonicalize,
    horizontal,
    quotient_gamma,
    random_representative,
    rescale,
    symmetries,
    vertical,
    vertical_fraction,
)

from .models import MODELS, BatchNormResidual, Residual, inputs, make

GENERIC = ["mlp", "convolutional", "layer_norm", "group_norm", "residual", "batch_norm_residual", "pre_activation"]
"""Models without symmetries beyond those looked for, on data that switches every neuron on and off."""


def tiny_eps(model, eps=1e-30):
    """Make scale before a norm an exact symmetry."""
    for module in model.modules():
        if hasattr(module, "eps"):
            module.eps = eps
    return model


def squared_norm(tensors):
    return sum(tensor.double().square().sum().item() for tensor in tensors)


def gradient(model, x, y):
    loss = functional.cross_entropy(model(x).flatten(0, -2), y)
    return dict(zip(dict(model.named_parameters()), torch.autograd.grad(loss, list(model.parameters())), strict=True))


def labels(model, x):
    return torch.randint(0, 3, model(x).shape[:-1]).flatten()


def flat(vectors):
    return torch.cat([vectors[name].flatten() for name in vectors])


def random_vectors(model):
    return {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}


# ---- the tangents ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GENERIC)
def test_vertical_is_the_projection_onto_the_null_space_of_the_jacobian(name):
    torch.manual_seed(
        15 if name in ("group_norm", "batch_norm_residual") else 12
    )  # no neuron is on, or off, on all samples
    model = tiny_eps(make(name))
    parameters = list(model.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    rows = []
    for batch in (inputs(name, count // 3 + 8) * 3).chunk(8):
        for output in model(batch).flatten():
            found = torch.autograd.grad(output, parameters, retain_graph=True)
            rows.append(torch.cat([part.flatten() for part in found]))
    _, values, vectors = torch.linalg.svd(torch.stack(rows), full_matrices=False)
    null = vectors[values < 1e-10 * values[0]].T
    found = symmetries(model)
    assert found.tangents == null.shape[1] > 10
    update = random_vectors(model)
    wanted = null @ (null.T @ flat(update))
    got = flat(vertical(found, update))
    assert (got - wanted).norm() <= 1e-6 * wanted.norm()
    assert (got + flat(horizontal(found, update)) - flat(update)).abs().max() < 1e-14


@pytest.mark.parametrize("name", sorted(MODELS))
def test_gradients_of_an_invariant_loss_are_horizontal(name):
    model = tiny_eps(make(name))
    x = inputs(name, 40)
    head = {"softmax_head": name != "odd_convolutions"}
    outputs = model(x).flatten(0, -2)
    y = torch.randint(0, outputs.shape[-1], (len(outputs),))
    grads = torch.autograd.grad(functional.cross_entropy(outputs, y), list(model.parameters()))
    assert vertical_fraction(model, grads, **head) <= 1e-20
    assert vertical_fraction(model, list(model.parameters()), **head) > 1e-3


def test_projections_are_orthogonal_and_idempotent():
    model = make("layer_norm")
    update = random_vectors(model)
    along, across = vertical(model, update), horizontal(model, update)
    assert abs(flat(along) @ flat(across)) < 1e-11 * flat(along).norm() * flat(across).norm()
    assert (flat(vertical(model, along)) - flat(along)).norm() < 1e-11 * flat(along).norm()
    assert flat(vertical(model, across)).norm() < 1e-11 * flat(across).norm()
    listed = vertical(model, [value.float() for value in update.values()])
    assert isinstance(listed, list)
    assert all(part.dtype == torch.float64 for part in listed)
    assert (torch.cat([part.flatten() for part in listed]) - flat(along)).norm() < 1e-6 * flat(along).norm()


def test_the_overlap_of_neighbouring_layers_counts():
    """Projecting tangent by tangent, as if they were orthogonal, would be wrong."""
    model = make("mlp")
    found, update = symmetries(model), random_vectors(model)
    span = found._span()
    coefficients = span.solve({name: value.double() for name, value in update.items()})
    naive = span.project(update) / span._diagonal()
    assert (naive - coefficients).norm() > 1e-2 * coefficients.norm()


def test_adam_and_weight_decay_have_vertical_parts():
    torch.manual_seed(1)
    model = make("mlp")
    x = inputs("mlp", 64)
    y = labels(model, x)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(5):
        before = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    step = [now.detach() - then for now, then in zip(model.parameters(), before, strict=True)]
    assert 1e-3 < vertical_fraction(model, step) < 0.5
    assert vertical_fraction(model, list(model.parameters())) > 1e-2
    canonical = canonicalize(model)
    assert vertical_fraction(canonical, list(canonical.parameters())) <= 1e-20


# ---- the function stays ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-12)], ids=["f32", "f64"])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_moving_along_the_orbit_leaves_the_function_alone(name, dtype, tolerance):
    model = make(name, dtype).eval()
    x = inputs(name, 16, dtype)
    before, state = model(x), copy.deepcopy(model.state_dict())
    moved = random_representative(model, seed=1)
    canonical, from_moved = canonicalize(model), canonicalize(moved)
    for other in (moved, canonical, from_moved):
        assert (other(x) - before).abs().max() <= tolerance
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert squared_norm(moved.parameters()) > 1.5 * squared_norm(model.parameters())
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), canonical.parameters(), strict=True))


@pytest.mark.parametrize("name", sorted(set(MODELS) - {"group_norm"}))
def test_all_points_of_an_orbit_have_one_canonical_representative(name):
    model = make(name)
    wanted = canonicalize(model, softmax_head=True)
    for seed in range(3):
        got = canonicalize(random_representative(model, seed=seed, softmax_head=True), softmax_head=True)
        for (path, p), q in zip(wanted.state_dict().items(), got.state_dict().values(), strict=True):
            assert (p - q).abs().max() < 1e-9, path


def test_the_scale_before_norms_whose_eps_stays_is_fixed_on_request():
    model = make("group_norm").eval()
    x = inputs("group_norm", 16)
    canonical = canonicalize(model, approximate=True, order=False)
    assert squared_norm([canonical[0].weight[:3], canonical[0].bias[:3]]) == pytest.approx(1)
    assert squared_norm([canonical[3].weight[0], canonical[3].bias[0]]) == pytest.approx(1)
    assert 1e-12 < (canonical(x) - model(x)).abs().max() < 1e-3
    other = random_representative(tiny_eps(copy.deepcopy(model)), approximate=True)
    both = [canonicalize(each, approximate=True) for each in (model, other)]
    for p, q in zip(both[0].parameters(), both[1].parameters(), strict=True):
        assert (p - q).abs().max() < 1e-9


def test_before_batch_norm_each_neuron_has_norm_one_and_no_bias():
    canonical = canonicalize(make("batch_norm_residual"))
    for layer in (canonical.stem, canonical.first, canonical.second):
        assert torch.allclose(layer.weight.flatten(1).norm(dim=1), torch.ones(layer.out_channels).double())
        assert layer.bias is None or layer.bias.abs().max() < 1e-12
    assert canonical.stem.weight.dtype == torch.float64


def test_statistics_of_a_norm_between_curved_functions_change_places_with_its_neurons():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    model(torch.randn(64, 6, dtype=torch.float64) * 3 + 1)
    model.eval()
    x = torch.randn(4, 6, dtype=torch.float64)
    first, second = canonicalize(model), canonicalize(random_representative(model))
    torch.testing.assert_close(first(x), model(x))
    torch.testing.assert_close(first.state_dict(), second.state_dict())


def test_in_train_mode_batch_norm_moves_by_its_eps_only():
    model = make("convolutional")
    x = inputs("convolutional", 32)
    change = (canonicalize(model)(x) - model(x)).abs().max()
    exact = (canonicalize(tiny_eps(model))(x) - model(x)).abs().max()
    assert exact < 1e-12 < change < 1e-3


def test_the_canonical_point_has_the_least_norm_of_the_orbit():
    for name in ("mlp", "residual"):
        model = make(name)
        canonical = canonicalize(model)
        least = squared_norm(canonical.parameters())
        assert least < 0.99 * squared_norm(model.parameters())
        for seed in range(5):
            near = random_representative(canonical, spread=0.01, seed=seed)
            assert squared_norm(near.parameters()) > least


@pytest.mark.parametrize("name", ["mlp", "residual", "odd_convolutions"])
def test_without_norms_the_norm_never_rises(name):
    for seed in range(3):
        torch.manual_seed(seed)
        model = make(name)
        for start in (model, random_representative(model, seed=seed), canonicalize(model)):
            assert squared_norm(canonicalize(start).parameters()) <= squared_norm(start.parameters()) * (1 + 1e-12)


def test_before_norms_what_is_least_is_the_norm_less_the_logs_of_the_factors():
    """Weights before BatchNorm that are shorter than 1 are stretched to 1, so that ‖θ‖² itself can rise."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, eps=1e-30), nn.ReLU(), nn.Linear(6, 3)).double().eval()

    def least(network):
        lengths = network[0].weight.square().sum(1) + network[0].bias.square()
        return squared_norm(network.parameters()) - lengths.log().sum()

    canonical = canonicalize(model, order=False)
    for seed in range(5):
        near = random_representative(canonical, spread=0.01, seed=seed, permute=False)
        with torch.no_grad():  # the bias before a norm is not a factor: put it back
            shift = near[0].bias.clone()
            near[0].bias.sub_(shift)
            near[1].running_mean.sub_(shift)
        assert least(near) > least(canonical)
    short = copy.deepcopy(canonical)
    with torch.no_grad():
        short[0].weight.mul_(0.1)
        short[0].bias.mul_(0.1)
        short[1].running_mean.mul_(0.1)
        short[1].running_var.mul_(0.01)
    x = torch.randn(9, 5).double()
    assert torch.allclose(short(x), model(x))
    assert squared_norm(canonicalize(short).parameters()) > squared_norm(short.parameters())


def test_far_points_and_wide_layers_take_few_steps(monkeypatch):
    """A layer's sums of squares are one matrix: counted are products with it, not sweeps over its entries."""
    count = 0
    original = balancing._Bent.sums

    def counted(self, *weights):
        nonlocal count
        count += 1
        return original(self, *weights)

    monkeypatch.setattr(balancing._Bent, "sums", counted)
    layers = [nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(100, 10)).double()
    wanted = canonicalize(model)
    count = 0
    got = canonicalize(random_representative(model, spread=3.0))
    assert count < 3000
    for one, other in zip(wanted.parameters(), got.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-7, atol=1e-9)


def test_balance_of_one_hidden_layer_is_the_closed_form():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    incoming = torch.cat([model[0].weight, model[0].bias[:, None]], 1).norm(dim=1)
    outgoing = model[2].weight.norm(dim=0)
    canonical = canonicalize(model, order=False)
    factors = (outgoing / incoming).sqrt()
    assert torch.allclose(canonical[0].weight, factors[:, None] * model[0].weight)
    assert torch.allclose(canonical[0].bias, factors * model[0].bias)
    assert torch.allclose(canonical[2].weight, model[2].weight / factors)
    assert torch.equal(canonical[2].bias, model[2].bias)


class Loop(nn.Module):
    """Two neurons that read and write each other, and next to nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.loop, self.head = nn.Linear(2, 2), nn.Linear(2, 2, bias=False), nn.Linear(2, 2)
        with torch.no_grad():
            self.loop.weight.copy_(torch.tensor([[0.0, 50.0], [2.0, 0.0]]))
            self.stem.weight.mul_(1e-3)
            self.stem.bias.zero_()
            self.head.weight.mul_(1e-3)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head(x + self.loop(x).relu())


def test_a_loop_is_balanced_without_overshooting():
    model = Loop().double()
    canonical = canonicalize(model, order=False)
    assert canonical.loop.weight.abs()[[0, 1], [1, 0]].tolist() == pytest.approx([10, 10], rel=1e-3)
    x = torch.randn(9, 2).double()
    assert (canonical(x) - model(x)).abs().max() < 1e-12


def test_neurons_without_a_side_become_zero():
    model = make("mlp")
    with torch.no_grad():
        model[0].weight[2], model[0].bias[2] = 0, 0
        model[4].weight[:, 3] = 0
        model[2].weight[3] += 1
        model[2].weight[:, 5] = 0
        model[2].weight[3, 5] = 2.0  # neuron 5 feeds only neuron 3, which nothing reads
    x = inputs("mlp", 16)
    canonical = canonicalize(model, order=False)
    assert (canonical(x) - model(x)).abs().max() < 1e-12
    assert canonical[2].weight[:, 2].abs().max() == 0
    assert canonical[2].weight[3].abs().max() == canonical[2].bias[3].abs() == 0
    assert canonical[0].weight[5].abs().max() == canonical[0].bias[5].abs() == 0
    assert all(parameter.isfinite().all() for parameter in canonical.parameters())


def test_order_is_by_weight_and_can_be_left_alone():
    model = make("mlp")
    canonical = canonicalize(model)
    keys = torch.cat([canonical[0].weight, canonical[0].bias[:, None], canonical[2].weight.T], 1).norm(dim=1)
    assert (keys.diff() <= 0).all()
    kept = canonicalize(model, order=False)
    assert torch.allclose(torch.cosine_similarity(kept[0].weight, model[0].weight), torch.ones(8).double())


def test_group_norm_keeps_neurons_within_their_group():
    model = make("group_norm").eval()
    x = inputs("group_norm", 16)
    assert (random_representative(model, spread=0, seed=2)(x) - model(x)).abs().max() < 1e-12
    runs = {permutation.layers[0]: permutation.run for permutation in symmetries(model).permutations}
    assert runs == {"0": 3, "3": 4, "7": 4}


def test_rescale_moves_one_layer():
    model = make("mlp")
    factors = torch.rand(8) + 0.5
    moved = rescale(model, "0", factors)
    x = inputs("mlp", 16)
    assert (moved(x) - model(x)).abs().max() < 1e-12
    assert torch.allclose(moved[0].weight, factors[:, None] * model[0].weight)
    assert rescale(model, "0", factors, in_place=True) is model
    assert torch.equal(model[2].weight, moved[2].weight)


# ---- gamma of the quotient -------------------------------------------------------------------------------------------


def mean_loss(model, batch):
    x, y = batch
    return functional.cross_entropy(model(x), y)


@pytest.mark.parametrize(
    ("name", "dtype"), [("mlp", torch.float32), ("layer_norm", torch.float32), ("residual", torch.float64)]
)
def test_gamma_of_the_quotient_is_one_number_for_an_orbit(name, dtype):
    model = make(name, dtype)
    x = inputs(name, 24, dtype)
    y = labels(model, x)
    samples = [(x[i : i + 1], y[i : i + 1]) for i in range(len(x))]

    def measured(point):
        return quotient_gamma(point, samples, mean_loss, n_samples=24), squared_norm(gradient(point, x, y).values())

    stats, raw = measured(model)
    gammas, squares, plain = [stats.gamma], [raw], [sdsd.compute_gamma(model, samples, mean_loss, 24).gamma]
    for seed in range(3):
        point = random_representative(model, seed=seed)
        stats, raw = measured(point)
        gammas.append(stats.gamma)
        squares.append(raw)
        plain.append(sdsd.compute_gamma(point, samples, mean_loss, 24).gamma)
    assert max(gammas) / min(gammas) - 1 <= 1e-5
    assert max(squares) > 2 * min(squares)
    assert max(plain) / min(plain) - 1 > 1e-2


def test_gamma_of_the_quotient_is_gamma_at_the_canonical_point():
    model = make("mlp")
    x, y = inputs("mlp", 32), torch.randint(0, 3, (32,))
    samples = [(x[i : i + 1], y[i : i + 1]) for i in range(32)]
    canonical = canonicalize(model)
    rows = torch.stack([flat(gradient(canonical, *sample)) for sample in samples])
    stats = quotient_gamma(model, samples, mean_loss, 32, confidence=0.95)
    assert stats.gamma == pytest.approx((rows.mean(0).square().sum() / rows.var(0).sum()).item(), rel=1e-9)
    assert stats.interval is not None


# ---- what it finds, and what it says ---------------------------------------------------------------------------------


def test_the_report_names_what_is_found():
    report = str(symmetries(make("batch_norm_residual")))
    for line in (
        "scale before BatchNorm2d: 4 of 4 neurons, stem",
        "rescaling: 4 of 4 neurons, norm, norm2 → first, head",
        "translation before BatchNorm2d: second.bias",
        "permutation: 5 neurons, first, norm1",
    ):
        assert line in report
    assert "norm in eval mode" not in report
    assert "norm in eval mode" in str(symmetries(make("batch_norm_residual").eval()))
    assert "softmax-head translation: 4.weight" in str(symmetries(make("mlp"), softmax_head=True))


def test_in_eval_mode_parameters_alone_do_not_move_before_batch_norm():
    model = tiny_eps(make("convolutional")).eval()
    x = inputs("convolutional", 20)
    y = labels(model, x)
    grads = torch.autograd.grad(functional.cross_entropy(model(x), y), list(model.parameters()))
    assert vertical_fraction(model, grads) <= 1e-20
    assert symmetries(model).tangents == 4 + 5 + 6
    assert symmetries(model.train()).tangents == 4 + 4 + 4 + 5 + 5 + 6


class Between(nn.Module):
    def __init__(self, mix) -> None:
        super().__init__()
        self.inside, self.outside, self.mix = nn.Linear(4, 6), nn.Linear(6, 4), mix

    def forward(self, x):
        return self.mix(self.outside(self.inside(x).relu()))


class Spectrum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3))

    def forward(self, x):
        return torch.fft.rfft(x).abs() * self.weight.cumsum(0)


class Recurrent(nn.GRU):
    def forward(self, x):
        return super().forward(x)[0]


def test_what_has_no_rule_is_listed_and_left_alone():
    model = Between(Spectrum()).double()
    x = torch.randn(2, 3, 4).double()
    found = symmetries(model, x)
    assert [scaling.layers for scaling in found.scalings] == [("inside",)]
    assert [permutation.layers for permutation in found.permutations] == [("inside",)]
    assert not found.mixings
    report = str(found)
    assert "no rule for 'fft_r2c' in 'mix'" in report
    assert "neurons of outside: neither rescaled nor permuted" in report
    assert "no rule reaches these parameters: mix.weight" in report
    assert (random_representative(model, example_input=x)(x) - model(x)).abs().max() < 1e-12


def test_what_a_recurrent_layer_reads_moves_and_what_it_keeps_does_not():
    model = Between(Recurrent(4, 4, batch_first=True)).double()
    x = torch.randn(2, 3, 4).double()
    found = symmetries(model, x)
    assert [mixing.layers for mixing in found.mixings] == [("outside",)]
    assert not any("mix" in move.layers for move in (*found.scalings, *found.permutations))
    assert (random_representative(model, example_input=x)(x) - model(x)).abs().max() < 1e-12


class Wired(nn.Module):
    """Two layers and something between them that the test chooses."""

    def __init__(self, between, width=6):
        super().__init__()
        self.first, self.second, self.between = nn.Linear(5, 6), nn.Linear(width, 3), between

    def forward(self, x):
        return self.second(self.between(self.first(x)))


HELD = {
    "sorted": lambda h: h.relu().sort(dim=1)[0],
    "position": lambda h: h.relu() + torch.arange(6).double(),
    "maximum": lambda h: torch.maximum(h, h.flip(1)),
    "transposed": lambda h: (h.relu().T @ h.relu()).sum(0, keepdim=True) + h.relu(),
    "cumulative": lambda h: h.relu().cumsum(1),
    "written": lambda h: torch.zeros_like(h).index_copy(1, torch.arange(6), h.relu()),
}


@pytest.mark.parametrize("name", sorted(HELD))
def test_operations_without_a_rule_hold_neurons_in_place(name):
    model = Wired(HELD[name]).double()
    assert symmetries(model).not_analysed
    for call in (random_representative, canonicalize):
        with pytest.raises(ValueError, match="no symmetry is known"):
            call(model)


PLACED = {
    "sliced": (lambda h: h.relu() + h.relu()[:, [1, 0, 2, 3, 4, 5]], 5),
    "rolled": (lambda h: torch.roll(h.relu(), 1, 1), 6),
    "flipped": (lambda h: h.relu() + h.relu().flip(1), 3),
    "halves": (lambda h: h.relu()[:, :3] + h.relu()[:, 3:], 3),
    "scaled by place": (lambda h: h.relu() * torch.arange(1, 7).double(), 6),
    "all alike": (lambda h: h.relu() - h.relu().mean(1, keepdim=True), 1),
}


@pytest.mark.parametrize("name", sorted(PLACED))
def test_neurons_that_meet_scale_as_one_and_keep_their_places(name):
    between, groups = PLACED[name]
    model = Wired(between, width=3 if name == "halves" else 6).double()
    found = symmetries(model)
    assert sum(scaling.groups for scaling in found.scalings) == groups
    assert not found.mixings
    assert len(found.permutations) == (name == "all alike")
    x = torch.randn(9, 5).double()
    for moved in (random_representative(model), canonicalize(model)):
        assert (moved(x) - model(x)).abs().max() < 1e-12
        assert not torch.equal(moved.first.weight, model.first.weight)


def test_a_constant_between_layers_stops_scale_but_not_order():
    model = Wired(lambda h: (h + 1.0).relu()).double()
    x = torch.randn(9, 5).double()
    assert not symmetries(model).scalings
    for moved in (random_representative(model), canonicalize(model)):
        assert (moved(x) - model(x)).abs().max() < 1e-12
        assert not torch.equal(moved.first.weight, model.first.weight)


HARMLESS = {
    "scaled": lambda h: 0.5 * (h / 3).relu(),
    "viewed": lambda h: functional.dropout(h, 0.0).relu().view(h.size(0), -1),
    "twice": lambda h: h.relu() + h,
    "difference": lambda h: functional.leaky_relu(h) - h,
    "curved": lambda h: functional.gelu(h),
    "gate": lambda h: h.relu() * torch.sigmoid(h),
}


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_functions_are_followed(name):
    model = Wired(HARMLESS[name]).double()
    x = torch.randn(9, 5).double()
    found = symmetries(model)
    assert len(found.scalings) == (name not in ("curved", "gate"))
    assert len(found.permutations) == 1
    assert (random_representative(model)(x) - model(x)).abs().max() < 1e-12


class Sequence(nn.Module):
    """Neurons of a Linear layer on (N, T, C), flattened token by token."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(5, 4), nn.Linear(12, 3), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.second(self.norm(self.first(x).relu()).flatten(1))


def test_shapes_come_from_an_example():
    """Here BatchNorm counts tokens, not neurons, and only shapes can tell."""
    model = Sequence().double().eval()
    x = torch.randn(7, 3, 5).double()
    found = symmetries(model, x)
    assert not found.scalings
    assert "normalises another axis" in str(found)
    model.norm = nn.Identity()
    for example in (None, x):
        moved = random_representative(model, example_input=example)
        assert (moved(x) - model(x)).abs().max() < 1e-12
        assert symmetries(model, example).scalings[0].outgoing[0].units.tolist() == [0, 1, 2, 3] * 3


def test_frozen_and_shared_parameters_stay():
    model = make("mlp")
    model[2].weight.requires_grad_(False)
    found = symmetries(model)
    assert not found.scalings
    assert "2.weight does not train" in str(found)
    assert not found.permutations
    shared = nn.Linear(6, 6)
    tied = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    found = symmetries(tied)
    assert [scaling.layers for scaling in found.scalings] == [("4",)]
    assert "0.weight is used 2 times" in str(found)
    x = torch.randn(5, 6).double()
    assert (random_representative(tied)(x) - tied(x)).abs().max() < 1e-12


def test_a_frozen_parameter_may_be_missing_from_an_update():
    model = make("mlp")
    model[4].bias.requires_grad_(False)
    update = {name: value for name, value in random_vectors(model).items() if name != "4.bias"}
    assert list(vertical(model, update)) == list(update)


def test_a_monitored_model_is_left_as_it_is():
    model = make("mlp")
    wanted = str(symmetries(model))
    x, y = inputs("mlp", 8), torch.randint(0, 3, (8,))
    with sdsd.GammaMonitor(model) as monitor:
        assert str(symmetries(model)) == wanted
        assert type(canonicalize(model)[0]) is nn.Linear
        functional.cross_entropy(model(x), y).backward()
        stats = monitor.step()
    assert stats.n == 8


def test_the_model_is_not_run_and_its_state_stays():
    model = BatchNormResidual().double()
    x = inputs("batch_norm_residual", 2)
    state, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    symmetries(model, x)
    random_representative(model)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training


# ---- bad input -------------------------------------------------------------------------------------------------------


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_errors_say_what_is_wrong():
    model = make("mlp")
    linear = nn.Sequential(nn.Linear(3, 3))
    for call in (canonicalize, random_representative, lambda m: vertical(m, list(m.parameters()))):
        with pytest.raises(ValueError, match="no symmetry is known|no continuous symmetry is known"):
            call(linear)
    with pytest.raises(ValueError, match="no continuous symmetry"):
        horizontal(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1)), [torch.zeros(1)])
    with pytest.raises(ValueError, match="Branching runs on no input of a likely shape.*Pass example_input"):
        symmetries(Branching())
    with pytest.raises(TypeError, match="expected an nn.Module, got list"):
        symmetries([])
    with pytest.raises(ValueError, match="example_input: the model does not run on it"):
        symmetries(model, torch.zeros(2, 9).double())
    with pytest.raises(ValueError, match="spread: expected a finite number"):
        random_representative(model, spread=-1)
    with torch.no_grad():
        model[0].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"expected finite parameters, but 0\.weight"):
        canonicalize(model)


def test_layers_that_cannot_be_rescaled_say_why():
    tanh = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"'0'.*pass through '1' \(Tanh\), which is not positively homogeneous"):
        rescale(tanh, "0", torch.ones(4))
    with pytest.raises(ValueError, match="'4'.*they are the model's outputs"):
        rescale(tanh, "4", torch.ones(2))
    with pytest.raises(ValueError, match="'1'.*no layer that a rule knows"):
        rescale(tanh, "1", torch.ones(2))
    with pytest.raises(ValueError, match=r"expected 4, one a group of 1 neurons of '2', got shape \(3,\)"):
        rescale(tanh, "2", torch.ones(3))
    with pytest.raises(ValueError, match="positive and finite"):
        rescale(tanh, "2", torch.tensor([1.0, 2.0, -1.0, 1.0]))
    with pytest.raises(ValueError, match="expected 1, one a group of 8 neurons"):
        rescale(make("layer_norm"), "0", torch.ones(8))


def test_vectors_have_to_match_the_parameters():
    model = Residual()
    good = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    with pytest.raises(TypeError, match="got one tensor"):
        vertical(model, torch.zeros(3))
    with pytest.raises(ValueError, match="expected 10 tensors, one a parameter, got 1"):
        vertical(model, [torch.zeros(3)])
    with pytest.raises(ValueError, match=r"missing \['stem.weight'\], unknown \['stem.wait'\]"):
        vertical(model, {**{k: v for k, v in good.items() if k != "stem.weight"}, "stem.wait": good["stem.weight"]})
    with pytest.raises(ValueError, match=r"vectors\['stem.bias'\]: expected shape \(6,\).*got \(5,\)"):
        vertical(model, {**good, "stem.bias": torch.zeros(5)})
    with pytest.raises(TypeError, match=r"vectors\['stem.bias'\]: expected a tensor, got NoneType"):
        vertical(model, {**good, "stem.bias": None})
    assert vertical_fraction(model, good) != vertical_fraction(model, good)  # NaN: no share of nothing
