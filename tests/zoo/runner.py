"""The zoo run: every architecture measured right, or refused with a message that helps, and trained as without us."""

from __future__ import annotations

import math
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from .architectures.base import Architecture
from .twins import unchanged
from .verdict import Program, Verdict, described, float64_default, judge

LIMIT = 180
"""Seconds an architecture may take."""
NUDGE = 0.05
"""Spread of what is added to every parameter, so that layers which begin at zero pass gradients."""


COLUMNS = ("architecture", "verdict", "largest relative error", "measured", "training")
INTRODUCTION = """\
# Coverage

What `GammaMonitor` says of the architectures people train, each in a tiny random configuration, float64, train mode.
`make test-zoo` writes this file. Signal, noise and unbiased Γ of every parameter are held against a loop over samples
by backward passes, without dropout, for batches as large as the sequence is long and for others. *Refused* is
an error by name that says what to do; how many parameters are right with `strict=False` stands beside it. *Training*
compares three steps with dropout beside an unmonitored twin: losses, gradients, buffers, random streams, optimizer.
LeViT is left out: of a batch torch 2.14 itself gives another gradient on a CPU than the sum over its samples."""


class TooSlowError(Exception):
    pass


@dataclass(frozen=True)
class Row:
    family: str
    name: str
    verdict: Verdict
    training: str
    """ "same", "refused", or what changed."""

    @property
    def good(self) -> bool:
        return self.verdict.sound and self.training in ("same", "refused")


@contextmanager
def limit(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooSlowError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def without_chance(model: nn.Module) -> nn.Module:
    """The model in train mode with every dropout, dropped path and random mask at zero."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ == "StochasticDepth":
            module.p = 0.0
        _still(module.__dict__)
        config = getattr(module, "config", None)
        for each in (config, *(v for v in vars(config).values() if hasattr(v, "to_dict"))) if config else ():
            _still(each.__dict__)
    return model


def _still(attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        if isinstance(value, float) and ("drop" in name or name in ("mask_time_prob", "mask_feature_prob")):
            attributes[name] = 0.0


def nudged(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in model.parameters():
            p.add_(NUDGE * torch.randn(p.shape, dtype=torch.float64).to(p))
    return model


def examine(family: str, name: str, architecture: Architecture) -> Row:
    """One architecture: numbers at every size without dropout, then training as it is usually done."""
    try:
        with limit(LIMIT), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Row(family, name, _numbers(architecture), _training(architecture))
    except Exception as error:
        return Row(family, name, Verdict("crash", f"not run: {described(error)}"), "not run")


def _numbers(architecture: Architecture) -> Verdict:
    found = []
    for n, t in architecture.sizes:
        program = Program(
            lambda: nudged(without_chance(architecture.make())),
            (architecture.batch(n, t),),
            architecture.loss,
            tolerance=architecture.tolerance,
            hopeless=bool(architecture.mixes),
            situation=r"\bloss\b" if architecture.mixes else "",
        )
        _deterministic(program)
        found.append(judge(program))
        if not found[-1].sound:
            return found[-1]
    refusals = [verdict for verdict in found if verdict.kind == "refused"]
    if not refusals:
        return Verdict("right", "", max(v.error for v in found), found[0].measured, found[0].parameters)
    if len(refusals) < len(found):
        return Verdict("wrong", f"refused at some sizes of {architecture.sizes} alone: {refusals[0].why}")
    rest = judge(program, strict=False)
    if not rest.sound:
        return Verdict(rest.kind, f"with strict=False: {rest.why}")
    return Verdict("refused", refusals[0].why, rest.error, rest.measured, rest.parameters)


def _deterministic(program: Program) -> None:
    with float64_default():
        model = program.made()
        losses = []
        for seed in range(2):
            torch.manual_seed(seed)
            losses.append(program.loss(model, *program.doubled().batch).item())
    if not math.isclose(*losses, rel_tol=1e-12) or not math.isfinite(losses[0]):
        raise ValueError(f"its loss is random or not finite without dropout: {losses}")


def _training(architecture: Architecture) -> str:
    batch = pytree.tree_map(
        lambda x: x.double() if isinstance(x, torch.Tensor) and x.is_floating_point() else x,
        architecture.batch(*architecture.sizes[0]),
    )

    def run(model: nn.Module, k: int) -> Any:
        loss = architecture.loss(model, batch)
        loss.backward()
        return loss.detach()

    verdict, why = unchanged(architecture.make, run, tolerance=1e-6, adam=False)
    return verdict if verdict in ("same", "refused") else f"{verdict}: {why}"


def run(chosen: list[tuple[str, str, Architecture]]) -> list[Row]:
    """Examine what was chosen, with a line for each as it happens."""
    rows = []
    for k, (family, name, architecture) in enumerate(chosen, 1):
        start = time.perf_counter()
        row = examine(family, name, architecture)
        rows.append(row)
        verdict = row.verdict
        line = f"[{k}/{len(chosen)}] {family}: {name}: {verdict.kind}, training {row.training}"
        print(f"{line} ({time.perf_counter() - start:.1f} s)", flush=True)
        if verdict.kind != "right":
            print(f"    {verdict.why}", flush=True)
    return rows


def table(rows: list[Row], versions: dict[str, str]) -> str:
    """docs/coverage.md."""
    count = {kind: sum(row.verdict.kind == kind for row in rows) for kind in ("right", "refused", "wrong", "crash")}
    total = f"{count['right']} right, {count['refused']} refused, {count['wrong'] + count['crash']} wrong"
    with_versions = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [*INTRODUCTION.splitlines(), "", f"{total}, of {len(rows)}; {with_versions}."]
    for family in sorted({row.family for row in rows}):
        lines += ["", f"## {family}", "", "| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
        lines += [_line(row) for row in sorted(rows, key=lambda row: row.name.lower()) if row.family == family]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    verdict = row.verdict
    text = {"right": "right", "refused": "refused: "}.get(verdict.kind, "**wrong**: ") + verdict.why
    measured = f"{verdict.measured} of {verdict.parameters}" if verdict.parameters else "–"
    training = row.training if row.training in ("same", "refused") else f"**{row.training}**"
    cells = (row.name, text, _error(verdict), measured, training)
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _error(verdict: Verdict) -> str:
    """The power of ten above the error, which does not depend on the machine."""
    if verdict.kind not in ("right", "refused") or not math.isfinite(verdict.error):
        return "–"
    return "< 1e-12" if verdict.error < 1e-12 else f"< 1e{math.ceil(math.log10(verdict.error))}"


def _cell(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= 220 else text[:219] + "…"
