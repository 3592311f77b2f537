"""`GammaMonitor`: Γ and the gradient noise scale of every parameter, inside an ordinary training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sdsd_kernels import checks

from ...models import compiling, unwrap
from ..history import GammaHistory
from ..sources import check_population
from ..stats import GammaStats
from .arguments import AUTO_SWITCH, check_arguments, check_dimension, warn_of_switch
from .attaching import Attachment
from .averages import check_state
from .check import CheckReport, beside_loop
from .meter import Meter
from .metric import Metric
from .parameters import Parameters
from .ranks import ranks_of
from .readings import Readings
from .results import Observer, Results
from .session import Session
from .sums import Sums

Result = TypeVar("Result")


class GammaMonitor(Readings):
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
            loss_fn(model(x), y).backward()
            stats = monitor.step()  # before clipping and optimizer.step()
            optimizer.step()
            optimizer.zero_grad()

    Args:
        model: any nn.Module; may be wrapped in DistributedDataParallel or compiled, before or after.
        every: measure each `every`-th step; the others run as if nothing were attached and give None.
        mode: "exact", "micro", or "auto": exact until one step has shown four or more backward passes, then micro;
            exact throughout under FSDP2, or with `precondition`.
        batch_dim: the dimension of the model's input that counts samples; None if it is called with a list of samples.
        batch_size: samples a forward pass; None reads it off the model's first tensor argument. Give it where the input
            has several rows a sample, sample after sample, and where several forward passes of the same samples (pairs,
            say) go into one backward pass. The last batch may be smaller.
        loss_reduction: "mean" where the loss is a mean over samples (or anything whose gradient is the one you step
            with): per-sample gradients are scaled so that their mean is .grad. "sum": their sum is .grad.
        population: N, the training samples, where batches are drawn from them, of all ranks, without replacement, as by
            shuffle=True: what is known of all N is then not taken for chance (`GammaStats.signal_unbiased`), and
            full-batch gradients are exact. None where samples come twice or are augmented.
        ema: weight β of the past in the running averages behind `stats.smoothed`.
        confidence: level of the smoothed interval.
        precondition: an Adam, AdamW or RMSprop optimizer: signal and noise in its metric, ‖Dḡ‖² and Tr(DΣD), D from
            before the step. Steps for which it has no state yet (the first) give None.
        scaler: the GradScaler in use: its scale is divided out, whether or not gradients were unscaled yet.
        parameters: names or patterns ("blocks.*.weight") of the parameters to measure; None takes all that train.
        strict: raise in `step` where a parameter's samples cannot be told apart, or a step does not prove itself; False
            leaves such parameters out from there on, with a warning, and `coverage` has None for them.
        max_bytes: bound on scratch memory for per-sample pieces (one at least).
        history: keeps every measured step, a `GammaHistory` or the path of one's file; read as `monitor.history`.
        process_group: ranks that share a step; "auto" takes it from DDP or FSDP2; None measures this rank alone.

    Raises:
        ValueError: an argument out of range, BatchNorm in train mode (exact), a monitored model, ranks of no group, or
            parameters that are spread over ranks otherwise than by FSDP2 over one mesh dimension.
        TypeError: no model; `parameters` are no names, or `history` is neither a path nor a history.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        every: int = 1,
        mode: str = "auto",
        batch_dim: int | None = 0,
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
        check_arguments(mode, loss_reduction, ema, confidence, precondition)
        every, max_bytes = checks.check_count(every, "every"), checks.check_count(max_bytes, "max_bytes")
        batch_size = checks.check_count(batch_size, "batch_size", optional=True)
        batch_dim, self.population = check_dimension(batch_dim), check_population(population)
        self.model, self.every, self.ema, self.confidence = model, every, ema, confidence
        self.loss_reduction, self.strict = loss_reduction, strict
        self._parameters = Parameters(unwrap(model), parameters)
        ranks = ranks_of(model, self._parameters, process_group)
        self._auto = mode == "auto" and precondition is None and not ranks.sharded
        self._metric = Metric(precondition, self._parameters)
        self._session = session = Session(batch_dim, batch_size, max_bytes)
        session.exact, session.sharded = mode != "micro", ranks.sharded
        session.scale, session.scaled = self._metric.scale, precondition is not None
        self._meter = Meter(
            session,
            self._parameters,
            ranks,
            Sums(session, self._parameters, self._metric),
            loss_reduction=loss_reduction,
            population=self.population,
            scaler=scaler,
            strict=strict,
        )
        self._results = Results(self._parameters, ema, confidence, self.population, history)
        self._attachment, self._steps = Attachment(session), 0
        try:
            self._meter.micro = self._attachment.attach(self._parameters)
        except BaseException:
            self.detach()
            raise
        self._results.begin()
        self._begin_step()

    def _begin_step(self) -> None:
        if self._session.scaled:
            self._metric.begin_step()
        self._meter.begin_step(self._steps % self.every == 0)

    def _switch_to_micro(self) -> None:
        """Take micro-batches for samples from the next step on."""
        self._attachment.release()
        self._session.exact = False
        self._session.watchers.clear()
        self._meter.micro = self._attachment.attach(self._parameters)
        self._results.begin()

    def detach(self) -> None:
        """Leave the model exactly as it was before the monitor came; calling it twice does no harm."""
        self._attachment.release()
        self._session.detached = True
        if self._results.history is not None:
            self._results.history.flush()

    def __enter__(self) -> GammaMonitor:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    def add_observer(self, observer: Observer) -> Callable[[], None]:
        """Call `observer(monitor, stats)` after every measured step; returns a function that takes it away again.

        Args:
            observer: a function of (monitor, stats), or a `GammaHistory` or `CurvatureObserver`.

        Returns:
            A function without arguments that takes the observer away again.
        """
        self._results.observers.append(observer)
        return lambda: self._results.observers.remove(observer)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "GammaMonitor: expected to stay with the model it watches, got a copy or a pickle of it. Save "
            "monitor.state_dict() and load it into a new monitor of the other model. The model copies and pickles by "
            "itself, unwatched; keep the monitor beside it and not among its attributes."
        )

    def state_dict(self) -> dict[str, Any]:
        """The running averages and the step count, for a checkpoint."""
        return {
            "averages": self._results.averages.state_dict(),
            "steps": self._steps,
            "mode": self.mode,
            "ema": self.ema,
            "parameters": list(self._parameters.covered),
            "population": self.population,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict` of a monitor of the same parameters.

        Args:
            state: what `state_dict` of the other monitor returned.

        Raises:
            ValueError: other parameters than this monitor's, or another population: averages of both would be of
                neither.
        """
        check_state(state, self._parameters.covered, self.population)
        if state["mode"] != self.mode and self._auto:
            self._switch_to_micro()
        self._results.load(state["averages"])
        self._steps = state["steps"]
        self._begin_step()

    def forward(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Run a function as one forward pass: what calls the model by other methods, in parts, or more than once.

        A batch is a forward pass, and that is a call of the model unless you say what else is one::

            _, log_prob, entropy, value = monitor.forward(agent.get_action_and_value, observations, actions)
            a, b, c = monitor.forward(lambda a, b, c: (model(a), model(b), model(c)), anchors, positives, negatives)

        The samples are read off the arguments, as a call of the model reads them off its inputs, and followed through
        all that the function does; tensors that it takes from elsewhere are constants. On steps that are not measured,
        and in `paused`, this is a call of the function and nothing else.

        Args:
            function: a bound method, or any function that calls the model or parts of it.
            args: what it is called with, tensors or nests of them.
            kwargs: the same by name.

        Returns:
            What the function returns.

        Raises:
            RuntimeError: called inside a function that torch.compile traces.
        """
        if compiling():
            raise RuntimeError(
                "monitor.forward cannot be called inside compiled code, which would not keep to its beginning and end. "
                "Call it round the compiled model or function."
            )
        return self._attachment.run(function, args, kwargs)

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
        if compiling():
            raise RuntimeError(
                "paused() cannot be entered inside compiled code, which would not keep to its beginning and end. Put "
                "the with block round the call of the compiled model or function."
            )
        session = self._session
        with session.paused(), session.leftovers.watch({} if session.pauses > 1 else self._parameters.measured()):
            yield

    def check(self, loss_fn: Callable[[nn.Module, Any], Tensor], batch: Any) -> CheckReport:
        """Compare the monitor with a loop over the samples of a batch: what to run once on a new model.

        ::

            monitor.check(lambda model, batch: loss_fn(model(batch[0]), batch[1]), (x, y))

        Gradients, buffers and random streams are left as they were, and nothing enters the running averages. Samples
        are told apart as the loop does: each as a batch of one, its loss weighted 1/n. Dropout draws other numbers in
        the loop, so switch it off (model.eval(), or p = 0) to compare digits.

        Args:
            loss_fn: (model, batch) → the loss, a mean over samples (or a sum, with loss_reduction="sum").
            batch: a tensor or a nest; tensors with n entries along batch_dim (None: lists of n), or else along their
                first dimension, are cut into samples, and so are those with as many rows a sample as the model's input.

        Returns:
            `CheckReport`: signal and noise of every covered parameter, measured and by the loop. It is printed too.

        Raises:
            TypeError: a loss of torch.nn, which takes outputs and targets.
            ValueError: the monitor takes micro-batches for samples, or the batch has fewer than 2 samples.
            UnsupportedError: samples that cannot be told apart.
        """
        if not self._session.exact:
            raise ValueError("check: it compares single samples, and this monitor takes micro-batches for samples.")
        report = beside_loop(self.model, self._meter, self._session, self._parameters, loss_fn, batch)
        print(report)
        return report

    def step(self) -> GammaStats | None:
        """Statistics of the backward passes since the last call; call it before clipping and optimizer.step().

        Returns:
            `GammaStats` of this step, with `.smoothed` over the steps so far, or None on one that is not measured (by
            `every`, while the `precondition` optimizer has no state, inside a CUDA graph: see `replayed`; or, with a
            warning, for a single sample, or where .grad was written to since a backward pass and the step proves
            nothing). Nothing is copied to the host before a value is read.

        Raises:
            RuntimeError: no backward pass since the last call; a gradient from outside a parameter's layer, or of a
                pass inside `paused`; called inside `paused`, or after `detach`.
            ValueError: more samples than the population; samples that cannot be told apart; the message says why, and
                what to do.
        """
        if self._session.pauses:
            raise RuntimeError(
                "step() inside paused(): nothing is measured there. Call it before the with block, so that .grad holds "
                "the gradient of the batch alone, or after it."
            )
        if self._session.measuring:
            enabled = torch.is_grad_enabled()
            torch._C._set_grad_enabled(False)  # torch.no_grad(), without its price
            try:
                return self._measured_step()
            finally:
                torch._C._set_grad_enabled(enabled)
        self._steps += 1
        self._begin_step()
        return None

    def _measured_step(self) -> GammaStats | None:
        session, passes, step, stats = self._session, 0, None, None
        try:
            measure = self._meter.measure
            if torch.autograd._profiler_enabled():
                measure = torch.profiler.record_function("GammaMonitor.step")(measure)
            step, passes = measure()
            stats = None if step is None else self._results.of(step)
            session.stepped()
        finally:
            self._steps += 1
            if switching := self._auto and session.exact and passes >= AUTO_SWITCH:
                self._switch_to_micro()
            self._begin_step()
        if stats is not None:
            self._results.tell(self, stats)
        if switching:
            warn_of_switch(passes)
        return stats

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
        captured = self._meter.captured
        if captured is None:
            raise RuntimeError("replayed: no step was captured. Call step() inside `with torch.cuda.graph(…)`.")
        # The next replay writes over the numbers of this one.
        stats = self._results.of(captured._replace(raw=captured.tensor().clone()))
        self._results.tell(self, stats)
        return stats
