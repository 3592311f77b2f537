"""What a model gives in float64, and whether two give the same."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...graphs import as_arguments, outputs, seeded
from ...models import copy_of, evaluating, untouched

SAME = 1e-9
"""Two orders of one network may differ by so much of its largest output, in float64."""


def require_same(model: nn.Module, moved: nn.Module, example: Any) -> None:
    """ValueError unless both compute the same, in float64 and eval mode."""
    arguments, named = arguments_in_float64(example)
    answers = []
    for each in (model, moved):
        network = copy_of(each).double()
        with untouched(network), evaluating(network), seeded(0, []):
            answers.append([each.double() for each in in_floats(network(*arguments, **named)) if each.numel()])
    for before, after in zip(*answers, strict=True):
        off, most = (before - after).abs().max().item(), before.abs().max().item()
        if not off <= SAME * most:
            raise ValueError(
                f"apply: the model with its neurons in another order computes something else: outputs differ by up to "
                f"{off:.3g}, of {most:.3g}. Something in its forward depends on the order of neurons; match its layers "
                "one by one, by activations."
            )


def arguments_in_float64(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a model in float64."""

    def wide(value: Any) -> Any:
        return value.detach().double() if isinstance(value, Tensor) and value.is_floating_point() else value

    return pytree.tree_map(wide, as_arguments(example))  # type: ignore[no-any-return]


def in_floats(given: Any) -> list[Tensor]:
    """The floating-point tensors in what a model gives."""
    return [each for each in outputs(given) if isinstance(each, Tensor) and each.is_floating_point()]
