"""One call over all layers of a model: pairs by a threshold or to a budget, one smaller network."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

from ..._progress import Progress
from ..collect import Forward, Mask
from .group_activations import example_of, read_twice
from .merger import How
from .norms import Norms
from .planning import Uniform, plan_consolidation
from .reports import ModelConsolidation
from .rows import Patterns
from .sensitivity import LossFunction, Sensitivity


def consolidate_model(
    model: nn.Module,
    loader: Iterable[Any],
    layers: Patterns = "*",
    *,
    exclude: Patterns = (),
    experts: Patterns = (),
    by: Literal["cosine", "cost"] = "cosine",
    above: float | None = None,
    below: float | None = None,
    budget: float | None = None,
    uniform: Uniform = False,
    multiple: int = 1,
    how: How = "mean",
    norms: Norms = "refuse",
    loss: tuple[Iterable[Any], LossFunction] | None = None,
    evaluate: Sensitivity | tuple[Iterable[Any], LossFunction] | None = None,
    inplace: bool = False,
    example_input: Any = None,
    max_batches: int | None = None,
    forward: Forward | None = None,
    mask: Mask = None,
    check: bool = True,
    progress: Progress = False,
) -> tuple[nn.Module, ModelConsolidation]:
    """Merge neurons of all layers, and take one of each pair out of the network.

    The model is recorded once and the data read once: for every group of layers the similarity of its neurons is that
    of what their readers get. A neuron is what `consumers` says: of projections of attention a head, or a group of keys
    and values with its queries. Pairs are disjoint, the most similar or the cheapest first. Then one smaller network is
    cut, and proved against the merged one as `consolidate` does it. `plan_consolidation` takes the same arguments, says
    beforehand what would go, and can be kept in a file and carried out later.

    Args:
        model: not changed, unless `inplace`. A call that fails or is interrupted leaves it as it was in any case.
        loader: batches as in `collect_activations`. One that gives them only once, a generator, is read once and kept.
        layers: names or patterns as in `fnmatch` ("model.layers.*.mlp.*"); layers whose neurons cannot be removed are
            left as they are, with the reason in the report.
        exclude: names or patterns of layers that stay, with all that is coupled to them.
        experts: names or patterns of mixtures, as in `expert_cosine` ("model.layers.*.mlp.experts"), of which experts
            may go, too: of the two whose answers are most alike the second, as `remove_experts` does it. At most half
            of them, and as many stay as a token is sent to. With by="cosine".
        by: "cosine": the pairs most similar in direction; "cost": those whose merging is foretold to change least in
            what the readers get, over what they get in all, by parameter saved (`merge_cost`).
        above: merge every pair whose cosine is at least this. With by="cosine".
        below: merge every pair whose foretold cost is at most this: the root mean square change of what the readers
            get, over what they get; with `loss` the rise of the loss. With by="cost".
        budget: merge pairs of all layers until the model has lost this share of its parameters, or this many if it is
            an int, or there are no more pairs. At most half of a layer's neurons go. With a threshold as well,
            whichever ends first.
        uniform: layers with as many neurons and the same last part of their names lose equally many, the mean of what
            they would lose and at least one if any does, so that one number in a configuration can say it; see
            `fit_config`. "share": layers with the same last part of their names lose the same share, whatever their
            sizes, as one mlp_ratio says it.
        multiple: as many features stay in a layer, and in what its readers get, as a multiple of this, for the sake of
            the hardware, or nothing goes from it; grouped products of experts take only multiples of 16 bytes.
        how: "mean" | "absorb", as in `consolidate`.
        norms: "refuse" | "repeat", as in `consolidate`: "repeat" cuts residual streams behind norms, too.
        loss: (loader, loss_fn) as in `outgoing_weights`: costs are rises of this loss, to second order, and so
            comparable between layers; layers that are read by what has no output of its own stay. With by="cost".
        evaluate: a function of the model that gives a number, or (loader, loss_fn) as in `biopsy`: asked before, after,
            and with each layer's pairs merged alone, in eval mode.
        inplace: change `model` instead of a copy. An optimizer has to be made anew then.
        example_input: as in `consumers`; None: the first batch.
        max_batches, forward, mask: as in `collect_activations`.
        check: False: do not compare.
        progress: True for lines on standard error, or a function called with (done, total): batches, then layers, then
            steps of cutting.

    Returns:
        (model, `ModelConsolidation`), which prints as a table and is written as JSON or as a page.

    Raises:
        TypeError, ValueError: as `consolidate`; neither a threshold nor a budget, or the other choice's; a pattern that
            nothing matches; a model of which no layer can be cut.
    """
    loader = read_twice(loader, max_batches)
    if example_input is None:
        example_input = example_of(model, loader)
    plan = plan_consolidation(
        model,
        loader,
        layers,
        exclude=exclude,
        experts=experts,
        by=by,
        above=above,
        below=below,
        budget=budget,
        uniform=uniform,
        multiple=multiple,
        how=how,
        norms=norms,
        loss=loss,
        example_input=example_input,
        max_batches=max_batches,
        forward=forward,
        mask=mask,
        progress=progress,
    )
    return plan.carry_out(
        model, example_input=example_input, evaluate=evaluate, inplace=inplace, check=check, progress=progress
    )
