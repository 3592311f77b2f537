"""What a random network with fewer neurons has to be: the merged one, computed apart, whatever it is asked."""

from __future__ import annotations

import copy
import io
import random
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sdsd.geometry import (
    Consumers,
    consolidate,
    consolidate_model,
    consumers,
    group_activations,
    merge,
    remove_neurons,
)

from .networks import Program, float64
from .oracle import DiffersError, averaged, compare, named, planted, run, same_gradients, same_state, state_of

OURS = re.compile(
    r"^(layer|layers|model|pairs|example_input|consolidation|neurons|norms|activations|budget|above)\b.*:|"
    r" is not possible for layer |needs a layer that reads|^how="
)
BY_PLACE = re.compile("place|piece|is taken|are written|groups of neurons")
"""Obstacles where the forward may do one thing with a neuron and another with the next."""
RIGHT, REFUSED, WRONG, CRASHED, FALSE, TOUCHED = "right", "refused", "wrong", "crashed", "false refusal", "touched"
CAUGHT = "wrong, but the proof says so"
FAILURES = (WRONG, CRASHED, FALSE, TOUCHED)


class Verdict(NamedTuple):
    """Of one call on one layer."""

    kind: str
    layer: str
    call: str
    text: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.call} of {self.layer!r}: {self.text}"

    @property
    def alike(self) -> tuple[str, str, str]:
        """Names and numbers do not count."""
        return self.kind, self.call, re.sub(r"'[^']*'|\d\S*", "…", self.text)[:120]


def layers_of(model: nn.Module) -> list[str]:
    """What may be named: layers, and matrices that a module holds."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Embedding, nn.Bilinear)
    named = [name for name, each in model.named_modules() if isinstance(each, (*kinds, nn.EmbeddingBag))]
    own = [name for name, each in model.named_parameters() if each.ndim > 1 and name.rpartition(".")[0] not in named]
    return named + [name for name in own if "parametrizations" not in name and "pos" not in name]


def judged(program: Program, seed: int = 0, thorough: bool = True, only: str = "") -> list[Verdict]:
    """Of every layer, or of one, what becomes of it."""
    with float64():
        model, example = program.built(), program.drawn(0)
        return [
            verdict
            for layer in layers_of(model)
            if only in ("", layer)
            for verdict in Judge(
                program, (model, example), layer, random.Random(f"{seed} {layer}"), thorough
            ).verdicts()
        ]


class Judge:
    """One layer of one network."""

    def __init__(
        self,
        program: Program,
        call: tuple[nn.Module, tuple[Tensor, ...]],
        layer: str,
        chosen: random.Random,
        thorough: bool,
    ) -> None:
        self.program, self.layer, self.random, self.thorough = program, layer, chosen, thorough
        self.model, self.example = call

    def verdicts(self) -> Iterator[Verdict]:
        before, answer = state_of(self.model), Answer()
        yield from self._kept(before, answer.of("consumers", self.layer, self._consumers))
        group: Consumers | None = answer.value
        if group is None:
            return
        self.pairs = self._pairs(group.neurons)
        if not self.pairs:
            return
        self.edited = {part.name for part in group.parts}
        calls: dict[str, Callable[[], None]] = {}
        if group.removable:
            calls = {"cut": self._cut, "cut planted": self._planted, "removed": self._removed, "proof": self._proof}
            if self.thorough:
                calls |= {"in place": self._in_place, "whole model": self._whole_model}
        elif group.changeable and not any(BY_PLACE.search(each.reason) for each in group.obstacles):
            calls = {"act": lambda: self._same_after("act"), "absorb": lambda: self._same_after("absorb")}
        if group.statistics and group.obstacles and all(each.norm is not None for each in group.obstacles):
            calls["norms apart"] = self._norms_apart
        self.group, right = group, set[str]()
        for name, call in calls.items():
            if name in ("proof", "in place") and "cut" not in right:
                continue
            for verdict in self._kept(before, answer.of(name, self.layer, call)):
                if verdict.kind == RIGHT:
                    right.add(name)
                if verdict.kind in (WRONG, CRASHED) and name not in ("proof", "act", "absorb") and self._is_caught():
                    verdict = verdict._replace(kind=CAUGHT)
                if name == "proof" and verdict.kind in (REFUSED, CRASHED):
                    verdict = verdict._replace(kind=FALSE)
                yield verdict
        for each in group.obstacles:
            yield Verdict(REFUSED, self.layer, f"to {each.blocks}", each.reason)

    def _kept(self, before: dict[str, Any], verdict: Verdict) -> Iterator[Verdict]:
        yield verdict
        changed = [key for key, value in state_of(self.model).items() if not same_state(before.get(key), value)]
        if changed:
            yield verdict._replace(kind=TOUCHED, text=", ".join(changed[:4]))

    def _consumers(self) -> Consumers:
        return consumers(self.model, self.layer, self.example)

    def _pairs(self, neurons: int) -> list[tuple[int, int]]:
        order = self.random.sample(range(neurons), neurons)
        return (
            [(order[2 * k], order[2 * k + 1]) for k in range(self.random.randint(1, max(1, neurons // 2)))]
            if neurons > 1
            else []
        )

    # ---- calls -------------------------------------------------------------------------------------------------------

    def _cut(self) -> None:
        kept = copy.deepcopy(self.model)
        smaller, _ = consolidate(self.model, self.layer, self.pairs, example_input=self.example, check=False)
        averaged(kept, self.group, self.pairs)
        with merge(self.model, self.layer, self.pairs, example_input=self.example) as merged:
            compare(self.program, kept, copy.deepcopy(merged))
        compare(self.program, kept, smaller)
        same_gradients(self.example, kept, smaller, self.edited)
        if not self.thorough or any(nn.utils.parametrize.is_parametrized(each) for each in smaller.modules()):
            return  # torch does not pickle them
        again = copy.deepcopy(smaller)
        again.load_state_dict(smaller.state_dict())
        compare(self.program, smaller, again, few=True)
        stored = io.BytesIO()
        torch.save(smaller, stored)
        stored.seek(0)
        compare(self.program, smaller, torch.load(stored, weights_only=False), few=True)

    def _planted(self) -> None:
        """Neurons that are the same are one, and merging them changes nothing."""
        with planted(self.model, self.group, self.pairs) as model:
            self._is_as_planted(model)

    def _is_as_planted(self, model: nn.Module) -> None:
        activations = self._activations(model)
        gram = activations.gram()
        for i, j in self.pairs:
            if (gram[i] - gram[j]).abs().max() > 1e-9 * gram.abs().max():
                raise DiffersError(f"readers do not get the same of neurons {i} and {j}")
        alive = activations.norms() > 1e-3 * activations.norms().max()
        lengths = gram.diagonal()[alive].sqrt()
        off = activations.cosine_matrix()[alive][:, alive] - gram[alive][:, alive] / lengths[:, None] / lengths
        if off.numel() and off.abs().max() > 1e-6:
            raise DiffersError("cosines are not those of the sums")
        for how, more in (("mean", {}), ("absorb", {"gram": gram})):
            try:
                smaller, _ = consolidate(
                    model, self.layer, self.pairs, how, example_input=self.example, check=False, **more
                )
            except ValueError as error:
                if "is zero on every sample" in str(error) or "not finite" in str(error):
                    continue
                raise
            if how == "mean" or all(gram[i, i] > 0 for i, _ in self.pairs):
                compare(self.program, model, smaller, few=how == "absorb")

    def _activations(self, model: nn.Module) -> Any:
        """Of more samples than neurons, so that neurons are alike for their weights alone."""
        return group_activations(
            model, self._batches(), self.layer, forward=lambda m, batch: m(*batch), example_input=self.example
        )[self.layer]

    def _batches(self) -> list[tuple[Tensor, ...]]:
        more = self.program.drawn(11, 48)
        try:
            run(copy.deepcopy(self.model), more)
        except Exception:
            return [self.example]
        return [more]

    def _same_after(self, how: str) -> None:
        with planted(self.model, self.group, self.pairs) as model:
            self._stays(model, how)

    def _stays(self, model: nn.Module, how: str) -> None:
        gram = self._activations(model).gram()
        for i, j in self.pairs:
            if (gram[i] - gram[j]).abs().max() > 1e-9 * gram.abs().max():
                raise DiffersError(f"readers do not get the same of neurons {i} and {j}")
        more = {"gram": torch.ones(self.group.neurons, self.group.neurons)} if how == "absorb" else {}
        with merge(model, self.layer, self.pairs, how, example_input=self.example, **more):
            merged = copy.deepcopy(model)
        compare(self.program, model, merged)

    def _removed(self) -> None:
        gone = [j for _, j in self.pairs]
        kept = copy.deepcopy(self.model)
        for part in self.group.parts:
            if part.role in ("reader", "writer and reader"):
                tensor = named(kept, part.name)
                entries = [k for k, unit in enumerate(part.units.tolist()) if unit in gone]
                tensor.data.movedim(part.dim, 0)[entries] = 0
        smaller, _ = remove_neurons(self.model, self.layer, gone, example_input=self.example, check=False)
        compare(self.program, kept, smaller)

    def _proof(self) -> None:
        consolidate(self.model, self.layer, self.pairs, example_input=self.example)

    def _is_caught(self) -> bool:
        try:
            self._proof()
        except ValueError as error:
            return str(error).startswith("consolidation: ")
        return False

    def _in_place(self) -> None:
        smaller, _ = consolidate(self.model, self.layer, self.pairs, example_input=self.example, check=False)
        model = copy.deepcopy(self.model)
        consolidate(model, self.layer, self.pairs, example_input=self.example, inplace=True, check=False)
        compare(self.program, smaller, model, few=True)
        if sorted(model.state_dict()) != sorted(smaller.state_dict()):
            raise DiffersError("names of the state in place")

    def _whole_model(self) -> None:
        with planted(self.model, self.group, self.pairs) as model:
            self._is_made_smaller(model)

    def _is_made_smaller(self, model: nn.Module) -> None:
        smaller, report = consolidate_model(
            model,
            self._batches(),
            self.layer,
            above=1 - 1e-12,
            forward=lambda m, batch: m(*batch),
            example_input=self.example,
            check=False,
        )
        if all(sorted(pair) in [sorted(each) for each in self.pairs] for row in report.layers for pair in row.pairs):
            compare(self.program, model, smaller, few=True)

    def _norms_apart(self) -> None:
        smaller, _ = consolidate(
            self.model, self.layer, self.pairs, example_input=self.example, check=False, norms="repeat"
        )
        kept = copy.deepcopy(self.model)
        averaged(kept, self.group, self.pairs)
        compare(self.program, kept, smaller)
        consolidate(self.model, self.layer, self.pairs, example_input=self.example, norms="repeat")


class Answer:
    """What a call gave, and the verdict on it."""

    value: Any = None

    def of(self, call: str, layer: str, use: Callable[[], Any]) -> Verdict:
        try:
            self.value = use()
        except DiffersError as error:
            return Verdict(WRONG, layer, call, str(error))
        except (ValueError, TypeError) as error:
            kind = REFUSED if OURS.search(str(error)) else CRASHED
            return Verdict(kind, layer, call, f"{type(error).__name__}: {error}" if kind == CRASHED else str(error))
        except Exception as error:
            return Verdict(CRASHED, layer, call, f"{type(error).__name__}: {error}")
        return Verdict(RIGHT, layer, call)
