"""One recording a model, kept while the model is as it was."""

from __future__ import annotations

import inspect
import itertools
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..models import check_model, evaluating, plainly, untouched
from .groups import Groups
from .recording import record
from .running import as_arguments
from .vocabulary import CONVOLUTIONS, spatial_dims
from .writes import parameters_kept

SIZES = (8, 16, 28, 32, 64, 224)
"""Widths of pictures, and lengths of sequences, to try where there is no example."""
SEED = 0
MOST_ENTRIES = 256
"""Of a list or dictionary that is a module's setting, and no data it holds."""

_kept: weakref.WeakKeyDictionary[nn.Module, tuple[Any, Any, list[Groups]]] = weakref.WeakKeyDictionary()


def look(model: nn.Module, example_input: Any = None) -> list[Groups]:
    """What running the model says about the entries of its parameters.

    Args:
        model: any model; it is left as it was.
        example_input: a tensor, a tuple of positional or a dictionary of keyword arguments. None: everything of a
            likely shape that the model runs on, each recorded.

    Returns:
        One for the example; without one, one for each input that the model ran on. They are kept, and given again as
        long as the model has the same modules, settings, parameters and the same example.

    Raises:
        TypeError: no module, or one that was scripted, traced or exported.
        ValueError: a model without values (meta device); the model does not run on `example_input`, or on nothing that
            was tried; parameters that were made under torch.inference_mode.
    """
    check_model(model)
    key = (_signature(model), _signature_of_example(example_input))
    kept = _kept.get(model)
    if kept is not None and kept[0] == key:
        return kept[2]
    with plainly(model):  # in inference mode layers are one operation each, under autocast they multiply copies
        looks = on_inputs(model, example_input, lambda each: Groups(record(model, each)))
    _kept[model] = (key, example_input, looks)
    return looks


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
            evaluating(model),
            torch.random.fork_rng(devices=[]),
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


def _signature(model: nn.Module) -> tuple[Any, ...]:
    """Changes with the modules, their settings and the shapes of their tensors, and not with the values of these."""
    return tuple(
        (
            name,
            id(module),
            type(module),
            tuple((key, id(each), tuple(each.shape)) for key, each in module._parameters.items() if each is not None),
            tuple((key, each.dtype, tuple(each.shape)) for key, each in module._buffers.items() if each is not None),
            tuple((key, _setting(each)) for key, each in vars(module).items() if key != "training" and key[0] != "_"),
            _config_of(module),
        )
        for name, module in model.named_modules(remove_duplicate=False)
    )


def _setting(value: Any, depth: int = 4) -> Any:
    """What an attribute says, as far as it is numbers and words, in lists and dictionaries too."""
    if isinstance(value, (list, tuple, dict)) and len(value) <= MOST_ENTRIES and depth:
        return tuple(_setting(each, depth - 1) for each in (value.items() if isinstance(value, dict) else value))
    if isinstance(value, Tensor):
        return id(value), _version(value)
    return value if isinstance(value, (int, float, str)) else id(value)


def _version(tensor: Tensor) -> int:
    """Changes when it is written into."""
    return 0 if tensor.is_inference() else tensor._version


def _config_of(module: nn.Module) -> str:
    config = getattr(module, "config", None)
    return repr(sorted(vars(config).items(), key=lambda item: item[0])) if hasattr(config, "__dict__") else ""


def _signature_of_example(value: Any) -> Any:
    if isinstance(value, Tensor):
        return id(value), _version(value), tuple(value.shape), value.dtype
    if isinstance(value, Mapping):
        return tuple((name, _signature_of_example(part)) for name, part in value.items())
    if isinstance(value, (tuple, list)):
        return tuple(map(_signature_of_example, value))
    return value if isinstance(value, (int, float, str, bool, type(None))) else id(value)


# ---- inputs, where there is no example -------------------------------------------------------------------------------


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
                with untouched(model), evaluating(model), torch.random.fork_rng(devices=[]), parameters_kept(model):
                    model(guess)
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
