"""A watcher on every module that owns a measured parameter, and on the model itself; all of it taken away again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ...models import attach, clean, is_attached, release
from ..layers import (
    WHAT_TO_DO,
    EmbeddingRule,
    LinearRule,
    Rule,
    UnsupportedError,
    Watcher,
    give_up_tracing,
    may_trace,
    rule_for,
    what_is_untrue,
)
from .micro import MicroBatches
from .parameters import Parameters

if TYPE_CHECKING:
    from .session import Session


class Attachment:
    """What a monitor put into a model."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._modules: list[nn.Module] = []
        self._hooks: list[Any] = []

    def attach(self, parameters: Parameters) -> MicroBatches | None:
        """Watch the model, and note what measures each of its parameters.

        Returns:
            What takes the norms of whole backward passes, where these are the samples.

        Raises:
            ValueError: it is watched already, or cannot be; BatchNorm in train mode, where samples are told apart.
        """
        session, root = self._session, parameters.root
        if isinstance(root, torch.jit.ScriptModule):
            raise ValueError(
                f"model: expected an nn.Module in Python, got {type(root).__name__}, whose operations are not seen. "
                "Attach to the module that was scripted or traced, and train that."
            )
        if is_attached(root):
            raise ValueError("model: a GammaMonitor watches it already. Call detach() on that one first.")
        if session.exact:
            _refuse_mixing(root)
        if session.sharded:
            _refuse_whole(session)
        coverage: dict[str, str | None] = {}
        owners: dict[str, list[Watcher]] = {}
        for path, module, rule, own in _owners(parameters):
            name = clean(path) or type(module).__name__
            if is_attached(module):
                raise ValueError(f"{name}: a GammaMonitor watches it already. Call detach() on that one first.")
            for full in own.values():
                coverage[full] = _covered_by(rule, session.exact)
            watcher = self._watch(module, name, rule, own if session.exact else {}, is_root=module is root)
            if watcher is not None:
                for full in own.values():
                    owners.setdefault(full, []).append(watcher)
        for watchers in owners.values():
            for watcher in watchers:
                watcher.tied |= len(watchers) > 1
            _pair(watchers, session)
        parameters.set_coverage(coverage)
        session.take(parameters)
        if session.exact:
            return None
        micro = MicroBatches(session, parameters.measured())
        session.forget_micro = micro.clear
        self._hooks = micro.hook()
        return micro

    def _watch(
        self, module: nn.Module, name: str, rule: Rule | str, own: dict[str, str], *, is_root: bool
    ) -> Watcher | None:
        watcher = (_RootWatcher if is_root else Watcher)(self._session, module, name, rule, own)
        watcher.prepare(next((p.device for p in module.parameters()), torch.device("cpu")))
        if isinstance(module, torch.jit.ScriptModule) and not is_root:
            return None
        try:
            attach(module, watcher, with_hooks=is_root)
        except (TypeError, AttributeError) as error:
            if is_root:
                raise ValueError(f"{name}: {type(module).__name__} cannot be watched ({error}).") from error
            return None  # a module of TorchScript, say: only compiled code needs its watcher
        self._session.watchers.append(watcher)
        self._modules.append(module)
        return watcher

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function as one forward pass; what it calls of the model runs uncompiled, where it is measured."""
        session = self._session
        session.keep_to_shapes()
        if not session.measuring or not torch.is_grad_enabled():
            return function(*args, **kwargs)
        if "torch._dynamo" not in sys.modules:
            return session.forward(function, args, kwargs)
        with torch.compiler.set_stance("force_eager"):
            return session.forward(function, args, kwargs, compiled=False)

    def release(self) -> None:
        """Leave the model as it was; twice does no harm."""
        for hook in self._hooks:
            hook.remove()
        for module in reversed(self._modules):
            release(module)
        self._hooks, self._modules = [], []
        self._session.marks.unwatch()


def _pair(watchers: list[Watcher], session: Session) -> None:
    """Introduce an embedding and the head with its weight to each other, for code that is compiled."""
    embeddings = [watcher for watcher in watchers if isinstance(watcher.rule, EmbeddingRule)]
    heads = [watcher for watcher in watchers if isinstance(watcher.rule, LinearRule) and not watcher.rule.transposed]
    if (
        len(watchers) == 2
        and len(embeddings) == len(heads) == 1
        and session.batch_dim == 0
        and not session.rows_allowed
    ):
        embeddings[0].partner, heads[0].partner = heads[0], embeddings[0]


Owner = tuple[str, nn.Module, Rule | str, dict[str, str]]
"""A module's path, itself, its rule, and local name → name of the measured parameters that the rule is of."""


def _owners(parameters: Parameters) -> list[Owner]:
    """The modules that own measured parameters, and the root; those that a rule above measures are not among them."""
    canonical = {id(parameter): name for name, parameter in parameters.chosen.items()}
    measured_above: set[nn.Module] = set()
    owners: list[Owner] = []
    for path, module in parameters.root.named_modules():
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
        if own or module is parameters.root:
            owners.append((path, module, rule, own))
    return owners


def _covered_by(rule: Rule | str, exact: bool) -> str:
    if not exact:
        return "norm of each micro-batch's gradient"
    return rule.name if isinstance(rule, Rule) else "at its operations"


def _refuse_mixing(root: nn.Module) -> None:
    mixing = [
        f"  {clean(path) or type(module).__name__}: BatchNorm in train mode mixes the samples, so a sample has no "
        "gradient of its own."
        for path, module in root.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training
    ]
    if mixing:
        listed = "\n".join(mixing)
        raise ValueError(
            f"model: no exact per-sample gradient for\n{listed}\nTake micro-batches for samples: "
            "GammaMonitor(model, mode='micro') with two or more backward passes a step (gradient accumulation, or "
            "several ranks). Or freeze the statistics: put the layers in eval mode before attaching, or replace "
            "them by GroupNorm."
        )


def _refuse_whole(session: Session) -> None:
    """Raise for what asks for whole gradients, or for a whole metric, where FSDP2 leaves a part to each rank."""
    if not session.exact:
        raise ValueError(
            "mode: expected 'exact' for parameters that FSDP2 shards, got 'micro', which takes whole gradients as they "
            "arrive, and no rank has one. Pass mode='exact'."
        )
    if session.scaled:
        raise ValueError(
            "precondition: expected None for parameters that FSDP2 shards, whose optimizer has a part of the metric on "
            "each rank. Leave it out, or measure under DistributedDataParallel."
        )


class _RootWatcher(Watcher):
    """Watches the whole model: each of its forward passes is a batch."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.idle = False

    def forward(self, module: nn.Module, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        session = self.session
        if torch.compiler.is_compiling():
            return self._traced(module, plain, args, kwargs) if session.measuring else plain(*args, **kwargs)
        for held in session.operands.values():  # session.keep_to_shapes(), without its call
            if held.tensor.shape != held.shape:
                del held  # which holds a node, too
                session.forget()
                break
        if not session.measuring or not torch.is_grad_enabled() or torch._C._is_tracing():
            return plain(*args, **kwargs)
        if session.sharded:
            session.learn(module, self.names)
        return session.forward_uncompiled(plain, args, kwargs)

    def call(self, module: nn.Module, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """A call with the model's own forward hooks, which may change what it is given and gives."""
        if self.session.sharded:  # hooks of FSDP put the parameters together first
            return plain(*args, **kwargs)
        return self.forward(module, plain, args, kwargs)

    def _traced(self, module: nn.Module, plain: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        """In code that torch.compile is tracing."""
        session = self.session
        if not session.exact or not torch.is_grad_enabled():
            session.read(args, kwargs)
            session.origins.compiled = True
            return plain(*args, **kwargs)
        # This runs as ordinary code, too, once tracing has been given up; then it may not trace.
        if not may_trace(session):
            session.run_uncompiled("torch.compile breaks its graph (TORCH_LOGS=graph_breaks shows where)")
            return session.forward_uncompiled(plain, args, kwargs)
        try:
            session.begin_compiled(args, kwargs)
            out = super().forward(module, plain, args, kwargs)
            reason = what_is_untrue(session, out)
            if reason is not None:
                raise UnsupportedError(f"{self.name}: {reason}. {WHAT_TO_DO}")
        except UnsupportedError as error:
            give_up_tracing(session, error)
            raise error
        for watcher in session.watchers:
            watcher.carried = None
        return out
