"""What the watchers of one monitor share while a step runs: the batch, the backward passes, what they left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from sdsd_kernels import weight_grad_stats

from .attachment import compiling
from .layers.base import Contribution, UnsupportedError, sum_of_squares
from .layers.convolution import chunks
from .layers.embedding import squares as embedding_squares
from .leftovers import Leftovers

if TYPE_CHECKING:
    from .layers.base import Watcher


class Session:
    """State between two calls of `GammaMonitor.step`.

    Attributes:
        measuring: whether layers measure at all now: in this step, and outside of `paused`.
        pauses: how many `paused` blocks are open.
        leftovers: gradients that passes in such blocks added to .grad.
        counting: whether a forward pass counts as a use of its layers (not while a module is rerun).
        batch: samples of the last forward pass.
        square: whether the model's input has a second dimension as large as the batch.
        rows_allowed: whether rows may hold several positions of a sample (batch_size was given).
    """

    def __init__(self, batch_dim: int, batch_size: int | None, max_bytes: int) -> None:
        self.batch_dim, self.batch_size, self.max_bytes = batch_dim, batch_size, max_bytes
        self.rows_allowed = batch_size is not None
        self.measuring = self._planned = True
        self.pauses = 0
        self.leftovers = Leftovers()
        self.counting = True
        self.batch: int | None = batch_size
        self.square = False
        self.scale: Callable[[str], Tensor | None] = lambda name: None
        self.watchers: list[Watcher] = []
        self._running = False
        self._pending: list[tuple[Watcher, Contribution]] = []
        self.reset()

    def reset(self, measuring: bool = True) -> None:
        """Begin a new step, measured or not."""
        self._planned = measuring
        self.measuring = measuring and not self.pauses
        self.found: list[tuple[str, Tensor]] = []
        self.sizes: list[int] = []
        self.passes = 0
        self._pending.clear()
        for watcher in self.watchers:
            watcher.calls, watcher.ran, watcher.probe.grad = 0, False, None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Forward and backward passes inside are not measured, graphs from before included."""
        self.pauses += 1
        self.measuring = False
        try:
            yield
        finally:
            self.pauses -= 1
            self.measuring = self._planned and not self.pauses

    @contextmanager
    def aside(self) -> Iterator[None]:
        """No layer measures or counts inside; what runs backward meanwhile, on other devices, does."""
        before = self.measuring
        self.measuring = False
        try:
            yield
        finally:
            self.measuring = before

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The whole model's forward pass starts: read the batch size off its first tensor."""
        if not compiling() and torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1:
            self.passes += 1
        if self.batch_size is not None:
            return
        tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.ndim > self.batch_dim]
        if not tensors:
            raise UnsupportedError(
                f"expected an input tensor with a sample axis (dimension {self.batch_dim}) to read the batch size "
                "from, found none. Pass batch_size to the monitor."
            )
        first = tensors[0]
        self.batch = first.shape[self.batch_dim]
        self.square = first.ndim == 2 and first.shape[1 - self.batch_dim] == self.batch

    def backward_runs(self, gradient: Tensor | None = None) -> Tensor | None:
        """Called by layers, and by leaves' hooks, during a backward pass; asks to be told when the pass is over.

        Returns what a probe's gradient is to be replaced with: zeros while paused.
        """
        if self.pauses:
            return None if gradient is None else torch.zeros_like(gradient)
        if not self._running:
            self._running = True
            self.leftovers.forget_changed()
            torch.autograd.Variable._execution_engine.queue_callback(self._backward_over)
        return None

    def add(self, watcher: Watcher, squares: dict[str, Tensor]) -> None:
        """Take a layer's Σ‖g_n‖² (0-dim, by local name) out of its backward pass."""
        if self.pauses:
            return
        self.backward_runs()
        for local, value in squares.items():
            if local in watcher.names:
                self.found.append((watcher.names[local], value))

    def keep(self, watcher: Watcher, contribution: Contribution) -> None:
        """Hold what a layer contributes until every use of its parameters has run backward."""
        if self.pauses:
            return
        self.backward_runs()
        self._pending.append((watcher, contribution))

    def _backward_over(self) -> None:
        self._running = False
        self.leftovers.follow()
        pending, self._pending = self._pending, []
        passes, self.passes = self.passes, 0
        if passes > 1 and self.measuring:
            raise UnsupportedError(
                f"the model ran forward {passes} times before one backward pass, so its samples cannot be told apart. "
                "Call backward after each forward pass, put the calls into one module whose forward makes them (for "
                "pairs of the same samples), or use mode='micro'."
            )
        self.sizes.append(self.batch or 0)
        if pending:
            with torch.no_grad():
                self._combine(pending)
        for watcher in self.watchers:
            watcher.calls = 0

    def _combine(self, pending: list[tuple[Watcher, Contribution]]) -> None:
        """Square the sum over uses of what each sample contributed, for every parameter used more than once."""
        by_name: dict[str, list[tuple[Watcher, Contribution, str]]] = {}
        for watcher, contribution in pending:
            for local, name in watcher.names.items():
                by_name.setdefault(name, []).append((watcher, contribution, local))
        for name, uses in by_name.items():
            samples = {contribution.samples for _, contribution, _ in uses}
            if len(samples) > 1:
                raise UnsupportedError(
                    f"{name}: its uses saw batches of {sorted(samples)} samples in one backward pass. Use mode='micro'."
                )
            found = self._from_factors(name, uses)
            if found is None:
                found = self._from_samples(name, uses, samples.pop())
            self.found.append((name, found))

    def _from_factors(self, name: str, uses: list[tuple[Watcher, Contribution, str]]) -> Tensor | None:
        """Squares of sums of outer products, without forming them; None where some use is not one."""
        if self.scale(name) is not None or any(local not in use.factors for _, use, local in uses):
            return None
        factors = [use.factors[local] for _, use, local in uses]
        linear = [(a, b) for kind, a, b in factors if kind == "linear"]
        lookups = [(tokens, g) for kind, tokens, g in factors if kind == "embedding"]
        total: Tensor = torch.zeros((), dtype=torch.float64, device=factors[0][1].device)
        alone = [use.alone[local] for _, use, local in uses if local in use.alone]
        if len(linear) == 1 and alone:
            ((a, b),) = linear
            total = total + alone[0]
        elif linear:
            a, b = (torch.cat(parts, 1) for parts in zip(*linear, strict=True))
            total = total + weight_grad_stats(a, b, weight_grad=False).square_norm
        if lookups:
            tokens, g = (torch.cat(parts, 1) for parts in zip(*lookups, strict=True))
            total = total + embedding_squares(g, tokens, None, None)
        if linear and lookups:
            # ⟨Σ_t b_t a_tᵀ, Σ_s e_token(s) g_sᵀ⟩ = Σ_s Σ_t (g_s·a_t) b_t[token(s)]
            each = a.shape[1] * tokens.shape[1] * 8 * 2
            for start, stop in chunks(a.shape[0], each, self.max_bytes):
                products = torch.bmm(_wide(g[start:stop]), _wide(a[start:stop]).transpose(1, 2))
                columns = tokens[start:stop].unsqueeze(1).expand(-1, b.shape[1], -1)
                picked = _wide(b[start:stop].gather(2, columns)).transpose(1, 2)
                total = total + 2 * (products * picked).sum(dtype=torch.float64)
        return total

    def _from_samples(self, name: str, uses: list[tuple[Watcher, Contribution, str]], samples: int) -> Tensor:
        """Per-sample gradients formed for a few samples at a time, added over uses, squared."""
        total: Tensor | None = None
        size = 4 * max(uses[0][0].sizes[local] for _, _, local in uses)
        for start, stop in chunks(samples, size, self.max_bytes):
            together: Tensor | None = None
            for _, contribution, wanted in uses:
                for local, each in contribution.per_sample(start, stop):
                    if local == wanted:
                        together = each if together is None else together + each
            if together is not None:
                part = sum_of_squares(together, self.scale(name))
                total = part if total is None else total + part
        return total if total is not None else torch.zeros((), dtype=torch.float64)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
