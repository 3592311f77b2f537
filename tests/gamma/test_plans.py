"""A use that comes again is made by its plan: with the numbers that asking its rule gives, and only where it may be."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sdsd


class Forgetful(dict):
    """Keeps nothing: every use is looked into."""

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class Counting(dict):
    """Counts uses that a plan was found for."""

    found = 0

    def get(self, key: Any, default: Any = None) -> Any:
        plan = super().get(key, default)
        self.found += plan is not None
        return plan


class Net(nn.Module):
    """One layer of each kind that is planned; `twist` changes what a pass does with them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 6)
        self.norm, self.rms = nn.LayerNorm(6), nn.RMSNorm(6)
        self.conv, self.group = nn.Conv1d(6, 6, 3, padding=1), nn.GroupNorm(2, 6)
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 4)
        self.twist: Callable[[Net, Tensor], Tensor] = lambda net, x: net.two(net.one(x))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.rms(self.norm(self.table(ids)))
        x = self.group(self.conv(x.transpose(1, 2))).transpose(1, 2)
        x = self.twist(self, x)
        return self.head(x.mean(1))


def ordinary(net: Net, x: Tensor) -> Tensor:
    return net.two(net.one(x))


def twice(net: Net, x: Tensor) -> Tensor:
    return net.one(net.two(net.one(x)))


def exchanged(net: Net, x: Tensor) -> Tensor:
    """The same shapes in the same order, of other parameters."""
    return net.one(net.two(x))


def crossed(net: Net, x: Tensor) -> Tensor:
    """Weights with the biases of the other layer."""
    return F.linear(F.linear(x, net.one.weight, net.two.bias), net.two.weight, net.one.bias)


def transposed(net: Net, x: Tensor) -> Tensor:
    """Samples along another dimension; with as many positions as samples all shapes are the same."""
    return net.two(net.one(x.transpose(0, 1))).transpose(0, 1)


def checkpointed(net: Net, x: Tensor) -> Tensor:
    return checkpoint(lambda x: net.two(net.one(x)), x, use_reentrant=False)


def reentrant(net: Net, x: Tensor) -> Tensor:
    return checkpoint(lambda x: net.two(net.one(x)), x, use_reentrant=True)


def in_half(net: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return net.two(net.one(x)).float()


def norms_in_half(net: Net, x: Tensor) -> Tensor:
    """The norms of the network once more, which have another way under autocast; calls that look as those before."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return net.group(net.norm(x).transpose(1, 2).contiguous()).transpose(1, 2).float()


def norms(net: Net, x: Tensor) -> Tensor:
    return net.group(net.norm(x).transpose(1, 2).contiguous()).transpose(1, 2)


def one_row(net: Net, x: Tensor) -> Tensor:
    return x + net.two(net.one(x.mean(1))).unsqueeze(1)


def in_view(net: Net, x: Tensor) -> Tensor:
    return net.two(net.one(x)[:, 1:])


def by_rows(net: Net, x: Tensor) -> Tensor:
    """Rows that the samples choose."""
    chosen = x[..., 0] > 0
    out = x.clone()
    out[chosen] = net.two(net.one(x[chosen]))
    return out


def bare(net: Net, x: Tensor) -> Tensor:
    """Without a bias in one of the two."""
    return net.two(F.linear(x, net.one.weight))


def computed(net: Net, x: Tensor) -> Tensor:
    return net.two(F.linear(x, net.one.weight * 1.0, net.one.bias))


WAYS = [
    ordinary,
    twice,
    exchanged,
    crossed,
    transposed,
    checkpointed,
    reentrant,
    in_half,
    one_row,
    in_view,
    by_rows,
    bare,
    computed,
]


def doubled(net: Net) -> None:
    """To float64, or back: torch makes new nodes that add to .grad."""
    net.float() if net.head.weight.dtype == torch.float64 else net.double()


def frozen(net: Net) -> None:
    net.one.bias.requires_grad_(not net.one.bias.requires_grad)


def moved(net: Net) -> None:
    """Other memory, with other strides, behind the same parameter."""
    net.one.weight.data = net.one.weight.data.t().contiguous().t()


def programme(planned: bool, steps: list[Callable[..., Any]], n: int = 4, table: Any = None) -> tuple[Net, list[Any]]:
    torch.manual_seed(0)
    net = Net()
    monitor = sdsd.GammaMonitor(net)
    monitor._session.plans = table if table is not None else Counting() if planned else Forgetful()
    found: list[Any] = []
    for step in steps:
        if step in (doubled, frozen, moved):
            step(net)
            continue
        net.twist = step
        size = n + (step is ordinary and len(found) % 3 == 2)  # an odd batch now and then
        ids = torch.randint(0, 7, (size, n))
        F.cross_entropy(net(ids), torch.randint(0, 4, (size,))).backward()
        stats = monitor.step()
        assert stats is not None
        found.append({name: (each.signal, each.noise) for name, each in stats.parameters.items()})
        for parameter in net.parameters():
            if parameter.grad is not None:
                parameter.data.add_(parameter.grad, alpha=-0.1)
        net.zero_grad()
    net.plans = monitor._session.plans  # type: ignore[assignment]
    net.found = getattr(monitor._session.plans, "found", 0)  # type: ignore[assignment]
    return net, found


def assert_same(steps: list[Callable[..., Any]]) -> None:
    planned, numbers = programme(True, steps)
    asked, wanted = programme(False, steps)
    assert asked.found == 0
    assert planned.found > 0
    for mine, own in zip(planned.parameters(), asked.parameters(), strict=True):
        assert torch.equal(mine, own)  # measuring changed nothing
    for step, other in zip(numbers, wanted, strict=True):
        assert step.keys() == other.keys()
        for name in step:
            assert step[name] == pytest.approx(other[name], rel=1e-6, abs=1e-12), name


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_numbers_of_plans_are_those_of_rules(way):
    assert_same([ordinary] * 4 + [way] * 3 + [ordinary, way])


@pytest.mark.parametrize("change", [doubled, frozen, moved], ids=lambda change: change.__name__)
def test_parameters_that_change_under_a_plan(change):
    assert_same([ordinary] * 5 + [change] + [ordinary] * 3 + [one_row] + [change] + [ordinary] * 2 + [one_row] * 2)


def test_every_use_is_planned_from_the_second_pass_on():
    net, _ = programme(True, [ordinary] * 2)
    assert net.found == 8
    net, _ = programme(True, [transposed] * 2)
    assert net.found == 8


@pytest.mark.parametrize("way", [checkpointed, reentrant, by_rows, computed], ids=lambda way: way.__name__)
def test_what_is_not_planned(way):
    net, _ = programme(True, [way] * 3)
    planned = {checkpointed: 6, reentrant: 5, by_rows: 6, computed: 7}[way]
    assert net.found == 2 * planned


def test_samples_along_another_dimension_are_another_site():
    """As many positions as samples: only where the samples lie tells the two calls apart."""
    assert_same([ordinary, transposed] * 4)


def test_autocast_is_another_site():
    net, _ = programme(True, [norms])
    kept = len(net.plans)
    net, _ = programme(True, [norms, norms_in_half])
    assert len(net.plans) == kept + 2
    assert_same([norms, norms_in_half] * 4)


def test_a_parameter_left_out_is_measured_by_no_plan():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    monitor = sdsd.GammaMonitor(net, strict=False)
    x = torch.randn(4, 3)
    for _ in range(4):
        net(x).square().mean().backward()
        monitor.step()
        net.zero_grad()
    monitor._meter.prover.again()
    monitor._begin_step()
    (net(x).square().mean() + net[0].weight.square().sum()).backward()
    with pytest.warns(UserWarning, match="left out"):
        monitor.step()
    assert monitor.coverage["0.weight"] is None
    net.zero_grad()
    net(x).square().mean().backward()
    stats = monitor.step()
    assert stats is not None
    assert "0.weight" not in stats.parameters


def one_weight_there_and_back(net):
    """The others keep the nodes that add to their .grad."""
    weight = net[0].weight
    weight.data = weight.data.double()
    weight.data = weight.data.float()


@pytest.mark.parametrize("shape", [(4, 3), (4, 5, 3)], ids=["a row a sample", "rows a sample"])
@pytest.mark.parametrize("change", [lambda net: net.double().float(), one_weight_there_and_back])
def test_types_that_went_and_came_back(change, shape):
    """Between two passes torch makes another node that adds to .grad, which nothing tells of."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    x = torch.randn(shape)

    def run(changed: bool) -> list[tuple[float, float]]:
        own = copy.deepcopy(net)
        monitor = sdsd.GammaMonitor(own)
        found = []
        for step in range(6):
            if changed and step in (1, 4):
                change(own)
            own.zero_grad()
            own(x).square().mean().backward()
            stats = monitor.step()
            assert stats is not None
            found += [(each.signal, each.noise) for each in stats.parameters.values()]
        return found

    assert run(True) == run(False)


def test_parameters_that_are_not_asked_for_are_planned_around():
    torch.manual_seed(0)
    net = Net()
    monitor = sdsd.GammaMonitor(net, parameters=["*.bias", "norm.weight"])
    whole = sdsd.GammaMonitor(other := copy.deepcopy(net))
    for _ in range(5):
        ids, targets = torch.randint(0, 7, (4, 4)), torch.randint(0, 4, (4,))
        for each in (net, other):
            F.cross_entropy(each(ids), targets).backward()
        some, everything = monitor.step(), whole.step()
        assert some is not None
        assert everything is not None
        for name, each in some.parameters.items():
            assert each.noise == pytest.approx(everything.parameters[name].noise, rel=1e-6), name
        net.zero_grad()
        other.zero_grad()


@pytest.mark.parametrize("shape", [(4, 3), (4, 5, 3)], ids=["a row a sample", "rows a sample"])
def test_a_use_of_which_some_parameters_are_reached(shape):
    """backward(inputs=…) adds to the .grad of a weight, and leaves out the bias that is used beside it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    monitor = sdsd.GammaMonitor(net)
    for step in range(6):
        net(torch.randn(shape)).square().mean().backward(inputs=[net[0].weight, net[1].bias] if step > 3 else None)
        stats = monitor.step()
        assert stats is not None
        reached = {name for name, each in stats.parameters.items() if each.noise > 0}
        assert reached == ({"0.weight", "1.bias"} if step > 3 else set(dict(net.named_parameters())))
        net.zero_grad()


def test_squares_of_several_passes_are_entered_once():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    monitor = sdsd.GammaMonitor(net)
    for _ in range(6):
        x = torch.randn(12, 3)
        for part in x.split(4):
            (net(part).square().mean() / 3).backward()
        stats = monitor.step()
        assert stats is not None
        net.zero_grad()
        net(x).square().mean().backward()
        whole = monitor.step()
        assert whole is not None
        for name, each in stats.parameters.items():
            assert each.noise == pytest.approx(whole.parameters[name].noise, rel=1e-5), name
        net.zero_grad()
