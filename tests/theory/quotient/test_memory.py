"""Tensors that share memory, places taken by values, and the model itself: what a run sees, and what it leaves."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sdsd.theory.quotient import match_neurons, random_representative, symmetries

from ...geometry.networks import Forward


def built(forward, reads: int = 8) -> nn.Module:
    torch.manual_seed(0)
    gain = nn.Linear(1, 4, bias=False)
    return Forward(forward, a=nn.Linear(5, 8), g=gain, b=nn.Linear(reads, 3)).double()


def rows(seed: int = 0) -> torch.Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scaled_through_a_view(m, x):
    h = m.a(x).clone()
    h[:, :4].mul_(m.g.weight[:, 0])
    return m.b(h.relu())


def squared_through_a_view(m, x):
    h = m.a(x).relu()
    h[:, :4].square_()
    return m.b(h)


def seen_through_an_older_view(m, x):
    h = m.a(x).clone()
    seen = h[:, :4]
    h.mul_(m.g.weight[:, 0].repeat(2))
    return m.b(seen.relu())


def shifted_through_a_view(m, x):
    h = m.a(x).clone()
    h[:, :4].add_(m.g.weight[:, 0])
    return m.b(h.relu())


def relu_through_a_view(m, x):
    h = m.a(x).clone()
    h[:, :4].relu_()
    return m.b(h)


def largest_change(model: nn.Module, example: torch.Tensor, *others: torch.Tensor) -> float:
    """Of outputs, over random points of the orbit of the moves found; 0 where there are none."""
    moves = symmetries(model, example)
    if not (moves.scalings or moves.translations or moves.permutations):
        return 0.0
    points = [random_representative(model, example_input=example, spread=0.5, seed=seed) for seed in range(4)]
    return max(float((point(x) - model(x)).abs().max()) for point in points for x in (example, *others))


@torch.no_grad()
@pytest.mark.parametrize(
    ("forward", "reads"),
    [
        (scaled_through_a_view, 8),
        (squared_through_a_view, 8),
        (seen_through_an_older_view, 4),
        (shifted_through_a_view, 8),
        (relu_through_a_view, 8),
    ],
)
def test_a_write_through_a_view_is_seen_by_all_that_share_its_memory(forward, reads):
    assert largest_change(built(forward, reads), rows(), rows(1)) <= 1e-12


def test_a_write_that_changes_no_scale_holds_nothing():
    assert symmetries(built(shifted_through_a_view), rows()).tangents == 8
    assert [(each.width, each.run) for each in symmetries(built(relu_through_a_view), rows()).permutations] == [(8, 4)]
    report = str(symmetries(built(scaled_through_a_view), rows()))
    assert "'mul' writes in place into what is seen elsewhere, too" in report


def positive(m, x):
    """The first two positive ones of one sample: others on another one."""
    h = m.a(x[:1])
    return m.b(torch.cat([h[h > 0], torch.zeros(2, dtype=h.dtype)])[None, :2])


@torch.no_grad()
def test_neurons_that_a_mask_takes_by_their_values_keep_their_places():
    model = built(positive, 2)
    assert largest_change(model, rows(), *map(rows, range(1, 20))) <= 1e-12
    assert symmetries(model, rows()).permutations == ()


def test_a_diagonal_of_other_axes_moves_no_neuron():
    def forward(m, x):
        h = m.a(x).relu()[:, :, None].expand(4, 8, 4)
        return m.b(torch.diagonal(h, dim1=0, dim2=2).t())

    model = built(forward)
    assert [each.width for each in symmetries(model, rows()).permutations] == [8]
    with torch.no_grad():
        assert largest_change(model, rows()) <= 1e-12


def decays(m, x):
    with torch.no_grad():
        m.a.weight.mul_(0.9)
    return m.b(m.a(x).relu())


def test_a_parameter_that_the_forward_writes_is_put_back_and_held():
    model = built(decays)
    before = model.a.weight.detach().clone()
    moves = symmetries(model, rows())
    assert torch.equal(model.a.weight, before)
    assert moves.tangents == 0
    assert "'a.weight' is used outside a layer" in str(moves)


def plain(m, x):
    return m.b(m.a(x).relu())


def test_inference_mode_and_autocast_hide_nothing():
    model = built(plain)
    for mode in (torch.inference_mode(), torch.autocast("cpu")):
        with mode:
            assert symmetries(model, rows()).tangents == 8
    with torch.inference_mode():
        made_inside = built(plain)
    with pytest.raises(ValueError, match=r"'a.weight' was made under torch.inference_mode"):
        symmetries(made_inside, rows())


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, *, x):
        return self.b(self.a(x).relu())


def test_an_example_by_name_serves_to_compare_a_model_in_another_order():
    one, other = ByName(), ByName()
    example = {"x": rows().float()}
    moved = match_neurons(one, other, example_input=example).apply(other)
    assert not torch.equal(moved.a.weight, other.a.weight)
    torch.testing.assert_close(moved(**example), other(**example))
