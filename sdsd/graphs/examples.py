"""What a model is run on: an example, or inputs of a likely shape where there is none."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..models import evaluating, untouched, unwritten
from .calls import as_arguments
from .chance import seeded
from .vocabulary import CONVOLUTIONS, spatial_dims
from .writes import parameters_kept

SIZES = (8, 16, 28, 32, 64, 224)
"""Widths of pictures, and lengths of sequences, to try where there is no example."""
SEED = 0

Made = TypeVar("Made")


def on_inputs(
    model: nn.Module, example_input: Any, follow: Callable[[Any], Made], most: int | None = None
) -> list[Made]:
    """What `follow` makes of running the model on the example; without one, on at most `most` of a likely shape.

    Raises:
        ValueError: as `look`.
    """
    for name, each in model.named_parameters():
        if each.is_inference():
            raise ValueError(
                f"model: {name!r} was made under torch.inference_mode and cannot be changed. Make or load the model "
                "outside of it."
            )
    if example_input is None:
        made = [follow(each) for each in itertools.islice(likely_inputs(model), most)]
        if not made:
            raise ValueError(
                f"model: {type(model).__name__} runs on no input of a likely shape. Pass example_input, an input the "
                "model runs on: a tensor, a tuple of arguments or a dictionary of keyword arguments."
            )
        return made
    try:
        return [follow(example_input)]
    except Exception as error:
        what = f"({type(error).__name__}: {first_line(error)})"
        if _runs(model, example_input):
            raise ValueError(
                f"model: {type(model).__name__} runs, but what it does cannot be followed {what}. Pass a part of the "
                "model."
            ) from error
        if _runs(model, example_input, gradients=True):
            raise ValueError(
                f"model: {type(model).__name__} takes gradients in its forward, which are not followed {what}. Pass a "
                "part of the model without them."
            ) from error
        raise ValueError(f"example_input: the model does not run on it {what}.") from error


def _runs(model: nn.Module, example_input: Any, gradients: bool = False) -> bool:
    arguments, named = as_arguments(example_input)
    try:
        with (
            untouched(model, parameters=True),
            unwritten(arguments, named),
            evaluating(model),
            seeded(None, []),
            torch.set_grad_enabled(gradients),
        ):
            model(*arguments, **named)
    except Exception:
        return False
    return True


def first_line(error: Exception) -> str:
    """The first line of an error's message, cut to 160 characters."""
    line = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
    return line if len(line) <= 160 else line[:159] + "…"


def likely_inputs(model: nn.Module) -> Iterator[Tensor]:
    """Inputs of likely shapes that the model runs on; none where it has to be given more than one."""
    parameters = inspect.signature(model.forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [each for each in parameters if each.default is inspect.Parameter.empty and each.kind in positional]
    several = any(each.kind == inspect.Parameter.VAR_POSITIONAL for each in parameters)
    if len(required) > 1 or (not required and not several and len(parameters) == 0):
        return
    first = next((m for m in model.modules() if isinstance(m, (nn.Linear, nn.Embedding, *CONVOLUTIONS))), None)
    if first is None:
        return
    ran = False
    for guesses in _likely(first):
        for guess in guesses:
            try:
                with untouched(model), evaluating(model), seeded(None, []), parameters_kept(model):
                    model(guess.clone())
            except Exception:
                continue
            ran = True
            yield guess
        if ran:
            return


def _likely(module: nn.Module) -> Iterator[list[Tensor]]:
    """Inputs that a model which begins with this module might take; the next set where it takes none of one."""
    weight = next(module.parameters())
    generator = torch.Generator().manual_seed(SEED)
    if isinstance(module, nn.Embedding):
        # 8 first; others for models that read a fixed number of places.
        for length in (8, *range(1, 8), *range(9, 33), 64):
            yield [torch.randint(module.num_embeddings, (2, length), generator=generator).to(weight.device)]
        return

    def made(*shapes: tuple[Any, ...]) -> list[Tensor]:
        return [torch.randn(shape, generator=generator).to(weight) for shape in shapes]

    dims = spatial_dims(module)
    if dims == 0:
        width = module.in_features
        yield made((4, width), (2, 5, width))
        for length in (3, 4, 7, 8, 16):
            yield made((2, length, width))
        return
    for sizes in (SIZES if dims < 3 else (8, 16), range(1, 65 if dims < 3 else 17)):
        yield made(*((*batch, module.in_channels, *[size] * dims) for batch in ((2,), ()) for size in sizes))
