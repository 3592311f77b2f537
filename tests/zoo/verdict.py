"""Programs that train a model, and the judge: is what the monitor says of them right, refused by name, or wrong?

The oracle is a float64 loop over samples with `torch.autograd.grad`; nothing of it comes from the code under test.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import sdsd

TOLERANCE = 1e-6
"""Allowed error of signal and noise, as a part of a parameter's mean squared gradient."""
SMALLEST = 1e-9
"""A parameter whose squares are a smaller part of the total than this has no digits to compare."""
LIBRARY = Path(sdsd.__file__).parent

_ADVICE = re.compile(
    r"(?:^|[.;:,!(]\s*|\n\s*|\b(?:or|and|either|otherwise)\s+)"
    r"(?:add|attach|call|clear|compute|detach|divide|drop|exclude|freeze|give|keep|leave|let|make|measure|move|"
    r"normalise|pass|put|remove|replace|run|set|start|switch|take|try|use|wrap|zero)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Program:
    """A model and one training step, whose gradient is a sum over samples.

    `loss(model, *batch)` is a mean over samples; `step(model)` runs what a training loop runs between two calls of
    `monitor.step` (by default one forward and backward pass), and `contribution(model, i)` is the scalar whose gradient
    is sample i's part of the .grad that `step` leaves (by default the loss of that sample alone, over `n`).
    """

    model: Callable[[], nn.Module]
    batch: tuple[Any, ...]
    loss: Callable[..., Tensor]
    step: Callable[[nn.Module], None] | None = None
    contribution: Callable[[nn.Module, int], Tensor] | None = None
    samples: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    situation: str = ""
    """What a refusal may name instead of a parameter or a layer: a pattern."""
    own_gradient: bool = True
    """Whether .grad after the step is the sum of the contributions."""
    tolerance: float = TOLERANCE
    measured: bool = False
    """Whether a refusal does not do."""
    permanent: bool = False
    """Whether what `step` did to the model stays, so that the next batch is refused for it too."""
    hopeless: bool = False
    """Whether .grad is no sum over samples, so that it can but be refused (or left out by name with strict=False)."""

    @property
    def n(self) -> int:
        return self.samples if self.samples is not None else len(pytree.tree_leaves(self.batch)[0])

    def made(self) -> nn.Module:
        torch.manual_seed(0)
        return self.model().double()

    def plain(self, model: nn.Module) -> None:
        self.loss(model, *self.batch).backward()

    def sample(self, model: nn.Module, i: int) -> Tensor:
        """The default contribution: the loss of sample i alone, over n."""
        return self.loss(model, *one_sample(self.batch, i)) / self.n

    def doubled(self) -> Program:
        """The same with a float64 batch."""
        return _replaced(self, batch=pytree.tree_map(_double, self.batch))


@dataclass(frozen=True)
class Verdict:
    """`kind`: "right", "refused", "wrong", or "crash" (an error that is not the monitor's, or does not help)."""

    kind: str
    why: str = ""
    error: float = float("nan")
    measured: int = 0
    parameters: int = 0

    @property
    def sound(self) -> bool:
        return self.kind in ("right", "refused")


def one_sample(batch: Any, i: int) -> Any:
    return pytree.tree_map(lambda x: x[i : i + 1] if isinstance(x, Tensor) and x.ndim else x, batch)


def judge(program: Program, *, again: bool = True, **options: Any) -> Verdict:
    """Run the program with a monitor and hold what it says against the loop over samples.

    `again`: after a refusal, an ordinary batch of the model has to be measured right, or refused in the same words.
    """
    with float64_default(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        program = program.doubled()
        step, contribution = program.step or program.plain, program.contribution or program.sample
        model, twin = program.made(), program.made()
        step(twin)
        plain = {name: None if p.grad is None else p.grad.clone() for name, p in twin.named_parameters()}
        names = {name for name, p in twin.named_parameters() if p.requires_grad}
        monitor = None
        try:
            monitor = sdsd.GammaMonitor(model, **{**program.options, **options})
            step(model)
            stats = monitor.step()
        except Exception as error:
            refusal = refused(error, model, program.situation)
            if not refusal.sound:
                return refusal
            kinds = {type(module) for module in twin.modules()}
            if monitor is None:
                changed = {type(m).__name__ for m in model.modules()} - {kind.__name__ for kind in kinds}
                return Verdict("wrong", f"the refusal left {changed} behind") if changed else refusal
            return _after(refusal, monitor, model, program) if again else refusal
        if stats is None:
            return Verdict("wrong", f"step() gave None ({[str(w.message) for w in caught]})")
        if program.own_gradient:
            for name, p in model.named_parameters():
                if not same(p.grad, plain.get(name), 1e-8):
                    return Verdict("wrong", f"{name}: .grad is not that of the program without a monitor")
        left_out = {name for name in names if monitor.coverage.get(name, "") is None}
        said = " ".join(str(each.message) for each in caught)
        silent = {name for name in left_out if not names_it(said, [name])}
        if silent:
            return Verdict("wrong", f"left out without a warning: {sorted(silent)}")
        if program.hopeless:
            if left_out:
                return Verdict("refused", f"left out: {sorted(left_out)}")
            return Verdict("wrong", "measured, though .grad is no sum over samples")
        monitor.detach()
        rows = per_sample(twin, contribution, program.n)
        return compare(stats, {k: v for k, v in rows.items() if k not in left_out}, left_out, program.tolerance)


def _after(refusal: Verdict, monitor: Any, model: nn.Module, program: Program) -> Verdict:
    """What the next, ordinary batch gives after a refusal."""
    model.zero_grad()
    try:
        program.plain(model)
        stats = monitor.step()
    except Exception as error:
        second = refused(error, model, program.situation)
        structural = program.step is None or program.permanent
        if not structural or second.why != refusal.why:
            return Verdict("crash", f"after the refusal ({refusal.why}) an ordinary batch fails: {described(error)}")
        return refusal
    monitor.detach()
    model.zero_grad()
    verdict = compare(stats, per_sample(model, program.sample, program.n), set(), program.tolerance)
    return (
        refusal
        if verdict.kind == "right"
        else Verdict("wrong", f"after a refusal, on an ordinary batch: {verdict.why}")
    )


def per_sample(model: nn.Module, contribution: Callable[[nn.Module, int], Tensor], n: int) -> dict[str, Tensor]:
    """n × the gradient of each sample's contribution; name → (n, *shape)."""
    names, parameters = zip(*[(k, p) for k, p in model.named_parameters() if p.requires_grad], strict=True)
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    kept = [p.grad for p in parameters]
    for i in range(n):
        for parameter in parameters:
            parameter.grad = None
        # Not autograd.grad, which reentrant checkpoints give nothing to.
        contribution(model, i).backward()
        for name, parameter in zip(names, parameters, strict=True):
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            rows[name].append(n * (gradient.to_dense() if gradient.is_sparse else gradient))
    for parameter, gradient in zip(parameters, kept, strict=True):
        parameter.grad = gradient
    return {name: torch.stack(values) for name, values in rows.items()}


def compare(stats: Any, rows: dict[str, Tensor], left_out: Iterable[str] = (), tolerance: float = TOLERANCE) -> Verdict:
    """Signal, noise and unbiased Γ of every parameter and of the total against per-sample gradients."""
    left_out = set(left_out)
    if stats is None:
        return Verdict("wrong", "step() gave None")
    everything = {name: torch.view_as_real(r) if r.is_complex() else r for name, r in rows.items()}
    everything = {name: r.reshape(len(r), -1).double() for name, r in everything.items()}
    sizes = {"measured": len(rows), "parameters": len(rows) + len(left_out)}
    idle = {name for name, each in stats.parameters.items() if each.signal == each.noise == 0} - set(rows) - left_out
    if set(stats.parameters) - idle != set(rows):
        differ = sorted(set(stats.parameters) ^ set(rows))[:5]
        return Verdict("wrong", f"parameters in stats but not in the model or the other way round: {differ}", **sizes)
    if not rows:
        return Verdict("refused", "every parameter is left out", **sizes)
    n = len(next(iter(rows.values())))
    if stats.n != n:
        return Verdict("wrong", f"n is {stats.n}, of {n} samples", **sizes)
    everything["the total"] = torch.cat(list(everything.values()), 1)
    largest = everything["the total"].square().sum(1).mean().item()
    wrong, worst = [], 0.0
    for name, r in everything.items():
        mean = r.mean(0)
        signal, noise = mean.square().sum().item(), (r - mean).square().sum().item() / (n - 1)
        scale = max(r.square().sum(1).mean().item(), SMALLEST * largest, torch.finfo(torch.float64).tiny)
        found = stats if name == "the total" else stats.parameters[name]
        error = max(_off(found.signal, signal, scale), _off(found.noise, noise, scale))
        if noise > SMALLEST * scale:
            # The unbiased ratio magnifies what is off in signal and noise by scale / noise, twice.
            ratio = (signal - noise / n) / noise
            error = max(error, _off(found.gamma_unbiased, ratio, (scale / noise) * max(1.0, abs(ratio))))
        worst = max(worst, error)
        if not error <= tolerance:
            wrong.append(
                f"{name}: noise {found.noise:.6g}, true {noise:.6g}; signal {found.signal:.6g}, true {signal:.6g}"
            )
    return Verdict("wrong" if wrong else "right", "; ".join(wrong[:4]), worst, **sizes)


def _off(found: float, wanted: float, scale: float) -> float:
    error = abs(found - wanted) / scale
    return float("inf") if error != error else error


def refused(error: BaseException, model: nn.Module, situation: str = "") -> Verdict:
    """A refusal: the monitor's own ValueError or RuntimeError that names a parameter or layer and says what to do."""
    text = str(error)
    if not isinstance(error, (ValueError, RuntimeError)) or not from_library(error.__traceback__):
        return Verdict("crash", described(error))
    names = [
        type(model).__name__,
        *(name for part in (model.named_parameters(), model.named_modules()) for name, _ in part),
    ]
    if not names_it(text, names) and not (situation and re.search(situation, text)):
        return Verdict("crash", f"names no parameter and no layer: {described(error)}")
    if not _ADVICE.search(text):
        return Verdict("crash", f"does not say what to do: {described(error)}")
    return Verdict("refused", text)


def names_it(text: str, names: Iterable[str]) -> bool:
    """Whether one of the names stands in the text as a word; names of one or two letters only before a colon."""
    found = set(re.findall(r"[\w.]*\w", text))
    return any(name in found if len(name) > 2 else bool(name) and f"{name}:" in text for name in names)


def from_library(trace: TracebackType | None) -> bool:
    """Whether the library raised the error itself."""
    last = None
    while trace is not None:
        last, trace = trace, trace.tb_next
    return last is not None and Path(last.tb_frame.f_code.co_filename).is_relative_to(LIBRARY)


def described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ")[:400]


def same(a: Tensor | None, b: Tensor | None, tolerance: float, floor: float = 0.0) -> bool:
    """Whether two gradients agree to `tolerance` of the second's norm or to `floor`; None is a gradient of zero."""
    if a is None or b is None:
        rest = b if a is None else a
        return rest is None or not rest.detach().to_dense().any()
    if a.shape != b.shape:
        return False
    a, b = a.detach().to_dense(), b.detach().to_dense()
    if tolerance == 0 or not (b.is_floating_point() or b.is_complex()):
        return torch.equal(a, b)
    return bool((a - b).abs().norm() <= max(tolerance * b.abs().norm(), floor, 1e-14 * b.numel() ** 0.5))


@contextmanager
def float64_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _double(x: Any) -> Any:
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def _replaced(program: Program, **changes: Any) -> Program:
    return Program(**{**program.__dict__, **changes})
