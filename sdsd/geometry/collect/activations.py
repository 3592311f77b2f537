"""What the neurons of a layer answer to the data a loader yields: collected by hooks, summed or kept."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sdsd_kernels import checks

from ..._progress import Progress, reporter
from ...models import evaluating
from ..cosines import alive_from_norms, neuron_cosine_matrix
from ..gram import GramAccumulator
from .nonlinearity import Choice, Path, ReadersFollower, Reading, choose, path_name
from .padding import Mask, Padding

MOST_BYTES = 2**31
OUTPUT = "output"

SECOND_DIM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm)
LAST_DIM = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding)

Forward = Callable[[nn.Module, Any], Any]
"""(model, batch) → anything: runs the model on a batch."""


@dataclass(frozen=True, eq=False)
class LayerActivations:
    """The activations of one layer over all samples, as sums of products or as they were.

    Attributes:
        layer: the layer's name.
        taken_after: "output" for the layer's own output, else what its readers get: "relu" for example, or
            "sigmoid → mul", the functions from the nonlinearity on.
        neurons: how many.
        samples: inputs × positions: pixels of a convolution, tokens of a sequence, without padding.
        sums: the accumulated products of every pair of neurons; None where values were kept.
        values: None where only sums were kept.  # shape: (samples, neurons)
        note: what readers get other than what was taken; "" where they get that.
    """

    layer: str
    taken_after: str
    neurons: int
    samples: int
    sums: GramAccumulator | None = field(default=None, repr=False)
    values: Tensor | None = field(default=None, repr=False)
    note: str = ""

    def cosine_matrix(self, *, center: bool = False) -> Tensor:
        """Cosine of every pair of neurons, as `neuron_cosine_matrix` promises it.  # shape: (n, n)"""
        if self.values is not None:
            return neuron_cosine_matrix(self.values, center=center)
        assert self.sums is not None
        return self.sums.cosine_matrix(center=center)

    def norms(self) -> Tensor:
        """√(Σ_s a_s²) of every neuron.  # shape: (n,), float64"""
        if self.values is not None:
            return torch.linalg.vector_norm(self.values, dim=0, dtype=torch.float64)
        assert self.sums is not None
        return self.sums.norms(center=False)

    def gram(self) -> Tensor:
        """Σ_s a_si a_sj, not centred: what merge(…, how="absorb", gram=…) takes.  # shape: (n, n), float64"""
        if self.values is not None:
            values = self.values.double()
            return values.T @ values
        assert self.sums is not None
        return self.sums.gram(center=False)

    @property
    def alive(self) -> Tensor:
        """False for dead neurons: those whose norm is below 1e-3 of the layer's largest.  # shape: (n,), bool"""
        return alive_from_norms(self.norms())

    @property
    def dead(self) -> list[int]:
        """The neurons that are not `alive`."""
        return (~self.alive).nonzero().flatten().tolist()


def collect_activations(
    model: nn.Module,
    loader: Iterable[Any],
    layers: str | Sequence[str],
    *,
    after_nonlinearity: bool | None = None,
    keep: bool = False,
    max_bytes: int = MOST_BYTES,
    max_batches: int | None = None,
    neuron_dim: int | None = None,
    device: torch.device | str | None = None,
    forward: Forward | None = None,
    mask: Mask = None,
    progress: Progress = False,
) -> dict[str, LayerActivations]:
    """Run a model over a loader and collect what the neurons of some of its layers answer.

    Every position is a sample: the pixels of a convolution's output (channels are its neurons), the tokens of a
    sequence (the last dimension counts neurons). Sums of products are accumulated batch by batch, 8 n² bytes a layer
    whatever the number of samples; with `keep` the values themselves stay.

    The model runs in eval mode without gradients. Afterwards, whatever happened, Ctrl-C included, every module is in
    the mode it was in and no hook is left.

    Args:
        model: any module.
        loader: batches: a tensor, a tuple or list whose first part is the model's input, or a dict of its keyword
            arguments, entries that its forward does not name (labels, say) left out.
        layers: names as in `model.named_modules()`, or patterns as in `fnmatch` ("features.*"), which match modules
            that contain no others. A pattern's modules that never run, or give no tensor, are left out with a warning.
        after_nonlinearity: take what the layer's readers get, followed from its output through elementwise functions,
            norms, sums with other tensors, in place or not, gates, dropout, poolings, views and transposes, if there is
            a nonlinearity on the way: "behind the nonlinearity". Poolings and layouts that follow it are left out.
            Where later readers get it after further steps, as along a residual stream, what the first get is taken.
            None: where there is such a value; where there is not, and the readers get something else than the layer's
            own output (it is only added to something, say, or they get it in different ways), the own output is taken
            and a RuntimeWarning and `LayerActivations.note` say so. True: an error instead. False: the own output.
        keep: keep values instead of sums.  # shape: (samples, neurons) a layer
        max_bytes: bound on what is kept for all layers together, values or sums.
        max_batches: stop after so many.
        neuron_dim: the dimension of the layers' outputs that counts neurons. None: that of the channels for
            convolutions, their norms and poolings, the last for Linear, LayerNorm and embeddings; for any other module
            (a ReLU that is named itself, say) the last of two or three dimensions and 1 from four up.
        device: where batches are moved; None: where the model's first parameter is.
        forward: (model, batch) → anything, where the model is not simply called on the batch; it moves the batch.
        mask: which positions are samples, the others being padding: the name of an entry of batches that are dicts, or
            a function batch → tensor; 0 or False where a position is padding.  # shape: (batch, positions)
            None: the entry "attention_mask", where batches have one. False: every position is a sample. It applies to
            layers whose outputs have these positions in front, (batch, positions, neurons) or flattened; others, a
            pooler's (batch, neurons) for example, are taken whole, or refused where a mask was asked for by name.
        progress: True for a line on standard error, or a function called with (batches done, batches in all).

    Returns:
        layer name → `LayerActivations`, in the model's order.

    Raises:
        TypeError: a model that is no module; layers that are no names; a batch the model cannot be called on; a layer
            whose output is no tensor of floating-point numbers.
        ValueError: no such layer (the nearest is suggested), or a pattern that matches none; a loader without a batch;
            a batch that the model does not run on; activations with a NaN or an infinity, or with another number of
            neurons than before, in which batch and layer; a layer that does not run; no nonlinearity behind a layer
            where one was asked for; max_bytes exceeded; a mask that
            is missing, of another shape, or leaves no sample in a batch.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> batches = [(torch.randn(5, 3), None) for _ in range(4)]
        >>> found = collect_activations(model, batches, "0")
        >>> found["0"].taken_after, found["0"].samples, found["0"].cosine_matrix().shape
        ('relu', 20, torch.Size([8, 8]))
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}.")
    max_batches = checks.check_count(max_batches, "max_batches", optional=True)
    chosen, named = select_layers(model, layers)
    run = forward or ModelCall(model, device)
    collector = _Collector(chosen, named, keep, max_bytes, neuron_dim, Padding(mask))
    report = reporter(progress, "collecting activations")
    total = _length(loader, max_batches)
    done = 0
    with evaluating(model):
        for batch in loader:
            if done == 0 and after_nonlinearity is not False:
                collector.look_for_nonlinearities(model, batch, run, required=bool(after_nonlinearity))
            collector.take(model, batch, run, done)
            done += 1
            report(done, total or done)
            if done == max_batches:
                break
    if done == 0:
        raise ValueError(
            "loader: expected at least one batch, got none. A generator is empty after its first reading; pass a list "
            "or a DataLoader."
        )
    return collector.finished()


def select_layers(model: nn.Module, layers: str | Sequence[str]) -> tuple[dict[str, nn.Module], set[str]]:
    """The modules that names and patterns stand for, in the model's order; and which of them were named outright."""
    wanted = [layers] if isinstance(layers, str) else list(layers)
    if not wanted or not all(isinstance(name, str) for name in wanted):
        raise TypeError(f"layers: expected the name of a layer, or a sequence of names, got {layers!r}.")
    modules = {name: module for name, module in model.named_modules(remove_duplicate=False) if name}
    leaves = [name for name, module in model.named_modules() if name and not any(module.children())]
    named, found = set(), set()
    for name in wanted:
        if name in modules:
            named.add(name)
        elif any(character in name for character in "*?["):
            matched = fnmatch.filter(leaves, name)
            if not matched:
                raise ValueError(f"layers: no layer matches the pattern {name!r}. {_known(leaves)}")
            found.update(matched)
        else:
            near = difflib.get_close_matches(name, modules, n=1, cutoff=0.0)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"layers: the model has no layer {name!r}.{hint} {_known(leaves)}")
    return {name: module for name, module in modules.items() if name in named | found}, named


def _known(names: Sequence[str]) -> str:
    return f"Its layers: {', '.join(names[:12])}{', …' if len(names) > 12 else ''}."


def _length(loader: Iterable[Any], max_batches: int | None) -> int | None:
    try:
        length = len(loader)  # type: ignore[arg-type]
    except TypeError:
        return max_batches
    return length if max_batches is None else min(length, max_batches)


class ModelCall:
    """Calls the model on a batch as loaders give it."""

    def __init__(self, model: nn.Module, device: torch.device | str | None) -> None:
        if device is None:
            first = next(model.parameters(), next(model.buffers(), None))
            device = "cpu" if first is None else first.device
        self.device = torch.device(device)
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


class _Collector:
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
        self.stores: dict[str, _Store] = {}
        self.padding = padding
        self.after: dict[str, Path] = {}  # how what readers get comes from the layer's output
        self.notes: dict[str, str] = {}
        self.unfit: dict[str, str] = {}  # layers of a pattern that give no values, and why
        self.bytes = 0

    def look_for_nonlinearities(self, model: nn.Module, batch: Any, run: Forward, required: bool) -> None:
        """Run a batch once and note what the readers of each layer get."""
        follower = ReadersFollower()
        with self._following(follower, set(self.chosen)):
            _run(model, batch, run, 0)
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
        with self._following(ReadersFollower(made), set(self.after)), ExitStack() as stack:
            for name, module in self.chosen.items():
                if name not in self.after:
                    hook = module.register_forward_hook(lambda _m, _i, output, name=name: store(name, output))
                    stack.callback(hook.remove)
            _run(model, batch, run, number)
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
        value, dim = self.padding.without(value, dim, where)
        if value.numel() == 0:
            return
        _check_finite(value, dim, where)
        neurons = value.shape[dim]
        if name not in self.stores:
            self.stores[name] = self._new_store(name, neurons, value)
        store = self.stores[name]
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

    def _new_store(self, name: str, neurons: int, value: Tensor) -> _Store:
        if self.keep:
            return _Store(neurons, None)
        self._reserve(8 * neurons * neurons, f"layer {name!r} of {neurons} neurons")
        dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
        return _Store(neurons, GramAccumulator(neurons, center=True, dtype=dtype, device=value.device))

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
        found = {}
        for name in self.chosen:
            if name in self.stores:
                store = self.stores.pop(name)
                after = path_name(self.after[name]) if name in self.after else OUTPUT
                found[name] = LayerActivations(
                    name, after, store.neurons, store.samples, store.sums, store.joined(), notes.get(name, "")
                )
        return found


class _Store:
    """The activations of one layer so far."""

    def __init__(self, neurons: int, sums: GramAccumulator | None) -> None:
        self.neurons, self.sums, self.samples = neurons, sums, 0
        self.parts: list[Tensor] = []

    def add(self, value: Tensor, dim: int) -> None:
        self.samples += value.numel() // self.neurons
        if self.sums is not None:
            self.sums.update(value, neuron_dim=dim)
            return
        rows = value.detach().movedim(dim, -1).flatten(0, -2)  # shape: (samples, neurons)
        # What comes next may write into the layer's output.
        self.parts.append(rows.clone() if rows.data_ptr() == value.data_ptr() else rows)

    def joined(self) -> Tensor | None:
        if self.sums is not None:
            return None
        values, self.parts = torch.cat(self.parts), []
        return values


def _spatial_dims(module: nn.Module) -> int:
    """2 for Conv2d, MaxPool2d and what derives from them; 0 where torch.nn says nothing."""
    for kind in type(module).__mro__:
        found = re.search(r"([123])d$", kind.__name__) if kind.__module__.startswith("torch.nn.") else None
        if found:
            return int(found[1])
    return 0


def _check_finite(value: Tensor, dim: int, where: str) -> None:
    if bool(torch.stack(torch.aminmax(value.detach())).isfinite().all()):
        return
    wrong = (~value.isfinite()).movedim(dim, 0).flatten(1).any(1).nonzero().flatten().tolist()
    raise ValueError(
        f"{where}: expected finite activations, got a NaN or an infinity in {len(wrong)} of {value.shape[dim]} neurons "
        f"(first: {wrong[:5]}). Check the inputs of that batch and the model's weights."
    )


def _run(model: nn.Module, batch: Any, run: Forward, number: int) -> None:
    try:
        run(model, batch)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(
            f"batch {number}: expected inputs that the model runs on, got shape {_shape_of(batch)}, and the model "
            f"raised {type(error).__name__}: {error}"
        ) from error
