"""What networks give, compared; and what a model is."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sdsd.geometry import Consumers

from .networks import Program, seeds

RELATIVE, ROUNDINGS = 1e-9, 1e3


class DiffersError(Exception):
    """Two networks give other things."""


def named(model: nn.Module, name: str) -> Tensor:
    holder, _, local = name.rpartition(".")
    return getattr(model.get_submodule(holder), local)  # type: ignore[no-any-return]


def entries_of(units: Sequence[int], i: int, j: int) -> list[tuple[int, int]]:
    one, two = ([k for k, unit in enumerate(units) if unit == each] for each in (i, j))
    return list(zip(one, two, strict=True))


def averaged(model: nn.Module, group: Consumers, pairs: Sequence[tuple[int, int]]) -> None:
    """Both neurons of a pair become their average, wherever they have entries that are not read."""
    for part in group.parts:
        if part.role != "reader":
            rows = named(model, part.name).data.movedim(part.dim, 0)
            for a, b in [each for i, j in pairs for each in entries_of(part.units.tolist(), i, j)]:
                rows[a] = (rows[a] + rows[b]) / 2
                rows[b] = rows[a]


@contextlib.contextmanager
def planted(model: nn.Module, group: Consumers, pairs: Sequence[tuple[int, int]]) -> Iterator[nn.Module]:
    """Inside, the second of a pair is the first."""
    before = [(each, each.detach().clone()) for each in (*model.parameters(), *model.buffers())]
    for part in group.parts:
        if part.role != "reader":
            rows = named(model, part.name).data.movedim(part.dim, 0)
            for a, b in [each for i, j in pairs for each in entries_of(part.units.tolist(), i, j)]:
                rows[b] = rows[a]
    try:
        yield model
    finally:
        for tensor, values in before:
            tensor.data.copy_(values)


def compare(
    program: Program,
    one: nn.Module,
    two: nn.Module,
    few: bool = False,
) -> None:
    """`DiffersError` unless `two` gives what `one` does, wherever that runs."""
    batch, length = program.sizes
    calls = [program.drawn(0)]
    if not few:
        sizes = [(1, length), (batch + 3, 2 * length), (length, batch + 2)]
        calls += [program.drawn(7, *each) for each in sizes]
    random_in_training = any(isinstance(each, nn.Dropout) for each in one.modules())
    for training in (False,) if few or random_in_training else (False, True):
        one, two = (copy.deepcopy(each).train(training) for each in (one, two))
        for inputs in calls:
            where = f"{'training' if training else 'eval'}, inputs {[tuple(each.shape) for each in inputs]}"
            try:
                wanted = run(one, inputs)
            except Exception:
                continue
            try:
                got = run(two, inputs)
            except Exception as error:
                raise DiffersError(f"does not run: {type(error).__name__}: {error}; {where}") from error
            _equal(wanted, got, lambda inputs=inputs, one=one: run(shaken(one), inputs), where)


def run(model: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    with seeds(3), torch.no_grad():
        return flat(model(*inputs))


def flat(output: Any) -> list[Tensor]:
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else (output,)
    return list(values)


def shaken(model: nn.Module) -> nn.Module:
    """What a few roundings in every parameter do."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    for each in model.parameters():
        each.data *= 1 + 1e-14 * torch.randn(each.shape, generator=generator, dtype=torch.float64)
    return model


def _equal(wanted: list[Tensor], got: list[Tensor], again: Callable[[], list[Tensor]], where: str) -> None:
    if [each.shape for each in wanted] != [each.shape for each in got]:
        raise DiffersError(f"other shapes; {where}")
    for place, (a, b) in enumerate(zip(wanted, got, strict=True)):
        if not a.isfinite().all():
            continue
        size, off = a.abs().max(), (a - b).abs().max()
        if not off <= RELATIVE * size and not off <= RELATIVE * size + ROUNDINGS * (a - again()[place]).abs().max():
            raise DiffersError(f"outputs differ by {off:.2g}, of {size:.2g}; {where}")


def same_gradients(example: Sequence[Tensor], one: nn.Module, two: nn.Module, edited: set[str]) -> None:
    """Of all parameters but those that are smaller in one of both."""
    sides = []
    for model in (one, two):
        model = copy.deepcopy(model).eval()
        try:
            with seeds(3):
                outputs = flat(model(*example))
        except RuntimeError:
            if not sides:
                return  # it has no gradients
            raise
        sum((each * each).sum() for each in outputs).backward()  # type: ignore[union-attr]
        sides.append({name: each.grad for name, each in model.named_parameters() if name not in edited})
    for name, wanted in sides[0].items():
        got = sides[1][name]
        if (wanted is None) != (got is None):
            raise DiffersError(f"a gradient of {name!r} in one alone")
        if wanted is not None and wanted.isfinite().all():
            off, size = (wanted - got).abs().max(), wanted.abs().max()
            if not off <= 1e-6 * (size + 1e-6):
                raise DiffersError(f"gradients of {name!r} differ by {off:.2g}, of {size:.2g}")


def state_of(model: nn.Module) -> dict[str, Any]:
    """Every tensor, flag, hook and setting, and which object it is."""
    state: dict[str, Any] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for key, value in vars(module).items():
            if key in ("_parameters", "_buffers"):
                for name, each in value.items():
                    state[f"{path}.{name}"] = (
                        None if each is None else (id(each), each.requires_grad, each.detach().clone(), each.grad)
                    )
            elif key == "_modules":
                state[f"{path}.{key}"] = [(name, id(each)) for name, each in value.items()]
            elif isinstance(value, Tensor):
                state[f"{path}.{key}"] = (id(value), value.requires_grad, value.detach().clone(), None)
            elif isinstance(value, dict):
                state[f"{path}.{key}"] = dict(value)
            else:
                state[f"{path}.{key}"] = type(value), value
        state[f"{path} is a"] = type(module)
    return state


def same_state(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and len(one) == 4 and isinstance(other, tuple) and len(other) == 4:
        return one[:2] == other[:2] and torch.equal(one[2], other[2]) and one[3] is other[3]
    return type(one) is type(other) and bool(one == other)
