"""A walk over the model's torch.fx graph that finds the segments of neurons."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from ...models import is_attached
from . import graph_ops as ops
from .segments import MERGED, Edge, Norm, Segment, Slice

TRY_SHAPES = "pass example_input if this is wrong"


@dataclass
class Trace:
    """Result of `trace`."""

    segments: list[Segment]
    notes: list[str]  # what was not analysed, and why
    untouched: list[str]  # parameters that no rule knows


def trace(model: nn.Module, example_input: Any = None, softmax_head: bool = False) -> Trace:
    """Walk the graph of `model`; with `example_input` (a tensor, or a tuple of arguments) shapes are known.

    Raises:
        ValueError: torch.fx cannot trace the model, or the model does not run on `example_input`.
    """
    watched = any(is_attached(module) for module in model.modules())
    traced = copy.deepcopy(model) if watched or example_input is not None else model
    try:
        graph_module = fx.symbolic_trace(traced)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"model: torch.fx cannot trace {ops.plain_type(model).__name__} ({reason}). Pass a traceable part of it, "
            "for example an nn.Sequential inside it, or take branches on tensor values out of its forward."
        ) from error
    graph_module.graph.eliminate_dead_code()
    if example_input is not None:
        arguments = example_input if isinstance(example_input, tuple) else (example_input,)
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                ShapeProp(graph_module.eval()).propagate(*arguments)
        except Exception as error:
            raise ValueError(f"example_input: the model does not run on it ({error}).") from error
    walk = _Walk(model, softmax_head)
    for node in graph_module.graph.nodes:
        walk.visit(node)
    return walk.finish()


class _Walk:
    """Visits the nodes in order; `edges` holds what each hands on (None for what is no tensor of neurons)."""

    def __init__(self, model: nn.Module, softmax_head: bool) -> None:
        self.model, self.softmax_head = model, softmax_head
        self.edges: dict[fx.Node, Edge | None] = {}
        self.segments: list[Segment] = []
        self.notes: list[str] = []
        self.known: set[str] = set()
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.uses: dict[str, int] = {}  # of parameters, and of modules that are norms

    # ---- segments --------------------------------------------------------------------------------------------------

    def new(self, width: int | None = None, writers: tuple[str, ...] = ()) -> Segment:
        segment = Segment(width, writers=list(writers))
        self.segments.append(segment)
        return segment

    @staticmethod
    def fix(segment: Segment, why: str) -> None:
        """Nothing may move the neurons of this segment, in scale, by a shift or in order."""
        segment.no_scale.append(why)
        segment.no_shift.append(why)
        segment.domain.fixed.append(why)

    def share_domain(self, one: Segment, other: Segment) -> None:
        kept, gone = one.domain, other.domain
        if kept is gone:
            return
        for part in ("extras", "groups", "fixed"):
            getattr(kept, part).extend(getattr(gone, part))
        for segment in self.segments:
            if segment.domain is gone:
                segment.domain = kept

    def join(self, one: Segment, other: Segment) -> Segment:
        """Make two segments one, as a residual add does."""
        if one is other:
            return one
        self.share_domain(one, other)
        for part in MERGED:
            getattr(one, part).extend(getattr(other, part))
        one.is_output |= other.is_output
        one.bent |= other.bent
        one.width = one.width if one.width is not None else other.width
        other.merged_into = one
        return one

    # ---- nodes -----------------------------------------------------------------------------------------------------

    def visit(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            segment = self.new()
            self.fix(segment, f"they are joined with the model's input {node.name!r}")
            self.edges[node] = Edge(segment, None, ops.ndim_of(node), "plain", {})
        elif node.op == "output":
            for edge in self.inputs(node):
                self._output(edge.segment)
        elif node.op == "call_module":
            self._module(node, self.model.get_submodule(str(node.target)), str(node.target))
        elif node.op == "get_attr":
            value: Any = self.model
            for part in str(node.target).split("."):
                value = getattr(value, part)
            self._use(value)
            self.opaque(node, f"{str(node.target)!r} is used outside a layer")
        else:
            self._function(node)

    def inputs(self, node: fx.Node) -> Iterator[Edge]:
        for source in node.all_input_nodes:
            edge = self.edges.get(source)
            if edge is not None:
                yield edge

    def opaque(self, node: fx.Node, why: str) -> None:
        """No rule: neurons that enter or leave keep their scale and their order."""
        self.notes.append(f"{why}; neurons that enter or leave it stay as they are")
        for edge in self.inputs(node):
            self.fix(edge.segment, why)
        segment = self.new()
        self.fix(segment, why)
        self.edges[node] = Edge(segment, None, ops.ndim_of(node), "plain", None)

    def _output(self, segment: Segment) -> None:
        why = "they are the model's outputs"
        segment.is_output = True
        segment.no_scale.append(why)
        segment.domain.fixed.append(why)
        if self.softmax_head:
            segment.norms.append(Norm("", "softmax", 1, {}))
        else:
            segment.no_shift.append(why)

    def _use(self, value: Any) -> None:
        name = self.names.get(id(value))
        if name is not None:
            self.uses[name] = self.uses.get(name, 0) + 1

    def _parameter(self, module: nn.Module, local: str) -> list[Slice]:
        """The parameter of a layer, now known to a rule, or nothing where the layer has none of that name."""
        parameter = module._parameters.get(local)
        if parameter is None:
            return []
        self.known.add(self.names[id(parameter)])
        return [Slice(self.names[id(parameter)])]

    def _module(self, node: fx.Node, module: nn.Module, name: str) -> None:
        for parameter in module.parameters():
            self._use(parameter)
        kind = ops.plain_type(module)
        label = f"{name!r} ({kind.__name__})"
        edges = list(self.inputs(node))
        edge = edges[0] if len(edges) == 1 else None
        if kind is nn.Embedding and module.max_norm is None:
            self._embedding(node, module, name)
        elif edge is None:
            self.opaque(node, f"no rule for {label} with {len(edges)} inputs")
        elif kind in ops.DENSE:
            self._dense(node, module, name, edge)
        elif kind in ops.NORMS:
            self._norm(node, module, name, edge)
        elif kind is nn.PReLU:
            self._prelu(node, module, edge, label)
        elif kind in ops.HOMOGENEOUS:
            self._homogeneous(node, edge, label)
        elif kind in ops.POOLS:
            self._pool(node, edge, label)
        elif kind in ops.CURVED:
            self._curved(node, edge, label)
        elif kind in ops.SOFTMAX:
            self._softmax(node, edge, module.dim, label)
        elif kind is nn.Identity:
            self.edges[node] = edge
        elif kind is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
            self._flatten(node, edge)
        else:
            self.opaque(node, f"no rule for {label}")

    def _function(self, node: fx.Node) -> None:
        name, edges = ops.node_name(node), list(self.inputs(node))
        label = f"{name!r}" if name == node.name else f"{name!r} ({node.name})"
        if not edges or ops.asks_for_shape(node):
            self.edges[node] = None
        elif name in ops.SUMS:
            self._add(node, edges, ops.SUMS[name])
        elif len(edges) != 1:
            self.opaque(node, f"no rule for {label}")
        elif name in ops.PRODUCTS and ops.constant_factor(node) is not None:
            self._scaled(node, edges[0], ops.constant_factor(node) or 1.0)
        elif name in ops.HOMOGENEOUS_NAMES:
            self._homogeneous(node, edges[0], label)
        elif name in ops.POOL_NAMES:
            self._pool(node, edges[0], label)
        elif name in ops.CURVED_NAMES:
            self._curved(node, edges[0], label)
        elif name in ("softmax", "log_softmax"):
            self._softmax(node, edges[0], ops.argument(node, 1, "dim"), label)
        elif name in ("mean", "sum"):
            self._mean(node, edges[0], label)
        elif name in ("flatten", "view", "reshape") and ops.flattens(node):
            self._flatten(node, edges[0])
        elif name in ops.SAME_NAMES:
            self.edges[node] = edges[0]
        else:
            self.opaque(node, f"no rule for {label}")

    # ---- layers ----------------------------------------------------------------------------------------------------

    def _dense(self, node: fx.Node, module: Any, name: str, edge: Edge) -> None:
        linear, transposed = isinstance(module, nn.Linear), "Transpose" in ops.plain_type(module).__name__
        inputs = module.in_features if linear else module.in_channels
        outputs = module.out_features if linear else module.out_channels
        groups = 1 if linear else module.groups
        weight, bias = self._parameter(module, "weight"), self._parameter(module, "bias")
        segment = self.new(outputs, writers=(name,))
        segment.biases += bias
        if weight:
            (segment.matrices if linear else segment.kernels).append(Slice(weight[0].name, int(transposed)))
            self._reads(edge, Slice(weight[0].name, 0 if transposed or groups > 1 else 1, edge.layout), name, module)
        else:
            for fixed in (segment, edge.segment):
                self.fix(fixed, f"{name!r} computes its weight from other parameters")
        if groups > 1 and groups == inputs == outputs:
            self.share_domain(segment, edge.segment)
        elif groups > 1:
            self.fix(segment, f"{name!r} writes them in groups")
        ndim = ops.ndim_of(node) or (edge.ndim if linear else module.weight.ndim)
        axis = 1 if not linear else -1 if ndim is None else ndim - 1
        self.edges[node] = Edge(segment, axis, ndim, "plain", {part.name: 1.0 for part in bias})

    def _reads(self, edge: Edge, columns: Slice, name: str, module: Any) -> None:
        """`columns`: the part of the weight that multiplies the neurons of `edge`."""
        linear, segment = isinstance(module, nn.Linear), edge.segment
        segment.no_shift.append(f"{name!r} reads them")
        segment.readers.append(name)
        if edge.axis is None or segment.width is None:
            return  # the model's input, or beyond something without a rule: fixed already
        inputs = module.in_features if linear else module.in_channels
        fits = inputs == segment.width or (edge.layout != "plain" and inputs % segment.width == 0)
        if not linear and module.groups not in (1, inputs):
            self.fix(segment, f"{name!r} reads them in groups")
        elif not edge.runs_over(-1 if linear else 1) or not fits:
            self.fix(segment, f"{name!r} reads another axis than theirs; {TRY_SHAPES}")
        else:
            segment.outgoing.append(columns)

    def _embedding(self, node: fx.Node, module: Any, name: str) -> None:
        weight, segment = self._parameter(module, "weight"), self.new(module.embedding_dim, writers=(name,))
        if weight:
            segment.matrices.append(Slice(weight[0].name, 1))
        else:
            self.fix(segment, f"{name!r} computes its weight from other parameters")
        ndim = ops.ndim_of(node) or 3
        self.edges[node] = Edge(segment, ndim - 1, ndim, "plain", {})

    def _norm(self, node: fx.Node, module: Any, name: str, edge: Edge) -> None:
        kind, before = ops.plain_type(module), edge.segment
        label, last = f"{name!r} ({kind.__name__})", kind in ops.LAST_AXIS_NORMS
        shape = tuple(module.normalized_shape) if last else (getattr(module, "num_features", 0) or module.num_channels,)
        known = edge.axis is not None
        if len(shape) != 1 or (
            known and (edge.layout != "plain" or shape[0] != before.width or not edge.runs_over(-1 if last else 1))
        ):
            self.opaque(node, f"{label} normalises another axis than theirs; {TRY_SHAPES}")
            return
        self.uses[name] = self.uses.get(name, 0) + 1
        width = shape[0]
        groups = 1 if last else module.num_groups if kind is nn.GroupNorm else width
        before.norms.append(Norm(name, kind.__name__, groups, dict(edge.offsets or {})))
        if kind is nn.RMSNorm:
            before.no_shift.append(f"{label} does not subtract a mean")
        after = self.new(width, writers=(name,))
        self.share_domain(after, before)
        after.domain.extras += [
            Slice(f"{name}.{buffer}")
            for buffer in ("running_mean", "running_var")
            if module._buffers.get(buffer) is not None
        ]
        if 1 < groups < width:
            after.domain.groups.append(groups)
        after.scales, after.biases = self._parameter(module, "weight"), self._parameter(module, "bias")
        if not after.scales:
            after.no_scale.append(f"{label} has no scale of its own")
        ndim = ops.ndim_of(node) or edge.ndim
        axis = edge.axis if known else 1 if not last else -1 if ndim is None else ndim - 1
        self.edges[node] = Edge(after, axis, ndim, "plain", {part.name: 1.0 for part in after.biases})

    def _prelu(self, node: fx.Node, module: Any, edge: Edge, label: str) -> None:
        weight, segment = self._parameter(module, "weight"), edge.segment
        if module.num_parameters > 1:
            if edge.layout != "plain" or segment.width != module.num_parameters or not edge.runs_over(1):
                self.opaque(node, f"{label} runs over another axis than theirs; {TRY_SHAPES}")
                return
            segment.domain.extras += weight
        self._homogeneous(node, edge, label)

    # ---- what lies between layers ----------------------------------------------------------------------------------

    def _homogeneous(self, node: fx.Node, edge: Edge, label: str) -> None:
        edge.segment.no_shift.append(f"they pass through {label}")
        edge.segment.bent = True
        self.edges[node] = edge._replace(offsets=None)

    def _scaled(self, node: fx.Node, edge: Edge, factor: float) -> None:
        offsets = None if edge.offsets is None else {name: factor * value for name, value in edge.offsets.items()}
        self.edges[node] = edge._replace(offsets=offsets)

    def _pool(self, node: fx.Node, edge: Edge, label: str) -> None:
        if edge.layout != "plain" or edge.axis != 1 or edge.ndim in (None, 2):
            self.opaque(node, f"{label} pools another axis than their positions; {TRY_SHAPES}")
        else:
            self._homogeneous(node, edge, label)

    def _mean(self, node: fx.Node, edge: Edge, label: str) -> None:
        dims = ops.argument(node, 1, "dim")
        dims = [dims] if isinstance(dims, int) else dims
        if not isinstance(dims, (list, tuple)) or edge.ndim is None or edge.axis is None or edge.layout != "plain":
            self.opaque(node, f"no rule for {label} over dimensions {dims}; {TRY_SHAPES}")
            return
        over = {dim % edge.ndim for dim in dims}
        if edge.axis in over or 0 in over:
            self.opaque(node, f"{label} runs over samples or neurons")
            return
        edge.segment.no_shift.append(f"they pass through {label}")
        kept = bool(ops.argument(node, 2, "keepdim"))
        axis = edge.axis if kept else edge.axis - sum(dim < edge.axis for dim in over)
        self.edges[node] = edge._replace(axis=axis, ndim=edge.ndim if kept else edge.ndim - len(over), offsets=None)

    def _curved(self, node: fx.Node, edge: Edge, label: str) -> None:
        why, before = f"they pass through {label}, which is not positively homogeneous", edge.segment
        after = self.new(before.width)
        self.share_domain(after, before)
        for segment in (before, after):
            segment.no_scale.append(why)
            segment.no_shift.append(why)
        self.edges[node] = edge._replace(origin=after, offsets=None)

    def _softmax(self, node: fx.Node, edge: Edge, dim: Any, label: str) -> None:
        if not isinstance(dim, int) or edge.axis is None or not edge.runs_over(dim) or edge.layout != "plain":
            self.opaque(node, f"{label} runs over another axis than theirs; {TRY_SHAPES}")
            return
        before = edge.segment
        before.no_scale.append(f"they pass through {label}")
        before.domain.fixed.append(f"they pass through {label}")
        before.is_output = True
        before.norms.append(Norm("", "softmax", 1, {}))
        after = self.new()
        self.fix(after, f"they come out of {label}")
        self.edges[node] = Edge(after, None, edge.ndim, "plain", None)

    def _flatten(self, node: fx.Node, edge: Edge) -> None:
        if edge.axis is None or edge.ndim == 2:
            self.edges[node] = edge
        elif edge.layout != "plain" or edge.axis not in (1, -1 if edge.ndim is None else edge.ndim - 1):
            self.opaque(node, f"{node.name!r} ops.flattens them together with other axes")
        else:
            layout = "blocks" if edge.axis == 1 else "interleaved"
            self.edges[node] = edge._replace(axis=1, ndim=2, layout=layout)

    def _add(self, node: fx.Node, edges: list[Edge], sign: float) -> None:
        terms = (node.args[0], ops.argument(node, 1, "other"))
        if any(isinstance(term, (int, float)) for term in terms):
            edges[0].segment.no_scale.append(f"a constant is added to them ({node.name!r})")
            self._scaled(node, edges[0], 1.0 if isinstance(terms[0], fx.Node) else sign)
            return
        if terms[0] is terms[1]:
            edges = [edges[0], edges[0]]
        if len(edges) != 2:
            self.opaque(node, f"{node.name!r} adds what belongs to no layer")
            return
        one, two = edges
        widths, places = ({edge.segment.width for edge in edges} - {None}, {edge.place for edge in edges} - {None})
        if one.layout != two.layout or len(widths) > 1 or len(places) > 1:
            self.opaque(node, f"{node.name!r} adds tensors whose neurons do not match one to one; {TRY_SHAPES}")
            return
        factor = sign * float(node.kwargs.get("alpha", 1.0))  # type: ignore[arg-type]
        offsets: dict[str, float] | None = None
        if one.offsets is not None and two.offsets is not None:
            offsets = dict(one.offsets)
            for name, value in two.offsets.items():
                offsets[name] = offsets.get(name, 0.0) + factor * value
        shaped = max(edges, key=lambda edge: (edge.axis is not None, edge.ndim or 0))
        self.edges[node] = shaped._replace(origin=self.join(one.segment, two.segment), offsets=offsets)

    # ---- the result ------------------------------------------------------------------------------------------------

    def finish(self) -> Trace:
        parameters = dict(self.model.named_parameters())
        segments = [segment for segment in self.segments if segment.merged_into is None]
        for segment in segments:
            for name in sorted({part.name for part in (*segment.incoming, *segment.outgoing)}):
                if not parameters[name].requires_grad:
                    self.fix(segment, f"{name} does not train")
                elif self.uses.get(name, 0) > 1:
                    self.fix(segment, f"{name} is used {self.uses[name]} times")
            for name in (*(norm.name for norm in segment.norms), *(part.name for part in segment.domain.extras)):
                if self.uses.get(name, 0) > 1:
                    self.fix(segment, f"{name!r} is used {self.uses[name]} times")
        return Trace(segments, self.notes, [name for name in parameters if name not in self.known])
