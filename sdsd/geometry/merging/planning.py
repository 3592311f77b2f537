"""Which neurons, heads and experts of a whole model are to go: by a threshold or to a budget."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from sdsd_kernels import checks

from ..._progress import Progress, reporter
from ..collect import Forward, LayerActivations, Mask, Padding, caller
from ..cosines import disjoint_pairs, merge_cost
from .edits import checked_pairs
from .experts import expert_cosine
from .foretold import foretold_change, roots_of, unweighable, weights_of
from .group_activations import NOT_READ, READERS, collect_groups, example_of, read_twice
from .layer_plan import NEURONS, LayerPlan, PlannedPair
from .merger import How, absorption_from
from .norms import REPEAT, Norms, in_one_group
from .plan import ConsolidationPlan
from .rows import Patterns, Row, matching_groups, matching_mixtures, mixture
from .sensitivity import LossFunction

Uniform = bool | Literal["share"]


@torch.inference_mode(False)
def plan_consolidation(
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
    example_input: Any = None,
    max_batches: int | None = None,
    forward: Forward | None = None,
    mask: Mask = None,
    progress: Progress = False,
) -> ConsolidationPlan:
    """What `consolidate_model` would do with the same arguments; nothing is changed.

    Args:
        model, loader, layers, exclude, experts, by, above, below, budget: as in `consolidate_model`.
        uniform, multiple, how, norms, loss, example_input, max_batches, forward, mask: likewise.
        progress: True for lines on standard error, or a function called with (done, total): batches, then layers.

    Returns:
        `ConsolidationPlan`: print it, save it, leave layers out, carry it out.

    Raises:
        TypeError, ValueError: as `consolidate_model`.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> plan = plan_consolidation(model, [torch.randn(64, 3)], exclude="2", budget=0.2)
        >>> [(row.layer, len(row.pairs), row.refused) for row in plan.layers[:2]]
        [('0', 3, ''), ('2', 0, 'left out')]
        >>> smaller, report = plan.carry_out(model)
        >>> smaller[0].out_features
        5
    """
    _check(
        by=by,
        above=above,
        below=below,
        budget=budget,
        uniform=uniform,
        how=how,
        norms=norms,
        loss=loss,
        experts=experts,
    )
    multiple = checks.check_integer(multiple, "multiple", least=1, why="feature")
    loader = read_twice(loader, max_batches)
    example_input = example_of(model, loader) if example_input is None else example_input
    run = caller(model, forward)
    considered = matching_groups(model, layers, exclude, example_input)
    rows = [Row.of(model, group, exclude, how, norms) for group in considered]
    if loss is not None:
        rows = [row if row.refused else row._replace(refused=unweighable(row.group)) for row in rows]
    mixtures = [mixture(model, name) for name in matching_mixtures(model, experts)]
    able = [row for row in rows if not row.refused]
    answers: dict[str, LayerActivations] = {}
    if able:
        groups = [row.group for row in able]
        answers = collect_groups(
            model, loader, groups, run, READERS, max_batches=max_batches, padding=Padding(mask), progress=progress
        )
        rows = [row if row.refused or row.layer in answers else row._replace(refused=NOT_READ) for row in rows]
        able = [row for row in rows if not row.refused]
    if not able and all(row.refused for row in mixtures):
        listed = "\n".join(f"{row.layer!r}: {row.refused}" for row in [*rows, *mixtures][:5])
        raise ValueError(f"layers: none of the layers can be cut.\n{listed}")
    roots = {} if loss is None else roots_of(model, [row.group for row in able], loss)
    report = reporter(progress, "pairs of layers")
    candidates: list[_Candidate] = []
    for done, row in enumerate(able, 1):
        candidates += _candidates(model, row, answers[row.layer], by=by, how=how, roots=roots, to_loss=loss is not None)
        report(done, len(able))
    for row in mixtures:
        if not row.refused:
            cosine = expert_cosine(model, row.layer, loader, max_batches=max_batches, forward=forward)
            candidates += _of_experts(row, cosine)
    total = sum(parameter.numel() for parameter in model.parameters())
    goal = None if budget is None else budget if isinstance(budget, numbers.Integral) else budget * total
    chosen = _choose([*rows, *mixtures], candidates, above, below, goal, uniform)
    plans = []
    for row in [*rows, *mixtures]:
        pairs = tuple(chosen[row.layer])
        while pairs and row.kind == NEURONS and (row.units - len(pairs)) * row.features % multiple:
            pairs = pairs[:-1]
        foretold = None
        if pairs and row.kind == NEURONS:
            checked = checked_pairs(pairs, row.units)
            foretold = foretold_change(model, row.group, checked, how, answers[row.layer].gram().double().cpu())
        plans.append(LayerPlan(row.layer, row.writers, row.kind, row.units, pairs, row.each, row.refused, foretold))
    return ConsolidationPlan(tuple(plans), how, norms, total)


def _check(
    *,
    by: str,
    above: float | None,
    below: float | None,
    budget: float | None,
    uniform: Uniform,
    how: How,
    norms: Norms,
    loss: Any,
    experts: Patterns,
) -> None:
    checks.check_choice(by, "by", ("cosine", "cost"))
    checks.check_choice(how, "how", ("mean", "absorb"))
    checks.check_choice(norms, "norms", ("refuse", REPEAT))
    if uniform not in (False, True):
        checks.check_choice(uniform, "uniform", ("share",))
    if norms == REPEAT and how != "mean":
        raise ValueError(f"norms: 'repeat' needs how='mean', which makes both neurons the same; got how={how!r}.")
    if above is None and below is None and budget is None:
        raise ValueError(
            "above, below, budget: expected a cosine, a cost, or what to remove of the parameters; got neither."
        )
    if by == "cosine" and (below is not None or loss is not None):
        raise ValueError(f"{'loss' if below is None else 'below'}: it goes with by='cost'; got by='cosine'.")
    if by == "cost" and (above is not None or experts):
        raise ValueError(f"{'experts' if above is None else 'above'}: it goes with by='cosine'; got by='cost'.")
    if above is not None:
        checks.check_number(above, "above", "a cosine from -1 to 1", above=-1.0000001, below=1.0000001)
    if below is not None:
        checks.check_number(below, "below", "a cost, at least 0", above=-5e-324)
    if isinstance(budget, numbers.Integral):
        checks.check_integer(budget, "budget", least=1, why="parameter, or a share between 0 and 1")
    elif budget is not None:
        what = "a share of the parameters, between 0 and 1, or how many, an int"
        checks.check_number(budget, "budget", what, above=0, below=1)


class _Candidate(NamedTuple):
    key: float  # the least is taken first
    layer: str
    pair: PlannedPair


def _candidates(
    model: nn.Module, row: Row, answer: LayerActivations, *, by: str, how: How, roots: dict[str, Tensor], to_loss: bool
) -> list[_Candidate]:
    able, gram, group = int(answer.alive.sum()) // 2, answer.gram(), row.group
    if not able:
        return []
    costs: list[float | None] = [None] * able
    if by == "cost":
        outgoing = weights_of(model, group, roots).to(gram.device)
        pairs = disjoint_pairs(
            None, able, by="cost", how=how, outgoing=outgoing, gram=gram, alive=answer.alive.to(gram.device)
        )
        both = torch.stack((pairs.first, pairs.second), 1)
        cost = merge_cost(None, outgoing, both, how=how, gram=gram, samples=answer.samples)
        whole = ((gram @ outgoing) * outgoing).sum() / answer.samples
        costs = (cost.square() / 2 if to_loss else cost / whole.sqrt().clamp_min(_TINY)).tolist()
    else:
        pairs = disjoint_pairs(None, able, "nearest", cosine=answer.cosine_matrix(), alive=answer.alive)
    checked = checked_pairs(pairs, row.units)
    shares: list[float | None] = [None] * able
    if how == "absorb":
        shares = absorption_from(model, group, None, gram, None)(checked).tolist()
    kept = in_one_group(model, group, checked) if row.fewer is not group else torch.ones(able, dtype=torch.bool)
    candidates = []
    for (i, j, cosine), price, share, stays in zip(pairs, costs, shares, kept.tolist(), strict=True):
        if stays:
            pair = PlannedPair(int(i), int(j), float(cosine), price, share)
            key = -pair.cosine if price is None else (price if to_loss else price**2) / max(row.each, 1)
            candidates.append(_Candidate(key, row.layer, pair))
    return candidates


_TINY = torch.finfo(torch.float64).tiny


def _of_experts(row: Row, cosine: Tensor) -> list[_Candidate]:
    if not row.most:
        return []
    pairs = disjoint_pairs(None, row.most, "nearest", cosine=cosine)
    return [_Candidate(-float(value), row.layer, PlannedPair(int(i), int(j), float(value))) for i, j, value in pairs]


Chosen = dict[str, list[PlannedPair]]


def _choose(
    rows: Sequence[Row],
    candidates: list[_Candidate],
    above: float | None,
    below: float | None,
    goal: float | None,
    uniform: Uniform,
) -> Chosen:
    costs = {row.layer: row.each for row in rows}
    chosen: Chosen = {row.layer: [] for row in rows}
    saved = 0.0
    ordered = sorted(candidates, key=lambda each: each.key)
    for _, layer, pair in ordered:
        if goal is not None and saved >= goal:
            break
        if (above is not None and pair.cosine < above) or (
            below is not None and pair.cost is not None and pair.cost > below
        ):
            continue
        chosen[layer].append(pair)
        saved += costs[layer]
    return _evened(rows, chosen, ordered, uniform == "share") if uniform else chosen


def _evened(rows: Sequence[Row], chosen: Chosen, candidates: list[_Candidate], share: bool) -> Chosen:
    """Equally many pairs in layers of one kind, or the same share of them, as many as all of them have."""
    kinds: dict[tuple[int, str], dict[str, int]] = {}
    for row in rows:
        if not row.refused:
            key = (0 if share else row.units, row.layer.rpartition(".")[2])
            kinds.setdefault(key, {})[row.layer] = row.units
    evened: Chosen = {layer: [] for layer in chosen}
    for sizes in kinds.values():
        able = {name: [pair for _, layer, pair in candidates if layer == name] for name in sizes}
        parts = math.gcd(*sizes.values())  # of a layer; one of them is the least that all can lose
        mean = parts * fmean(len(chosen[name]) / size for name, size in sizes.items())
        wanted = max(round(mean), int(mean > 0))
        count = min([wanted, *(len(able[name]) * parts // size for name, size in sizes.items())])
        evened |= {name: pairs[: count * sizes[name] // parts] for name, pairs in able.items()}
    return evened
