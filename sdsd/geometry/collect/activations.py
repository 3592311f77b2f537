"""What the neurons of a layer answer to the data a loader yields: collected by hooks, summed or kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from sdsd_kernels import checks

from ..._progress import Progress, reporter
from ...models import check_model, refuse_scripted_parts, running
from .collector import Collector
from .layer_activations import LayerActivations
from .model_call import Forward, batches_of, caller, check_loader
from .padding import Mask, Padding
from .selection import select_layers

MOST_BYTES = 2**31


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
    and what is summed together, whatever the number of samples; with `keep` the values themselves stay.

    The model runs in eval mode without gradients. Afterwards, whatever happened, Ctrl-C included, every module is in
    the mode it was in, no hook is left, and what its forward writes into buffers and attributes is as it was.

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
        max_bytes: bound on memory for all layers together: values, on a GPU twice as much while they are joined at the
            end, or sums with the samples that wait to be added, which are fewer where many layers share the bound.
            What the model itself takes to run comes on top.
        max_batches: stop after so many.
        neuron_dim: the dimension of the layers' outputs that counts neurons. None: that of the channels for
            convolutions, their norms and poolings, the last for Linear, LayerNorm and embeddings; for any other module
            (a ReLU that is named itself, say) the last of two or three dimensions and 1 from four up.
        device: where batches are moved; None: where the model's first parameter is.
        forward: (model, batch) → anything, where the model is not simply called on the batch; it moves the batch.
        mask: which positions are samples, the others being padding: the name of an entry of batches that are dicts, or
            a function batch → tensor; 0 or False where a position is padding.  # shape: (batch, positions)
            Masks of pairs of positions, (batch, heads, queries, keys), are read as well, and those that are added to
            scores, 0 and large negative numbers. None: the entry "attention_mask", where batches have one. False: every
            position is a sample. It applies to layers whose outputs have these positions in front, (batch, positions,
            neurons) or (positions, batch, neurons), or flattened from that; a batch with as many samples as positions
            is refused where no earlier one has told which come first. Others, a pooler's (batch, neurons) for example,
            are taken whole, with a note where they have other positions, or refused where a mask was asked for by name.
        progress: True for a line on standard error, or a function called with (batches done, batches in all).

    Returns:
        layer name → `LayerActivations`, in the model's order.

    Raises:
        TypeError: a model that is no module, or was scripted, traced or exported; a loader that gives no batches;
            layers that are no names; a forward that is no function; max_bytes that is no int; a batch the model cannot
            be called on; a layer whose output is no tensor of floating-point numbers.
        ValueError: a model on the meta device; a device that torch cannot use; no such layer (the nearest is
            suggested), or a pattern that matches none; a loader without a batch; a batch that the model does not run
            on; activations with a NaN or an infinity, or with another number of neurons than before, in which batch and
            layer; a layer that does not run; no nonlinearity behind a layer where one was asked for; max_bytes
            exceeded; a mask that is missing, of another shape, or leaves no sample in a batch; as many samples as
            positions, as above.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> batches = [(torch.randn(5, 3), None) for _ in range(4)]
        >>> found = collect_activations(model, batches, "0")
        >>> found["0"].taken_after, found["0"].samples, found["0"].cosine_matrix().shape
        ('relu', 20, torch.Size([8, 8]))
    """
    check_model(model, only_run=True)
    max_batches = check_loader(loader, max_batches)
    max_bytes = checks.check_max_bytes(max_bytes, optional=False)
    chosen, named = select_layers(model, layers)
    refuse_scripted_parts(chosen)
    run = caller(model, forward, device)
    collector = Collector(chosen, named, keep, max_bytes, neuron_dim, Padding(mask))
    report = reporter(progress, "collecting activations")
    with running(model):
        for done, batch in enumerate(batches_of(loader, max_batches, report), 1):
            if done == 1 and after_nonlinearity is not False:
                collector.look_for_nonlinearities(model, batch, run, required=bool(after_nonlinearity))
            collector.take(model, batch, run, done - 1)
    return collector.finished()
