"""One call over all layers of a model: pairs by a threshold of similarity or to a budget, one smaller network."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from torch import nn

from sdsd_kernels import checks

from ..._progress import Progress
from ...graphs import DENSE, WRITER, Groups, look
from ..collect import Forward, LayerActivations, Mask, ModelCall, Padding
from ..cosines import disjoint_pairs
from .consolidate import copied, given_back, shrink, sizes_of_model
from .consumers import Consumers, consumers
from .group_activations import READERS, collect_groups, example_of
from .merge import How, IndexPairs, Merger, absorption_from, applied, checked_pairs, part_tensor
from .proof import prove


@dataclass(frozen=True)
class LayerReport:
    """One layer of `ModelConsolidation`.

    Attributes:
        layer: its name.
        writers: layers that write the same neurons.
        neurons: (before, after).
        pairs: what was merged.
        cosine: mean of the pairs' cosines; None without pairs.
        parameters: how many fewer the model has for it, about: what several layers save together is counted once.
        refused: why nothing was done; "" where something could be.
    """

    layer: str
    writers: tuple[str, ...]
    neurons: tuple[int, int]
    pairs: tuple[tuple[int, int], ...]
    cosine: float | None
    parameters: int
    refused: str


@dataclass(frozen=True)
class ModelConsolidation:
    """What `consolidate_model` did; prints as a table. Each of the pairs of numbers is (before, after).

    Attributes:
        layers: one row a group of layers.
        how: "mean" | "absorb".
        parameters: of the whole model.
        flops: of one forward pass over the example.
        compared: whether the smaller network was run beside the merged one, and agreed to rounding.
    """

    layers: tuple[LayerReport, ...]
    how: How
    parameters: tuple[int, int]
    flops: tuple[int, int] | None
    compared: bool

    def __str__(self) -> str:
        wide = max((len(row.layer) for row in self.layers), default=5)
        lines = [f"  {'layer':<{wide}}  neurons        pairs  mean cosine"]
        for row in self.layers:
            change = f"{row.neurons[0]} → {row.neurons[1]}"
            cosine = "–" if row.cosine is None else f"{row.cosine:.3f}"
            refused = f"  refused: {row.refused}" if row.refused else ""
            lines.append(f"  {row.layer:<{wide}}  {change:<13}  {len(row.pairs):>5}  {cosine:>11}{refused}")
        share = 100 * (1 - self.parameters[1] / self.parameters[0])
        lines.append(f"parameters {self.parameters[0]:,} → {self.parameters[1]:,} (−{share:.1f}%), how={self.how!r}")
        return "\n".join(lines)


def consolidate_model(
    model: nn.Module,
    loader: Iterable[Any],
    layers: str | Sequence[str] = "*",
    *,
    above: float | None = None,
    budget: float | None = None,
    uniform: bool | Literal["share"] = False,
    how: How = "mean",
    inplace: bool = False,
    example_input: Any = None,
    max_batches: int | None = None,
    forward: Forward | None = None,
    mask: Mask = None,
    check: bool = True,
    progress: Progress = False,
) -> tuple[nn.Module, ModelConsolidation]:
    """Merge the most similar neurons of all layers, and take one of each pair out of the network.

    The model is recorded once and the data read once: for every group of layers the similarity of its neurons is that
    of what their readers get. Pairs are disjoint, the most similar first. Then one smaller network is cut, and proved
    against the merged one as `consolidate` does it.

    Args:
        model: not changed, unless `inplace`.
        loader: batches as in `collect_activations`, in memory or readable twice.
        layers: names or patterns as in `fnmatch` ("model.layers.*.mlp.*"); layers whose neurons cannot be removed are
            left as they are, with the reason in the report.
        above: merge every pair whose cosine is at least this.
        budget: merge the most similar pairs of all layers until the model has lost this share of its parameters, or
            there are no more pairs. At most half of a layer's neurons go. With `above` as well, whichever ends first.
        uniform: layers with as many neurons and the same last part of their names lose equally many, the mean of what
            they would lose and at least one if any does, so that one number in a configuration can say it; see
            `fit_config`. "share": layers with the same last part of their names lose the same share, whatever their
            sizes, as one mlp_ratio says it.
        how: "mean" | "absorb", as in `consolidate`.
        example_input: as in `consumers`; None: the first batch.
        max_batches, forward, mask: as in `collect_activations`.
        check: False: do not compare.
        progress: as in `group_activations`.

    Returns:
        (model, `ModelConsolidation`).

    Raises:
        TypeError, ValueError: as `consolidate`; neither `above` nor `budget`; no layer that matches; a model of which
            no layer can be cut.
    """
    if above is None and budget is None:
        raise ValueError("above, budget: expected a cosine, or a share of the parameters to remove; got neither.")
    if above is not None:
        checks.check_number(above, "above", "a cosine from -1 to 1", above=-1.0000001, below=1.0000001)
    if budget is not None:
        checks.check_number(budget, "budget", "a share of the parameters, between 0 and 1", above=0, below=1)
    checks.check_choice(how, "how", ("mean", "absorb"))
    if uniform not in (False, True):
        checks.check_choice(uniform, "uniform", ("share",))
    if example_input is None:
        example_input = example_of(model, loader)
    groups = _groups(model, layers, example_input)
    able = [found for found in groups if found.removable]
    if not able:
        raise ValueError("layers: none of the layers can be cut.\n" + "\n".join(str(found) for found in groups[:5]))
    run = forward or ModelCall(model, None)
    answers = collect_groups(
        model, loader, able, run, READERS, max_batches=max_batches, padding=Padding(mask), progress=progress
    )
    chosen = _choose(model, able, answers, above, budget, uniform)
    merges = []
    for found in able:
        pairs = checked_pairs([pair[:2] for pair in chosen[found.layer]], found.neurons)
        gram = answers[found.layer].gram() if how == "absorb" else None
        merges.append((found, absorption_from(model, found, None, gram, None, how), pairs))
    before = sizes_of_model(model, example_input)
    smaller = copied(model, able, inplace)
    shrink(smaller, [(found, Merger(smaller, found, how, share), pairs) for found, share, pairs in merges])
    compared = check and prove(
        model, smaller, [part for found in able for part in found.parts], _all_merged(model, merges, how), example_input
    )
    after = sizes_of_model(smaller, example_input)
    rows = tuple(_row(model, found, chosen.get(found.layer, [])) for found in groups)
    flops = None if before[1] is None or after[1] is None else (before[1], after[1])
    report = ModelConsolidation(rows, how, (before[0], after[0]), flops, compared)
    return given_back(model, smaller, able, inplace), report


Merges = list[tuple[Consumers, Any, IndexPairs]]


@contextmanager
def _all_merged(model: nn.Module, merges: Merges, how: How):  # type: ignore[no-untyped-def]
    with ExitStack() as stack:
        for found, share, pairs in merges:
            stack.enter_context(applied(Merger(model, found, how, share).edits(pairs)))
        yield


def _groups(model: nn.Module, layers: str | Sequence[str], example_input: Any) -> list[Consumers]:
    """Each group that a matching layer belongs to, once."""
    patterns = [layers] if isinstance(layers, str) else list(layers)
    looks = look(model, example_input)
    found: list[Consumers] = []
    seen: set[frozenset[str]] = set()
    for name in _names(model, looks):
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            group = consumers(model, name, example_input)
            writers = frozenset(part.name for part in group.of(WRITER)) or frozenset([name])
            if writers not in seen:
                seen.add(writers)
                found.append(group)
    if not found:
        raise ValueError(f"layers: no layer that runs and has a weight matches {', '.join(map(repr, patterns))}.")
    return found


def _names(model: nn.Module, looks: list[Groups]) -> list[str]:
    """Layers by name, and parameters by name where a module multiplies by several."""
    names = []
    for path, module in model.named_modules():
        inside = f"{path}." if path else ""
        if isinstance(module, DENSE):
            if looks[0].used(f"{inside}weight"):
                names.append(path)
            continue
        own = {
            inside + name: looks[0].rows_of(inside + name)
            for name, each in module.named_parameters(recurse=False)
            if each.ndim > 1 and not isinstance(module, nn.Embedding)
        }
        written = [name for name, dims in own.items() if len(dims) == 1]
        names += [path] if len(written) == 1 and path else written
    return names


def _choose(
    model: nn.Module,
    groups: Sequence[Consumers],
    answers: dict[str, LayerActivations],
    above: float | None,
    budget: float | None,
    uniform: bool | Literal["share"],
) -> dict[str, list[tuple[int, int, float]]]:
    candidates: list[tuple[float, str, int, int]] = []
    for found in groups:
        answer = answers[found.layer]
        able = int(answer.alive.sum()) // 2
        pairs = disjoint_pairs(None, able, "nearest", cosine=answer.cosine_matrix(), alive=answer.alive) if able else ()
        candidates += [(float(cosine), found.layer, int(i), int(j)) for i, j, cosine in pairs]
    costs = {found.layer: _cost(model, found) for found in groups}
    total = sum(parameter.numel() for parameter in model.parameters())
    chosen: dict[str, list[tuple[int, int, float]]] = {found.layer: [] for found in groups}
    saved = 0.0
    for cosine, layer, i, j in sorted(candidates, key=lambda each: -each[0]):
        if (above is not None and cosine < above) or (budget is not None and saved >= budget * total):
            break
        chosen[layer].append((i, j, cosine))
        saved += costs[layer]
    return _evened(groups, chosen, candidates, uniform == "share") if uniform else chosen


Chosen = dict[str, list[tuple[int, int, float]]]


def _evened(
    groups: Sequence[Consumers], chosen: Chosen, candidates: list[tuple[float, str, int, int]], share: bool
) -> Chosen:
    """Equally many pairs in layers of one kind, or the same share of them, as many as all of them have."""
    kinds: dict[tuple[int, str], dict[str, int]] = {}
    for found in groups:
        key = (0 if share else found.neurons, found.layer.rpartition(".")[2])
        kinds.setdefault(key, {})[found.layer] = found.neurons
    evened: Chosen = {}
    for sizes in kinds.values():
        able = {name: [(i, j, cosine) for cosine, layer, i, j in candidates if layer == name] for name in sizes}
        parts = math.gcd(*sizes.values())  # of a layer; one of them is the least that all can lose
        mean = parts * fmean(len(chosen[name]) / size for name, size in sizes.items())
        wanted = max(round(mean), int(mean > 0))
        count = min([wanted, *(len(able[name]) * parts // size for name, size in sizes.items())])
        evened |= {name: pairs[: count * sizes[name] // parts] for name, pairs in able.items()}
    return evened


def _cost(model: nn.Module, found: Consumers) -> float:
    """Parameters that one neuron fewer saves."""
    tensors = [(part_tensor(model, part), part) for part in found.parts]
    return sum(t.numel() / len(part.units) * part.each for t, part in tensors if isinstance(t, nn.Parameter))


def _row(model: nn.Module, found: Consumers, pairs: list[tuple[int, int, float]]) -> LayerReport:
    refused = "" if found.removable else str(found.obstacles[0] if found.obstacles else "nothing reads it")
    writers = tuple(writer.name for writer in found.writers if writer.name != found.layer)
    return LayerReport(
        found.layer,
        writers,
        (found.neurons, found.neurons - len(pairs)),
        tuple((i, j) for i, j, _ in pairs),
        fmean(pair[2] for pair in pairs) if pairs else None,
        round(_cost(model, found) * len(pairs)),
        refused,
    )


__all__ = ["LayerReport", "ModelConsolidation", "consolidate_model"]
