"""What happens between two calls of `GammaMonitor.step`: forward passes, backward passes, what they left behind.

A batch is a forward pass of the model. Its account (`uses.Pass`) is opened when the model is called, held by the graph
alone until a backward pass comes through it, and settled when that is over: inputs may be written over then. Nothing
here depends on a backward pass ending well: one that an exception ended is seen by its task never having been finished.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...models import compiled_parts, intercepted
from ..following import Track, Verdict
from ..layers import UnsupportedError, begin_tracing
from ..uses import Leaf, Measuring, Operand, Pass, Plan, carrying, settle, through_compiled, without_autocast
from .inputs import capturing, hear, read_inputs
from .leftovers import Leftovers
from .marks import Marks
from .origins import Origins
from .refusals import refuse_uncounted

if TYPE_CHECKING:
    from ..layers import Watcher
    from .parameters import Parameters
_KEPT = attrgetter("kept")


class Session:
    """State between two calls of `GammaMonitor.step`.

    Attributes:
        along: where a tensor has one row a sample.
        planned: whether this step is to be measured.
        directions: of the projections that prove this step, or None; direction: where any other could be proved, too.
        measuring: whether passes are measured now: in this step, and outside of `paused`.
        exact: whether samples are told apart; else whole backward passes are the samples.
        pauses: how many `paused` blocks are open. detached: whether the monitor is.
        leftovers: gradients that passes in such blocks added to .grad.
        batch: samples of the last forward pass.
        sizes: samples of each backward pass that compiled code, or micro-batches, told of.
        passes: accounts of the forward passes that backward passes came through since the last step or since gradients
            were cleared; last: that of the step's last forward pass.
        rewritten: parameters whose gradient was written to between two backward passes of the step.
        repeated: whether the model ran inside a backward pass.
        unread: why the samples of a forward pass are not known, or None; unknown: the same, if gradients came from it.
        uncompiled: why compiled code cannot be followed, so that the model runs as it is where it is measured, or None.
        entering, leaving: what a compiled part of the model is given and gives, and where that carries samples; None
            outside of one. lying: the former, in words.
        uncompiled_parts: compiled parts (their ids) that could not be followed.
        compiled: whether a backward pass went through compiled code in this step, so that probes may hold gradients.
        calls: calls of torch, by what they look like → where their outputs carry samples.
        operands: measured parameters by their ids, as operations read them.
        plans: sites of uses → how such a use is made; see `uses/plans.py`.
        backends: device → what serves kernels there, looked up once.
        within: parameters → the autograd.Function of the user's that read them.
    """

    def __init__(self, batch_dim: int | None, batch_size: int | None, max_bytes: int) -> None:
        self.batch_dim, self.batch_size, self.max_bytes = batch_dim, batch_size, max_bytes
        self.along, self.rows_allowed = Track(batch_dim or 0), batch_size is not None
        self.measuring = self.planned = self.exact = self.compiled = True
        self.pauses, self.detached = 0, False
        self.leftovers = Leftovers()
        self.batch: int | None = batch_size
        self.uncompiled: str | None = None
        self.forward_uncompiled = self.forward
        self.entering: list[tuple[Tensor, Verdict]] | None = None
        self.leaving: list[tuple[Tensor, Verdict]] | None = None
        self.lying = ""
        self.uncompiled_parts: set[int] = set()
        self.scaled = False
        self.scale: Callable[[str], Tensor | None] = lambda name: None
        self.directions: Callable[[str, Tensor], tuple[Tensor, Tensor]] | None = None
        self.direction: Callable[[str, Tensor], tuple[Tensor, Tensor]] | None = None
        self.watchers: list[Watcher] = []
        self.names: dict[int, str] = {}
        self.rows: dict[str, int] = {}
        self.known: set[int] = set()
        self.operands: dict[int, Operand] = {}
        self._stream = 0
        self.calls: dict[Any, Any] = {}
        self.plans: dict[Any, Plan] = {}
        self.backends: dict[torch.device, str] = {}
        self.within: dict[str, str] = {}
        self.strangers: set[int] = set()
        self.sharded = False
        self.parameters: dict[str, nn.Parameter] = {}
        self.forget_micro: Callable[[], None] = lambda: None
        self.root = nn.Module()
        self.passes: list[Pass] = []
        self.last: Pass | None = None
        self.rewritten: list[str] = []
        self._waiting: list[weakref.ref[Pass]] = []
        self._inside = self.repeated = False
        self.marks, self.origins = Marks(), Origins()
        self._outer: int | None = None
        self._begun: set[int] = set()
        self._open: set[int] = set()
        self._stepped = False
        self.stale: str | None = None
        self.given_up = False
        self.unread: str | None = None
        self.unknown: str | None = None
        self.reset()

    def take(self, parameters: Parameters) -> None:
        """Measure these parameters from now on."""
        self.parameters = parameters.measured()
        self.rows = parameters.index
        self.root = parameters.root
        self.names = {id(parameter): name for name, parameter in self.parameters.items()}
        self.known = {id(parameter) for parameter in parameters.everything.values()}
        self.plans.clear()

    def name_of(self, tensor: Tensor) -> str | None:
        """The name of a measured parameter, or None; a parameter that came after the monitor is noted."""
        name = self.names.get(id(tensor))
        if name is None and isinstance(tensor, nn.Parameter) and id(tensor) not in self.known:
            self.strangers.add(id(tensor))
        return name

    def operand_of(self, parameter: Tensor) -> Operand | None:
        """A measured parameter as what an operation reads; kept, for making it anew costs more than its use."""
        key = id(parameter)
        held = self.operands.get(key)
        # Where .data changed its type or place, torch made a new node that adds to .grad.
        if held is not None and key in self.names and held.dtype is parameter.dtype and held.device == parameter.device:
            return held
        name = self.name_of(parameter)
        if name is None:
            return None
        if held is not None:
            self.plans.clear()
            self.marks.unwatch()
        leaf = Leaf(name, parameter, torch.autograd.graph.get_gradient_edge(parameter).node)
        self.operands[key] = Operand(parameter, [leaf])
        return self.operands[key]

    def learn(self, module: nn.Module, names: dict[str, str]) -> None:
        """FSDP puts whole parameters in the place of their shards while a module runs: note whose they are."""
        for local, name in names.items():
            parameter = module.get_parameter(local)
            self.names[id(parameter)] = name
            self.known.add(id(parameter))

    def reset(self, measuring: bool = True) -> None:
        """Begin a new step, measured or not."""
        self.planned = measuring
        self.measuring = measuring and not self.pauses
        if not measuring:
            self.marks.unwatch()
        self.sizes: list[int] = []
        for ledger in self.passes:
            ledger.close()
        self.passes, self.last, self.rewritten, self._waiting = [], None, [], []
        self.marks.before, self.marks.present = self.marks.present, None
        self.strangers.clear()
        self.given_up = self.repeated = False
        self.stale = self._outer = self.unread = self.unknown = None
        self._begun.clear()
        self._open.clear()
        if not self.exact:
            self.forget_micro()
        for watcher in self.watchers if self.compiled else ():
            watcher.probe.grad = None
        self.compiled = False

    def stepped(self) -> None:
        """Remember the gradients as a step left them: one that is still there, untouched, was not cleared."""
        self.marks.set(self.parameters)
        self._stepped = True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Forward and backward passes inside are not measured, graphs from before included."""
        self.pauses += 1
        self.measuring = False
        try:
            yield
        finally:
            self.pauses -= 1
            self.measuring = self.planned and not self.pauses

    def forward(self, plain: Callable[..., Any], args: Any, kwargs: Any, *, compiled: bool = True) -> Any:
        """The whole model's forward pass in eager mode, with parts that are `compiled` or none: one batch."""
        if self._inside or torch._C._current_graph_task_id() != -1:
            self.repeated = self.repeated or not self._inside
            return plain(*args, **kwargs)  # the model calls itself, or a checkpoint repeats it
        try:
            tracks = self.read(args, kwargs)
        except UnsupportedError as error:
            return self._unread(plain, args, kwargs, str(error))
        self._outer = None  # of a backward pass that an exception ended
        if not self.exact or self.batch is None:
            self._inside = True  # hooks of the model stand around it
            try:
                out = plain(*args, **kwargs)
            finally:
                self._inside = False
            hear(out, partial(self.origins.come, self, self.origins.begin(self.batch)))
            return out
        if torch.cuda.is_initialized():
            self._keep_to_stream()
        directions = None if self.directions is None or capturing() else self.directions
        ledger = Pass(self.batch, self.max_bytes, self.scale, directions, self.rows, self.scaled)
        if self.batch_size is not None:
            self._waiting = ledger.join(self._waiting)
        self.last = ledger
        if self.batch == 0:
            out = plain(*args, **kwargs)
            hear(out, lambda grad: self._note_empty(ledger))
            return out
        ledger.inputs, ledger.backends = tracks, self.backends
        self._inside = True
        mode = Measuring(self, ledger)
        parts = compiled_parts(self.root) if compiled else []
        run = intercepted(parts, partial(through_compiled, mode))(plain) if parts else plain
        try:
            with carrying(ledger, mode):
                out = run(*args, **kwargs)
        finally:
            self._inside = False
        hear(out, self._announce)
        return out

    def _unread(self, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], reason: str) -> Any:
        """A pass whose samples are not known is like any other; a step that it belongs to is not measured."""
        before = self.last
        out = plain(*args, **kwargs)
        if self.last is not before:  # behind a hook of the model it has them
            return out
        self.unread = self.unread or reason
        hear(out, lambda grad: self._note_unread(reason))
        return out

    def _note_unread(self, reason: str) -> None:
        if not self.pauses:
            self.unknown = reason

    def _keep_to_stream(self) -> None:
        """Forget kept nodes on another stream: one that adds to .grad runs on the stream that it was made on."""
        stream = torch._C._cuda_getCurrentRawStream(torch._C._cuda_getDevice())
        if stream != self._stream:
            self.forget()
            self._stream = stream

    def forget(self) -> None:
        """Look into parameters, and into what is done with them, anew: what adds to their .grad may be other nodes."""
        self.marks.unwatch()
        self.operands.clear()
        self.plans.clear()

    def keep_to_shapes(self) -> None:
        """Where .data took another shape, the node that is kept, which adds to .grad, refuses it: let go of all."""
        for held in self.operands.values():
            if held.tensor.shape != held.shape:
                return self.forget()

    def _note_empty(self, ledger: Pass) -> None:
        if not self.pauses:
            ledger.tasks.add(self.enter_task(ledger))

    def _announce(self, grad: Tensor) -> None:
        """The gradient of an output has come: the outermost backward pass begins."""
        if not self.pauses and self._outer is None:
            if self.exact and self.marks.present is None:
                self.marks.begin(self.parameters)
            self._outer = torch._C._current_graph_task_id()
            torch.autograd.Variable._execution_engine.queue_callback(self._outermost_over)

    def _outermost_over(self) -> None:
        self._outer = None
        if any(map(_KEPT, self.passes)):
            self._settle()

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[Tensor, Verdict]]:
        """Find the batch size, and the inputs that carry samples."""
        inputs = read_inputs(args, kwargs, self)
        if inputs is None:  # none has a sample axis
            self.batch = self.batch_size if self.batch_size is not None else self.batch
            return []
        self.batch, tracks = inputs
        return tracks

    def begin_compiled(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The whole model's forward pass in code that is being compiled: where its samples are followed from."""
        tracks = self.read(args, kwargs)
        begin_tracing(self.batch, tracks)

    def run_uncompiled(self, reason: str) -> None:
        """Compiled code cannot be followed: from now on the model runs as it is where it is measured."""
        if self.uncompiled is None:
            self.uncompiled = reason
            self.forward_uncompiled = torch.compiler.disable(self.forward)
            warnings.warn(
                f"measured steps run uncompiled: {reason}. Pass every=… to the monitor to measure fewer of them.",
                stacklevel=2,
            )

    def enter_task(self, ledger: Pass | None = None) -> int:
        """The outermost backward pass that now runs; asks to be told when it is over."""
        inner = torch._C._current_graph_task_id()
        task = self._outer if self._outer is not None else inner
        if task not in self._begun:
            self._begun.add(task)
            self._backward_begins(ledger)
        if inner not in self._open:
            self._open.add(inner)
            torch.autograd.Variable._execution_engine.queue_callback(partial(self._backward_over, inner))
        if ledger is not None:
            ledger.open.add(inner)
            if ledger not in self.passes:
                self.passes.append(ledger)
        return task

    def _backward_begins(self, first: Pass | None) -> None:
        """Was .grad cleared since it was last added to? Asked before anything is added, but by compiled code (None)."""
        if self.leftovers.held:
            self.leftovers.forget_changed()
        if not self.passes and not self.sizes and not self.given_up:
            if self.marks.present is None and first is not None:
                self.marks.begin(self.parameters)
            if self._stepped and self.marks.present != {}:
                self.stale = self.marks.stale(self.parameters)
            return
        self._another_begins(first)

    def _another_begins(self, first: Pass | None) -> None:
        """A backward pass that is not the step's first."""
        if first is not None:
            self.marks.watch(self.parameters)
        rewritten = self.marks.rewritten(self.parameters)
        if rewritten is None:  # cleared
            self.given_up, self.stale = False, None
            if self.marks.present is not None and first is not None:
                self.marks.begin(self.parameters)
            for ledger in self.passes:
                ledger.clear()
                ledger.open.clear()
            self.passes, self.rewritten = [], []
            self.sizes.clear()
            self._open.clear()
            self.forget_micro()
            return
        if first is not None or not self.exact:
            self.rewritten += rewritten
        self.given_up = self.given_up or any(ledger.open & self._open for ledger in self.passes)

    def _backward_over(self, task: int) -> None:
        self._open.discard(task)
        if self.leftovers.held:
            self.leftovers.follow()
        self.marks.set(self.parameters)
        if task in self._begun and any(map(_KEPT, self.passes)):
            self._settle()

    @torch.no_grad()
    def _settle(self) -> None:
        with without_autocast():
            settle(self.passes)

    def backward_runs(self, gradient: Tensor | None = None) -> Tensor | None:
        """A hook of compiled code, or of a parameter in micro mode, fires: a backward pass is under way.

        Returns what a probe's gradient is to be replaced with: zeros while paused.
        """
        self.compiled = True
        if self.pauses:
            return None if gradient is None else torch.zeros_like(gradient)
        inner = torch._C._current_graph_task_id()
        task = self._outer if self._outer is not None else inner
        new = task not in self._begun
        self.enter_task()
        if new:
            self.sizes.append(self.origins.arrive(task, self.batch))
        return None

    def batches(self) -> list[list[Pass]]:
        """The batches of this step, settled.

        Raises:
            UnsupportedError: passes whose samples cannot be counted; the message says why, and what to do.
        """
        groups, unfinished = settle(self.passes), self.given_up
        for group in groups:
            for ledger in group:
                unfinished = unfinished or not self._open.isdisjoint(ledger.open)
        refuse_uncounted(groups, unfinished=unfinished, same_samples=self.batch_size is not None, stale=self.stale)
        return groups
