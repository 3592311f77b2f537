"""Following a layer's neurons through the graph of a model, up to the layers that read them."""

from __future__ import annotations

import copy
import inspect
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from ..models import evaluating, training_outside_torch, untouched
from .size_uses import CLEAN, UNCLEAR, Count, ShapeOf, count_of, derived_count

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
DENSE = (nn.Linear, *CONVOLUTIONS)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
CHANNEL_NORMS = (*BATCH_NORMS, *INSTANCE_NORMS)
"""Every neuron by itself."""
LAST_AXIS_NORMS = (nn.LayerNorm, nn.RMSNorm)
PER_NEURON = (
    nn.Identity, nn.ReLU, nn.LeakyReLU, nn.RReLU, nn.ReLU6, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish,
    nn.Tanh, nn.Sigmoid, nn.LogSigmoid, nn.Softplus, nn.Softsign, nn.Softshrink, nn.Hardshrink, nn.Tanhshrink,
    nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Threshold, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
    nn.AlphaDropout, nn.FeatureAlphaDropout,
)  # fmt: skip
SOFTMAXES = (nn.Softmax, nn.LogSoftmax, nn.Softmin)
LAYER_SIZES = ("out_features", "out_channels")
NORM_SIZES = ("num_features", "num_parameters", "in_channels", "out_channels", "groups")
READER_SIZES = ("in_features", "in_channels")
"""Attributes that hold the number of neurons in a layer, in norms on the way, and in readers."""

PER_NEURON_NAMES = {
    "relu", "leaky_relu", "rrelu", "relu6", "elu", "selu", "celu", "gelu", "silu", "mish", "tanh", "sigmoid",
    "logsigmoid", "log_sigmoid", "softplus", "softsign", "softshrink", "hardshrink", "tanhshrink", "hardtanh",
    "hardswish", "hardsigmoid", "threshold", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout",
    "feature_dropout", "feature_alpha_dropout", "abs", "neg", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "square",
    "erf", "sin", "cos", "sign", "reciprocal", "clamp", "clamp_min", "clamp_max", "clip", "pow", "add", "sub", "rsub",
    "mul", "div", "truediv", "true_divide", "maximum", "minimum", "where", "masked_fill", "addcmul", "lerp", "gt", "ge",
    "lt", "le", "eq", "ne", "logical_not", "contiguous", "clone", "detach", "alias", "to", "to_copy", "type_as",
    "float", "double", "half", "bfloat16", "requires_grad", "rand_like", "randn_like", "ones_like", "zeros_like",
    "full_like", "empty_like",
}  # fmt: skip
"""Functions and methods (without underscores at the ends) that give each entry from the same entry of their inputs."""
IN_PLACE_OPERATORS = ("iadd", "isub", "imul", "itruediv")
NEW_TENSORS = {"new_empty", "new_zeros", "new_ones", "new_full", "new_tensor"}
"""Methods that take no entry of the tensor they belong to."""
FIRST_INPUT_ONLY = {"to", "type_as"}
REDUCTIONS = {"mean", "sum", "amax", "amin", "logsumexp"}
SHAPE_NAMES = {"size", "dim", "len", "numel", "nelement", "ndimension", "sym_size", "is_floating_point", "is_cuda"}
SHAPE_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "is_cuda", "layout", "requires_grad"}
NORM_TENSORS = ("weight", "bias", "running_mean", "running_var")
OWN_NAMES = set(NORM_TENSORS)
"""What the modules of torch.nn that can be cut call their tensors."""
MAKE_PERMANENT = (
    "Make it permanent first (torch.nn.utils.prune.remove, torch.nn.utils.parametrize.remove_parametrizations)."
)

MERGING, READING, REMOVAL = "merging", "reading", "removal"
PASS_EXAMPLE = "Pass example_input, so that shapes are known."
CHOOSE_ANOTHER = "Choose a layer that is read before this point, or merge by how='mean' without removal."
KEEP_THE_NUMBER = (
    "Store the number when the model is built (self.scale = …), so that it stays as it is, or merge without removal "
    "(remove=False)."
)


class Obstacle(NamedTuple):
    """Why the readers of some neurons cannot be changed, or the neurons not be removed."""

    where: str
    reason: str
    advice: str
    blocks: str  # "merging": nothing can be done; "reading": neither readers nor size; "removal": only size

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}. {self.advice}"


class Touched(NamedTuple):
    """A module with entries for single neurons.

    Entry k of axis `dim` of its tensors belongs to neuron `neurons[k]`, or to something else where that is −1.
    """

    name: str
    kind: str
    dim: int
    neurons: Tensor

    def entries(self, which: Tensor) -> Tensor:
        """The entries of the neurons `which`, in their order.  # shape: (len(which) × entries a neuron,)"""
        others = int((self.neurons < 0).sum())
        count = int(self.neurons.max()) + 1
        return self.neurons.argsort(stable=True)[others:].reshape(count, -1)[which].flatten()


@dataclass(frozen=True)
class Flow:
    """Where in a tensor the neurons are.

    Attributes:
        axis: counted from the last, −1.
        neurons: the neuron of each entry of that axis, −1 for entries of something else.  # shape: (length,)
        ndim: dimensions of the tensor, where they are known.
        spread: "blocks" | "interleaved" once a flatten has repeated the entries an unknown number of times.
        spatial: dimensions of the convolution that wrote them, where `ndim` is that and 1 or, with a batch, 2; else 0.
    """

    axis: int
    neurons: Tensor
    ndim: int | None
    spread: str = ""
    spatial: int = 0

    def batched(self) -> Flow:
        """The same where something has shown that there is a batch."""
        return replace(self, ndim=self.spatial + 2, spatial=0) if self.ndim is None and self.spatial else self

    def like(self, other: Flow) -> bool:
        return (self.axis, self.spread) == (other.axis, other.spread) and torch.equal(self.neurons, other.neurons)

    def over(self, length: int) -> Tensor | None:
        """The neuron of each of `length` entries; None where they do not fit."""
        if not self.spread:
            return self.neurons if len(self.neurons) == length else None
        times, rest = divmod(length, len(self.neurons))
        if rest:
            return None
        return self.neurons.repeat_interleave(times) if self.spread == "blocks" else self.neurons.repeat(times)

    def counted(self, dim: int) -> int | None:
        """A dimension counted from the last; None where that would need `ndim`."""
        if dim < 0:
            return dim
        return None if self.ndim is None else dim - self.ndim


@dataclass
class Found:
    """What `follow` found, in the order of the graph."""

    norms: dict[str, Touched] = field(default_factory=dict)
    readers: dict[str, Touched] = field(default_factory=dict)
    obstacles: list[Obstacle] = field(default_factory=list)
    is_output: bool = False
    calls: int = 0

    def note(self, where: str, reason: str, advice: str, blocks: str) -> None:
        obstacle = Obstacle(where, reason, advice, blocks)
        if obstacle not in self.obstacles:
            self.obstacles.append(obstacle)


class Call(NamedTuple):
    """What a node does: the name of a rule, and the module whose parameters it uses, if it is one's."""

    rule: str
    label: str
    module: nn.Module | None = None
    name: str = ""
    size: int = 0  # dimensions of a convolution or pooling


class Graph(NamedTuple):
    """Nodes in order of execution, the names of the tensors that some of them stand for, and what has these names."""

    nodes: list[fx.Node]
    tensors: dict[fx.Node, str]
    root: nn.Module
    symbolic: bool  # traced by torch.fx, which leaves sizes open; torch.export writes them in
    training: bool = False


def follow(model: nn.Module, layer: nn.Module, example_input: Any) -> Found:
    """Walk over the graphs of `model`, in eval mode and in training, from `layer` on.

    Raises:
        ValueError: the model cannot be traced, or does not run on `example_input`.
    """
    graph = _trace(model, layer, example_input)
    walk = _Walk(model, layer, graph)
    found = walk.finish()
    if not graph.symbolic:
        return found  # a second export would take as long as the first; `consolidate` runs the model in training
    walks = [walk]
    training = _training_graph(model, layer, example_input, graph, found)
    if training is not None:
        walks.append(_Walk(model, layer, training))
        _add_training(found, walks[1].finish())
    for each in walks:
        _note_sizes_written_in(found, model, layer, each)
    return found


def row_dim(layer: nn.Module) -> int:
    """The axis of the layer's weight that runs over its neurons."""
    return 1 if isinstance(layer, TRANSPOSED) else 0


def spatial_dims(layer: nn.Module) -> int:
    """Dimensions of a convolution; 0 for Linear."""
    return len(layer.kernel_size) if isinstance(layer, CONVOLUTIONS) else 0  # type: ignore[arg-type]


def neuron_count(layer: nn.Module) -> int:
    """How many neurons, or channels, a Linear layer or convolution writes."""
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels  # type: ignore[return-value]


def computed_tensors(module: nn.Module) -> list[str]:
    """Which of a module's own tensors are no parameters or buffers: pruned, or parametrised."""
    names = [name for name in NORM_TENSORS if isinstance(getattr(module, name, None), Tensor)]
    return [name for name in names if name not in module._parameters and name not in module._buffers]


def _inputs_of(layer: nn.Module) -> int:
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels  # type: ignore[return-value]


# ---- graphs ----------------------------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """Looks into modules of torch.nn that contain the layer, nn.TransformerEncoderLayer for example."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf = super().is_leaf_module(m, module_qualified_name)
        return leaf and (m is self.layer or all(part is not self.layer for part in m.modules()))


class _Shapes(fx.Interpreter):
    """Runs the graph and notes the shape of each tensor."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["shape"] = tuple(result.shape)
        return result


def _trace(model: nn.Module, layer: nn.Module, example_input: Any) -> Graph:
    try:
        graph_module = _symbolic(model, layer)
    except Exception as error:
        if example_input is None:
            raise ValueError(
                f"model: torch.fx cannot trace {type(model).__name__} ({_first_line(error)}). Pass example_input, an "
                "input the model runs on, so that torch.export can, or pass a traceable part of the model."
            ) from error
        return _export(model, example_input, error)
    if example_input is not None:
        if isinstance(example_input, dict):
            return _export(model, example_input, None)
        try:
            with untouched(model), evaluating(model), torch.random.fork_rng(devices=[]):
                _Shapes(graph_module).run(*_arguments(example_input))
        except Exception as error:
            raise ValueError(f"example_input: the model does not run on it ({_first_line(error)}).") from error
    return _graph_of(graph_module)


def _symbolic(model: nn.Module, layer: nn.Module, training: bool = False) -> fx.GraphModule:
    """The graph that torch.fx finds, in eval mode or in training; whatever torch.fx raises."""
    tracer = _Tracer(layer)
    try:
        return _traced(tracer, model, training)
    except Exception:
        tracer.proxy_buffer_attributes = False  # where forward branches on a buffer, or sets one
        return _traced(tracer, model, training)


def _traced(tracer: _Tracer, model: nn.Module, training: bool) -> fx.GraphModule:
    root = copy.copy(model)  # tracing leaves constants on the module it traces
    with untouched(model), training_outside_torch(root) if training else evaluating(root):
        graph = tracer.trace(root)
    return fx.GraphModule(root, graph)


def _graph_of(graph_module: fx.GraphModule, training: bool = False) -> Graph:
    nodes = list(graph_module.graph.nodes)
    tensors = {node: str(node.target) for node in nodes if node.op == "get_attr"}
    return Graph(nodes, tensors, graph_module, True, training)


def _training_graph(model: nn.Module, layer: nn.Module, example_input: Any, graph: Graph, found: Found) -> Graph | None:
    """The graph in training, where it is another one than in eval mode."""
    try:
        graph_module = _symbolic(model, layer, training=True)
    except Exception as error:
        if example_input is None:
            found.note(
                "model in training", f"torch.fx cannot trace it ({_first_line(error)})",
                "Pass example_input, so that the smaller network can be run in training.", REMOVAL,
            )  # fmt: skip
        return None
    training = _graph_of(graph_module, training=True)
    if _outline(graph) == _outline(training):
        return None
    if example_input is not None:
        try:
            with untouched(model), training_outside_torch(model), torch.random.fork_rng(devices=[]):
                _Shapes(graph_module).run(*_arguments(example_input))
        except Exception:
            return training  # without shapes: in training it may need other inputs, targets for example
    return training


def _outline(graph: Graph) -> list[tuple[str, str, list[str]]]:
    """What each node does to what, without its constants."""
    return [(node.op, str(node.target), [source.name for source in node.all_input_nodes]) for node in graph.nodes]


def _add_training(found: Found, training: Found) -> None:
    """Add what reads the neurons in training only."""
    reasons = {obstacle.reason for obstacle in found.obstacles}
    pairs = [(found.readers, training.readers), (found.norms, training.norms)]
    for known, new in pairs:
        for name, touched in new.items():
            if not torch.equal(known.setdefault(name, touched).neurons, touched.neurons):
                found.note(
                    repr(name), "in training it is called on the neurons in another order than in eval mode",
                    CHOOSE_ANOTHER, READING,
                )  # fmt: skip
    for where, reason, advice, _ in training.obstacles:
        if reason not in reasons:
            found.note(f"{where} in training", reason, advice, REMOVAL)
    if training.is_output and not found.is_output:
        found.note("model in training", "it gives the neurons themselves", CHOOSE_ANOTHER, REMOVAL)


def _note_sizes_written_in(found: Found, model: nn.Module, layer: nn.Module, walk: _Walk) -> None:
    """Note nodes whose constants are other ones when modules that would shrink say that they are smaller."""
    if found.obstacles or not found.readers:
        return
    sizes: list[tuple[nn.Module, tuple[str, ...]]] = [(layer, LAYER_SIZES)]
    sizes += [(model.get_submodule(name), NORM_SIZES) for name in found.norms]
    sizes += [(model.get_submodule(name), READER_SIZES) for name in found.readers]
    before = [
        (module, name, getattr(module, name)) for module, names in sizes for name in names if hasattr(module, name)
    ]
    advice = KEEP_THE_NUMBER
    try:
        for module, name, size in before:
            setattr(module, name, size // 2 if size > 1 else 2)
        other = _graph_of(_symbolic(model, layer, walk.graph.training))
    except Exception as error:
        found.note("model", f"its forward does not run with a smaller layer ({_first_line(error)})", advice, REMOVAL)
        return
    finally:
        for module, name, size in before:
            setattr(module, name, size)
    if len(other.nodes) != len(walk.graph.nodes):
        found.note("model", "its forward does something else when the layer is smaller", advice, REMOVAL)
        return
    for node, changed in zip(walk.graph.nodes, other.nodes, strict=True):
        if walk.owned(node) is None and not _same(node, walk.graph, changed, other):
            reason = "it computes with a size that the layer or its readers have"
            found.note(f"node {node.name!r}", reason, advice, REMOVAL)
            return


def _same(node: fx.Node, graph: Graph, other_node: fx.Node, other: Graph) -> bool:
    """Whether two nodes do the same, with the same constants."""
    if (node.op, str(node.target)) != (other_node.op, str(other_node.target)):
        return False
    if node.op == "get_attr" and str(node.target).startswith("_tensor_constant"):
        one, two = (operator.attrgetter(str(node.target))(each.root) for each in (graph, other))
        return one.shape == two.shape and one.dtype == two.dtype and torch.equal(one, two)
    return repr((node.args, node.kwargs)) == repr((other_node.args, other_node.kwargs))


def _export(model: nn.Module, example_input: Any, fx_error: Exception | None) -> Graph:
    positional: tuple[Any, ...] = () if isinstance(example_input, dict) else _arguments(example_input)
    named = example_input if isinstance(example_input, dict) else None
    try:
        # Without gradients transformers take a fused path, one opaque operation.
        with untouched(model), evaluating(model), torch.enable_grad():
            exported = torch.export.export(model, positional, named, strict=False)
    except Exception as error:
        before = f"torch.fx: {_first_line(fx_error)}; " if fx_error is not None else ""
        raise ValueError(
            f"model: {type(model).__name__} cannot be traced ({before}torch.export: {_first_line(error)}). "
            f"{_advice(model, positional, named or {}, error)}"
        ) from error
    signature = exported.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    nodes = list(exported.graph.nodes)
    tensors = {node: names[node.name] for node in nodes if node.op == "placeholder" and node.name in names}
    return Graph(nodes, tensors, model, False)


def _advice(model: nn.Module, positional: tuple[Any, ...], named: dict[str, Any], error: Exception) -> str:
    """What helps where torch.export does not take a model."""
    unknown = re.search(r"Found <class '(?:.*\.)?(\w+)'> in (output|input)", str(error))
    if unknown and unknown[2] == "output":
        cached = "use_cache" in inspect.signature(model.forward).parameters or "ache" in unknown[1]
        cure = (
            "Leave its cache out: pass example_input as a dict with use_cache=False, or set model.config.use_cache = "
            "False."
            if cached
            else "Pass a module whose forward returns tensors only, in tuples, lists or dicts, or register the class "
            "with torch.utils._pytree.register_pytree_node."
        )
        return f"The model's output holds a {unknown[1]}, a class that torch.export does not know. {cure}"
    if unknown:
        return f"example_input holds a {unknown[1]}, a class that torch.export does not know. Pass tensors."
    try:
        with untouched(model), evaluating(model), torch.random.fork_rng(devices=[]):
            model(*positional, **named)
    except Exception:
        return "The model does not run on this example_input. Pass one that it runs on."
    return "Pass a part of the model whose forward does not branch on the values of tensors."


def _arguments(example_input: Any) -> tuple[Any, ...]:
    return tuple(example_input) if isinstance(example_input, (tuple, list)) else (example_input,)


def _first_line(error: Exception) -> str:
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return line if len(line) <= 160 else line[:159] + "…"


def _shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Shape of the node's tensor, where an example was run."""
    shape = node.meta.get("shape", getattr(node.meta.get("val"), "shape", None))
    return None if shape is None else tuple(shape)


def _function_name(node: fx.Node) -> str:
    """The name of the function or method a node calls."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.rpartition("::")[2]
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))


def _argument(node: fx.Node, place: int, name: str) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name)


def _writes_its_input(name: str) -> bool:
    return (name.endswith("_") and not name.endswith("__")) or name in IN_PLACE_OPERATORS


def _plain(name: str) -> str:
    """The name without what marks variants that work in place."""
    name = name.strip("_")
    return name[1:] if name in IN_PLACE_OPERATORS else name


# ---- the walk --------------------------------------------------------------------------------------------------------


def _own_tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


class _Walk:
    """Visits nodes in order; `flows` says where the neurons are in what each node hands on."""

    def __init__(self, model: nn.Module, layer: nn.Module, graph: Graph) -> None:
        self.model, self.layer, self.graph = model, layer, graph
        self.tensors, self.root = graph.tensors, graph.root
        self.flows: dict[fx.Node, Flow] = {}
        self.counts: dict[fx.Node, Count] = {}  # nodes that give sizes and what is computed from them
        self.called_elsewhere: set[int] = set()  # modules called on tensors without neurons of the layer
        self.found = Found()
        self.rules: dict[str, Callable[[fx.Node, Call, Flow], Flow | None]] = {
            "dense": self._read, "channel_norm": self._channel_norm, "mixing_norm": self._mixing_norm,
            "prelu": self._prelu, "per_neuron": self._per_neuron, "pool": self._pool, "flatten": self._flatten,
            "reshape": self._reshape, "permute": self._permute, "transpose": self._transpose, "squeeze": self._squeeze,
            "unsqueeze": self._unsqueeze, "cat": self._cat, "reduce": self._reduce, "softmax": self._softmax,
            "pad": self._pad, "resize": self._resize, "getitem": self._getitem, "select": self._select,
            "slice": self._slice,
        }  # fmt: skip

    def visit(self, node: fx.Node) -> None:
        if node.op in ("placeholder", "get_attr"):
            return
        flows = [self.flows[source] for source in node.all_input_nodes if source in self.flows]
        if node.op == "output":
            self.found.is_output = bool(flows)
            self._note_sizes(node, "what the model gives")
            return
        call = self._call(node)
        if call.rule == "shape" or self._is_arithmetic_of_numbers(node):
            self.counts[node] = self._count(node)
            return
        self._note_sizes(node, call.label)
        if call.module is self.layer:
            self._start(node, flows)
            return
        if not flows or _plain(_function_name(node)) in NEW_TENSORS:
            self.called_elsewhere.add(id(call.module))
            return
        rule = self.rules.get(call.rule)
        flow = rule(node, call, flows[0]) if rule else self._stop(node, f"there is no rule for {call.label}")
        shape = _shape_of(node)
        if flow is not None and shape is not None:
            flow = replace(flow, ndim=len(shape))
        written = [node]
        if node.op != "call_module" and _writes_its_input(_function_name(node)) and isinstance(node.args[0], fx.Node):
            written.append(node.args[0])
        for each in written:
            self.flows.pop(each, None)
            if flow is not None:
                self.flows[each] = flow

    def _is_arithmetic_of_numbers(self, node: fx.Node) -> bool:
        plain = getattr(node.target, "__module__", "") in ("_operator", "math", "builtins")
        return plain and bool(node.all_input_nodes) and self.counts.keys() >= set(node.all_input_nodes)

    def _count(self, node: fx.Node) -> Count:
        name = _plain(_function_name(node))
        flow = next((self.flows[source] for source in node.all_input_nodes if source in self.flows), None)
        if flow is None:
            return derived_count(node, name, self.counts)
        return count_of(node, name, ShapeOf(flow.axis, flow.ndim))

    def _note_sizes(self, node: fx.Node, label: str) -> None:
        """Note a node that computes with the number of neurons. What reshapes the neurons may do so."""
        counts = {self.counts[source] for source in node.all_input_nodes if source in self.counts} - {CLEAN}
        source = node.args[0] if node.args else None
        if counts and not (_function_rule(_plain(_function_name(node)), node) == "reshape" and source in self.flows):
            self._note_size(node, label, counts == {UNCLEAR})

    def _note_size(self, node: fx.Node, label: str, unclear: bool) -> None:
        where = f"node {node.name!r}"
        if unclear:
            self.found.note(
                where, f"whether {label} uses the number of neurons depends on the shape", PASS_EXAMPLE, REMOVAL
            )
            return
        self.found.note(where, f"{label} uses the number of neurons, which would change", KEEP_THE_NUMBER, REMOVAL)

    def finish(self) -> Found:
        for node in self.graph.nodes:
            self.visit(node)
        for touched in (*self.found.readers.values(), *self.found.norms.values()):
            if id(self.model.get_submodule(touched.name)) in self.called_elsewhere:
                self.found.note(
                    repr(touched.name), "it is also called on tensors without these neurons",
                    "Give each call a module of its own, or choose another layer.", READING,
                )  # fmt: skip
        self._note_other_uses()
        return self.found

    def _note_other_uses(self) -> None:
        """Note what reads tensors that removal would cut, other than the calls that the walk knows."""
        cut: dict[int, tuple[str, int]] = {}
        for module, names, dim in self._cut_tensors():
            for name in names:
                tensor = getattr(module, name, None)
                if isinstance(tensor, Tensor):
                    cut[id(tensor)] = (name, dim if dim < 0 else dim - tensor.ndim)
        for node, full_name in self.tensors.items():
            tensor = operator.attrgetter(full_name)(self.root)
            if id(tensor) not in cut:
                continue
            shape = ShapeOf(cut[id(tensor)][1], tensor.ndim)
            for user in node.users:
                owner = self.owned(user)
                if owner is not None and any(tensor is own for own in _own_tensors(owner)):
                    continue
                call = self._call(user)
                if call.rule == "shape":
                    self._note_uses_of_number(user, count_of(user, _plain(_function_name(user)), shape), full_name)
                    continue
                what = "what the model gives" if user.op == "output" else call.label
                self.found.note(
                    f"node {user.name!r}", f"{what} reads {full_name!r} itself, which would have fewer entries",
                    "Merge without removal (remove=False), or choose another layer.", REMOVAL,
                )  # fmt: skip

    def _note_uses_of_number(self, node: fx.Node, count: Count, full_name: str) -> None:
        if count == CLEAN:
            return
        for user in node.users:
            if user in self.counts:
                self._note_uses_of_number(user, derived_count(user, _function_name(user), {node: count}), full_name)
            elif not (self._call(user).rule == "reshape" and user.args[0] in self.flows):
                label = "what the model gives" if user.op == "output" else self._call(user).label
                self._note_size(user, f"{label}, by the shape of {full_name!r},", False)

    def _cut_tensors(self) -> Iterator[tuple[nn.Module, tuple[str, ...], int]]:
        yield self.layer, ("weight",), row_dim(self.layer)
        yield self.layer, ("bias",), 0
        for norm in self.found.norms.values():
            yield self.model.get_submodule(norm.name), NORM_TENSORS, norm.dim
        for reader in self.found.readers.values():
            yield self.model.get_submodule(reader.name), ("weight",), reader.dim

    def owned(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls, or whose parameters it uses as that module does."""
        if node.op in ("placeholder", "get_attr", "output"):
            return None
        call = self._call(node)
        return call.module if call.rule else None

    def _start(self, node: fx.Node, flows: list[Flow]) -> None:
        self.found.calls += 1
        if flows:
            self._stop(node, "the layer reads its own neurons")
        dims, shape = spatial_dims(self.layer), _shape_of(node)
        ndim, spatial = (None, dims) if shape is None else (len(shape), 0)
        self.flows[node] = Flow(-(dims + 1), torch.arange(neuron_count(self.layer)), ndim, spatial=spatial)

    # ---- what a node does --------------------------------------------------------------------------------------------

    def _call(self, node: fx.Node) -> Call:
        if node.op == "call_module":
            name = str(node.target)
            module = self.model.get_submodule(name)
            kind = type(module).__name__
            rule, size = _module_rule(module)
            return Call(rule, f"{name!r} ({kind})", module, name, size)
        name = _plain(_function_name(node))
        label = f"{name!r}"
        size = int(found[1]) if (found := re.search(r"(\d)d$", name)) else 0
        if name == "linear" or name.startswith("conv"):
            return self._owned(node, "dense", label, DENSE, size)
        if name in ("batch_norm", "instance_norm"):
            return self._owned(node, "channel_norm", label, CHANNEL_NORMS, size)
        if name in ("layer_norm", "rms_norm", "group_norm"):
            return self._owned(node, "mixing_norm", label, (*LAST_AXIS_NORMS, nn.GroupNorm), size)
        if name == "prelu":
            return self._owned(node, "prelu", label, (nn.PReLU,), size)
        return Call(_function_rule(name, node), label, size=size)

    def _owned(self, node: fx.Node, rule: str, label: str, kinds: tuple[type, ...], size: int) -> Call:
        """The module whose parameters a function is given, as they are."""
        data = _argument(node, 0, "input")
        given = [source for source in node.all_input_nodes if source is not data and source not in self.counts]
        if not given and rule == "channel_norm":
            return Call("per_neuron", label)
        if data in self.tensors or not isinstance(data, fx.Node):
            return Call("", label)
        bias = _argument(node, 2, "bias") if rule == "dense" else None
        computed = [source for source in given if source not in self.tensors]
        if computed and computed != [bias]:
            if any(source in self.flows for source in computed) and data not in self.flows:
                return Call("", f"{label}, as a weight")
            return Call("", f"{label} with {computed[0].name!r}, a tensor computed in the model's forward")
        names = [self.tensors[source] for source in given if source in self.tensors]
        owners = {name.rpartition(".")[0] for name in names}
        if len(owners) != 1:
            return Call("", label)
        owner = owners.pop()
        module = self.model.get_submodule(owner)
        if not isinstance(module, kinds):
            return Call("", f"{label} with {names[0]!r}, a parameter of {type(module).__name__}")
        unusual = [name for name in names if name.rpartition(".")[2] not in OWN_NAMES]
        if unusual:
            return Call("", f"{label} with {unusual[0]!r}")
        if rule == "dense":
            weight = _argument(node, 1, "weight")
            groups = _argument(node, 8 if "convolution" in _function_name(node) else 6, "groups")
            if self.tensors.get(weight, "").rpartition(".")[2] != "weight" or (computed and module is self.layer):
                return Call("", f"{label} with a weight or bias computed in the model's forward")
            if size and "transpose" not in _function_name(node) and (groups or 1) != getattr(module, "groups", 1):
                return Call("", f"{label} with groups={groups}, other than {owner!r} has")
        return Call(rule, f"{owner!r} ({type(module).__name__})", module, owner, size)

    # ---- what cannot be done -----------------------------------------------------------------------------------------

    def _stop(self, node: fx.Node, reason: str, advice: str = CHOOSE_ANOTHER) -> Flow | None:
        """The neurons cannot be followed beyond this node."""
        hidden = advice == PASS_EXAMPLE and self._norms_behind(node)
        self.found.note(f"node {node.name!r}", reason, advice, MERGING if hidden else READING)
        return None

    def _norms_behind(self, node: fx.Node) -> bool:
        """Whether a module with entries for single neurons may read them beyond this node."""
        seen, waiting = set(), [node]
        while waiting:
            each = waiting.pop()
            if each in seen or each.op == "output":
                continue
            seen.add(each)
            rule = self._call(each).rule if each.op not in ("placeholder", "get_attr") else ""
            if rule in ("channel_norm", "prelu", "mixing_norm"):
                return True
            if each is node or rule != "dense":
                waiting += each.users
        return False

    def _unclear(self, node: fx.Node, call: Call) -> Flow | None:
        return self._stop(node, f"what {call.label} does depends on the shape", PASS_EXAMPLE)

    # ---- rules -------------------------------------------------------------------------------------------------------

    def _read(self, node: fx.Node, call: Call, flow: Flow) -> Flow | None:
        module = call.module
        assert module is not None
        if node.op != "call_module" and _argument(node, 0, "input") not in self.flows:
            return self._stop(node, f"the neurons are used as a weight by {call.label}")
        dims = spatial_dims(module)
        if flow.axis != -(dims + 1):
            if dims == 0 and not flow.spread:
                return flow  # Linear along another axis treats every neuron alike
            return self._stop(node, f"{call.label} runs along an axis other than that of the neurons")
        groups = getattr(module, "groups", 1)
        if groups > 1 and groups == _inputs_of(module) == neuron_count(module):
            return self._with_entries(node, call, flow, groups, 0)  # depthwise: every neuron by itself
        if groups > 1:
            return self._stop(node, f"{call.label} has groups={groups}, so it does not add up all neurons")
        columns = flow.over(_inputs_of(module))
        if columns is None:
            return self._stop(
                node, f"{call.label} reads {_inputs_of(module)} inputs, which do not fit {len(flow.neurons)} neurons",
                PASS_EXAMPLE,
            )  # fmt: skip
        reader = Touched(call.name, type(module).__name__, 1 - row_dim(module), columns)
        before = self.found.readers.setdefault(call.name, reader)
        if not torch.equal(before.neurons, columns):
            self._stop(node, f"{call.label} is called on the neurons in two different orders")
        return None

    def _channel_norm(self, node: fx.Node, call: Call, flow: Flow) -> Flow | None:
        module = call.module
        assert module is not None
        if isinstance(module, BATCH_NORMS) and flow.axis == -(flow.spatial + 1):
            flow = flow.batched()
        if flow.ndim is not None and flow.axis != 1 - flow.ndim:
            return flow  # it normalises along another axis and treats every neuron alike
        return self._with_entries(node, call, flow, module.num_features, -1)  # type: ignore[arg-type]

    def _prelu(self, node: fx.Node, call: Call, flow: Flow) -> Flow | None:
        module = call.module
        assert isinstance(module, nn.PReLU)
        if module.num_parameters == 1:
            return flow
        return self._with_entries(node, call, flow, module.num_parameters, -1)

    def _mixing_norm(self, node: fx.Node, call: Call, flow: Flow) -> Flow | None:
        module = call.module
        assert module is not None
        if isinstance(module, nn.GroupNorm):
            what, length, dim = f"each of {module.num_groups} groups of neurons", module.num_channels, -1
        else:
            shape: Sequence[int] = module.normalized_shape  # type: ignore[assignment]
            if flow.axis < -len(shape):
                return flow  # normalises within each neuron
            what, length, dim = "all neurons", shape[flow.axis], flow.axis
        self.found.note(
            f"node {node.name!r}",
            f"{call.label} takes its statistics over {what}, which removing any of them would change",
            "Merge without removal (remove=False), or choose a layer whose neurons are read before this norm.", REMOVAL,
        )  # fmt: skip
        return self._with_entries(node, call, flow, length, dim)

    def _with_entries(self, node: fx.Node, call: Call, flow: Flow, length: int, dim: int) -> Flow | None:
        neurons = flow.over(length)
        if neurons is None:
            return self._stop(
                node, f"{call.label} has {length} entries, which do not fit {len(flow.neurons)} neurons", PASS_EXAMPLE
            )
        assert call.module is not None
        touched = Touched(call.name, type(call.module).__name__, dim, neurons)
        before = self.found.norms.setdefault(call.name, touched)
        if (before.dim, before.neurons.tolist()) != (dim, neurons.tolist()):
            return self._stop(node, f"{call.label} is called on the neurons in two different orders")
        computed = computed_tensors(call.module)
        if computed:
            self.found.note(
                repr(call.name), f"its {computed[0]} is computed from other tensors (pruning or a parametrisation)",
                MAKE_PERMANENT, REMOVAL,
            )  # fmt: skip
        return replace(flow, neurons=neurons, spread="")

    def _per_neuron(self, node: fx.Node, call: Call, flow: Flow) -> Flow | None:
        ndim = flow.ndim
        for source in () if _plain(_function_name(node)) in FIRST_INPUT_ONLY else node.all_input_nodes:
            if source in self.counts:
                continue
            other = self.flows.get(source)
            if other is not None:
                if not other.like(flow):
                    return self._stop(node, f"{call.label} combines different neurons of the layer")
                ndim = None if ndim is None or other.ndim is None else max(ndim, other.ndim)
                continue
            shape = self._shape(source)
            if ndim is not None and shape is not None:
                ndim = max(ndim, len(shape))
            if shape is not None and (len(shape) < -flow.axis or shape[flow.axis] == 1):
                continue  # the same for every neuron
            if source in self.tensors:
                self.found.note(
                    f"node {node.name!r}",
                    f"{self.tensors[source]!r} holds a number a neuron outside any layer that could be cut",
                    "Merge without removal (remove=False), or put the parameter into a module such as BatchNorm.",
                    REMOVAL,
                )  # fmt: skip
                continue
            other_name = str(source.target) if source.op == "call_module" else source.name
            return self._stop(node, f"{call.label} joins the neurons with {other_name!r}, which something else writes")
        return replace(flow, ndim=ndim)

    def _shape(self, node: fx.Node) -> tuple[int, ...] | None:
        if node in self.tensors:
            return tuple(operator.attrgetter(self.tensors[node])(self.root).shape)
        return _shape_of(node)

    def _pool(self, node: fx.Node, call: Call, flow: Flow) -> Flow | None:
        if flow.axis >= -call.size:
            return self._stop(node, f"{call.label} pools over the neurons")
        return flow

    def _flatten(self, node: fx.Node, call: Call, flow: Flow) -> Flow | None:
        start, end = self._option(node, call, 1, "start_dim", 0), self._option(node, call, 2, "end_dim", -1)
        after = _shape_of(node)
        if after is not None:
            return self._flatten_known(node, call, flow)
        first, last = flow.counted(start), flow.counted(end)
        if first is None and last == -1 and start == 1 and flow.axis == -1:
            return replace(flow, ndim=2, spread="interleaved")  # a Linear layer's (N, …, neurons)
        if first is None or last is None:
            return self._unclear(node, call)
        if not first <= flow.axis <= last:
            shift = last - first if flow.axis < first else 0
            return replace(flow, axis=flow.axis + shift, ndim=None if flow.ndim is None else flow.ndim - (last - first))
        if flow.axis != first or flow.spread:
            return self._unclear(node, call)
        spread = "blocks" if last > first else ""
        return replace(flow, axis=last, ndim=None if flow.ndim is None else flow.ndim - (last - first), spread=spread)

    def _reshape(self, node: fx.Node, call: Call, flow: Flow) -> Flow | None:
        sizes = self._sequence(node, "shape")
        if _shape_of(node) is not None:
            flow_after = self._flatten_known(node, call, flow)
            if flow_after is not None and flow_after.axis >= -len(sizes):
                self._note_literal(node, call, sizes[flow_after.axis])
            return flow_after
        if len(sizes) == 2 and sizes[1] == -1 and self._is_batch_size(sizes[0]):
            if flow.axis == -1:
                return replace(flow, ndim=2, spread=flow.spread or "interleaved")
            if flow.counted(1) == flow.axis and not flow.spread:
                return replace(flow, axis=-1, ndim=2, spread="blocks")
        return self._unclear(node, call)

    def _is_batch_size(self, size: Any) -> bool:
        if not isinstance(size, fx.Node):
            return False
        if size.op == "call_method" and size.target == "size":
            return size.args[1:] == (0,)
        return _function_name(size) == "getitem" and bool(size.args[1] == 0)

    def _note_literal(self, node: fx.Node, call: Call, size: Any) -> None:
        if isinstance(size, int) and size > 0:
            self.found.note(
                f"node {node.name!r}", f"{call.label} has the size {size} written into it",
                "Write x.flatten(1), or -1 for that size, in the model's forward.", REMOVAL,
            )  # fmt: skip

    def _flatten_known(self, node: fx.Node, call: Call, flow: Flow) -> Flow | None:
        """Flatten, view or reshape between known shapes."""
        before, after = _shape_of(node.all_input_nodes[0]), _shape_of(node)
        assert before is not None
        assert after is not None
        length = before[flow.axis]
        neurons = flow.over(length)
        assert neurons is not None
        inner = _product(before[len(before) + flow.axis + 1 :])
        axis, right = -1, 1  # the axis of `after` whose entries span the old one, and the elements to its right
        while -axis < len(after) and right * after[axis] < inner * length:
            right *= after[axis]
            axis -= 1
        span = right * after[axis]
        if inner % right or span % (inner * length):
            return self._stop(node, f"{call.label} cuts the neurons apart")
        neurons = neurons.repeat_interleave(inner // right).repeat(span // (inner * length))
        return replace(flow, axis=axis, neurons=neurons, spread="")

    def _permute(self, node: fx.Node, call: Call, flow: Flow) -> Flow | None:
        order = self._sequence(node, "dims")
        places = [place % len(order) for place in order]
        return replace(flow, axis=places.index(flow.axis % len(order)) - len(order), ndim=len(order))

    def _transpose(self, node: fx.Node, call: Call, flow: Flow) -> Flow | None:
        one, other = (flow.counted(self._option(node, call, place, f"dim{place - 1}", None)) for place in (1, 2))
        if one is None or other is None:
            return self._unclear(node, call)
        return replace(flow, axis={one: other, other: one}.get(flow.axis, flow.axis))

    def _squeeze(self, node: fx.Node, call: Call, flow: Flow) -> Flow | None:
        before, dims = _shape_of(node.all_input_nodes[0]), self._option(node, call, 1, "dim", None)
        if dims is None and before is not None:
            dims = [place for place, length in enumerate(before) if length == 1]
        counted = None if before is None else self._counted(flow, dims)
        if counted is None:
            return self._unclear(node, call)
        assert before is not None
        return self._without(node, call, flow, [dim for dim in counted if before[dim] == 1])

    def _unsqueeze(self, node: fx.Node, call: Call, flow: Flow) -> Flow | None:
        dim = self._option(node, call, 1, "dim", None)
        if dim >= 0 and flow.ndim is None:
            return self._unclear(node, call)
        place = dim if dim < 0 else dim - (flow.ndim or 0) - 1
        ndim = None if flow.ndim is None else flow.ndim + 1
        return replace(flow, axis=flow.axis if flow.axis > place else flow.axis - 1, ndim=ndim)

    def _reduce(self, node: fx.Node, call: Call, flow: Flow) -> Flow | None:
        dims = self._option(node, call, 1, "dim", None)
        if dims in (None, (), []):
            return self._stop(node, f"{call.label} mixes all neurons")
        counted = self._counted(flow, dims)
        if counted is None:
            return self._unclear(node, call)
        if flow.axis in counted:
            return self._stop(node, f"{call.label} mixes all neurons")
        keep = self._option(node, call, 2, "keepdim", False)
        return flow if keep else self._without(node, call, flow, counted)

    def _without(self, node: fx.Node, call: Call, flow: Flow, dims: list[int]) -> Flow | None:
        if flow.axis in dims:
            return self._stop(node, f"{call.label} takes the axis of the neurons away")
        ndim = None if flow.ndim is None else flow.ndim - len(dims)
        return replace(flow, axis=flow.axis + sum(dim > flow.axis for dim in dims), ndim=ndim)

    def _softmax(self, node: fx.Node, call: Call, flow: Flow) -> Flow | None:
        dim = self._option(node, call, 1, "dim", None)
        counted = None if dim is None else flow.counted(dim)
        if counted is None:
            return self._unclear(node, call)
        if counted == flow.axis:
            return self._stop(node, f"{call.label} mixes all neurons")
        return flow

    def _getitem(self, node: fx.Node, call: Call, flow: Flow) -> Flow | None:
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        if flow.ndim is None:
            return self._unclear(node, call)
        if not all(type(part) in (int, slice) for part in index):
            return self._stop(node, f"what {call.label} takes cannot be followed")
        parts = dict(zip(range(-flow.ndim, 0), index, strict=False))
        if parts.get(flow.axis, slice(None)) != slice(None):
            return self._stop(node, f"{call.label} takes some neurons")
        return self._without(node, call, flow, [place for place, part in parts.items() if isinstance(part, int)])

    def _select(self, node: fx.Node, call: Call, flow: Flow) -> Flow | None:
        dims = self._counted(flow, node.args[1])
        if dims is None or flow.axis in dims:
            return self._stop(node, f"{call.label} takes some neurons")
        return self._without(node, call, flow, dims)

    def _slice(self, node: fx.Node, call: Call, flow: Flow) -> Flow | None:
        dims = self._counted(flow, self._option(node, call, 1, "dim", 0))
        length = len(flow.neurons)
        start, end = self._option(node, call, 2, "start", None), self._option(node, call, 3, "end", None)
        whole = start in (None, 0) and (end is None or end >= length) and len(node.args) < 5
        if dims is None or (flow.axis in dims and not whole):
            return self._stop(node, f"{call.label} takes some neurons")
        return flow

    def _cat(self, node: fx.Node, call: Call, flow: Flow) -> Flow | None:
        parts: Sequence[fx.Node] = self._option(node, call, 0, "tensors", ())
        dim = self._option(node, call, 1, "dim", 0)
        place = flow.counted(dim)
        if place is None:
            return self._unclear(node, call)
        if place != flow.axis:
            return self._per_neuron(node, call, flow)
        pieces = []
        for part in parts:
            own = self.flows.get(part)
            if own is not None and (own.axis != flow.axis or own.spread):
                return self._unclear(node, call)
            shape = self._shape(part)
            length = len(own.neurons) if own is not None else (shape[flow.axis] if shape else self._width(part, flow))
            if length is None:
                return self._stop(node, f"{call.label} puts neurons of unknown number before others", PASS_EXAMPLE)
            pieces.append(own.neurons if own is not None else torch.full((length,), -1))
        return replace(flow, neurons=torch.cat(pieces))

    def _width(self, node: fx.Node, flow: Flow) -> int | None:
        """How many neurons the layer wrote that a tensor comes from, without shapes."""
        while node.op not in ("placeholder", "get_attr"):
            call = self._call(node)
            if call.rule == "dense":
                assert call.module is not None
                return neuron_count(call.module) if flow.axis == -(spatial_dims(call.module) + 1) else None
            if call.rule not in ("per_neuron", "channel_norm", "mixing_norm", "prelu", "pool"):
                return None
            if len(node.all_input_nodes) != 1 and node.op != "call_module":
                return None
            node = node.all_input_nodes[0]
        return None

    def _pad(self, node: fx.Node, call: Call, flow: Flow) -> Flow | None:
        widths: Any = self._option(node, call, 1, "pad" if call.module is None else "padding", ())
        if 2 * -flow.axis <= len(widths):
            return self._stop(node, f"{call.label} pads the axis of the neurons")
        return flow

    def _resize(self, node: fx.Node, call: Call, flow: Flow) -> Flow | None:
        if flow.ndim is None or flow.axis != 1 - flow.ndim:
            return self._stop(node, f"{call.label} runs along the axis of the neurons")
        return flow

    @staticmethod
    def _counted(flow: Flow, dims: Any) -> list[int] | None:
        listed = dims if isinstance(dims, (tuple, list)) else [dims]
        if flow.spatial + 1 in listed:  # a dimension that there is with a batch only
            flow = flow.batched()
        counted = [flow.counted(dim) for dim in listed]
        return None if None in counted else counted  # type: ignore[return-value]

    @staticmethod
    def _option(node: fx.Node, call: Call, place: int, name: str, default: Any) -> Any:
        """An argument of the function, or the attribute of the module, of that name."""
        if call.module is not None:
            return getattr(call.module, name)
        if len(node.args) > place:
            return node.args[place]
        return node.kwargs.get(name, node.kwargs.get("axis", default) if name == "dim" else default)

    @staticmethod
    def _sequence(node: fx.Node, name: str) -> Sequence[Any]:
        """Sizes or dimensions, which come as one sequence or one by one."""
        rest: Any = node.args[1:] or (node.kwargs.get(name, node.kwargs.get("size")),)
        return rest[0] if isinstance(rest[0], (tuple, list)) else rest


def _module_rule(module: nn.Module) -> tuple[str, int]:
    """The rule for a module of torch.nn, and how many dimensions it has; "" where there is none."""
    found = re.search(r"(\d)d$", type(module).__name__)
    size = int(found[1]) if found else 0
    if "Pool" in type(module).__name__ and size and not getattr(module, "return_indices", False):
        return "pool", size
    if re.search(r"Pad\dd$", type(module).__name__):
        return "pad", size
    dense = "dense" if "weight" in module._parameters else ""  # not where it is computed from other parameters
    kinds: list[tuple[tuple[type, ...], str]] = [
        (DENSE, dense), (CHANNEL_NORMS, "channel_norm"), ((*LAST_AXIS_NORMS, nn.GroupNorm), "mixing_norm"),
        ((nn.PReLU,), "prelu"), (PER_NEURON, "per_neuron"), (SOFTMAXES, "softmax"), ((nn.Flatten,), "flatten"),
        ((nn.Upsample,), "resize"),
    ]  # fmt: skip
    return next((rule for classes, rule in kinds if isinstance(module, classes)), ""), size


def _function_rule(name: str, node: fx.Node) -> str:
    """The rule for a function or method; "" where there is none."""
    if name in SHAPE_NAMES or (name == "getattr" and node.args[1] in SHAPE_ATTRIBUTES):
        return "shape"
    if re.search(r"_pool\dd$", name):
        return "pool"
    same = {
        "flatten": "flatten", "view": "reshape", "reshape": "reshape", "permute": "permute", "transpose": "transpose",
        "squeeze": "squeeze", "unsqueeze": "unsqueeze", "cat": "cat", "concat": "cat", "concatenate": "cat",
        "softmax": "softmax", "log_softmax": "softmax", "pad": "pad", "constant_pad_nd": "pad",
        "interpolate": "resize", "getitem": "getitem", "select": "select", "slice": "slice",
    }  # fmt: skip
    if name in PER_NEURON_NAMES:
        return "per_neuron"
    return "reduce" if name in REDUCTIONS else same.get(name, "")


def _product(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total
