"""Places of whole heads and shifts of keys: found where the function allows them, and nowhere else."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sdsd.theory import canonicalize, match_neurons, random_representative, symmetries, vertical_fraction
from sdsd.theory.quotient import attention

from .users_models import rotated

HEADS, SIZE, PLACES = 3, 4, 5


class Attention(nn.Module):
    """By hand, with something between scores and values that forbids one move or the other."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        width = HEADS * SIZE
        self.kind = kind
        self.q, self.k, self.v = (nn.Linear(6, width) for _ in range(3))
        self.o, self.head = nn.Linear(width, 6, bias=False), nn.Linear(6, 3, bias=False)
        self.near = nn.Embedding(2 * PLACES, HEADS)
        self.sink = nn.Parameter(torch.zeros(HEADS))
        self.norm = nn.LayerNorm(SIZE)
        self.one = nn.Parameter(torch.randn(1, 1, SIZE))

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (layer(x).view(n, t, HEADS, SIZE).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.kind == "rotary":
            q, k = rotated(q), rotated(k)
        if self.kind == "normed keys":
            k = self.norm(k)
        if self.kind == "padded keys":
            k, v = (nn.functional.pad(each, (0, 0, 0, 1)) for each in (k, v))
        scores = q @ k.mT / math.sqrt(SIZE)
        if self.kind == "masked":
            scores = scores.masked_fill(torch.ones(t, t).triu(1).bool(), -math.inf)
        if self.kind == "slopes":  # ALiBi
            scores = scores - torch.arange(1.0, HEADS + 1).view(-1, 1, 1) * torch.arange(t)
        if self.kind == "relative":  # T5
            place = torch.arange(t)[:, None] - torch.arange(t) + PLACES
            scores = scores + self.near(place).permute(2, 0, 1)
        if self.kind == "capped":
            scores = scores.tanh()
        if self.kind == "sink":
            scores = torch.cat([scores, self.sink.view(1, -1, 1, 1).expand(n, -1, t, 1)], -1)
        weights = scores.softmax(-1)[..., : k.shape[2]]
        if self.kind == "sigmoid":
            weights = scores.sigmoid()
        if self.kind == "one head is louder":
            weights = weights * torch.tensor([1.0, 1.0, 2.0]).view(-1, 1, 1)
        return self.head(self.o((weights @ v).transpose(1, 2).reshape(n, t, -1)).relu())


KINDS = {
    # heads can change places, entries of the bias of keys that can be shifted
    "plain": (True, HEADS * SIZE),
    "masked": (True, HEADS * SIZE),
    "rotary": (True, 0),
    "normed keys": (True, SIZE),
    "padded keys": (False, 0),  # positions without channels: left alone
    "slopes": (False, HEADS * SIZE),
    "relative": (False, HEADS * SIZE),
    "capped": (True, 0),
    "sink": (False, 0),
    "sigmoid": (True, 0),
    "one head is louder": (False, HEADS * SIZE),
}


def made(kind: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(11)
    return Attention(kind).double().eval(), torch.randn(7, PLACES, 6).double()


def used(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of what every kind has."""
    return [each for name, each in model.named_parameters() if name.split(".")[0] in ("q", "k", "v", "o", "head")]


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_between_decides(kind):
    model, x = made(kind)
    found = symmetries(model, x)
    heads, shifted = KINDS[kind]
    assert [(each.width, each.layers, each.readers) for each in found.permutations if each.what == "heads"] == (
        [(HEADS, ("q", "k", "v"), ("o",))] if heads else []
    )
    assert [each.width for each in found.translations if each.kind == "shift of keys"] == [shifted] * (shifted > 0)
    with torch.no_grad():
        before = model(x)
        for other in (random_representative(model, example_input=x, seed=2), canonicalize(model, example_input=x)):
            assert (other(x) - before).abs().max() < 1e-11 * before.abs().max()


def test_it_is_decided_for_any_values_and_not_for_those_that_the_model_has():
    """Tables that are zero, and alike for all heads, as models begin with them."""
    for kind in ("relative", "sink"):
        model, x = made(kind)
        with torch.no_grad():
            model.near.weight.zero_()
            model.sink.zero_()
        assert not [each for each in symmetries(model, x).permutations if each.what == "heads"]


def test_the_canonical_point_has_keys_without_a_bias_and_loud_heads_first():
    model, x = made("plain")
    point = canonicalize(model, example_input=x)
    assert point.k.bias.abs().max() < 1e-12 < model.k.bias.abs().max()
    sizes = sum(
        each.weight.view(HEADS, SIZE, -1).square().sum((1, 2)) + each.bias.view(HEADS, -1).square().sum(1)
        for each in (point.q, point.k, point.v)
    ) + point.o.weight.view(6, HEADS, SIZE).square().sum((0, 2))
    assert sizes.tolist() == sorted(sizes.tolist(), reverse=True)


def test_all_tangents_but_those_that_are_not_looked_for():
    """The null space of the Jacobian; without a bias of the values, of which only what o makes of it counts."""
    model, _ = made("plain")
    model.v = nn.Linear(6, HEADS * SIZE, bias=False).double()
    parameters, rows = used(model), []
    for x in torch.randn(sum(each.numel() for each in parameters), 1, PLACES, 6).double() * 2:
        for each in model(x)[0, -1]:
            gradients = torch.autograd.grad(each, parameters, retain_graph=True)
            rows.append(torch.cat([part.flatten() for part in gradients]))
    values = torch.linalg.svdvals(torch.stack(rows))
    found = symmetries(model, torch.randn(2, PLACES, 6).double())
    assert int((values < 1e-9 * values[0]).sum()) == found.tangents == 2 * HEADS * SIZE**2 + 6 + HEADS * SIZE


def test_one_position_decides_nothing():
    """Softmax over one key is 1 whatever the scores are."""
    model, x = made("slopes")
    found = symmetries(model, x[:, :1])
    assert not [each for each in found.translations if each.kind == "shift of keys"]


def test_a_gradient_has_no_part_along_a_shift_of_keys():
    model, x = made("plain")
    found = dict(zip(map(id, used(model)), torch.autograd.grad(model(x).square().sum(), used(model)), strict=True))
    listed = [found.get(id(each), torch.zeros_like(each)) for each in model.parameters()]
    assert vertical_fraction(symmetries(model, x), listed) < 1e-20


def test_a_model_that_runs_in_no_other_precision_is_said_so():
    class Single(Attention):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.zeros(6))

    torch.manual_seed(0)
    model, x = Single("plain"), torch.randn(2, PLACES, 6)
    model.float()
    model.v.register_forward_pre_hook(lambda _module, given: (given[0].float(),))
    assert "permutations of heads and shifts of keys: a copy with random parameters does not run" in str(
        symmetries(model, x)
    )


def test_the_report_says_what_is_not_looked_for():
    model, x = made("plain")
    said = str(symmetries(model, x))
    assert "permutation: 3 heads, q, k, v" in said
    assert "shift of keys: k" in said
    assert "not looked for\n  signs of neurons" in said


def test_heads_that_share_their_keys_go_together():
    from .users_models import Llama, ids

    torch.manual_seed(0)
    model = Llama().double()
    [heads] = [each for each in symmetries(model, ids()).permutations if each.what == "heads"]
    assert (heads.width, heads.layers, heads.readers) == (2, ("q", "k", "v"), ("o",))
    assert {part.name: part.neurons for part in heads.parts}["q.weight"] == 16


def test_matched_heads_in_any_order_of_the_stream():
    model, x = made("rotary")
    other = random_representative(model, spread=0.0, seed=5, example_input=x)
    assert match_neurons(model, other, example_input=x).distances[1] < 1e-12


def test_thresholds_lie_between_rounding_and_what_would_be_seen():
    assert 1e-7 < attention.SAME < 1e-3 < attention.NUDGE
