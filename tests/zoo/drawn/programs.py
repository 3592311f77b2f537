"""Programs drawn from a seed, run with a monitor and judged; failures made as small as they go."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

import sdsd
from tests.zoo.verdict import Verdict, compare, described, float64_default, refused, same

from . import layers, mixing, shapes, uses, whole  # noqa: F401  (they enter their operations)
from .loops import LOOPS, Loop
from .losses import Ending
from .model import MIXING, OPERATIONS, Drawn, Step

STARTS: dict[str, tuple[Any, ...]] = {
    "vectors": ("N", 0),
    "sequences": ("N", 0, 1),
    "pictures": ("N", 0, 1, 2),
    "tokens": ("N", 0),
    "time first": (0, "N", 1),
}
STEPS = 3
"""Measured steps of a program, the later ones of which look like the first."""
LONGEST, MIXED = 6, 0.1
"""Most operations of a program; how many of them mix samples."""


@dataclass(frozen=True)
class Draft:
    """A program as data. sizes: of the dimensions of the input without samples."""

    seed: int
    n: int
    sizes: tuple[int, ...]
    start: str
    side: str
    keyword: bool
    steps: tuple[Step, ...]
    ending: Ending
    loop: str

    @staticmethod
    def drawn(seed: int) -> Draft:
        random = Random(seed)
        n = random.choice([2, 3, 3, 4, 5])
        sizes = tuple(n if random.random() < 0.5 else random.randint(1, 5) for _ in range(3))
        steps = []
        for k in range(random.randint(1, LONGEST)):
            names = MIXING if random.random() < MIXED else OPERATIONS
            steps.append(Step(random.choice(sorted(names)), random.randrange(10**6), str(k)))
        start, loop = random.choice(sorted(STARTS)), random.choice(sorted(LOOPS))
        side, keyword = random.choice(["", "", "samples", "places", "both"]), random.random() < 0.2
        return Draft(seed, n, sizes, start, side, keyword, tuple(steps), Ending.drawn(random), loop)

    def batch(self, k: int, changed: int | None = None) -> tuple[Any, ...]:
        """The k-th batch; `changed`: a sample that is another one instead."""
        made, other = self._batch(2 * k, k), self._batch(2 * k + 1, k)
        if changed is not None:
            for own, new, at in zip(made, other, (STARTS[self.start].index("N"), 0), strict=False):
                if own.dim() > 1:
                    own.select(at, changed).copy_(new.select(at, changed))
        return tuple(made)

    def samples(self, k: int) -> int:
        """In the k-th batch."""
        return self.n - (self.loop == "a smaller batch at last" and k % 10 == 2 and self.n > 2)

    def _batch(self, seed: int, k: int) -> list[Tensor]:
        generator, n = torch.Generator().manual_seed(seed), self.samples(k)
        sizes = [size + (self.loop == "other lengths" and k % 10 == 1) for size in self.sizes]
        shape = [n if d == "N" else sizes[d] for d in STARTS[self.start]]
        x = torch.randn(shape, generator=generator)
        if self.start == "tokens":
            x = torch.randint(0, 7, shape, generator=generator)
        others = [torch.randn(n, 2, generator=generator)] if self.side in ("samples", "both") else []
        if self.side in ("places", "both"):
            others.append(torch.linspace(0.5, 1.5, sizes[0]))
        return [x, *others]

    def model(self) -> Drawn:
        torch.manual_seed(self.seed)
        steps = [Step("looked_up", 0, "t")] if self.start == "tokens" else []
        steps += self.steps
        model = Drawn(steps, STARTS[self.start], self.ending.finish, self.batch(0))
        if not any(p.requires_grad for p in model.parameters()):
            model = Drawn([*steps, Step("broadcast", 0, "l")], STARTS[self.start], self.ending.finish, self.batch(0))
        return model.double()

    def call(self, model: nn.Module, batch: Any) -> Any:
        return model(x=batch[0]) if self.keyword and len(batch) == 1 else model(*batch)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return self.ending.whole(self.call(model, batch))

    def parts(self, model: nn.Module, batch: Any) -> Tensor:
        """What every sample contributes to the loss, (N,)."""
        return model(*batch, parts=True)


SITUATION, NOTHING = r"\b(?:forward|backward|batch|loss|gradients?)\b", "step() gave None"
"""What a refusal may name instead of a parameter."""


def unfit(draft: Draft) -> str:
    """Why a draft is no program: torch refuses it, or its numbers are not finite."""
    try:
        model = draft.model()
        for k in range(STEPS):
            whole, parts = draft.loss(model, draft.batch(k)), draft.parts(model, draft.batch(k))
            if not torch.isfinite(whole) or whole.abs() > 1e6:
                return "a loss that is not finite, or large"
            if not torch.allclose(whole, parts.sum(), rtol=1e-6, atol=1e-9):
                return f"the loss is {whole}, its parts {parts}"
        if not whole.requires_grad:
            return "no parameter in it"
        whole.backward()
        size = sum(p.grad.norm() for p in model.parameters() if p.grad is not None)
        if not 1e-9 < size < 1e9:
            return "gradients that are not finite, or nothing but rounding"
    except Exception as error:
        return f"torch: {type(error).__name__}: {str(error)[:300]}"
    return ""


def mixes(draft: Draft) -> bool:
    """Whether one sample changes what another contributes."""
    model = draft.model()
    with torch.no_grad():
        for k in range(STEPS):
            before = draft.parts(model, draft.batch(k))
            for changed in range(draft.samples(k)):
                after = draft.parts(model, draft.batch(k, changed))
                others = torch.arange(draft.samples(k)) != changed
                if not torch.allclose(before[others], after[others], rtol=1e-9, atol=1e-12):
                    return True
    return False


def judged(draft: Draft, **options: Any) -> Verdict:
    """The verdict of some steps, that of the first one that fails; "unfit" where the draft is no program."""
    with float64_default(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if why := unfit(draft):
            return Verdict("unfit", why)
        loop = LOOPS[draft.loop]
        hopeless = loop.hopeless or (draft.loop != "micro" and mixes(draft))
        model, twin = draft.model(), draft.model()
        options = {"batch_dim": STARTS[draft.start].index("N"), "mode": "exact", **loop.options(draft), **options}
        try:
            monitor = sdsd.GammaMonitor(model, **options)
        except Exception as error:
            return refused(error, model, SITUATION)
        verdicts = []
        for k in range(STEPS):
            del caught[:]
            error = _ran(draft, model, twin, k)
            verdict = Verdict("crash", error) if error else _measured(draft, model, twin, k, monitor, hopeless)
            if verdict.why == NOTHING and loop.uneven and caught:
                verdict = Verdict("refused", str(caught[-1].message))
            if not verdict.sound:
                return verdict
            verdicts.append(verdict)
            model.zero_grad()
            twin.zero_grad()
        monitor.detach()
        kinds = [verdict.kind for verdict in verdicts]
        if len(set(kinds)) > 1 and not loop.uneven:
            return Verdict("wrong", f"steps alike are {kinds}: {next(v.why for v in verdicts if v.why)}")
        return max(verdicts, key=lambda verdict: verdict.kind == "refused")


def _ran(draft: Draft, model: Drawn, twin: Drawn, k: int) -> str:
    """Run a step of both; what is wrong where the monitored one ends otherwise."""
    errors: list[str] = []
    for each in (twin, model):
        try:
            LOOPS[draft.loop].run(draft, each, k)
            errors.append("")
        except Exception as error:
            errors.append(described(error))
    return "" if errors[0] == errors[1] else f"without a monitor: {errors[0] or 'no error'}; with one: {errors[1]}"


def _measured(draft: Draft, model: Drawn, twin: Drawn, k: int, monitor: Any, hopeless: bool) -> Verdict:
    try:
        stats = monitor.step()
    except Exception as error:
        return refused(error, model, SITUATION)
    if stats is None:
        return Verdict("wrong", NOTHING)
    for (name, p), (_, q) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        if not same(p.grad, q.grad, 1e-8):
            return Verdict("wrong", f"{name}: .grad is not that of the program without a monitor")
    left_out = {name for name, _ in model.named_parameters() if monitor.coverage.get(name, "") is None}
    if left_out and not monitor.strict:
        return Verdict("refused", f"left out: {sorted(left_out)}")
    if hopeless:
        return Verdict("wrong", "measured, though .grad is no sum over samples")
    loop = LOOPS[draft.loop]
    return compare(stats, rows_of(draft, loop, twin, k), left_out, loop.tolerance)


def rows_of(draft: Draft, loop: Loop, model: Drawn, k: int) -> dict[str, Tensor]:
    """n times each sample's part of .grad, by torch.autograd.grad; name → (n, *shape)."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rows: dict[str, list[Tensor]] = {name: [] for name in named}
    for part in loop.contributions(draft, model, k):
        gradients = torch.autograd.grad(part, list(named.values()), retain_graph=True, allow_unused=True)
        for (name, p), g in zip(named.items(), gradients, strict=True):
            rows[name].append(torch.zeros_like(p) if g is None else g)
    return {name: len(each) * torch.stack(each) for name, each in rows.items()}


def smaller(draft: Draft) -> Iterator[Draft]:
    """Drafts with one thing less."""
    for k in range(len(draft.steps)):
        yield replace(draft, steps=(*draft.steps[:k], *draft.steps[k + 1 :]))
    plain = Ending("weighted squares", False, "plain")
    for change in (
        {"loop": "plain"},
        {"side": ""},
        {"keyword": False},
        {"ending": plain},
        {"ending": draft.ending._replace(inside=False)},
        {"ending": draft.ending._replace(wrap="plain")},
        {"ending": draft.ending._replace(loss="weighted squares")},
    ):
        after = replace(draft, **change)
        if after != draft:
            yield after


def smallest(draft: Draft, fails: Callable[[Draft], bool]) -> Draft:
    """The draft with as much left out as still fails."""
    for less in smaller(draft):
        if fails(less):
            return smallest(less, fails)
    return draft


def with_sizes_apart(draft: Draft) -> Draft:
    """The same program where no dimension is as long as there are samples."""
    others = [size for size in (2, 3, 4, 5, 6, 7) if size != draft.n]
    return replace(draft, sizes=tuple(others[k % len(others)] for k in range(3)))


def alike(draft: Draft, apart: Draft) -> bool:
    """Whether both mix samples, or neither, so that they have to get one verdict.

    Not told of programs with an input of places: as long as the batch is, it may be of samples, and is refused.
    """
    with float64_default():
        return draft.side in ("", "samples") and mixes(draft) == mixes(apart)
