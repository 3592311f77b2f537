"""`GammaMonitor`: Γ and the gradient noise scale of every parameter, inside an ordinary training loop."""

from __future__ import annotations

import fnmatch
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sdsd_kernels import checks

from . import attachment
from . import precondition as preconditioning
from .averages import RunningAverages, Step, StepSource
from .check import CheckedParameter, CheckReport, by_loop, untouched
from .history import GammaHistory
from .layers import Rule, UnsupportedError, Watcher, rule_for
from .proof import Prover, max_eps
from .session import Session, capturing
from .stats import GammaStats, check_population, independent_count
from .uses import Pass, wide

MODES = ("auto", "exact", "micro")
AUTO_SWITCH = 4
"""Backward passes in one step from which "auto" takes micro-batches for samples: as exact, and any layer works."""


class GammaMonitor:
    """Measures signal and noise of the gradient while an unchanged training loop runs.

    In exact mode the samples of a batch are the gradients. While the model runs, the samples are followed from its
    input through every torch call; where one joins them with parameters, Σ‖g_n‖² is found beside the backward pass,
    and no per-sample gradient is kept. With the mean gradient of the step that gives Tr Σ and an unbiased ‖μ‖²::

        Tr Σ = (Σ‖g_n‖² − n‖ḡ‖²) / (n − 1)        ‖μ‖² ≈ ‖ḡ‖² − Tr Σ / n

    In micro mode the gradients of several backward passes, or of data-parallel ranks, are the samples; passes of
    unequal size are weighted by it. Both modes give the same `noise_scale` (in samples); `signal` and `noise` are of a
    gradient of `samples_per_gradient` samples, and of single samples in `stats.smoothed`.

    Example::

        monitor = sdsd.GammaMonitor(model)
        for x, y in loader:
            loss = loss_fn(model(x), y)
            loss.backward()
            stats = monitor.step()  # before clipping and optimizer.step()
            optimizer.step()
            optimizer.zero_grad()

    Args:
        model: any nn.Module; may be wrapped in DistributedDataParallel or compiled, before or after.
        every: measure each `every`-th step; the others run as if nothing were attached and give None.
        mode: "exact", "micro", or "auto": exact until one step has shown four or more backward passes, then micro.
        batch_dim: the dimension of the model's input, and of the layers' inputs, that counts samples.
        batch_size: samples a forward pass; None reads it off the model's first tensor argument. Give it where the input
            itself has several rows a sample, sample after sample, and where several forward passes of the same samples
            (pairs, say) go into one backward pass. The last batch may be smaller.
        loss_reduction: "mean" where the loss is a mean over samples (or anything whose gradient is the one you step
            with): per-sample gradients are scaled so that their mean is .grad. "sum": their sum is .grad.
        population: N, the training samples, where batches are drawn from them without replacement, as a DataLoader with
            shuffle=True does: what is known of all N is then not taken for chance (`GammaStats.signal_unbiased`), and
            full-batch gradients are exact. None where a sample can come twice, or is augmented anew each time. Of
            several ranks together. The smoothed interval is from the spread over steps, which knows of it anyway.
        ema: weight β of the past in the running averages behind `stats.smoothed`.
        confidence: level of the smoothed interval.
        precondition: an Adam, AdamW or RMSprop optimizer: signal and noise in its metric, ‖Dḡ‖² and Tr(DΣD), D from
            before the step. Steps before its first give None.
        scaler: the GradScaler in use, so that its scale is divided out, whether or not gradients were unscaled yet.
        parameters: names or patterns ("blocks.*.weight") of the parameters to measure; None takes all that train.
        strict: raise in `step` where a parameter's samples cannot be told apart, or a step does not prove itself; False
            leaves such parameters out from there on, with a warning, and `coverage` has None for them.
        max_bytes: bound on scratch memory for per-sample pieces (one sample's piece at least).
        history: what keeps every measured step, a `GammaHistory` or the path of one's file; read as `monitor.history`.
        process_group: ranks that share a step; "auto" takes it from DDP or FSDP2; None measures this rank alone.

    Raises:
        ValueError: an argument out of range, BatchNorm in train mode (exact), a model that is monitored already, or
            several ranks without a word how they share gradients.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int = 1,
        mode: str = "auto",
        batch_dim: int = 0,
        batch_size: int | None = None,
        loss_reduction: str = "mean",
        population: int | None = None,
        ema: float = 0.98,
        confidence: float = 0.95,
        precondition: torch.optim.Optimizer | None = None,
        scaler: Any = None,
        parameters: Iterable[str] | None = None,
        strict: bool = True,
        max_bytes: int = 64 * 2**20,
        history: GammaHistory | str | Path | None = None,
        process_group: Any = "auto",
    ) -> None:
        _check_arguments(mode, loss_reduction, ema, confidence)
        every, max_bytes = checks.check_count(every, "every"), checks.check_count(max_bytes, "max_bytes")
        batch_size = checks.check_count(batch_size, "batch_size", optional=True)
        batch_dim = _check_dimension(batch_dim)
        self.population = check_population(population)
        self.model, self.every, self.ema, self.confidence = model, every, ema, confidence
        self.loss_reduction, self.scaler, self.strict = loss_reduction, scaler, strict
        self._root = unwrap(model)
        self._auto = mode == "auto"
        self._mode = "micro" if mode == "micro" else "exact"
        self._session = Session(batch_dim, batch_size, max_bytes)
        self._session.exact = self._mode == "exact"
        self._attached: list[nn.Module] = []
        self._hooks: list[Any] = []
        self._history = GammaHistory(history) if isinstance(history, (str, Path)) else history
        self._observers: list[Callable[[GammaMonitor, GammaStats], None]] = []
        if self._history is not None:
            self._observers.append(self._history)
        self._steps = 0
        self._stats: GammaStats | None = None
        self._checked_reuse = 0
        self._captured: Step | None = None
        self._rows: dict[tuple[int, ...], Tensor] = {}
        self._names = _trainable(self._root, parameters)
        if not self._names:
            raise ValueError("model: expected at least one parameter that requires a gradient, got none to measure.")
        self._parameters = dict(self._names)
        self._everything = {clean(name): p for name, p in self._root.named_parameters()}
        self._excluded = {n for n, p in self._everything.items() if p.requires_grad} - set(self._parameters)
        self._group, self._world, self._sharded = _process_group(model, list(self._parameters.values()), process_group)
        self._precondition = precondition
        if precondition is not None:
            preconditioning.check_optimizer(precondition)
            if self._mode == "micro":
                raise ValueError("precondition: measured in exact mode only; leave it out or use mode='exact'.")
            self._auto = False
            self._session.scale, self._session.scaled = self._scale, True
        self._coverage: dict[str, str | None] = {}
        self._prover = Prover()
        try:
            self._attach()
        except BaseException:
            self.detach()
            raise
        device = next(iter(self._parameters.values())).device
        self._averages = RunningAverages(len(self._covered), ema, device)
        self._plan_step()

    # ---- attaching -------------------------------------------------------------------------------------------------

    def _attach(self) -> None:
        canonical = {id(parameter): name for name, parameter in self._parameters.items()}
        if attachment.is_attached(self._root):
            raise ValueError("model: a GammaMonitor watches it already. Call detach() on that one first.")
        mixing: dict[str, str] = {}
        owners: dict[str, list[Watcher]] = {}
        measured_above: set[nn.Module] = set()
        exact = self._mode == "exact"
        self._session.sharded = self._sharded
        self._coverage = {}
        for path, module in self._root.named_modules():
            name = clean(path) or type(module).__name__
            if exact and isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
                mixing[name] = "BatchNorm in train mode mixes the samples, so a sample has no gradient of its own"
            if module in measured_above:
                continue
            rule = rule_for(module)
            below = rule.children(module) if isinstance(rule, Rule) else ()
            measured_above.update(module.get_submodule(child) for child in below)
            own = {
                local: canonical[id(parameter)]
                for prefix, owner in [("", module), *((f"{child}.", module.get_submodule(child)) for child in below)]
                for local, parameter in ((prefix + local, p) for local, p in owner.named_parameters(recurse=False))
                if id(parameter) in canonical
            }
            is_root = module is self._root
            if not own and not is_root:
                continue
            if attachment.is_attached(module):
                raise ValueError(f"{name}: a GammaMonitor watches it already. Call detach() on that one first.")
            for full in own.values():
                self._coverage[full] = (
                    "norm of each micro-batch's gradient" if not exact
                    else rule.name if isinstance(rule, Rule) else "at its operations"
                )  # fmt: skip
            watcher = (_RootWatcher if is_root else Watcher)(self._session, module, name, rule, own if exact else {})
            place = next((p.device for p in module.parameters()), torch.device("cpu"))
            watcher.prepare(place)
            if isinstance(module, torch.jit.ScriptModule) and not is_root:
                continue
            try:
                attachment.attach(module, watcher)
            except (TypeError, AttributeError) as error:
                if is_root:
                    raise ValueError(f"{name}: {type(module).__name__} cannot be watched ({error}).") from error
                continue  # a module of TorchScript, say: only compiled code needs its watcher
            self._session.watchers.append(watcher)
            self._attached.append(module)
            for full in own.values():
                owners.setdefault(full, []).append(watcher)
        for watchers in owners.values():
            if len(watchers) > 1:
                for watcher in watchers:
                    watcher.tied = True
        if mixing:
            listed = "\n".join(f"  {name}: {why}." for name, why in mixing.items())
            raise ValueError(
                f"model: no exact per-sample gradient for\n{listed}\nTake micro-batches for samples: "
                "GammaMonitor(model, mode='micro') with two or more backward passes a step (gradient accumulation, or "
                "several ranks). Or freeze the statistics: put the layers in eval mode before attaching, or replace "
                "them by GroupNorm."
            )
        self._coverage = {name: self._coverage.get(name, "at its operations") for name in self._parameters}
        self._settle_coverage()
        if not exact:
            self._hook_parameters()

    def _settle_coverage(self) -> None:
        self._covered = tuple(name for name, rule in self._coverage.items() if rule is not None)
        self._index = {name: row for row, name in enumerate(self._covered)}
        session = self._session
        session.parameters = self._measured_parameters()
        session.rows = self._index
        session.root = self._root
        session.names = {id(parameter): name for name, parameter in session.parameters.items()}
        session.known = {id(parameter) for parameter in self._everything.values()}

    def _leave_out(self, refused: Mapping[str, str]) -> None:
        """From now on these parameters are no part of the result (strict=False)."""
        listed = _by_reason(refused, most=len(refused))
        if not set(self._covered) - set(refused):
            raise UnsupportedError(f"no parameter is left to measure:\n{listed}\nUse mode='micro'.")
        for name in refused:
            self._coverage[name] = None
        self._settle_coverage()
        self._averages = RunningAverages(len(self._covered), self.ema, self._averages.device)
        warnings.warn(f"left out of Γ from here on:\n{listed}\nSee monitor.coverage.", stacklevel=5)

    def _hook_parameters(self) -> None:
        self._micro = _MicroBatches(self._session, self._measured_parameters())
        self._session.forget_micro = self._micro.clear
        self._hooks = self._micro.hook()

    def _switch_to_micro(self) -> None:
        """Take micro-batches for samples from the next step on."""
        self._release()
        self._mode = "micro"
        self._session.exact = False
        self._session.watchers.clear()
        self._attach()
        self._averages = RunningAverages(len(self._covered), self.ema, self._averages.device)

    def _release(self) -> None:
        for hook in self._hooks:
            hook.remove()
        for module in reversed(self._attached):
            attachment.release(module)
        self._hooks, self._attached = [], []

    def detach(self) -> None:
        """Leave the model exactly as it was before the monitor came; calling it twice does no harm."""
        self._release()
        if self._history is not None:
            self._history.flush()

    def __enter__(self) -> GammaMonitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    # ---- what it says ----------------------------------------------------------------------------------------------

    @property
    def mode(self) -> str:
        """ "exact" or "micro": what the next step is measured by."""
        return self._mode

    @property
    def coverage(self) -> Mapping[str, str | None]:
        """Every parameter that trains → the rule that measures it; None for one that is left out (strict=False)."""
        return MappingProxyType(self._coverage)

    @property
    def stats(self) -> GammaStats:
        """What the last measured step gave: on the steps between, which `every` leaves out, it stays.

        Raises:
            RuntimeError: no step has been measured yet.
        """
        if self._stats is None:
            raise RuntimeError(
                f"stats: expected a measured step, but none of the {self._steps} so far was. Read it after a "
                "step() that returns statistics; the first does, unless it is skipped with a warning."
            )
        return self._stats

    @property
    def smoothed(self) -> GammaStats:
        """`stats.smoothed`: signal and noise of single samples, averaged over the measured steps so far.

        Raises:
            RuntimeError: no step has been measured yet.
        """
        found = self.stats.smoothed
        assert found is not None
        return found

    @property
    def steps(self) -> int:
        """How many calls of `step` there were, measured or not; `load_state_dict` goes on from another's."""
        return self._steps

    @property
    def history(self) -> GammaHistory:
        """The rows of all measured steps.

        Raises:
            RuntimeError: none is kept.
        """
        if self._history is None:
            raise RuntimeError(
                "history: expected a monitor that keeps one. Pass history='run.jsonl', or history=sdsd.GammaHistory(), "
                "to GammaMonitor."
            )
        return self._history

    def add_observer(self, observer: Callable[[GammaMonitor, GammaStats], None]) -> Callable[[], None]:
        """Call `observer(monitor, stats)` after every measured step; returns a function that takes it away again.

        Args:
            observer: a function of (monitor, stats), or a `GammaHistory` or `CurvatureObserver`.

        Returns:
            A function without arguments that takes the observer away again.
        """
        self._observers.append(observer)
        return lambda: self._observers.remove(observer)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "GammaMonitor: expected to stay with the model it watches, got a copy or a pickle of it. Save "
            "monitor.state_dict() and load it into a new monitor of the other model. The model copies and pickles by "
            "itself, unwatched; keep the monitor beside it and not among its attributes."
        )

    def state_dict(self) -> dict[str, Any]:
        """The running averages and the step count, for a checkpoint."""
        return {
            "averages": self._averages.state_dict(), "steps": self._steps, "mode": self._mode, "ema": self.ema,
            "parameters": list(self._covered), "population": self.population,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict` of a monitor of the same parameters.

        Args:
            state: what `state_dict` of the other monitor returned.

        Raises:
            ValueError: other parameters than this monitor's, or another population: averages of both would be of
                neither.
        """
        missing = [key for key in ("averages", "steps", "mode", "parameters", "population") if key not in state]
        if missing:
            raise ValueError(f"state: expected what state_dict() gave, but {', '.join(missing)} is missing.")
        if list(state["parameters"]) != list(self._covered):
            differ = sorted(set(state["parameters"]) ^ set(self._covered))[:5]
            raise ValueError(f"state: it is of other parameters than this monitor's (for example {', '.join(differ)}).")
        if state["population"] != self.population:
            raise ValueError(
                f"state: its averages are of batches with population={state['population']}, this monitor's would be of "
                f"population={self.population}. Give the monitor that one, or let it begin anew without this state."
            )
        if state["mode"] != self._mode and self._auto:
            self._switch_to_micro()
        self._averages.load_state_dict(state["averages"])
        self._steps = state["steps"]
        self._plan_step()

    # ---- a step ----------------------------------------------------------------------------------------------------

    def _plan_step(self) -> None:
        self._session.reset(self._steps % self.every == 0 and self._ready())
        proving = self._mode == "exact" and self._prover.due() and not self._sharded
        self._session.directions = self._prover.direction if proving else None
        self._scales: dict[str, Tensor | None] = {}

    def _ready(self) -> bool:
        if self._precondition is None:
            return True
        self._optimizer_groups = preconditioning.groups_of(self._precondition)
        for name in self._covered:
            parameter = self._parameters[name]
            if id(parameter) not in self._optimizer_groups:
                raise ValueError(f"precondition: the optimizer does not hold {name}.")
        return all(self._precondition.state.get(self._parameters[name]) for name in self._covered)

    def _scale(self, name: str) -> Tensor | None:
        if self._precondition is None or name not in self._index:
            return None
        if name not in self._scales:
            parameter = self._parameters[name]
            self._scales[name] = preconditioning.diagonal(
                self._precondition, parameter, self._optimizer_groups[id(parameter)]
            )
        return self._scales[name]

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A block whose forward and backward passes are not measured: a penalty, SAM's second step, curvature, a look.

        Example::

            loss_fn(model(x), y).backward()
            stats = monitor.step()
            with monitor.paused():
                penalty(model, x).backward()  # not a gradient of the batch's samples
            optimizer.step()

        It stops the measuring and nothing else. A pass runs forward and backward in the block, or before and after it:
        forward inside and backward outside, it counts for nothing (exact mode) or as one more micro-batch (micro mode).
        What a pass in the block adds to .grad is in it as ever, and the gradient that `step` finds there counts whole:
        call `step` before, or clear .grad or put it back after. Works with compiled models, entered outside of compiled
        code; blocks can be nested.

        Raises:
            RuntimeError: entered inside a function that torch.compile traces.
        """
        if attachment.compiling():
            raise RuntimeError(
                "paused() cannot be entered inside compiled code, which would not keep to its beginning and end. Put "
                "the with block round the call of the compiled model or function."
            )
        session = self._session
        with session.paused(), session.leftovers.watch({} if session.pauses > 1 else self._measured_parameters()):
            yield

    def _measured_parameters(self) -> dict[str, nn.Parameter]:
        return {name: self._parameters[name] for name in self._covered}

    def check(self, loss_fn: Callable[[nn.Module, Any], Tensor], batch: Any) -> CheckReport:
        """Compare the monitor with a loop over the samples of a batch: what to run once on a new model.

        ::

            monitor.check(lambda model, batch: loss_fn(model(batch[0]), batch[1]), (x, y))

        Gradients, buffers and random streams are left as they were, and nothing enters the running averages. Samples
        are told apart as the loop does: each as a batch of one, its loss weighted 1/n. Dropout draws other numbers in
        the loop, so switch it off (model.eval(), or p = 0) to compare digits.

        Args:
            loss_fn: (model, batch) → the loss, a mean over samples (or a sum, with loss_reduction="sum").
            batch: a tensor or a nest of tensors; those with n entries along batch_dim are cut into samples.

        Returns:
            `CheckReport`: signal and noise of every covered parameter, measured and by the loop. It is printed too.

        Raises:
            ValueError: the monitor takes micro-batches for samples, or the batch has fewer than 2 samples.
            UnsupportedError: samples that cannot be told apart.
        """
        if self._mode != "exact":
            raise ValueError("check: it compares single samples, and this monitor takes micro-batches for samples.")
        session = self._session
        held = (self._steps, self._averages)
        self._averages = RunningAverages(len(self._covered), self.ema, self._averages.device)
        scaler, self.scaler = self.scaler, None
        steps = self._prover.steps
        try:
            with untouched(self._root), session.apart():
                for parameter in self._root.parameters():
                    parameter.grad = None
                session.directions = None if self._sharded else self._prover.direction
                with torch.enable_grad():
                    loss = loss_fn(self.model, batch)
                    loss.backward()
                with torch.no_grad():
                    stats, _ = self._measure()
                n = session.batch or 0
                if stats is None:
                    raise ValueError(f"batch: expected at least 2 samples, got {n}.")
                with self.paused(), torch.enable_grad():
                    found, by_loop_loss = by_loop(
                        self._root, self._measured_parameters(), loss_fn, batch, n, session.batch_dim
                    )
        finally:
            self._steps, self._averages = held
            self.scaler, self._prover.steps = scaler, steps
        factor = n if self.loss_reduction == "sum" else 1
        report = CheckReport(
            tuple(
                CheckedParameter(name, stats.parameters[name].signal, signal, stats.parameters[name].noise, noise)
                for name, (signal, noise) in found.items()
            ),
            loss.item() / factor,
            by_loop_loss,
        )
        print(report)
        return report

    @torch.no_grad()
    def step(self) -> GammaStats | None:
        """Statistics of the backward passes since the last call; call it before clipping and optimizer.step().

        Returns:
            `GammaStats` of this step, with `.smoothed` over the steps so far, or None on a step that is not measured
            (by `every`, before the optimizer's first step with `precondition`, with a warning for a single sample, or
            inside a CUDA graph: see `replayed`).
            Nothing is copied to the host before a value is read.

        Raises:
            RuntimeError: no backward pass since the last call; a parameter got a gradient outside its layer; .grad
                holds what a pass inside `paused` left; called inside `paused`.
            ValueError: more samples than the population; samples that cannot be told apart; the message says why, and
                what to do.
        """
        session = self._session
        if session.pauses:
            raise RuntimeError(
                "step() inside paused(): nothing is measured there. Call it before the with block, so that .grad holds "
                "the gradient of the batch alone, or after it."
            )
        measured = session.measuring
        batches = 0
        stats = None
        try:
            if measured:
                if torch.autograd._profiler_enabled():
                    with torch.profiler.record_function("GammaMonitor.step"):
                        stats, batches = self._measure()
                else:
                    stats, batches = self._measure()
                session.stepped()
        finally:
            self._steps += 1
            if self._auto and self._mode == "exact" and batches >= AUTO_SWITCH:
                self._switch_to_micro()
                warnings.warn(
                    f"a step of {batches} backward passes: from the next one on micro-batches are the samples (mode "
                    "'micro'), and the running averages start anew. Pass mode='exact' to keep single samples.",
                    stacklevel=2,
                )
            self._plan_step()
        if stats is not None:
            self._tell(stats)
        return stats

    def _measure(self) -> tuple[GammaStats | None, int]:
        """The step's statistics, and how many backward passes it had."""
        session = self._session
        self._check_leftovers()
        self._check_strangers()
        exact = self._mode == "exact"
        groups = session.batches() if exact else []
        if exact and not groups:
            self._check_uses([[ledger] for ledger in session.passes])
        count = len(groups) or len(session.sizes)
        if not count:
            trained = [name for name in self._covered if self._parameters[name].grad is not None]
            seen = ""
            if trained:
                names = ", ".join(trained[:3]) + (" …" if len(trained) > 3 else "")
                seen = (
                    f" {names} have gradients, but not from a forward pass of this model that was seen: call "
                    "the model as a whole, or attach the monitor to the part that is called, or clear old gradients."
                )
            raise RuntimeError(
                f"step() needs a backward pass since the last call. Call it after loss.backward().{seen}"
            )
        if exact:
            self._check_uses(groups)
            squares, n = self._exact(groups)
            unit, weighted = 1.0, None
        else:
            squares, n, unit, weighted = self._micro.collect(self._world, self.loss_reduction)
        if n < 2:
            # The odd last batch of an epoch; stopping a run for it would be no help.
            unit_name = "sample" if exact else "micro-batch"
            warnings.warn(
                f"step skipped: it held {n} {unit_name}{'s'[: n == 0]}, and a variance needs at least 2.", stacklevel=3
            )
            return None, count
        self._check_gradients(groups)
        device = self._averages.device
        independent = independent_count(n, unit, self.population)
        signal = self._gradient_squares(device) if weighted is None else weighted.to(device)
        captured = capturing()
        if captured and (self._world > 1 or (self.scaler is not None and self.scaler.is_enabled())):
            raise RuntimeError(
                "step() inside a CUDA graph: not with several ranks or with a GradScaler, whose scale has to be waited "
                "for. Call it outside of the graph, or capture without them."
            )
        if exact and not captured and not self._prove(groups, squares, n):
            squares, n = self._exact(groups)
            signal = self._gradient_squares(device)
        signal, squares = self._reduce(signal, squares.to(device), own_sum=weighted is not None)
        if exact and self.loss_reduction == "mean":
            # Contributions to .grad add up to it; n times a contribution is a gradient whose mean is .grad.
            squares = squares * (n / self._world) ** 2
        elif self.loss_reduction == "sum":
            signal = signal * (self._world / (n * unit)) ** 2
        step = Step(torch.stack([signal, squares]), n, unit, independent)
        if captured:
            self._captured = step
            return None, count
        return self._stats_of(step), count

    def _stats_of(self, step: Step) -> GammaStats:
        """The step's statistics, entered into the running averages."""
        n, unit, samples = step.n, step.unit, round(step.n * step.unit)
        self._averages.update(step)
        source = self._averages.source(self._covered, independent_count(samples, 1, self.population))
        smoothed = GammaStats(
            source, n=samples, samples_per_gradient=1, batch_size=samples, population=self.population,
            confidence=self.confidence,
        )  # fmt: skip
        return GammaStats(
            StepSource(self._covered, step),
            n=n,
            samples_per_gradient=int(unit) if unit == int(unit) else unit,
            batch_size=samples,
            population=self.population,
            confidence=None,
            smoothed=smoothed,
        )

    def replayed(self) -> GammaStats:
        """Statistics of the last replay of a CUDA graph that a measured step was captured into.

        A `step()` inside `torch.cuda.graph(…)` measures nothing yet, and returns None; from then on every replay does::

            with torch.cuda.graph(graph):
                loss_fn(model(x), y).backward()
                monitor.step()
            for batch in batches:
                x.copy_(batch)
                graph.replay()
                stats = monitor.replayed()

        Take three or more measured steps on a side stream before, as any capture wants: these prove themselves, and a
        captured one cannot. Nothing is copied to the host before a value is read.

        Raises:
            RuntimeError: no step was captured.
        """
        if self._captured is None:
            raise RuntimeError(
                "replayed: no step was captured. Call step() after the backward pass inside `with torch.cuda.graph(…)`."
            )
        # The next replay writes over the numbers of this one.
        stats = self._stats_of(self._captured._replace(raw=self._captured.raw.clone()))
        self._tell(stats)
        return stats

    def _tell(self, stats: GammaStats) -> None:
        self._stats = stats
        for observer in self._observers:
            observer(self, stats)

    def _check_uses(self, groups: list[list[Pass]]) -> None:
        """Refuse by name, or leave out, what could not be followed; note what measured the rest."""
        refused: dict[str, str] = {}
        kinds: dict[str, set[str]] = {}
        for ledger in (ledger for group in groups for ledger in group):
            for name, reason in ledger.refused.items():
                if name in self._index and self._parameters[name].grad is not None:
                    refused.setdefault(name, reason)
            for name, found in ledger.kinds.items():
                kinds.setdefault(name, set()).update(found)
        for name, every in kinds.items():
            if self._coverage.get(name) is not None:
                self._coverage[name] = " + ".join(sorted(every))
        if not refused:
            return
        if not self.strict:
            self._leave_out(refused)
            return
        raise UnsupportedError(
            f"no exact per-sample gradient for\n{_by_reason(refused)}\nUse mode='micro', which takes whole "
            "micro-batches for samples; leave these parameters out with parameters=…; or strict=False, which leaves "
            "out what cannot be told apart and says so in coverage."
        )

    def _exact(self, groups: list[list[Pass]]) -> tuple[Tensor, int]:
        """Σ‖contribution‖² of this rank's samples, and the samples of all ranks."""
        session = self._session
        device = self._averages.device
        squares = torch.zeros(len(self._covered), dtype=torch.float64, device=device)
        rows, parts = [], []
        for ledger in (ledger for group in groups for ledger in group):
            for norms in ledger.norms.values():
                sums = norms.sum(1)
                if ledger.rows is not self._index:  # some were left out since
                    sums = sums[[ledger.rows[name] for name in self._covered]]
                squares += sums.to(device)
            for name, values in ledger.squares.items():
                if name in self._index:
                    rows += [self._index[name]] * len(values)
                    parts += values
        for watcher in session.watchers:
            found = watcher.probe.grad
            if found is None or not watcher.names:
                continue
            self._check_reuse(watcher, found, len(groups) or len(session.sizes))
            parts += found[:-1]
            rows += [self._index[name] for name in watcher.names.values()]
        if parts:
            squares.index_add_(0, self._on_device(rows), _joined(parts, device))
        n = sum(group[0].n for group in groups) if groups else sum(session.sizes)
        if self._world > 1:
            # Ranks may hold batches of different size; that is known to none of them alone.
            total = torch.tensor([n], dtype=torch.float64, device=device)
            dist.all_reduce(total, group=self._group)
            n = round(total.item())
        return squares, n

    def _prove(self, groups: list[list[Pass]], squares: Tensor, n: int) -> bool:
        """On a step whose turn it is: what arrived in .grad is what the samples measured add up to.

        Returns False where parameters had to be left out (strict=False).
        """
        ledgers = [ledger for group in groups for ledger in group]
        proving = self._session.directions is not None and bool(ledgers)
        self._prover.stepped()
        if not proving:
            return True
        zero = torch.zeros((), dtype=torch.float64, device=self._averages.device)
        probed = {name for watcher in self._session.watchers if watcher.ran for name in watcher.names.values()}
        names = [name for name in self._covered if name not in probed]
        measured = [
            sum((each.to(zero.device) for ledger in ledgers for each in ledger.projections.get(name, [])), zero)
            for name in names
        ]
        each_square = squares[[self._index[name] for name in names]]
        table = torch.stack([torch.stack(measured) if measured else each_square, each_square])
        unit = 1.0
        if self._world > 1:
            dist.all_reduce(table, group=self._group)
            unit = 1 / self._world
        if self.scaler is not None and self.scaler.is_enabled() and _unscaled(self.scaler):
            unit /= self.scaler.get_scale()
        dtypes: dict[str, torch.dtype] = {}
        for ledger in ledgers:
            for name, dtype in ledger.dtypes.items():
                dtypes[name] = max_eps(dtypes.get(name), dtype)
        gradients = {name: grad for name in names if (grad := self._parameters[name].grad) is not None}
        for name, grad in gradients.items():
            self._prover.direction(name, grad)
        differences = self._prover.differences(
            dict(zip(names, table[0] * unit, strict=True)), dict(zip(names, table[1] * unit**2, strict=True)),
            gradients, dtypes, n,
        )  # fmt: skip
        if not differences:
            return True
        self._prover.again()
        refused = {
            name: f"what arrived in .grad is not what the measured samples add up to (off by {difference:.1%} of it)"
            for name, difference in differences.items()
        }
        if not self.strict:
            self._leave_out(refused)
            return False
        listed = [f"{name} ({difference:.1%} of it)" for name, difference in list(differences.items())[:8]]
        more = f" and {len(refused) - 8} more" if len(refused) > 8 else ""
        raise UnsupportedError(
            "the step does not prove itself: what arrived in .grad is not what the measured samples add up to, for\n  "
            f"{', '.join(listed)}{more}.\nLikely reasons: the parameter is used outside the model's "
            "forward pass (in the loss, in a penalty, tied by hand), an inner autograd.grad(create_graph=True), a "
            "gradient that was not cleared, or changed by a hook or by clipping before step(). Compute penalties under "
            "`with monitor.paused():` after step(), clear gradients after every step, or leave the parameter out with "
            "parameters=…."
        )

    def _on_device(self, rows: list[int]) -> Tensor:
        """`rows` as a tensor; the same from step to step, so it is kept rather than copied over each time."""
        key = tuple(rows)
        found = self._rows.get(key)
        if found is None:
            if len(self._rows) >= 16:
                self._rows.clear()
            found = self._rows[key] = torch.tensor(rows, device=self._averages.device)
        return found

    def _check_reuse(self, watcher: Watcher, found: Tensor, passes: int) -> None:
        """In compiled code a layer cannot say that it ran twice; its probe can, for the price of a look at it."""
        if self._checked_reuse > 3 * len(self._session.watchers):
            return
        self._checked_reuse += 1
        uses = found[-1].item()
        if uses > passes:
            raise UnsupportedError(
                f"{watcher.name}: ran {uses / passes:g} times in one compiled forward pass, and "
                "squares of single uses do not add. Use mode='micro', or leave this part of the model uncompiled."
            )

    def _check_leftovers(self) -> None:
        names = self._session.leftovers.names()
        if names:
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise RuntimeError(
                f".grad holds what a backward pass inside paused() left, and not the batch's gradient alone: {shown}. "
                "Call step() before such a pass, or clear .grad or put it back after it (not through .data, which "
                "hides that it was changed)."
            )

    def _check_strangers(self) -> None:
        """Raise where the model holds parameters that it did not hold when the monitor was attached."""
        session = self._session
        if session.strangers:
            names = [clean(name) for name, p in self._root.named_parameters() if id(p) in session.strangers]
            if names:
                raise RuntimeError(
                    f"{', '.join(names[:5])}: not the parameters that were there when the monitor was attached. Attach "
                    "a new monitor after parameters or layers are replaced."
                )

    def _check_gradients(self, groups: list[list[Pass]]) -> None:
        """Raise where a parameter has a gradient that nothing measured."""
        session = self._session
        if groups and not any(ledger.n for group in groups for ledger in group):
            return  # a rank without samples: what is in .grad came from the others
        measured = {name for watcher in session.watchers if watcher.ran for name in watcher.names.values()}
        for ledger in (ledger for group in groups for ledger in group):
            measured.update(ledger.squares)
        gone = [name for name in self._covered if name in measured and self._parameters[name].grad is None]
        if gone:
            shown = ", ".join(gone[:3]) + (" …" if len(gone) > 3 else "")
            raise RuntimeError(
                f"{shown}: measured, but .grad is None. Call step() before gradients are cleared; optimizers that step "
                "inside backward (DeepSpeed's ZeRO) are not supported."
            )
        for name, parameter in self._everything.items():
            if parameter.grad is None or (name in self._coverage and self._coverage[name] is None):
                continue
            if name not in self._coverage:
                if name in self._excluded:
                    continue
                raise RuntimeError(
                    f"{name} has a gradient but did not train when the monitor was attached. Attach a new monitor."
                )
            if self._mode == "exact" and name not in measured:
                raise RuntimeError(
                    f"{name} has a gradient, but no operation of the model's forward pass was seen to give it one: the "
                    "parameter is used outside the model's forward, inside an autograd.Function or TorchScript, or an "
                    "old .grad was not cleared. Clear gradients after each step, use mode='micro', or leave it out "
                    "with parameters=…."
                )

    def _gradient_squares(self, device: torch.device) -> Tensor:
        """‖.grad‖² of every covered parameter; shape: (parameters,)."""
        rows, grads = [], []
        for row, name in enumerate(self._covered):
            grad = self._parameters[name].grad
            if grad is None:
                continue
            if grad.is_sparse:
                grad = grad.coalesce().values()
            if hasattr(grad, "to_local"):
                grad = grad.to_local()
            scale = self._scale(name) if self._mode == "exact" else None
            if scale is not None:
                grad = grad * (scale.to_local() if hasattr(scale, "to_local") else scale)
            rows.append(row)
            grads.append(wide(grad))
        squares = torch.zeros(len(self._covered), dtype=torch.float64, device=device)
        if grads:
            norms = _joined(list(torch._foreach_norm(grads)), device)
            squares = (
                norms.square()
                if len(rows) == len(squares)
                else squares.index_put((self._on_device(rows),), norms.square())
            )
        return squares

    def _reduce(self, signal: Tensor, squares: Tensor, own_sum: bool) -> tuple[Tensor, Tensor]:
        """Add over ranks what each rank knows a part of, and take the loss scale out.

        `own_sum`: the signal is of a sum of scaled gradients, which scaler.unscale_ did not touch.
        """
        if self._world > 1:
            joined = torch.stack([squares, signal]) if self._sharded else squares[None]
            dist.all_reduce(joined, group=self._group)
            squares, signal = (joined[0], joined[1]) if self._sharded else (joined[0], signal)
        if self.scaler is not None and self.scaler.is_enabled():
            inverse = 1.0 / self.scaler.get_scale() ** 2
            squares = squares * inverse
            if own_sum or not _unscaled(self.scaler):
                signal = signal * inverse
        return signal, squares


class _RootWatcher(Watcher):
    """Watches the whole model: each of its forward passes is a batch."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.idle = False

    def forward(self, module: nn.Module, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        session = self.session
        if not session.measuring:
            return plain(*args, **kwargs)
        if attachment.compiling():
            session.begin_compiled(args, kwargs)
            return super().forward(module, plain, args, kwargs)
        if not torch.is_grad_enabled():
            return plain(*args, **kwargs)
        if session.sharded:
            session.learn(module, self.names)
        return session.forward(plain, args, kwargs)


class _MicroBatches:
    """Norms of what single backward passes add to .grad, taken where it arrives at the parameters.

    With c_k what pass k adds, b_k its samples, B = Σ b_k, M passes: the loss of a micro-batch is a mean over its
    samples divided by the same number in every pass (loss_reduction "mean", g_k = M c_k) or a sum (g_k = c_k / b_k).
    ḡ = Σ b_k g_k / B, and in the unit of the mean size b̄ = B / M

        Tr Var = (Σ (b_k / b̄) ‖g_k‖² − M ‖ḡ‖²) / (M − 1)

    With means over micro-batches of one size, and with sums, ḡ is .grad up to a factor. Means over unequal ones need
    Σ b_k c_k, one buffer of the parameters' size, made when the first odd micro-batch comes.
    """

    def __init__(self, session: Session, parameters: dict[str, nn.Parameter]) -> None:
        self._session, self._parameters = session, list(parameters.values())
        self.clear()

    def clear(self) -> None:
        self._norms: list[dict[int, Tensor]] = []
        self._weighted: dict[int, Tensor] = {}

    def hook(self) -> list[Any]:
        return [
            parameter.register_hook(lambda grad, row=row: self._arrived(row, grad))
            for row, parameter in enumerate(self._parameters)
        ]

    def _arrived(self, row: int, grad: Tensor) -> None:
        session = self._session
        if not session.measuring:
            return
        session.backward_runs(grad)
        wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
        values = grad.coalesce().values() if grad.is_sparse else grad
        before_this = session.sizes[:-1]
        place = len(before_this)
        while len(self._norms) <= place:
            self._norms.append({})
        self._norms[place][row] = torch.linalg.vector_norm(values, dtype=wide).double().square()
        size, first = session.batch or 0, before_this[0] if before_this else session.batch
        if row in self._weighted:
            self._weighted[row].add_(grad, alpha=size)
        elif any(each != size for each in before_this):
            before = self._parameters[row].grad
            earlier = torch.zeros_like(grad) if before is None else before.detach() * float(first or 0)
            self._weighted[row] = earlier.add_(grad, alpha=size)

    def collect(self, world: int, reduction: str) -> tuple[Tensor, int, float, Tensor | None]:
        """Σ (b_k / b̄)‖g_k‖² of this rank, micro-batches of all ranks, b̄, and ‖ḡ‖² where .grad does not give it."""
        sizes, norms, weighted = self._session.sizes, self._norms, self._weighted
        self.clear()
        if len(set(sizes)) > 1 and world > 1:
            raise UnsupportedError(
                f"micro-batches of unequal size on this rank ({sizes}): with several ranks they have to be equal. Drop "
                "the odd last one, or use mode='exact'."
            )
        count, total = len(sizes), sum(sizes)
        mean = total / count
        device = self._parameters[0].device
        zero = torch.zeros((), dtype=torch.float64, device=device)
        squares = torch.zeros(len(self._parameters), dtype=torch.float64, device=device)
        for size, each in zip(sizes, norms, strict=True):
            factor = count**2 if reduction == "mean" else 1 / size**2
            found = [each.get(row, zero).to(device) for row in range(len(self._parameters))]
            squares += torch.stack(found) * (factor * size / mean)
        own = None
        if reduction == "mean" and len(set(sizes)) > 1:
            parts = []
            for row, parameter in enumerate(self._parameters):
                if row in weighted:
                    parts.append(torch.linalg.vector_norm(weighted[row]).double().to(device) * (count / total))
                elif parameter.grad is not None:  # no odd micro-batch reached it
                    parts.append(
                        torch.linalg.vector_norm(parameter.grad).double().to(device) * (sizes[0] * count / total)
                    )
                else:
                    parts.append(zero)
            own = torch.stack(parts).square()
        return squares, count * world, mean, own


def _by_reason(refused: Mapping[str, str], most: int = 4) -> str:
    """One line a reason, with the names it is of."""
    names: dict[str, list[str]] = {}
    for name, why in refused.items():
        names.setdefault(why, []).append(name)
    lines = []
    for why, found in names.items():
        more = f" and {len(found) - most} more" if len(found) > most else ""
        lines.append(f"  {', '.join(found[:most])}{more}: {why}.")
    return "\n".join(lines)


def _joined(values: list[Tensor], device: torch.device) -> Tensor:
    """0-dim tensors as one vector in float64 on `device`, without waiting for another device."""
    if all(value.device.type == "cpu" for value in values):
        return torch.tensor([value.item() for value in values], dtype=torch.float64, device=device)
    if all(value.device == device and value.dtype == values[0].dtype for value in values):
        return torch.stack(values).double()
    return torch.stack([value.to(device, torch.float64) for value in values])


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside DistributedDataParallel, DataParallel and torch.compile's wrapper."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def clean(name: str) -> str:
    """A parameter's name without what wrappers put into it."""
    return re.sub(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.|$)", "", name).lstrip(".")


def _trainable(root: nn.Module, wanted: Iterable[str] | None) -> list[tuple[str, nn.Parameter]]:
    everything = [(clean(name), p) for name, p in root.named_parameters() if p.requires_grad]
    if wanted is None:
        return everything
    patterns = [wanted] if isinstance(wanted, str) else list(wanted)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name, _ in everything):
            raise ValueError(
                f"parameters: {pattern!r} matches none of the parameters that train, for example "
                f"{', '.join(name for name, _ in everything[:5])}."
            )
    return [(name, p) for name, p in everything if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def _process_group(model: nn.Module, parameters: list[nn.Parameter], given: Any) -> tuple[Any, int, bool]:
    """(group, ranks, whether gradients are sharded)."""
    sharded = any(hasattr(parameter, "device_mesh") for parameter in parameters)
    if given != "auto" and not sharded:
        return given, (dist.get_world_size(given) if given is not None else 1), False
    if sharded:
        mesh = next(p.device_mesh for p in parameters if hasattr(p, "device_mesh"))
        if mesh.ndim != 1:
            raise ValueError(
                f"model: parameters lie on a device mesh of {mesh.ndim} dimensions; exact mode knows one (FSDP2), no "
                "tensor or pipeline parallelism."
            )
        return mesh.get_group(), mesh.size(), True
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return model.process_group, dist.get_world_size(model.process_group), False
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise ValueError(
            f"model: {dist.get_world_size()} ranks run, but it is neither wrapped in DistributedDataParallel nor "
            "sharded by FSDP2. Pass the wrapped model, or process_group=… where gradients are averaged over ranks, or "
            "process_group=None to measure this rank alone."
        )
    return None, 1, False


def _unscaled(scaler: Any) -> bool:
    """Whether scaler.unscale_(optimizer) ran in this step."""
    return any(getattr(state.get("stage"), "name", "") == "UNSCALED" for state in scaler._per_optimizer_states.values())


def _check_dimension(batch_dim: Any) -> int:
    dimension = checks.whole_number(batch_dim)
    if dimension is None or dimension < 0:
        raise ValueError(f"batch_dim: expected a dimension counted from the front, 0 or more, got {batch_dim!r}.")
    return int(dimension)


def _check_arguments(mode: str, loss_reduction: str, ema: float, confidence: float) -> None:
    for name, chosen, choices in (("mode", mode, MODES), ("loss_reduction", loss_reduction, ("mean", "sum"))):
        if chosen not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {chosen!r}.")
    if not 0 <= ema < 1:
        raise ValueError(f"ema: expected the weight of the past, 0 ≤ ema < 1, got {ema!r}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a level between 0 and 1, for example 0.95, got {confidence!r}.")
