"""The configuration of a Hugging Face model that has fewer neurons, so that it can be saved and loaded again."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...graphs import as_arguments, outputs
from ...models import evaluating


@dataclass(frozen=True)
class ConfigFit:
    """What `fit_config` did.

    Attributes:
        fits: whether a model built from the configuration has the shapes of this one.
        changed: fields that were set, by name: (before, after).
        why: the first parameter that no field makes fit; "" where all do.
    """

    fits: bool
    changed: dict[str, tuple[Any, Any]]
    why: str

    def __str__(self) -> str:
        listed = ", ".join(f"{name} {before} → {after}" for name, (before, after) in self.changed.items())
        return f"config fits ({listed or 'nothing to change'})" if self.fits else f"config does not fit: {self.why}"


def fit_config(model: Any, example_input: Any = None) -> ConfigFit:
    """Set the sizes in a model's configuration to those of its layers, so that from_pretrained loads what
    save_pretrained saves.

    Fields are found by trying: every whole number in the configuration (and in those inside it) that was a size of a
    parameter, set to the size it has now, and an empty model built from it. What makes more parameters fit is kept.

    Args:
        model: a transformers model, or any with a `config` of which type(model)(config) builds a model. Its
            configuration is changed only if everything fits then.
        example_input: as in `consumers`: a model built from the configuration is run beside this one.

    Returns:
        `ConfigFit`. Layers of different sizes, for which a configuration has one number, do not fit: the reason
        names the first; save such a model with torch.save, or consolidate its layers to one size.

    Raises:
        TypeError: a model without a configuration.
    """
    if not hasattr(model, "config"):
        raise TypeError(f"model: expected one with a config, as those of transformers, got {type(model).__name__}.")
    wanted = {name: tuple(each.shape) for name, each in model.state_dict().items()}
    config = copy.deepcopy(model.config)
    changed: dict[str, tuple[Any, Any]] = {}
    wrong = _unfit(model, config, wanted)
    while wrong:
        better = _step(model, config, wanted, wrong)
        if better is None:
            name, (has, gets) = next(iter(wrong.items()))
            return ConfigFit(False, {}, f"{name!r} has shape {has}, and the configuration gives {gets}")
        path, new, wrong = better
        before = _get(config, path)
        _set(config, path, new)
        changed[".".join(path)] = (changed.get(".".join(path), (before,))[0], new)
    if example_input is not None and not _same(model, config, example_input):
        fields = ", ".join(changed)
        return ConfigFit(False, {}, f"a model built with other {fields} has these shapes and computes something else")
    for name, (_, after) in changed.items():
        _set(model.config, tuple(name.split(".")), after)
    return ConfigFit(True, changed, "")


def _same(model: nn.Module, config: Any, example_input: Any) -> bool:
    """Whether a model built from the configuration, with the parameters of this one, gives the same."""
    with torch.random.fork_rng(devices=[]):
        built = type(model)(copy.deepcopy(config))
    first = next(model.parameters())
    built.to(device=first.device, dtype=first.dtype).load_state_dict(model.state_dict())
    arguments, named = as_arguments(example_input)
    with evaluating(model), evaluating(built), torch.random.fork_rng(devices=[]):
        one, other = (
            [each for each in outputs(each_model(*arguments, **named)) if isinstance(each, Tensor)]
            for each_model in (model, built)
        )
    return len(one) == len(other) and all(
        a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-5)
        for a, b in zip(one, other, strict=True)
    )


Shape = tuple[int, ...]
Unfit = dict[str, tuple[Shape, Shape]]


def _unfit(model: nn.Module, config: Any, wanted: dict[str, Shape]) -> Unfit | None:
    """Parameters whose shapes differ from those of an empty model built from the configuration."""
    try:
        with torch.device("meta"):
            built = type(model)(copy.deepcopy(config)).state_dict()
    except Exception:
        return None
    return {
        name: (shape, tuple(built[name].shape) if name in built else ())
        for name, shape in wanted.items()
        if name not in built or tuple(built[name].shape) != shape
    }


def _step(
    model: nn.Module, config: Any, wanted: dict[str, Shape], wrong: Unfit
) -> tuple[tuple[str, ...], int, Unfit] | None:
    """One field to change, so that fewer parameters are unfit."""
    ratios = {(b, a) for has, gets in wrong.values() for a, b in zip(has, gets, strict=False) if a != b}
    best: tuple[tuple[str, ...], int, Unfit] | None = None
    for path, value in _fields(config):
        for before, after in sorted(ratios):
            if value is None:
                tries = [after]
            else:
                tries = [after] if value == before else []
                if value * after % before == 0 and value * after // before not in (value, after, 0):
                    tries.append(value * after // before)
            for new in tries:
                _set(config, path, new)
                left = _unfit(model, config, wanted)
                _set(config, path, value)
                if left is not None and len(left) < len(wrong if best is None else best[2]):
                    best = (path, new, left)
    return best


EMPTY_FIELDS = ("n_inner", "ffn_dim", "intermediate_size", "mlp_dim")
"""Sizes that a configuration may leave out, to be computed from others."""
KEPT_FIELDS = ("head_dim", "d_kv", "head_size", "key_value_dim", "kv_channels")
"""The size of a head stays: with another one and as many heads the shapes may fit, and the model be another."""


def _fields(config: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int | None]]:
    for name, value in list(vars(config).items()):
        if name in KEPT_FIELDS:
            continue
        if type(value) is int and value > 0 and "token" not in name:
            yield (*above, name), value
        elif value is None and name in EMPTY_FIELDS:
            yield (*above, name), None
        elif hasattr(value, "to_dict") and hasattr(value, "__dict__"):
            yield from _fields(value, (*above, name))


def _get(config: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        config = getattr(config, name)
    return config


def _set(config: Any, path: tuple[str, ...], value: Any) -> None:
    setattr(_get(config, path[:-1]), path[-1], value)
