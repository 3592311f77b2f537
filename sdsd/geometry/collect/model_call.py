"""A model called on batches as loaders give them."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sdsd_kernels import checks

from ..._progress import Report
from ...models import check_model, unwritten
from ..arrays import usable_device

Forward = Callable[[nn.Module, Any], Any]
"""(model, batch) → anything: runs the model on a batch."""


def caller(model: nn.Module, forward: Forward | None, device: torch.device | str | None = None) -> Forward:
    """`forward`, or what calls the model on batches as loaders give them."""
    if forward is None:
        return ModelCall(model, device)
    if not callable(forward):
        raise TypeError(
            f"forward: expected a function (model, batch) → anything, or None, got {type(forward).__name__}."
        )
    return forward


def check_loader(loader: Any, max_batches: int | None) -> int | None:
    """TypeError unless `loader` gives batches, one after the other; `max_batches`, checked."""
    if isinstance(loader, (Mapping, str)) or not (hasattr(loader, "__iter__") or hasattr(loader, "__getitem__")):
        one = " A single batch goes into a list: [batch]." if isinstance(loader, Mapping) else ""
        raise TypeError(
            f"loader: expected batches, one after the other, as a DataLoader or a list gives them, got "
            f"{type(loader).__name__}.{one}"
        )
    return checks.check_count(max_batches, "max_batches", optional=True)


def batches_of(loader: Iterable[Any], max_batches: int | None, report: Report | None = None) -> Iterator[Any]:
    """The batches of a loader, at most so many; `report` hears of each when the next is asked for. ValueError where
    there is none."""
    total, done = _length(loader, max_batches) or 0, 0
    for done, batch in enumerate(loader, 1):
        yield batch
        if report is not None:
            report(done, max(done, total))
        if done == max_batches:
            break
    if done == 0:
        raise ValueError(
            "loader: expected at least one batch, got none. A generator is empty after its first reading; pass a list "
            "or a DataLoader."
        )


def _length(loader: Iterable[Any], max_batches: int | None) -> int | None:
    try:
        length = len(loader)  # type: ignore[arg-type]
    except TypeError:
        return max_batches
    return length if max_batches is None else min(length, max_batches)


class ModelCall:
    """Calls the model on a batch as loaders give it."""

    def __init__(self, model: nn.Module, device: torch.device | str | None) -> None:
        check_model(model, only_run=True)
        if device is None:
            tensors = (*model.parameters(), *model.buffers())
            device = next((each.device for each in tensors if each.device.type != "meta"), "cpu")
        self.device = usable_device(device)
        self.takes_any, self.names = True, []  # a compiled forward may not say what it takes
        with contextlib.suppress(ValueError, TypeError):
            parameters = inspect.signature(model.forward).parameters.values()
            self.takes_any = any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in parameters)
            self.names = [parameter.name for parameter in parameters]

    def __call__(self, model: nn.Module, batch: Any) -> Any:
        if isinstance(batch, Mapping):
            known = {name: self._moved(batch[name]) for name in batch if self.takes_any or name in self.names}
            if not known:
                raise TypeError(
                    f"loader: expected dicts with entries that the model's forward names ({', '.join(self.names)}), "
                    f"got {', '.join(map(str, batch))}. Pass forward=lambda model, batch: model(batch[…])."
                )
            return model(**known)
        inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if not isinstance(inputs, Tensor):
            raise TypeError(
                f"loader: expected batches that are a tensor, a tuple that starts with one, or a dict, got "
                f"{type(batch).__name__}{f' of {type(inputs).__name__}' if inputs is not batch else ''}. Pass "
                "forward=lambda model, batch: … for other batches."
            )
        return model(inputs.to(self.device))

    def _moved(self, value: Any) -> Any:
        return value.to(self.device) if isinstance(value, Tensor) else value


def _shape_of(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return str(tuple(batch.shape))
    if isinstance(batch, Mapping):
        return ", ".join(f"{name} {_shape_of(value)}" for name, value in batch.items())
    return _shape_of(batch[0]) if isinstance(batch, (tuple, list)) and batch else type(batch).__name__


def run_batch(model: nn.Module, batch: Any, run: Forward, number: int) -> Any:
    """What the model gives for a batch; ValueError where it does not run on it."""
    try:
        with unwritten(batch):  # the first is read twice, and others may be by another call
            return run(model, batch)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(
            f"batch {number}: expected inputs that the model runs on, got shape {_shape_of(batch)}, and the model "
            f"raised {type(error).__name__}: {error}"
        ) from error
