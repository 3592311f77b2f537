"""Values of a model's layers, taken out of its forward passes into one store a layer."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...graphs import Plain, outputs, seeded
from ...models import untouched
from ..gram import GramAccumulator, scratch_bytes, triangles_bytes
from .choice import Choice, Path, Reading, choose, path_name
from .kept import Store
from .layer_activations import LayerActivations
from .model_call import Forward, run_batch
from .nonlinearity import ReadersFollower
from .padding import Padding

OUTPUT = "output"
LEAST_TOGETHER = 128
"""Samples that are added to a layer's sums together where many layers share `max_bytes`, if their shares suffice."""

SECOND_DIM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm)
LAST_DIM = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding)


class Collector:
    """Takes values of chosen layers out of forward passes, into one store a layer."""

    def __init__(
        self,
        chosen: dict[str, nn.Module],
        named: set[str],
        keep: bool,
        max_bytes: int,
        neuron_dim: int | None,
        padding: Padding,
    ) -> None:
        self.chosen, self.named, self.keep, self.max_bytes, self.neuron_dim = chosen, named, keep, max_bytes, neuron_dim
        self.stores: dict[str, Store] = {}
        self.padding = padding
        self.after: dict[str, Path] = {}  # how what readers get comes from the layer's output
        self.notes: dict[str, str] = {}
        self.unfit: dict[str, str] = {}  # layers of a pattern that give no values, and why
        self.bytes = 0

    def look_for_nonlinearities(self, model: nn.Module, batch: Any, run: Forward, required: bool) -> None:
        """Run a batch once and note what the readers of each layer get."""
        follower = ReadersFollower(self._dim)
        devices = list({each.device for each in (*model.parameters(), *model.buffers()) if each.device.type == "cuda"})
        with untouched(model), seeded(None, devices), self._following(follower, set(self.chosen)):
            given: list[Any] = []
            hook = model.register_forward_hook(lambda _module, _inputs, output: given.append(output))
            try:
                given.append(run_batch(model, batch, run, 0))
            finally:
                hook.remove()
            follower.given_back(outputs(given))
        seen: dict[str, list[Reading]] = {}
        for reading in follower.readings:
            seen.setdefault(reading.layer, []).append(reading)
        choices = {name: choose(name, seen[name]) if name in seen else Choice(None) for name in self.chosen}
        self.after = {name: choice.path for name, choice in choices.items() if choice.path is not None}
        self.notes = {name: choice.note for name, choice in choices.items() if choice.note}
        missing = [name for name in self.chosen if name not in self.after]
        if required and missing:
            why = f": {self.notes[missing[0]]}" if missing[0] in self.notes else ""
            raise ValueError(
                f"after_nonlinearity: expected a nonlinearity behind every layer, and saw none behind {missing[0]!r}"
                f"{f' and {len(missing) - 1} others' if len(missing) > 1 else ''}{why}. Name the module that follows "
                "it as the layer, or pass after_nonlinearity=False."
            )

    def take(self, model: nn.Module, batch: Any, run: Forward, number: int) -> None:
        """Run batch `number` and store what the layers give."""
        seen: set[str] = set()

        def store(name: str, value: Any) -> None:
            seen.add(name)
            self._store(name, value, number)

        def made(reading: Reading, path: Path, value: Callable[[], Tensor]) -> None:
            if not reading.taken and path == self.after[reading.layer]:
                reading.taken = True
                store(reading.layer, value())

        self.padding.start(batch, number)
        with self._following(ReadersFollower(self._dim, made), set(self.after)), ExitStack() as stack:
            for name, module in self.chosen.items():
                if name not in self.after:
                    hook = module.register_forward_hook(lambda _m, _i, output, name=name: store(name, output))
                    stack.callback(hook.remove)
            stack.enter_context(self.padding.watching())
            stack.enter_context(Plain())  # torch's encoder gives nested tensors otherwise
            run_batch(model, batch, run, number)
        for name in self.chosen:
            if name not in seen and name not in self.unfit:
                behind = f", or not up to its {path_name(self.after[name])}" if name in self.after else ""
                self._refuse(name, ValueError(f"layer {name!r} did not run in batch {number}{behind}"))

    @contextmanager
    def _following(self, follower: ReadersFollower, names: set[str]) -> Iterator[None]:
        """Let `follower` follow the outputs of these layers."""
        with ExitStack() as stack:
            if names:
                stack.enter_context(follower)
                for name in names:
                    stack.callback(self.chosen[name].register_forward_hook(follower.hook(name)).remove)
            yield

    def _store(self, name: str, value: Any, number: int) -> None:
        if name in self.unfit:
            return
        if isinstance(value, (tuple, list)) and value:
            value = value[0]
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim < 1:
            got = f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            self._refuse(
                name, TypeError(f"layer {name!r}: expected a tensor of floating-point numbers as its output, got {got}")
            )
            return
        value = value if value.ndim > 1 else value[None]
        dim = self._dim(name, value)
        where = f"batch {number}, layer {name!r}"
        if value.numel() == 0:
            raise ValueError(f"{where}: expected samples, got shape {tuple(value.shape)}. Leave empty batches out.")
        value, dim = self.padding.without(value, dim, name, where)
        if self.padding.left_in:
            self.notes.setdefault(name, f"layer {name!r} {self.padding.left_in}")
        _check_finite(value, dim, where)
        neurons = value.shape[dim]
        if name not in self.stores:
            self.stores[name] = self._new_store(name, neurons, value)
        store = self.stores[name]
        if neurons != store.neurons and name not in self.named:
            self.unfit[name] = f"layer {name!r} is called with {store.neurons} and with {neurons} neurons"
            return
        if neurons != store.neurons:
            raise ValueError(
                f"{where}: expected {store.neurons} neurons as before, got {neurons} (shape {tuple(value.shape)}, "
                f"dimension {dim} counts neurons). Name another dimension with neuron_dim."
            )
        if self.keep:
            self._reserve(value.numel() * value.element_size(), where)
        store.add(value, dim)

    def _dim(self, name: str, value: Tensor) -> int:
        if self.neuron_dim is not None:
            if not -value.ndim <= self.neuron_dim < value.ndim:
                raise ValueError(
                    f"neuron_dim: expected {-value.ndim} to {value.ndim - 1} for the output of layer {name!r}, of "
                    f"shape {tuple(value.shape)}, got {self.neuron_dim}."
                )
            return self.neuron_dim
        module = self.chosen[name]
        if isinstance(module, SECOND_DIM):
            return 1
        if isinstance(module, LAST_DIM):
            return -1
        spatial = _spatial_dims(module)
        return -(spatial + 1) if spatial else (1 if value.ndim >= 4 else -1)

    def _new_store(self, name: str, neurons: int, value: Tensor) -> Store:
        if self.keep:
            return Store(neurons, None)
        dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
        sums, wanted = triangles_bytes(neurons), scratch_bytes(neurons, dtype)
        left, sample = self.max_bytes - self.bytes, 32 * neurons
        each = left // (len(self.chosen) - len(self.stores)) - sums
        scratch = max(sample, min(wanted, max(min(LEAST_TOGETHER * sample, each), each // 4), left - sums))
        self._reserve(sums + scratch, f"layer {name!r} of {neurons} neurons")
        bound = None if scratch == wanted else scratch
        return Store(neurons, GramAccumulator(neurons, center=True, dtype=dtype, device=value.device, max_bytes=bound))

    def _reserve(self, size: int, what: str) -> None:
        self.bytes += size
        if self.bytes > self.max_bytes:
            advice = "pass keep=False, which keeps sums only" if self.keep else "collect fewer layers at a time"
            raise ValueError(
                f"max_bytes: {what} brings what is kept to {self.bytes:,} bytes, more than {self.max_bytes:,}. "
                f"Allow more, or {advice}, or take fewer batches (max_batches)."
            )

    def _refuse(self, name: str, error: Exception) -> None:
        """Raise for a layer that was named; leave one out that only a pattern matched."""
        if name in self.named:
            raise type(error)(f"{error}. Name a layer that does.")
        self.unfit[name] = str(error)

    def finished(self) -> dict[str, LayerActivations]:
        for name, why in self.unfit.items():
            self.stores.pop(name, None)
            warnings.warn(f"{why}; it is left out.", RuntimeWarning, stacklevel=3)
        if not self.stores:
            raise ValueError("layers: none of the layers that the patterns match gave activations.")
        notes = {name: note for name, note in self.notes.items() if name in self.stores}
        if notes:
            more = f" So are those of {len(notes) - 1} other layers." if len(notes) > 1 else ""
            warnings.warn(f"{next(iter(notes.values()))}.{more}", RuntimeWarning, stacklevel=3)
        collected = {}
        for name in self.chosen:
            if name in self.stores:
                store = self.stores.pop(name)
                after = path_name(self.after[name]) if name in self.after else OUTPUT
                collected[name] = LayerActivations(
                    name, after, store.neurons, store.samples, store.sums, store.joined(), notes.get(name, "")
                )
        return collected


def _spatial_dims(module: nn.Module) -> int:
    """2 for Conv2d, MaxPool2d and what derives from them; 0 where torch.nn says nothing."""
    for kind in type(module).__mro__:
        match = re.search(r"([123])d$", kind.__name__) if kind.__module__.startswith("torch.nn.") else None
        if match:
            return int(match[1])
    return 0


def _check_finite(value: Tensor, dim: int, where: str) -> None:
    if bool(torch.stack(torch.aminmax(value.detach())).isfinite().all()):
        return
    wrong = (~value.isfinite()).movedim(dim, 0).flatten(1).any(1).nonzero().flatten().tolist()
    raise ValueError(
        f"{where}: expected finite activations, got a NaN or an infinity in {len(wrong)} of {value.shape[dim]} neurons "
        f"(first: {wrong[:5]}). Check the inputs of that batch and the model's weights."
    )
