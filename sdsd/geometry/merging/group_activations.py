"""What the readers of a group of neurons get, or what its members answer: samples of neurons, heads, channels."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sdsd_kernels import checks

from ..._progress import Progress, reporter
from ...graphs import CONVOLUTIONS, READER, TIED, listening
from ...models import plainly, running, unwritten
from ..collect import Forward, LayerActivations, Mask, ModelCall, Padding, batches_of, caller, check_loader
from ..gram import GramAccumulator
from .consumers import consumers
from .group import Consumers

READERS, MEMBERS = "readers", "members"
NOT_READ = (
    "what reads it did not run in these batches, in eval mode, or with a weight that is computed anew each time. Pass "
    "batches that reach it, or a model that holds such a weight as one parameter."
)


def group_activations(
    model: nn.Module,
    loader: Iterable[Any],
    layers: str | Sequence[str],
    *,
    of: str = READERS,
    example_input: Any = None,
    max_batches: int | None = None,
    forward: Forward | None = None,
    mask: Mask = None,
    progress: Progress = False,
) -> dict[str, LayerActivations]:
    """Collect what the neurons of groups answer, as sums of products: gated neurons, channels of a stream, heads.

    A neuron with several entries, a head of 64 features for example, is compared by all of them: each entry of each
    position is a sample.

    Args:
        model: any module; it runs in eval mode and without autocast, and is left as it was.
        loader: as in `collect_activations`.
        layers: names as in `consumers`; each stands for its group.
        of: "readers": what the first reader of the group multiplies, behind norms, gates and sums: for heads, their
            outputs. "members": the outputs of all layers that write the group, one behind the other.
        example_input: as in `consumers`; None: the first batch.
        max_batches, forward, mask: as in `collect_activations`. A mask leaves out positions of what has them in front,
            also flattened.
        progress: True for a line on standard error, or a function called with (batches done, batches in all).

    Returns:
        layer name → `LayerActivations`, whose `gram()` is what merge(…, how="absorb", gram=…) takes.

    Raises:
        TypeError, ValueError: as `consumers` and `collect_activations`; a group without a reader; "members" where a
            layer that writes is no Linear layer or convolution; a reader that a batch does not reach.
    """
    checks.check_choice(of, "of", (READERS, MEMBERS))
    run = caller(model, forward)
    loader = read_twice(loader, max_batches)
    if example_input is None and forward is None:
        example_input = example_of(model, loader)
    names = [layers] if isinstance(layers, str) else list(layers)
    groups = [consumers(model, name, example_input) for name in names]
    padding = Padding(mask)
    return collect_groups(
        model, loader, groups, run, of, max_batches=max_batches, padding=padding, progress=progress, all_run=True
    )


def read_twice(loader: Iterable[Any], max_batches: int | None) -> Iterable[Any]:
    """The loader, or the batches of one that gives them only once, as generators do."""
    max_batches = check_loader(loader, max_batches)
    return list(itertools.islice(loader, max_batches)) if isinstance(loader, Iterator) else loader


def example_of(model: nn.Module, loader: Iterable[Any]) -> Any:
    """The first batch of a loader, as the model is called on it."""
    call = ModelCall(model, None)
    batch = next(batches_of(loader, 1))
    if isinstance(batch, (tuple, list)) and batch:
        batch = batch[0]
    if isinstance(batch, Mapping):
        return {name: batch[name] for name in batch if call.takes_any or name in call.names}
    return batch


def collect_groups(
    model: nn.Module,
    loader: Iterable[Any],
    groups: Sequence[Consumers],
    run: Callable[[nn.Module, Any], Any],
    of: str,
    *,
    max_batches: int | None,
    padding: Padding,
    progress: Progress,
    all_run: bool = False,
) -> dict[str, LayerActivations]:
    """`group_activations` of groups that are known; autocast is off meanwhile.

    A group whose reader did not run is left out, or with `all_run` refused.
    """
    stores = [_Store(model, group, of, padding) for group in groups]
    report = reporter(progress, "activations of groups")
    done = 0
    with plainly(model), running(model):
        for done, batch in enumerate(batches_of(loader, max_batches, report), 1):
            padding.start(batch, done - 1)
            with unwritten(batch), _hearing(model, stores, of), padding.watching():
                run(model, batch)
    ran = [store for store in stores if all_run or store.sums is not None]
    notes = [store.note for store in ran if store.note]
    if notes:
        more = f" So is it among those of {len(notes) - 1} other layers." if len(notes) > 1 else ""
        warnings.warn(f"{notes[0]}.{more}", RuntimeWarning, stacklevel=3)
    return {store.group.layer: store.finished(done) for store in ran}


@contextmanager
def _hearing(model: nn.Module, stores: Sequence[_Store], of: str) -> Iterator[None]:
    if of == READERS:
        wanted: dict[tuple[str, int], list[_Store]] = {}
        for store in stores:
            wanted.setdefault(store.place, []).append(store)

        def heard(name: str, axis: int, tensor: Tensor, dim: int) -> None:
            for store in wanted.get((name, axis), ()):
                store.add(tensor, dim)

        with listening(model, heard):
            yield
        return
    with ExitStack() as stack:
        for store in stores:
            for place, writer in enumerate(store.group.writers):
                module = model.get_submodule(writer.name)
                dim = -(len(module.kernel_size) + 1) if isinstance(module, CONVOLUTIONS) else -1  # type: ignore[arg-type]

                def keep(_module: nn.Module, _inputs: Any, output: Tensor, store=store, place=place, dim=dim) -> None:  # type: ignore[no-untyped-def]
                    store.add(output, dim % output.ndim, place)

                stack.callback(module.register_forward_hook(keep).remove)
        yield


class _Store:
    """Sums of one group."""

    def __init__(self, model: nn.Module, group: Consumers, of: str, padding: Padding) -> None:
        self.group, self.padding = group, padding
        readers = group.of(READER) or group.of(TIED)
        if of == READERS and not readers:
            raise ValueError(f"layers: nothing that is known reads {group.layer!r}. Pass of='members'.\n{group}")
        self.place = (readers[0].name, readers[0].dim) if of == READERS else ("", 0)
        units = [readers[0].units] if of == READERS else [writer.neurons for writer in group.writers]
        if of == MEMBERS:
            wrong = [
                w.name for w in group.writers if not isinstance(model.get_submodule(w.name), (nn.Linear, *CONVOLUTIONS))
            ]
            if wrong:
                raise ValueError(f"of: 'members' needs layers with an output of their own; {wrong[0]!r} is none.")
        self.orders = [each.argsort(stable=True)[int((each < 0).sum()) :] for each in units]
        self.what = self.place[0].rpartition(".")[0] if of == READERS else ", ".join(w.name for w in group.writers)
        self.samples = 0
        self.note = ""
        self.sums: GramAccumulator | None = None

    def add(self, tensor: Tensor, dim: int, place: int = 0) -> None:
        order = self.orders[place].to(tensor.device)
        layer = self.group.layer
        rows, last = self.padding.without(tensor, dim, layer, f"layer {layer!r}")
        if self.padding.left_in:
            self.note = f"layer {layer!r}: what is compared {self.padding.left_in}"
        picked = rows.detach().movedim(last, 0).index_select(0, order)  # shape: (neurons × entries, …)
        picked = picked.reshape(self.group.neurons, -1)
        if self.sums is None:
            dtype = torch.float64 if picked.dtype == torch.float64 else torch.float32
            self.sums = GramAccumulator(self.group.neurons, center=True, dtype=dtype, device=picked.device)
        self.samples += picked.shape[1]
        self.sums.update(picked, neuron_dim=0)

    def finished(self, batches: int) -> LayerActivations:
        if self.sums is None:
            raise ValueError(f"layers: {self.group.layer!r} in {batches} batches: {NOT_READ}")
        read_by = f"read by {self.what}"
        return LayerActivations(self.group.layer, read_by, self.group.neurons, self.samples, self.sums, note=self.note)
