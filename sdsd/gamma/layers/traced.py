"""Where the samples lie in code that torch.compile is tracing: followed through the graph, call by call.

While Dynamo traces the model it writes down every call of torch with tensors that have shapes and no values. At a
measured layer that graph is read so far as it goes, with the rules of `following`, from the inputs that carry samples
to the layer's own; what a rule would have to look at values for counts as mixed. All of this runs once, while the code
is compiled, and leaves numbers that the traced code takes for constants.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.comptime import ComptimeContext, comptime
from torch._dynamo.variables import ConstantVariable, TensorVariable
from torch.overrides import TorchFunctionMode

from ..following import (
    COMPOSITE,
    Mixed,
    Summed,
    Track,
    Tracks,
    body,
    entrywise,
    follow,
    has_rule,
    name_of,
    set_track,
    track_of,
    using,
)
from .advice import NO_SAMPLE, WHAT_TO_DO

__all__ = ["begin", "choose", "comptime", "enter", "finish", "give_up", "leave", "locate"]

THROUGH = ("tag_activation_checkpoint", "wrap", "wrap_activation_checkpoint", "checkpoint")
"""Operators that run a graph of their own, and nothing else."""
CONVERSIONS = {getattr(torch.Tensor, name) for name in ("to", "type_as", "float", "double", "half", "bfloat16")}
DUNDERS = {"getitem": "__getitem__", "setitem": "__setitem__", "truediv": "__truediv__", "inv": "__invert__"}


class Followed:
    """One graph under way: the samples of its tensors, the layers measured in it.

    n: samples of the batch; whole: whether the model is called in this graph; entering: else, the tensors that come
    into it and where they carry samples.
    order: node → its place among those that were read.
    mixed: nodes that mixed samples, of those that a gradient may come back through.
    begun: layer → where its nodes begin; spans: where they begin and end; places: layer → where the samples of its
    input lie.
    expanded: layers whose lookups for all samples together have a copy a sample; copies: the nodes that hold these.
    """

    def __init__(self) -> None:
        self.n: Any = None
        self.whole = False
        self.entering: Any = None
        self.tracks = Tracks()
        self.order: dict[Any, int] = {}
        self.mixed: list[Any] = []
        self.begun: dict[str, int] = {}
        self.places: dict[str, Track] = {}
        self.spans: list[tuple[int, int]] = []
        self.expanded: list[str] = []
        self.copies: dict[Any, str] = {}

    def advance(self, output: Any, tracer: Any) -> None:
        """Read what was written down since the last time."""
        if tracer.parent is not None:
            self.advance(output, tracer.parent)
        self.read(output, tracer.graph, {inner.node: outer.node for outer, inner in tracer.lifted_freevars.items()})

    def read(self, output: Any, graph: Any, given: dict[Any, Any]) -> None:
        for node in graph.nodes:
            if node not in self.order:
                self.order[node] = len(self.order)
                if node.op == "placeholder":
                    state(value_of(node), self.of(given[node]) if node in given else self.outside(node))
                elif node.op in ("call_function", "call_method"):
                    self.call(output, node)

    def elsewhere(self, names: dict[int, str]) -> Iterator[str]:
        """Measured parameters that are used outside their layers."""
        for node in self.order:
            name = names.get(id(getattr(node.meta.get("grapharg"), "example", None)))
            if node.op != "placeholder" or name is None:
                continue
            for user in node.users:
                inside = isinstance(user.target, torch._ops.HigherOrderOperator) and user.target.name() in THROUGH
                place = self.order.get(user, -1)
                if user.op != "output" and not inside and not any(a <= place < b for a, b in self.spans):
                    yield name
                    break

    def skip(self, tracer: Any) -> None:
        """What was written down since belongs to a measured layer."""
        for node in tracer.graph.nodes:
            self.order.setdefault(node, len(self.order))

    def outside(self, node: Any) -> Any:
        """What comes into the graph: a constant, but for what came out of other code and may hold samples."""
        example = getattr(node.meta.get("grapharg"), "example", None)
        if self.whole or not isinstance(example, Tensor) or isinstance(example, torch.nn.Parameter):
            return None
        for tensor, verdict in self.entering or ():
            if tensor is example:
                return verdict
        return None if "_buffers_" in str(node.target) else Mixed("a break of the compiled graph")

    @staticmethod
    def of(node: Any) -> Any:
        value = value_of(node)
        return track_of(value) if isinstance(value, Tensor) else None

    def call(self, output: Any, node: Any) -> None:
        out = value_of(node)
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), value_of)
        if node.target is operator.getitem and not isinstance(args[0], Tensor):
            element = args[0][args[1]] if isinstance(args[0], (tuple, list)) else None
            if isinstance(out, Tensor) and out is not element:
                state(out, track_of(element) if isinstance(element, Tensor) else None)
            return
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            self.through(output, node, args, out)
        else:
            func = function_of(node)
            try:
                # A rule may ask for a value that is not there yet; nobody is to wait for what stands in its place.
                with output.shape_env.ignore_fresh_unbacked_symbols():
                    run_rule(func, args, kwargs, out, self.n)
            except Exception as error:  # of a rule that wanted values
                state(out, Mixed(f"{name_of(func)}, which cannot be followed while it is compiled ({error})"))
        if any(type(track_of(x)) is Mixed and x.requires_grad for x in tensors_of(out)):
            self.mixed.append(node)

    def through(self, output: Any, node: Any, args: Any, out: Any) -> None:
        """An operator that runs a graph of its own."""
        name = node.target.name()
        graph = None
        if name in THROUGH and getattr(node.args[0], "op", "") == "get_attr":
            graph = output.nn_modules[node.args[0].target].graph
        places = [] if graph is None else [each for each in graph.nodes if each.op == "placeholder"]
        if graph is None or len(places) != len(node.args) - 1:
            sampled = any(track_of(x) is not None for x in tensors_of(args))
            state(out, Mixed(f"torch's {name}, whose inside is not followed") if sampled else None)
            return
        self.read(output, graph, dict(zip(places, node.args[1:], strict=True)))
        results = next(each for each in graph.nodes if each.op == "output").args[0]
        results = results if isinstance(results, (tuple, list)) else (results,)
        for mine, inner in zip(tensors_of(out), (r for r in results if isinstance(value_of(r), Tensor)), strict=True):
            state(mine, self.of(inner))


KEY = "_sdsd_gamma"
"""Where Dynamo's account of a graph keeps ours."""


def followed(ctx: ComptimeContext) -> tuple[Any, Followed]:
    tx: Any = ctx._i_will_not_complain_if_bc_breaks_InstructionTranslator()
    return tx, vars(tx.output).setdefault(KEY, Followed())


def value_of(node: Any) -> Any:
    return node.meta.get("example_value") if isinstance(node, torch.fx.Node) else node


def tensors_of(value: Any) -> Iterable[Tensor]:
    return (x for x in torch.utils._pytree.tree_leaves(value) if isinstance(x, Tensor))


def state(value: Any, verdict: Any) -> None:
    for tensor in tensors_of(value):
        set_track(tensor, verdict)


def function_of(node: Any) -> Callable[..., Any]:
    """What a node calls, as a `TorchFunctionMode` would see it."""
    if node.op == "call_method":
        return getattr(torch.Tensor, node.target)  # type: ignore[no-any-return]
    if getattr(node.target, "__module__", "") in ("_operator", "operator"):
        name = node.target.__name__
        return getattr(torch.Tensor, DUNDERS.get(name, f"__{name.strip('_')}__"), node.target)
    return node.target  # type: ignore[no-any-return]


def run_rule(func: Any, args: Any, kwargs: Any, out: Any, n: Any) -> None:
    if func in COMPOSITE:
        with _Following(n):
            inner = body(func)(*args, **kwargs)
        for mine, other in zip(tensors_of(out), tensors_of(inner), strict=True):
            state(mine, track_of(other))
    elif has_rule(func):
        follow(func, args, kwargs, out, n)
    else:
        sampled = any(track_of(x) is not None for x in tensors_of((args, kwargs)))
        state(out, Mixed(f"{name_of(func)}, which is not known") if sampled else None)


class _Following(TorchFunctionMode):
    """Follows what a function of torch calls."""

    def __init__(self, n: Any) -> None:
        super().__init__()
        self.n = n

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        run_rule(func, args, kwargs or {}, out, self.n)
        return out


def held(ctx: ComptimeContext, name: str) -> Any:
    """A variable of the traced code, as Dynamo knows it."""
    return ctx.get_local(name)._i_will_not_complain_if_bc_breaks_VariableTracker()


def plain(variable: Any) -> Any:
    """A traced number as what it is: symbolic where the size is."""
    return variable.sym_num if hasattr(variable, "sym_num") else variable.as_python_constant()


def give(tx: Any, **values: Any) -> None:
    """Let variables of the traced code have these values."""
    for name, value in values.items():
        tx.symbolic_locals[name] = ConstantVariable.create(value)


def choose(ctx: ComptimeContext) -> None:
    """Say in `traced` whether the model can be traced: its graph does not break, and could be followed before."""
    tx, _ = followed(ctx)
    session, log = held(ctx, "session").value, tx.speculation_log
    if any(entry._failed for entry in log.entries[log.index :]):
        session.run_uncompiled("torch.compile breaks its graph (TORCH_LOGS=graph_breaks shows where)")
    if session.uncompiled is None:
        # Compiled by itself, for its caller is not, the function that asks says nothing of the model.
        give(tx, traced=getattr(tx, "parent", None) is not None)
    else:
        del log.entries[log.index :]  # What comes now is not what came when this was traced before.


def give_up(ctx: ComptimeContext) -> None:
    """Compiled code could not be followed: where it need not be one graph, run it as it is from now on."""
    tx, _ = followed(ctx)
    if not (tx.one_graph or tx.error_on_graph_break):
        words = (str(each.as_python_constant()) for each in held(ctx, "error").args)
        held(ctx, "session").value.run_uncompiled(" ".join(words).replace(WHAT_TO_DO, "").rstrip(". "))


def begin(ctx: ComptimeContext) -> None:
    """The model is called: `tracks` says which of its inputs carry samples, `batch` how many."""
    tx, graph = followed(ctx)
    batch, tracks = (held(ctx, name) for name in ("batch", "tracks"))
    graph.n, graph.whole = plain(batch), True
    with using(graph.tracks):
        graph.advance(tx.output, tx.output.current_tracer)
        for place, pair in enumerate(tracks.items):
            tensor, track = pair.items
            where = Track(*(int(plain(each)) for each in track.items))
            set_track(value_of(tensor.as_proxy().node), where, second=place > 0)


def enter(ctx: ComptimeContext) -> None:
    """A measured layer begins."""
    tx, graph = followed(ctx)
    watcher = held(ctx, "self").value
    watcher.half = any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda"))
    give(tx, traced=True, again=watcher.name in graph.begun)
    if graph.n is None:  # a part of the model, compiled by itself
        graph.n, graph.entering = watcher.session.batch, watcher.session.entering
        held(ctx, "lying").as_python_constant()  # makes it be compiled anew where samples lie otherwise
        tx.output.compiler_fn = _telling(tx.output.compiler_fn, graph, watcher.session, tx.output)
    with using(graph.tracks):
        graph.advance(tx.output, tx.output.current_tracer)
    graph.begun[watcher.name] = len(graph.order)


def locate(ctx: ComptimeContext) -> None:
    """Say in `axis`, `outer`, `inner` where the samples of `x` lie, or in `reason` why that is not known."""
    tx, graph = followed(ctx)
    watcher, node = held(ctx, "self").value, held(ctx, "x").as_proxy().node
    with using(graph.tracks):
        graph.advance(tx.output, tx.output.current_tracer)
        track = graph.of(node)
    if type(track) is Track:
        graph.places[watcher.name] = track
        give(tx, axis=track.axis, outer=int(track.outer), inner=int(track.inner))
    elif track is None:
        give(tx, reason=NO_SAMPLE)
    elif isinstance(track, (Mixed, Summed)):
        give(tx, reason=f"samples cannot be told apart after {track.reason}")
    else:
        give(tx, reason="rows that samples chose cannot be followed in compiled code")


def expand(ctx: ComptimeContext) -> None:
    """A lookup for all samples together becomes one with a copy a sample."""
    _, graph = followed(ctx)
    name = held(ctx, "self").value.name
    graph.places[name] = Track(0)
    graph.expanded.append(name)


def leave(ctx: ComptimeContext) -> None:
    """A measured layer ends: what it returns carries samples as what it was given does."""
    tx, graph = followed(ctx)
    watcher, out = held(ctx, "self").value, held(ctx, "out")
    track = graph.places.get(watcher.name)
    with using(graph.tracks):
        if track is None:
            graph.advance(tx.output, tx.output.current_tracer)
            graph.spans.append((graph.begun[watcher.name], len(graph.order)))
            return
        graph.skip(tx.output.current_tracer)
        graph.spans.append((graph.begun[watcher.name], len(graph.order)))
        outputs = [each for each in getattr(out, "items", [out]) if isinstance(each, TensorVariable)]
        for place, each in enumerate(outputs):
            # The second is attention's weights, samples first.
            node = each.as_proxy().node
            state(value_of(node), track if place == 0 else Track(0))
            if watcher.name in graph.expanded:
                graph.copies[node] = watcher.name


def finish(ctx: ComptimeContext) -> None:
    """The model has returned `out`: say in `reason` what makes the numbers of its layers untrue."""
    tx, graph = followed(ctx)
    with using(graph.tracks):
        graph.advance(tx.output, tx.output.current_tracer)
        for node in graph.mixed:
            if comes_back(node):
                reasons = [v.reason for v in map(track_of, tensors_of(value_of(node))) if isinstance(v, Mixed)]
                give(tx, reason=f"samples are mixed, or lost, after its layers: {reasons[0]}")
        for name in graph.elsewhere(held(ctx, "session").value.names):
            give(tx, reason=f"{name} is used outside its layer, too, where compiled code is not measured")
        for node, name in graph.copies.items():
            if not meets_samples(node):
                give(tx, reason=f"{name} is looked up for all samples together, and not just added to their features")


def meets_samples(node: Any) -> bool:
    """Whether copies of what was looked up for all samples go nowhere but, entry by entry, to the samples' own."""
    shape = value_of(node).shape
    for user in node.users:
        func, out = function_of(user) if user.op in ("call_function", "call_method") else None, value_of(user)
        if not isinstance(out, Tensor) or out.ndim != len(shape):
            return False
        if func in CONVERSIONS:
            if not meets_samples(user):
                return False
            continue
        others = [value_of(each) for each in user.all_input_nodes if each is not node]
        beside = any(isinstance(x, Tensor) and x.shape[0] == shape[0] and track_of(x) == Track(0) for x in others)
        if not beside or not entrywise(func):
            return False
    return True


def comes_back(node: Any) -> bool:
    """Whether a gradient may come back to a node: what it goes into is not only looked at."""
    seen, waiting = {node}, [node]
    while waiting:
        users = list(waiting.pop().users)
        if not users:
            return True
        for user in users:
            if user.op == "output":
                return True
            if user not in seen and any(x.requires_grad for x in tensors_of(value_of(user))):
                seen.add(user)
                waiting.append(user)
    return False


def _telling(compiler: Any, graph: Followed, session: Any, output: Any) -> Any:
    """A compiler whose code says, whenever it has run, where its outputs carry samples."""
    listener = weakref.ref(session)

    def compile_it(module: Any, inputs: Any) -> Any:
        with using(graph.tracks):
            graph.read(output, module.graph, {})
            results = next(node for node in module.graph.nodes if node.op == "output").args[0]
            verdicts = [graph.of(node) for node in results]
        code = compiler(module, inputs)

        def run(*args: Any) -> Any:
            out, session = code(*args), listener()
            if session is not None and session.leaving is not None:
                session.leaving.extend(zip(out, verdicts, strict=True))
            return out

        return run

    return compile_it
