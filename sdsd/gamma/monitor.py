"""`GammaMonitor`: Γ and the gradient noise scale of every parameter, inside an ordinary training loop."""

from __future__ import annotations

import fnmatch
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType, TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from . import attachment
from . import precondition as preconditioning
from .averages import RunningAverages, Step, StepSource
from .layers import Rule, UnsupportedError, Watcher, rule_for
from .session import Session
from .stats import GammaStats, check_population, independent_count

MODES = ("auto", "exact", "micro")
AUTO_SWITCH = 4
"""Backward passes in one step from which "auto" takes micro-batches for samples: as exact, and any layer works."""


class GammaMonitor:
    """Measures signal and noise of the gradient while an unchanged training loop runs.

    In exact mode the samples of a batch are the gradients: layers compute Σ‖g_n‖² beside their weight gradient, no
    per-sample gradient is kept, and with the mean gradient of the step that gives Tr Σ and an unbiased ‖μ‖²::

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
        batch_size: samples a forward pass; None reads it off the model's first tensor argument. Give it where layers
            see tokens flattened into rows, sample after sample.
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
        strict: refuse to attach where a parameter has no exact rule; False leaves it out and lists it in `coverage`.
        max_bytes: bound on scratch memory for per-sample pieces (one sample's piece at least).
        process_group: ranks that share a step; "auto" takes it from DDP or FSDP2; None measures this rank alone.

    Raises:
        ValueError: an argument out of range, a parameter without a rule (strict), BatchNorm in train mode (exact),
            a model that is monitored already, several ranks without a word how they share gradients.
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
        process_group: Any = "auto",
    ) -> None:
        _check_arguments(every, mode, batch_dim, batch_size, loss_reduction, ema, confidence, max_bytes)
        self.population = check_population(population)
        self.model, self.every, self.ema, self.confidence = model, every, ema, confidence
        self.loss_reduction, self.scaler, self.strict = loss_reduction, scaler, strict
        self._root = unwrap(model)
        self._auto = mode == "auto"
        self._mode = "micro" if mode == "micro" else "exact"
        self._session = Session(batch_dim, batch_size, max_bytes)
        self._attached: list[nn.Module] = []
        self._hooks: list[Any] = []
        self._observers: list[Callable[[GammaMonitor, GammaStats], None]] = []
        self._steps = 0
        self._checked_reuse = 0
        self._rows: tuple[list[int], Tensor] = ([], torch.empty(0, dtype=torch.long))
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
            self._session.scale = self._scale
        self._coverage: dict[str, str | None] = {}
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
        refused: dict[str, str] = {}
        owners: dict[str, list[Watcher]] = {}
        measured_above: set[nn.Module] = set()
        for path, module in self._root.named_modules():
            if module in measured_above:
                continue
            name = clean(path) or type(module).__name__
            rule: Rule | str | None = rule_for(module) if self._mode == "exact" else None
            below = rule.children(module) if isinstance(rule, Rule) else ()
            measured_above.update(module.get_submodule(child) for child in below)
            own = {
                local: canonical[id(parameter)]
                for prefix, owner in [("", module), *((f"{child}.", module.get_submodule(child)) for child in below)]
                for local, parameter in ((prefix + local, p) for local, p in owner.named_parameters(recurse=False))
                if id(parameter) in canonical
            }
            is_root = module is self._root
            mixes = isinstance(module, nn.modules.batchnorm._BatchNorm) and self._mode == "exact"
            if not own and not is_root and not mixes:
                continue
            if attachment.is_attached(module):
                raise ValueError(f"{name}: a GammaMonitor watches it already. Call detach() on that one first.")
            if not own and not mixes:
                rule = None
            if rule is not None:
                if mixes and isinstance(rule, Rule) and module.training:
                    refused[name] = (
                        "BatchNorm in train mode mixes the samples, so a sample has no gradient of its own. Use "
                        "mode='micro' with gradient accumulation, put the layer in eval mode, or take GroupNorm"
                    )
                if isinstance(rule, str):
                    refused.update(dict.fromkeys(own.values(), rule))
                    own, rule = {}, None
            for full in own.values():
                self._coverage[full] = rule.name if isinstance(rule, Rule) else "norm of each micro-batch's gradient"
            if not isinstance(rule, Rule) and not is_root:
                continue
            watcher = (_RootWatcher if is_root else Watcher)(
                self._session, module, name, rule if isinstance(rule, Rule) else _PlainRule(), own if rule else {}
            )
            place = next((p.device for p in module.parameters()), torch.device("cpu"))
            watcher.prepare(place)
            self._session.watchers.append(watcher)
            try:
                attachment.attach(module, watcher)
            except TypeError as error:
                raise ValueError(f"{name}: {type(module).__name__} cannot be watched ({error}).") from error
            self._attached.append(module)
            for full in own.values():
                owners.setdefault(full, []).append(watcher)
        for watchers in owners.values():
            if len(watchers) > 1:
                for watcher in watchers:
                    watcher.tied = True
        self._settle_coverage(refused)
        if self._mode == "micro":
            self._hook_parameters()

    def _settle_coverage(self, refused: dict[str, str]) -> None:
        mixing = {name: why for name, why in refused.items() if why.startswith("BatchNorm")}
        if refused and (self.strict or mixing):
            listed = "\n".join(f"  {name}: {why}." for name, why in refused.items())
            raise ValueError(
                f"model: no exact per-sample gradient for\n{listed}\nUse mode='micro', which takes whole micro-batches "
                "for samples and any layer; or strict=False, which leaves these parameters out and says so in coverage."
            )
        self._coverage = {name: self._coverage.get(name) for name in self._parameters}
        if refused:
            warnings.warn(
                f"left out of Γ, for want of an exact rule: {', '.join(refused)}. See monitor.coverage.", stacklevel=4
            )
        self._covered = tuple(name for name, rule in self._coverage.items() if rule is not None)
        self._index = {name: row for row, name in enumerate(self._covered)}

    def _hook_parameters(self) -> None:
        self._micro = _MicroBatches(self._session, self._measured_parameters())
        self._hooks = self._micro.hook()

    def _switch_to_micro(self) -> None:
        """Take micro-batches for samples from the next step on."""
        self._release()
        self._mode = "micro"
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

    def add_observer(self, observer: Callable[[GammaMonitor, GammaStats], None]) -> Callable[[], None]:
        """Call `observer(monitor, stats)` after every measured step; returns a function that takes it away again."""
        self._observers.append(observer)
        return lambda: self._observers.remove(observer)

    def state_dict(self) -> dict[str, Any]:
        """The running averages and the step count, for a checkpoint."""
        return {
            "averages": self._averages.state_dict(), "steps": self._steps, "mode": self._mode, "ema": self.ema,
            "parameters": list(self._covered), "population": self.population,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict` of a monitor of the same parameters.

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

    @torch.no_grad()
    def step(self) -> GammaStats | None:
        """Statistics of the backward passes since the last call; call it before clipping and optimizer.step().

        Returns:
            `GammaStats` of this step, with `.smoothed` over the steps so far, or None on a step that is not measured
            (by `every`, before the optimizer's first step with `precondition`, or with a warning for a single sample).
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
        stats = None
        try:
            if measured:
                stats = self._measure()
        finally:
            switch = self._auto and self._mode == "exact" and len(session.sizes) >= AUTO_SWITCH
            self._steps += 1
            if switch:
                self._switch_to_micro()
                warnings.warn(
                    f"a step of {len(session.sizes)} backward passes: from the next one on micro-batches are the "
                    "samples (mode 'micro'), and the running averages start anew. Pass mode='exact' to keep single "
                    "samples.",
                    stacklevel=2,
                )
            self._plan_step()
        if stats is not None:
            for observer in self._observers:
                observer(self, stats)
        return stats

    def _measure(self) -> GammaStats | None:
        session = self._session
        self._check_leftovers()
        self._check_gradients()
        if not session.sizes:
            raise RuntimeError("step() needs a backward pass since the last call. Call it after loss.backward().")
        device = self._averages.device
        exact = self._mode == "exact"
        squares, n, unit, weighted = self._exact() if exact else self._micro.collect(self._world, self.loss_reduction)
        if n < 2:
            # The odd last batch of an epoch; stopping a run for it would be no help.
            unit_name = "sample" if exact else "micro-batch"
            warnings.warn(f"step skipped: it held {n} {unit_name}, and a variance needs at least 2.", stacklevel=3)
            return None
        independent = independent_count(n, unit, self.population)
        signal = self._gradient_squares(device) if weighted is None else weighted.to(device)
        signal, squares = self._reduce(signal, squares.to(device), own_sum=weighted is not None)
        if exact and self.loss_reduction == "mean":
            # Contributions to .grad add up to it; n times a contribution is a gradient whose mean is .grad.
            squares = squares * (n / self._world) ** 2
        elif self.loss_reduction == "sum":
            signal = signal * (self._world / (n * unit)) ** 2
        step = Step(torch.stack([signal, squares]), n, unit, independent)
        samples = round(n * unit)
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

    def _exact(self) -> tuple[Tensor, int, float, None]:
        """Σ‖contribution‖² of this rank's samples, samples of all ranks, 1, and no signal of its own."""
        session = self._session
        device = self._averages.device
        squares = torch.zeros(len(self._covered), dtype=torch.float64, device=device)
        rows = [self._index[name] for name, _ in session.found]
        parts = [value for _, value in session.found]
        for watcher in session.watchers:
            found = watcher.probe.grad
            if found is None or not watcher.names:
                continue
            self._check_reuse(watcher, found)
            parts += found[:-1]
            rows += [self._index[name] for name in watcher.names.values()]
        if parts:
            squares.index_add_(0, self._on_device(rows), _joined(parts, device))
        return squares, sum(session.sizes) * self._world, 1.0, None

    def _on_device(self, rows: list[int]) -> Tensor:
        """`rows` as a tensor; the same from step to step, so it is kept rather than copied over each time."""
        if rows != self._rows[0]:
            self._rows = (rows, torch.tensor(rows, device=self._averages.device))
        return self._rows[1]

    def _check_reuse(self, watcher: Watcher, found: Tensor) -> None:
        """In compiled code a layer cannot say that it ran twice; its probe can, for the price of a look at it."""
        if watcher.seen or self._checked_reuse > 3 * len(self._session.watchers):
            return
        self._checked_reuse += 1
        uses = found[-1].item()
        if uses > len(self._session.sizes):
            raise UnsupportedError(
                f"{watcher.name}: ran {uses / len(self._session.sizes):g} times in one compiled forward pass, and "
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

    def _check_gradients(self) -> None:
        ran = {name for watcher in self._session.watchers if watcher.ran for name in watcher.names.values()}
        for name, parameter in self._everything.items():
            if parameter.grad is None or (name in self._coverage and self._coverage[name] is None):
                continue
            if name not in self._coverage:
                if name in self._excluded:
                    continue
                raise RuntimeError(
                    f"{name} has a gradient but did not train when the monitor was attached. Attach a new monitor."
                )
            if self._mode == "exact" and name not in ran:
                raise RuntimeError(
                    f"{name} has a gradient, but its layer did not run: the parameter is used outside its module's "
                    "forward, or an old .grad was not cleared. Clear gradients after each step, use mode='micro', or "
                    "leave it out with parameters=…."
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
            grads.append(grad if grad.dtype in (torch.float32, torch.float64) else grad.float())
        squares = torch.zeros(len(self._covered), dtype=torch.float64, device=device)
        if grads:
            norms = _joined(list(torch._foreach_norm(grads)), device)
            squares = (
                norms.square()
                if len(rows) == len(squares)
                else squares.index_put((torch.tensor(rows),), norms.square())
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


class _PlainRule(Rule):
    """For a root that owns no parameter: only the batch size is read."""

    name = "plain"

    def forward(
        self, watcher: Watcher, module: nn.Module, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        return plain(*args, **kwargs)


class _RootWatcher(Watcher):
    """Watches the whole model: each of its forward passes begins a batch."""

    def forward(self, module: nn.Module, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        session = self.session
        if not session.measuring:
            return plain(*args, **kwargs)
        if not torch.is_grad_enabled() and not attachment.compiling():
            with session.aside():  # an evaluation pass is nobody's use
                return plain(*args, **kwargs)
        session.begin(args, kwargs)
        return super().forward(module, plain, args, kwargs)


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
        self._clear()

    def _clear(self) -> None:
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
        place = len(session.sizes)
        while len(self._norms) <= place:
            self._norms.append({})
        self._norms[place][row] = torch.linalg.vector_norm(values, dtype=wide).double().square()
        size, first = session.batch or 0, session.sizes[0] if session.sizes else session.batch
        if row in self._weighted:
            self._weighted[row].add_(grad, alpha=size)
        elif any(each != size for each in session.sizes):
            before = self._parameters[row].grad
            earlier = torch.zeros_like(grad) if before is None else before.detach() * float(first or 0)
            self._weighted[row] = earlier.add_(grad, alpha=size)

    def collect(self, world: int, reduction: str) -> tuple[Tensor, int, float, Tensor | None]:
        """Σ (b_k / b̄)‖g_k‖² of this rank, micro-batches of all ranks, b̄, and ‖ḡ‖² where .grad does not give it."""
        sizes, norms, weighted = self._session.sizes, self._norms, self._weighted
        self._clear()
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


def _joined(values: list[Tensor], device: torch.device) -> Tensor:
    """0-dim tensors as one vector in float64 on `device`, without waiting for another device."""
    if all(value.device.type == "cpu" for value in values):
        return torch.tensor([value.item() for value in values], dtype=torch.float64, device=device)
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


def _check_arguments(
    every: int, mode: str, batch_dim: int, batch_size: int | None, loss_reduction: str, ema: float,
    confidence: float, max_bytes: int,
) -> None:  # fmt: skip
    for name, value in (("every", every), ("batch_size", batch_size), ("max_bytes", max_bytes)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}: expected a whole number, at least 1, got {value!r}.")
    if isinstance(batch_dim, bool) or not isinstance(batch_dim, int) or batch_dim < 0:
        raise ValueError(f"batch_dim: expected a dimension counted from the front, 0 or more, got {batch_dim!r}.")
    for name, chosen, choices in (("mode", mode, MODES), ("loss_reduction", loss_reduction, ("mean", "sum"))):
        if chosen not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {chosen!r}.")
    if not 0 <= ema < 1:
        raise ValueError(f"ema: expected the weight of the past, 0 ≤ ema < 1, got {ema!r}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a level between 0 and 1, for example 0.95, got {confidence!r}.")
