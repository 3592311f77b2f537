"""What collecting leaves behind: nothing."""

from __future__ import annotations

import doctest

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from sdsd.geometry.collect import activations as module
from sdsd.geometry.collect.activations import collect_activations

from .networks import mlp


class Stops(nn.Module):
    """Raises when it meets a batch that says so."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        if bool((x == 99).any()):
            raise self.error("stop")
        return x


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, None])
@pytest.mark.parametrize("where", ["model", "loader"])
def test_modes_and_hooks_are_as_before_whatever_happens(error, where):
    model = nn.Sequential(Stops(error or OSError), nn.Linear(3, 4), nn.Dropout(), nn.BatchNorm1d(4), nn.ReLU())
    model.train()
    model[3].eval()
    modes = [part.training for part in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    mine = model[1].register_forward_hook(lambda *_: None)
    seen: list[list[bool]] = []
    model[2].register_forward_pre_hook(lambda *_: seen.append([part.training for part in model.modules()]))

    def loader():
        for number in range(4):
            if number == 2 and error is not None and where == "loader":
                raise error("stop")
            yield torch.full((2, 3), 99.0 if number == 2 and error is not None and where == "model" else 1.0)

    if error is None:
        collect_activations(model, loader(), ["1", "3"])
    else:
        with pytest.raises(error, match="stop"):
            collect_activations(model, loader(), ["1", "3"])
    assert not any(any(training) for training in seen)
    assert [part.training for part in model.modules()] == modes
    assert list(model[1]._forward_hooks) == [mine.id]
    assert not model[3]._forward_hooks
    assert not _get_current_function_mode_stack()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_no_graph_is_kept():
    found = collect_activations(mlp(), [torch.randn(4, 3)], "0", keep=True)["0"]
    assert not found.values.requires_grad


def test_example_in_the_docstring():
    assert doctest.testmod(module).failed == 0
