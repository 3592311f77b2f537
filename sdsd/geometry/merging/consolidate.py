"""Merging neurons for good: fewer rows in a layer, fewer columns in the layers that read it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from sdsd_kernels import checks

from .consumers import consumers
from .cutting import copied, cut, given_back, shrink, sizes_of_model
from .edits import Pairs, applied, apply, checked_neurons
from .foretold import foretold_change, products_of
from .group import Consumers
from .merger import How, Merger, absorption_from, check_how, refuse_tied
from .norms import REPEAT, Norms, refuse_across_groups, repeat_norms, with_norms_apart
from .proof import prove, zeroed
from .reports import Consolidation

if TYPE_CHECKING:
    import numpy as np


@torch.inference_mode(False)
def consolidate(
    model: nn.Module,
    layer: str,
    pairs: Pairs,
    how: How = "mean",
    *,
    remove: bool = True,
    norms: Norms = "refuse",
    inplace: bool = False,
    activations: Tensor | np.ndarray | None = None,
    gram: Tensor | np.ndarray | None = None,
    neuron_dim: int | None = None,
    example_input: Any = None,
    check: bool = True,
) -> tuple[nn.Module, Consolidation]:
    """Merge pairs (i, j) of neurons for good and take j out of the network.

    The smaller network computes what `merge` makes the whole one compute, in eval mode and to rounding:

        "mean"    row i becomes the average of both, and readers add o_j to o_i, for both neurons are the same
        "absorb"  row i stays, and readers add o_j ⟨a_i, a_j⟩ / ⟨a_i, a_i⟩ to o_i

    "act" averages two activations that stay different, so nothing can be removed; use it with remove=False.

    Before it is returned, both are run on the same inputs, in eval mode and as in training without dropout and with
    running statistics, and compared: on `example_input`, on other sizes and values where the forward decides by them,
    and on random numbers of its shapes, or without an example on random numbers of a shape that the model runs on. They
    may differ by 64 times what one rounding error in each weight of the layer and its readers does.

    Args:
        model: any model whose readers of `layer` are known (`consumers` prints them).
        layer, pairs, how, activations, gram, neuron_dim: as in `merge`. With activations or gram the report says what
            the readers will get other than now, whatever `how`.
        remove: False merges for good and keeps the shapes.
        norms: what becomes of norms over all neurons, as LayerNorm over a residual stream. "refuse": their mean and
            variance would be others, so nothing is removed. "repeat", for how="mean": each becomes a `RepeatedNorm`,
            which shows it the merged neurons twice, and before a tied head gives their sum. It keeps its parameters,
            under "norm." in its place, so the model's class and configuration no longer build it: save it with
            torch.save, whole.
        inplace: change `model` instead of a copy. An optimizer has to be made anew then: parameters are new tensors.
            A call that fails leaves the model as it was.
        example_input: as in `consumers`; with it FLOPs are counted, too.
        check: False: do not compare.

    Returns:
        (model, `Consolidation`). The model is made of the same modules as before with fewer rows and columns, so
        state_dict, torch.export, pickling and training work as before. With norms="repeat" the same holds, but for the
        class of these norms.

    Raises:
        TypeError, ValueError: as `merge`; removal where the neurons are read by something that cannot be cut, with
            the place, the reason and what to do; a smaller network that computes something else than the merged one,
            or does not run, with the first module where they part.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> smaller, report = consolidate(model, "0", [(0, 2), (1, 3)], example_input=torch.ones(1, 3))
        >>> print(smaller)
        Sequential(
          (0): Linear(in_features=3, out_features=2, bias=True)
          (1): ReLU()
          (2): Linear(in_features=2, out_features=2, bias=True)
        )
        >>> print(report)
        '0': 2 pairs merged (how='mean')
          neurons    4 → 2 (−50.0%)
          parameters 26 → 14 (−46.2%)
          FLOPs      40 → 20 (−50.0%)
          outputs    equal to the merged network's, to rounding
    """
    group = consumers(model, layer, example_input)
    check_how(how)
    absorption = absorption_from(model, group, activations, gram, neuron_dim) if how == "absorb" else None
    if remove and how == "act":
        raise ValueError(
            "how: 'act' averages two activations that stay different, so neither neuron can be removed. Pass "
            "remove=False, or how='mean' or 'absorb'."
        )
    checks.check_choice(norms, "norms", ("refuse", REPEAT))
    fewer = group
    if remove and norms == REPEAT:
        if how != "mean":
            raise ValueError(f"norms: 'repeat' needs how='mean', which makes both neurons the same; got how={how!r}.")
        fewer = with_norms_apart(model, group)
    if remove:
        fewer.require("Removing neurons", removal=True)
    if remove and fewer is group:
        refuse_tied(group, "removal")
    merger = Merger(model, group, how, absorption)
    checked = merger.checked(pairs)
    listed = [(i, j) for i, j in torch.stack(checked, 1).tolist()]
    sizes = sizes_of_model(model, example_input)
    if fewer is not group:
        refuse_across_groups(model, group, checked)
    edits = merger.edits(checked)
    known = products_of(model, group, activations, gram, neuron_dim)
    foretold = None if known is None else foretold_change(model, group, checked, how, known)
    if not remove:
        changed = model if inplace else copied(model, [group], sharing=False)
        apply(Merger(changed, group, how, absorption).edits(checked))
        report = _report(group, how, listed, [], before=sizes, after=sizes, compared=False)
        return changed, replace(report, foretold=foretold)
    smaller = copied(model, [group], inplace)
    shrink(smaller, [(fewer, Merger(smaller, group, how, absorption), checked)])
    if fewer is not group:
        repeat_norms(smaller, group, checked)
    compared = check and prove(model, smaller, group.parts, applied(edits), example_input)
    removed = [j for _, j in listed]
    after = sizes_of_model(smaller, example_input)
    report = _report(group, how, listed, removed, before=sizes, after=after, compared=compared)
    return given_back(model, smaller, [group], inplace), replace(report, foretold=foretold)


@torch.inference_mode(False)
def remove_neurons(
    model: nn.Module,
    layer: str,
    neurons: Iterable[int],
    *,
    inplace: bool = False,
    example_input: Any = None,
    check: bool = True,
) -> tuple[nn.Module, Consolidation]:
    """Take neurons out of the network without a substitute, as pruning does; arguments and results of `consolidate`.

    The smaller network computes what the whole one does with the columns of these neurons in their readers set to 0.

    Args:
        neurons: indices of rows of the layer, each once, not all.

    Raises:
        TypeError, ValueError: as `consolidate`; an index that is out of range or listed twice; removing all.
    """
    group = consumers(model, layer, example_input)
    group.require("Removing neurons", removal=True)
    removed = checked_neurons(neurons, group.neurons)
    sizes = sizes_of_model(model, example_input)
    smaller = copied(model, [group], inplace)
    cut(smaller, [(group, removed)])
    compared = check and prove(model, smaller, group.parts, applied(zeroed(model, group, removed)), example_input)
    after = sizes_of_model(smaller, example_input)
    report = _report(group, "", [], removed, before=sizes, after=after, compared=compared)
    return given_back(model, smaller, [group], inplace), report


def _report(
    group: Consumers,
    how: How | Literal[""],
    pairs: list[tuple[int, int]],
    removed: list[int],
    *,
    before: tuple[int, int | None],
    after: tuple[int, int | None],
    compared: bool,
) -> Consolidation:
    flops = None if before[1] is None or after[1] is None else (before[1], after[1])
    neurons = (group.neurons, group.neurons - len(removed))
    return Consolidation(
        group.layer, how, tuple(pairs), tuple(removed), neurons, (before[0], after[0]), flops, compared
    )
