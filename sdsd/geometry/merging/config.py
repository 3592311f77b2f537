"""The configuration of a Hugging Face model that has fewer neurons, so that it can be saved and loaded again."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...graphs import as_arguments, outputs, seeded
from ...models import evaluating
from .norms import RepeatedNorm

SAVE_WHOLE = "Save the whole model: torch.save(model, path), torch.load(path, weights_only=False)."


@dataclass(frozen=True)
class ConfigFit:
    """What `fit_config` did; true where the configuration fits.

    Attributes:
        fits: whether a model built from the configuration has the shapes of this one.
        changed: fields that were set, by name: (before, after).
        why: the first parameter that no field makes fit; "" where all do.
    """

    fits: bool
    changed: dict[str, tuple[Any, Any]]
    why: str

    def __bool__(self) -> bool:
        return self.fits

    def __str__(self) -> str:
        listed = ", ".join(f"{name} {before} → {after}" for name, (before, after) in self.changed.items())
        return f"config fits ({listed or 'nothing to change'})" if self.fits else f"config does not fit: {self.why}"


def fit_config(model: Any, example_input: Any = None) -> ConfigFit:
    """Set the sizes in a model's configuration to those of its layers, so that from_pretrained loads what
    save_pretrained saves.

    Fields are found by trying: every whole number in the configuration (in lists, and in configurations inside it) that
    was a size of a parameter, set to the size it has now, every ratio (mlp_ratio) in proportion, and an empty model
    built from it. What makes more parameters fit is kept.

    Args:
        model: a transformers model, or any with a `config` of which type(model)(config) builds a model. Its
            configuration is changed only if everything fits then.
        example_input: as in `consumers`: a model built from the configuration is run beside this one.

    Returns:
        `ConfigFit`. Layers of different sizes, for which a configuration has one number, do not fit: the reason
        names the first; save such a model whole with torch.save, or consolidate its layers to one size. The same holds
        for sizes that a model's class computes (4 · hidden_size in BLOOM and ConvNeXt), and for ratios that a
        configuration takes as whole numbers only (DINOv2, SegFormer).

    Raises:
        TypeError: a model without a configuration.
    """
    if not hasattr(model, "config"):
        raise TypeError(f"model: expected one with a config, as those of transformers, got {type(model).__name__}.")
    wanted = {name: tuple(each.shape) for name, each in model.state_dict().items()}
    repeated = next((name for name, each in model.named_modules() if isinstance(each, RepeatedNorm)), None)
    if repeated is not None:
        return ConfigFit(False, {}, f"{repeated!r} is a RepeatedNorm, which no configuration builds. {SAVE_WHOLE}")
    config = copy.deepcopy(model.config)
    changed: dict[Path, tuple[Any, Any]] = {}
    refused: dict[str, Any] = {}
    try:
        wrong = _unfit(model, config, wanted)
    except Exception as error:
        why = f"{type(model).__name__} is not built from its configuration alone ({type(error).__name__}: {error})"
        return ConfigFit(False, {}, f"{why}. {SAVE_WHOLE}")
    while wrong:
        better = _step(model, config, wanted, wrong, refused)
        if better is None:
            return ConfigFit(False, {}, _why(config, next(iter(wrong.items())), refused))
        path, new, wrong = better
        before = _get(config, path)
        _set(config, path, new)
        changed[path] = (changed.get(path, (before,))[0], new)
    named = {_name(path): change for path, change in changed.items()}
    if example_input is not None and not _same(model, config, example_input):
        why = f"a model built with other {', '.join(named)} has these shapes and computes something else. {SAVE_WHOLE}"
        return ConfigFit(False, {}, why)
    for path, (_, after) in changed.items():
        _set(model.config, path, after)
    return ConfigFit(True, named, "")


def _why(config: Any, unfit: tuple[str, tuple[Shape, Shape]], refused: dict[str, Any]) -> str:
    name, (has, gets) = unfit
    kind = type(config).__name__
    would = ", ".join(f"{field} = {value:g}" for field, value in refused.items())
    takes = f"{would} would, and {kind} does not take it" if would else f"no number in {kind} gives it this size alone"
    return f"{name!r} has shape {has}, and the configuration gives {gets}; {takes}. {SAVE_WHOLE}"


def _same(model: nn.Module, config: Any, example_input: Any) -> bool:
    """Whether a model built from the configuration, with the parameters of this one, gives the same."""
    with seeded(None, []):
        built = type(model)(copy.deepcopy(config))
    first = next(model.parameters())
    built.to(device=first.device, dtype=first.dtype).load_state_dict(model.state_dict())
    arguments, named = as_arguments(example_input)
    with evaluating(model), evaluating(built), seeded(None, []):
        one, other = (
            [each for each in outputs(each_model(*arguments, **named)) if isinstance(each, Tensor)]
            for each_model in (model, built)
        )
    return len(one) == len(other) and all(
        a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-5)
        for a, b in zip(one, other, strict=True)
    )


Shape = tuple[int, ...]
Number = int | float
Path = tuple[str | int, ...]
"""Names of fields, from the configuration inwards; a place in a list at the end."""
Unfit = dict[str, tuple[Shape, Shape]]


def _unfit(model: nn.Module, config: Any, wanted: dict[str, Shape]) -> Unfit:
    """Parameters whose shapes differ from those of an empty model built from the configuration; what that raises."""
    with torch.device("meta"):
        built = type(model)(copy.deepcopy(config)).state_dict()
    return {
        name: (shape, tuple(built[name].shape) if name in built else ())
        for name, shape in wanted.items()
        if name not in built or tuple(built[name].shape) != shape
    }


def _step(
    model: nn.Module, config: Any, wanted: dict[str, Shape], wrong: Unfit, refused: dict[str, Any]
) -> tuple[Path, Number, Unfit] | None:
    """One field to change, so that fewer parameters are unfit. `refused` gets those that would do and take no such
    value."""
    ratios = sorted({(b, a) for has, gets in wrong.values() for a, b in zip(has, gets, strict=False) if a != b})
    best: tuple[Path, Number, Unfit] | None = None
    for path, value in _fields(config):
        for new in dict.fromkeys(new for before, after in ratios for new in _tries(path, value, before, after)):
            takes = _set(config, path, new)
            if not takes:
                _force(config, path, new)
            left: Unfit | None = None
            with contextlib.suppress(Exception):  # no model has this number
                left = _unfit(model, config, wanted)
            _force(config, path, value)
            if left is None or len(left) >= len(wrong if best is None else best[2]):
                continue
            if takes:
                best = (path, new, left)
            else:
                refused[_name(path)] = new
    return best


def _tries(path: Path, value: Number | None, before: int, after: int) -> Iterator[Number]:
    """What a field might be where a size that was `before` has to become `after`."""
    if value is None or value == before:
        yield after
    elif type(value) is int and value * after % before == 0 and value * after // before != 0:
        yield value * after // before
    elif "ratio" in str(path[-1] if isinstance(path[-1], str) else path[-2]):
        exact = value * after / before
        yield from (exact, math.nextafter(exact, math.inf))  # int(ratio × size) is not to fall below


EMPTY_FIELDS = ("n_inner", "ffn_dim", "intermediate_size", "mlp_dim")
"""Sizes that a configuration may leave out, to be computed from others."""
KEPT_FIELDS = ("head_dim", "d_kv", "head_size", "key_value_dim", "kv_channels")
"""The size of a head stays: with another one and as many heads the shapes may fit, and the model be another."""


def _fields(config: Any, above: Path = ()) -> Iterator[tuple[Path, Number | None]]:
    """Numbers of a configuration, of lists in it and of configurations inside it."""
    for name, value in list(vars(config).items()):
        if name in KEPT_FIELDS:
            continue
        if _is_size(name, value):
            yield (*above, name), value
        elif value is None and name in EMPTY_FIELDS:
            yield (*above, name), None
        elif isinstance(value, (list, tuple)):
            for place, each in enumerate(value):
                if _is_size(name, each):
                    yield (*above, name, place), each
        elif hasattr(value, "to_dict") and hasattr(value, "__dict__"):
            yield from _fields(value, (*above, name))


def _is_size(name: str, value: Any) -> bool:
    return value > 0 if type(value) is int and "token" not in name else type(value) is float and "ratio" in name


def _name(path: Path) -> str:
    return ".".join(map(str, path))


def _get(config: Any, path: Path) -> Any:
    for name in path:
        config = config[name] if isinstance(name, int) else getattr(config, name)
    return config


def _set(config: Any, path: Path, value: Any) -> bool:
    """False where the configuration takes no such value."""
    if isinstance(path[-1], int):
        whole = list(_get(config, path[:-1]))
        whole[path[-1]] = value
        return _set(config, path[:-1], type(_get(config, path[:-1]))(whole))
    try:
        setattr(_get(config, path[:-1]), path[-1], value)
    except Exception:
        return False
    return True


def _force(config: Any, path: Path, value: Any) -> None:
    """As `_set`, whatever the configuration takes."""
    if isinstance(path[-1], int):
        whole = list(_get(config, path[:-1]))
        whole[path[-1]] = value
        path, value = path[:-1], type(_get(config, path[:-1]))(whole)
    vars(_get(config, path[:-1]))[path[-1]] = value
