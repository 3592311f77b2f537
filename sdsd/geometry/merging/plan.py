"""What is to be merged in a whole model: chosen before anything is changed, to be read, kept, and carried out."""

from __future__ import annotations

import fnmatch
import json
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sdsd_kernels import checks

from ..._progress import Progress, reporter
from ...models import running
from .consumers import consumers
from .cutting import copied, given_back, shrink, sizes_of_model, to_remove
from .edits import IndexPairs, applied, checked_pairs
from .expert_removal import remove_experts
from .experts import count_of, holder_of
from .group import Consumers
from .layer_plan import EXPERTS, NEURONS, LayerPlan, PlannedPair
from .merger import How, Merger
from .norms import Norms, repeat_norms
from .proof import prove
from .reports import ModelConsolidation, table_of
from .sensitivity import Sensitivity, as_sensitivity, single_number

FORMAT = 1


@dataclass(frozen=True)
class ConsolidationPlan:
    """What `consolidate_model` would do, made by `plan_consolidation`; prints as a table.

    Attributes:
        layers: one row a group of layers, and one a mixture of experts.
        how: "mean" | "absorb".
        norms: "refuse" | "repeat".
        parameters: of the model as it is.
    """

    layers: tuple[LayerPlan, ...]
    how: How
    norms: Norms
    parameters: int

    def __str__(self) -> str:
        saved = sum(row.report().parameters for row in self.layers)
        share = 100 * saved / self.parameters
        lines = table_of([row.report() for row in self.layers], None)
        return "\n".join([*lines, f"about {saved:,} of {self.parameters:,} parameters (−{share:.1f}%) would go"])

    def without(self, *patterns: str) -> ConsolidationPlan:
        """The plan with nothing to do in some layers.

        Args:
            patterns: names or patterns as in `fnmatch`.

        Returns:
            Another plan.

        Raises:
            ValueError: a pattern that no layer of the plan matches.
        """
        for pattern in patterns:
            if not any(fnmatch.fnmatchcase(row.layer, pattern) for row in self.layers):
                raise ValueError(f"patterns: no layer of the plan matches {pattern!r}.")
        rows = [
            replace(row, pairs=(), foretold=None, refused=row.refused or "left out")
            if any(fnmatch.fnmatchcase(row.layer, pattern) for pattern in patterns)
            else row
            for row in self.layers
        ]
        return replace(self, layers=tuple(rows))

    def save(self, path: str | Path) -> Path:
        """Write the plan as JSON, from which `load` makes it again.

        Args:
            path: of the file.

        Returns:
            The path.
        """
        path = Path(path)
        text = json.dumps({"sdsd": "consolidation plan", "format": FORMAT, **asdict(self)}, indent=1)
        path.write_text(text, encoding="utf-8")
        return path

    @staticmethod
    def load(path: str | Path) -> ConsolidationPlan:
        """The plan that `save` wrote.

        Args:
            path: of the file.

        Returns:
            The plan.

        Raises:
            ValueError: a file that `save` did not write.
        """
        try:
            facts = json.loads(Path(path).read_text(encoding="utf-8"))
            if facts["sdsd"] != "consolidation plan" or facts["format"] != FORMAT:
                raise ValueError(f"it does not say that it is a consolidation plan of format {FORMAT}")
            rows = tuple(
                LayerPlan(
                    **{
                        **row,
                        "writers": tuple(row["writers"]),
                        "pairs": tuple(PlannedPair(*pair) for pair in row["pairs"]),
                    }
                )
                for row in facts["layers"]
            )
            return ConsolidationPlan(rows, facts["how"], facts["norms"], facts["parameters"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"path: expected a file that ConsolidationPlan.save wrote, and could not read {str(path)!r}: {error}. "
                "Make the plan again."
            ) from error

    @torch.inference_mode(False)
    def carry_out(
        self,
        model: nn.Module,
        *,
        example_input: Any = None,
        evaluate: Sensitivity | tuple[Any, Any] | None = None,
        inplace: bool = False,
        check: bool = True,
        progress: Progress = False,
    ) -> tuple[nn.Module, ModelConsolidation]:
        """Merge what is planned and take it out of the network.

        Args:
            model: the one that the plan was made for, or another of the same shapes. Not changed unless `inplace`; a
                call that fails or is interrupted leaves it as it was.
            example_input: as in `consumers`.
            evaluate: a function of the model that gives a number, or (loader, loss_fn) as in `biopsy`. It is asked
                before, after, and with each layer's pairs merged alone, in eval mode.
            inplace: change `model` instead of a copy. An optimizer has to be made anew then.
            check: False: do not compare the smaller network with the merged one.
            progress: True for a line on standard error, or a function called with (steps done, steps in all).

        Returns:
            (model, `ModelConsolidation`).

        Raises:
            TypeError, ValueError: as `consolidate`; a plan for a model of other layers or sizes.
        """
        checks.check_choice(self.how, "how", ("mean", "absorb"))
        measure = None if evaluate is None else as_sensitivity(evaluate)
        steps = [row for row in self.layers if row.pairs]
        report = reporter(progress, "consolidation")
        total = 3 + (2 + len(steps) if measure else 0)
        done = iter(range(1, total + 1))

        def told() -> None:
            report(next(done), total)

        merges = [_merge_of(model, row, self, example_input) for row in steps if row.kind == NEURONS]
        mixtures = [row for row in steps if row.kind == EXPERTS]
        for row in mixtures:
            _same_size(row, count_of(holder_of(model, row.layer)))
        groups = [merge.group for merge in merges]
        before = sizes_of_model(model, example_input)
        alone: dict[str, float] = {}
        whole = None
        if measure:
            whole = _value(measure, model)
            told()
            for merge in merges:
                with applied(merge.merger(model).edits(merge.pairs)):
                    alone[merge.layer] = _value(measure, model)
                told()
            for row in mixtures:
                alone[row.layer] = _value(measure, _without_experts(model, [row], None, check=False))
                told()
        smaller = _smaller(model, merges, inplace)
        told()
        compared = bool(check and merges) and _proved(model, smaller, merges, example_input)
        fewer = smaller
        if mixtures:
            fewer = _without_experts(smaller, mixtures, example_input, check)
            compared = check and (compared or not merges)
        told()
        after = sizes_of_model(fewer, example_input)
        evaluated = None
        if measure and whole is not None:
            evaluated = (whole, _value(measure, fewer))
            told()
        rows = tuple(row.report(alone.get(row.layer)) for row in self.layers)
        flops = None if before[1] is None or after[1] is None else (before[1], after[1])
        result = fewer
        if inplace:
            with _uninterrupted():
                result = given_back(model, smaller, groups, inplace)
                for row in mixtures:
                    remove_experts(result, row.layer, _seconds(row), inplace=True, check=False)
        told()
        return result, ModelConsolidation(rows, self.how, (before[0], after[0]), flops, compared, evaluated)


class _Merge(NamedTuple):
    """One group's part of a plan, for one model."""

    layer: str
    group: Consumers
    fewer: Consumers
    pairs: IndexPairs
    how: How
    share: Callable[[IndexPairs], Tensor] | None

    def merger(self, model: nn.Module) -> Merger:
        return Merger(model, self.group, self.how, self.share)


def _merge_of(model: nn.Module, row: LayerPlan, plan: ConsolidationPlan, example_input: Any) -> _Merge:
    group = consumers(model, row.layer, example_input)
    _same_size(row, group.neurons)
    fewer = to_remove(model, group, plan.norms)
    pairs = checked_pairs(row.pairs, group.neurons)
    share: Callable[[IndexPairs], Tensor] | None = None
    if plan.how == "absorb":
        shares = torch.tensor([pair.share for pair in row.pairs], dtype=torch.float64)

        def share(_pairs: IndexPairs) -> Tensor:
            return shares

    return _Merge(row.layer, group, fewer, pairs, plan.how, share)


def _smaller(model: nn.Module, merges: Sequence[_Merge], sharing: bool) -> nn.Module:
    smaller = copied(model, [merge.group for merge in merges], sharing)
    shrink(smaller, [(merge.fewer, merge.merger(smaller), merge.pairs) for merge in merges])
    for merge in merges:
        if merge.fewer is not merge.group:
            repeat_norms(smaller, merge.group, merge.pairs)
    return smaller


def _proved(model: nn.Module, smaller: nn.Module, merges: Sequence[_Merge], example_input: Any) -> bool:
    """Whether both could be compared; where they differ, the error names the layer that does so by itself."""
    parts = [part for merge in merges for part in merge.group.parts]
    try:
        return prove(model, smaller, parts, _all_merged(model, merges), example_input)
    except ValueError as error:
        wrong = next((merge.layer for merge in merges if not _is_right(model, merge, example_input)), None)
        if wrong is None:
            which = "No layer's pairs do that by themselves; try fewer layers."
        else:
            which = f"The pairs of {wrong!r} do that by themselves; leave it out with exclude={wrong!r}."
        raise ValueError(f"{error} {which}") from error


def _is_right(model: nn.Module, merge: _Merge, example_input: Any) -> bool:
    try:
        prove(model, _smaller(model, [merge], True), merge.group.parts, _all_merged(model, [merge]), example_input)
    except ValueError:
        return False
    return True


def _same_size(row: LayerPlan, count: int) -> None:
    if count != row.neurons:
        raise ValueError(
            f"plan: it was made for a model whose {row.layer!r} has {row.neurons} {row.kind}, and here it has {count}. "
            "Make a plan for this model."
        )


def _seconds(row: LayerPlan) -> list[int]:
    return [pair.second for pair in row.pairs]


def _without_experts(model: nn.Module, rows: Sequence[LayerPlan], example_input: Any, check: bool) -> nn.Module:
    fewer = copied(model, [], sharing=True)
    for row in rows:
        remove_experts(fewer, row.layer, _seconds(row), inplace=True, example_input=example_input, check=check)
    return fewer


def _value(measure: Sensitivity, model: nn.Module) -> float:
    with running(model):
        return single_number(measure(model), "evaluate")


@contextmanager
def _all_merged(model: nn.Module, merges: Sequence[_Merge]) -> Iterator[None]:
    with ExitStack() as stack:
        for merge in merges:
            stack.enter_context(applied(merge.merger(model).edits(merge.pairs)))
        yield


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C waits until the block is done."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield
        return
    waiting: list[Any] = []
    own = signal.signal(signal.SIGINT, lambda *given: waiting.append(given))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, own)
        if waiting and callable(own):
            own(*waiting[0])
