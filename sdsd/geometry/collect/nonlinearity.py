"""What the readers of a layer get, found while the model runs: torch tells a mode of every function that is called.

The output of a layer is followed through functions that give each neuron's entry from the same entry: nonlinearities,
norms, arithmetic with other tensors, in place or not, and through poolings and changes of layout. Each step is added to
a path. Where something else reads the tensor (a Linear layer, a convolution, a product), the path so far is noted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from ...graphs import IN_PLACE_OPERATORS, PER_NEURON_NAMES

NONLINEARITIES = {
    "relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "tanh", "sigmoid",
    "hardswish", "hardsigmoid", "hardtanh", "softplus", "softsign", "softshrink", "hardshrink", "tanhshrink",
    "threshold", "logsigmoid", "log_sigmoid", "clamp", "clamp_min",
}  # fmt: skip
"""Functions of one neuron's value by name, without the underscore of those that work in place."""
AFFINE = {
    "add", "sub", "mul", "div", "neg", "lerp", "addcmul", "masked_fill", "batch_norm", "layer_norm", "group_norm",
    "instance_norm", "rms_norm",
}  # fmt: skip
"""What, by itself, makes no nonlinearity of what it reads."""
NORMS = {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"}
UNCHANGED = {
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout",
    "contiguous", "clone", "detach", "alias", "to", "to_copy", "type_as", "float", "double", "half", "bfloat16",
    "requires_grad", "data", "cpu", "cuda",
}  # fmt: skip
POOLINGS = {
    f"{kind}_pool{size}d"
    for kind in ("max", "avg", "lp", "adaptive_max", "adaptive_avg", "fractional_max")
    for size in (1, 2, 3)
}
RESHAPES = {"view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as"}
ELEMENTWISE = PER_NEURON_NAMES | NONLINEARITIES | {
    "fmax", "fmin", "clamp_max", "addcdiv", "xlogy", "nan_to_num", "isnan", "isfinite", "isinf", "logical_and",
    "logical_or", "bitwise_and", "bitwise_or", "bitwise_not", "ceil", "floor", "round", "trunc", "tan", "sinh", "cosh",
    "exp2", "log2", "log10", "erfc", "float_power", "remainder", "copysign", "hypot", "atan", "atan2", "setitem",
}  # fmt: skip
NO_VALUES = {
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "new_zeros", "new_ones",
    "new_empty", "new_full", "new_tensor", "expand_as",
}  # fmt: skip
SUMMARIES = {
    "mean",
    "sum",
    "amax",
    "amin",
    "max",
    "min",
    "any",
    "all",
    "std",
    "var",
    "norm",
    "vector_norm",
    "logsumexp",
}
"""What puts positions or neurons together: what it makes is not followed, and no reader as a layer is one."""
READERS = {
    "linear", "bilinear", "matmul", "mm", "bmm", "addmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "einsum", "inner",
    "tensordot", "scaled_dot_product_attention", "multi_head_attention_forward", "rnn_tanh", "rnn_relu", "lstm", "gru",
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution",
}  # fmt: skip
OTHER_NAMES = {
    "radd": "add", "rmul": "mul", "rsub": "sub", "rtruediv": "div", "rdiv": "div", "truediv": "div", "divide": "div",
    "true_divide": "div", "multiply": "mul", "subtract": "sub", "rpow": "pow", "rmatmul": "matmul", "negative": "neg",
    "absolute": "abs", "clip": "clamp", "greater": "gt", "and": "logical_and", "or": "logical_or",
    "invert": "bitwise_not",
}  # fmt: skip


class Step(NamedTuple):
    """One function on a path."""

    name: str
    settings: str  # numbers it was given
    curved: bool


Path = tuple[Step, ...]


def is_curved(path: Path) -> bool:
    """Whether there is a nonlinearity on it."""
    return any(step.curved for step in path)


def path_name(path: Path) -> str:
    """From the first activation on: "relu", "sigmoid → mul"."""
    names = [step.name for step in path]
    first = next((place for place, name in enumerate(names) if name in NONLINEARITIES), None)
    if first is None:
        first = next((place for place, step in enumerate(path) if step.curved), 0)
    listed = names[first:]
    return " → ".join(listed if len(listed) <= 5 else [*listed[:2], "…", *listed[-2:]])


@dataclass(eq=False)
class Reading:
    """One call of a layer whose output is followed, and what was seen of it."""

    layer: str
    made: dict[Path, None] = field(default_factory=dict)
    used: set[Path] = field(default_factory=set)
    read: dict[Path, None] = field(default_factory=dict)
    elsewhere: dict[Path, str] = field(default_factory=dict)  # paths read by what is not followed, and by what
    taken: bool = False


class _Followed(NamedTuple):
    reading: Reading
    path: Path
    undo: tuple[tuple[str, tuple[int, ...]], ...]  # what brings the layout of the layer's output back, last first


def original_layout(value: Tensor, undo: tuple[tuple[str, tuple[int, ...]], ...]) -> Tensor:
    for what, numbers in reversed(undo):
        value = value.reshape(numbers) if what == "reshape" else value.permute(numbers)
    return value


class ReadersFollower(TorchFunctionMode):
    """Follows the outputs of layers. `made(reading, path, value)` is called for each step, value in its own layout."""

    def __init__(self, made: Callable[[Reading, Path, Callable[[], Tensor]], object] | None = None) -> None:
        super().__init__()
        self.made = made
        self.readings: list[Reading] = []
        self.followed: Any = WeakIdKeyDictionary()  # tensor → what it is of

    def hook(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def follow(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                reading = Reading(name)
                if self.made is None:
                    self.readings.append(reading)
                self._follow(output, [*self.followed.get(output, ()), _Followed(reading, (), ())])

        return follow

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        sources = [each for each in _tensors((*args, *named.values())) if each in self.followed]
        result = func(*args, **named)
        if sources:
            self._saw(func, sources, args, named, result)
        return result

    def _saw(self, func: Any, sources: list[Tensor], args: Any, named: Any, result: Any) -> None:
        name = _name(func)
        if name in NO_VALUES:
            return
        if name == "setitem" and args[0] in self.followed:
            self._changed_in_place(args[0], Step("setitem", "", True))
            return
        if not isinstance(result, Tensor):
            if any(isinstance(part, Tensor) for part in (result if isinstance(result, (tuple, list)) else ())):
                self._read_by(name, sources)
            return
        if name in NORMS or name in POOLINGS:
            sources = [source for source in sources if source is (args[0] if args else named.get("input"))]
        if name in UNCHANGED or name in POOLINGS:
            if result not in self.followed:
                self._follow(result, [each for source in sources for each in self.followed[source]], again=False)
        elif name in ELEMENTWISE or name in NORMS:
            self._elementwise(name, sources, args, named, result)
        elif name in RESHAPES or _permutation(name, args, named, result) is not None:
            order = _permutation(name, args, named, result)
            back = ("reshape", tuple(sources[0].shape)) if order is None else ("permute", _inverse(order))
            moved = [each._replace(undo=(*each.undo, back)) for each in self.followed[sources[0]]]
            self._follow(result, moved, again=False)
        else:
            self._read_by(name, sources)

    def _elementwise(self, name: str, sources: list[Tensor], args: Any, named: Any, result: Tensor) -> None:
        in_place = any(result is source for source in sources)
        others = [each for each in _tensors((*args, *named.values())) if not any(each is source for source in sources)]
        gate = any(each.numel() == result.numel() and not isinstance(each, nn.Parameter) for each in others)
        curved = name not in AFFINE or (name in ("mul", "div") and (gate or len(sources) > 1))
        numbers = [value for value in (*args, *named.values()) if isinstance(value, (int, float, str))]
        step = Step(name, " ".join(map(str, numbers)), curved)
        joined: dict[Reading, _Followed] = {}
        for source in sources:
            for each in self.followed[source]:
                if source.shape != result.shape:
                    each.reading.read[each.path] = None  # spread over a larger tensor: read as it is
                    continue
                before = joined.get(each.reading)
                joined[each.reading] = each if before is None else each._replace(path=_joined(before.path, each.path))
                each.reading.used.add(each.path)
        new = [each._replace(path=(*each.path, step)) for each in joined.values()]
        if in_place:
            self._changed_in_place(result, step)
        self._follow(result, new)

    def _changed_in_place(self, target: Tensor, step: Step) -> None:
        """Tensors that share memory with one that is written are other values now."""
        place = target.untyped_storage().data_ptr()
        for tensor, items in list(self.followed.items()):
            if tensor.untyped_storage().data_ptr() == place:
                for each in items:
                    each.reading.used.add(each.path)
                self._follow(tensor, [each._replace(path=(*each.path, step)) for each in items])

    def _read_by(self, name: str, sources: list[Tensor]) -> None:
        for source in sources:
            for each in self.followed[source]:
                if name in READERS:
                    each.reading.read[each.path] = None
                elif name not in SUMMARIES:
                    each.reading.elsewhere.setdefault(each.path, name)

    def _follow(self, tensor: Tensor, items: list[_Followed], again: bool = True) -> None:
        self.followed[tensor] = items
        for each in items if again else ():
            each.reading.made[each.path] = None
            if self.made is not None:
                self.made(each.reading, each.path, partial(original_layout, tensor, each.undo))


@dataclass(frozen=True)
class Choice:
    """What is taken of a layer: the value at the end of `path`, or its own output where that is None."""

    path: Path | None
    note: str = ""


def choose(layer: str, readings: list[Reading]) -> Choice:
    """What the readers of a layer get, if it is one value behind a nonlinearity."""
    read = list(dict.fromkeys(path for reading in readings for path in reading.read))
    elsewhere = {path: name for reading in readings for path, name in reading.elsewhere.items()}
    ends = [
        path for reading in readings for path in reading.made if path not in reading.used and path not in reading.read
    ]
    candidates = read or list(elsewhere) or list(dict.fromkeys(ends))
    own = f"the map of {layer!r} is of its own output"
    if not candidates:
        return Choice(None)
    shortest = min(candidates, key=len)
    others = [path for path in candidates if path[: len(shortest)] != shortest]
    if others:
        listed = sorted({_listed(path) for path in candidates}, key=len)
        more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
        return Choice(None, f"{own}, for its readers get it in several ways: {'; '.join(listed[:3])}{more}")
    if is_curved(shortest):
        return Choice(shortest)
    if read and shortest:
        return Choice(None, f"{own}, and its readers get that {_listed(shortest)}")
    if not read and elsewhere:
        behind = f" {_listed(shortest)}" if shortest else ""
        return Choice(
            None, f"{own}{behind and ', and its readers get that' + behind}, which {elsewhere[shortest]!r} reads; "
            "behind that it is not followed, and what readers get may differ",
        )  # fmt: skip
    return Choice(None)


def _listed(path: Path) -> str:
    names = [step.name for step in path]
    return f"after {' → '.join(names if len(names) <= 6 else [*names[:3], '…', *names[-2:]])}" if names else "as it is"


def _joined(one: Path, other: Path) -> Path:
    """The path of what reads two steps of the same layer: both, their common beginning once."""
    common = 0
    while common < min(len(one), len(other)) and one[common] == other[common]:
        common += 1
    return (*one, *other[common:])


def _name(func: Any) -> str:
    name = getattr(func, "__name__", "")
    if name == "__get__":
        name = getattr(getattr(func, "__self__", None), "__name__", "")
    name = name.strip("_")
    name = name[1:] if name in IN_PLACE_OPERATORS or name in ("ipow", "iand", "ior") else name
    return OTHER_NAMES.get(name, name)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _permutation(name: str, args: Any, named: Any, result: Any) -> tuple[int, ...] | None:
    """Where each dimension of the result comes from; None for what is no transpose, or one not known here."""
    ndim = result.ndim
    if name == "permute":
        order = named.get("dims", args[1:])
        order = order[0] if len(order) == 1 and isinstance(order[0], (tuple, list)) else order
        return tuple(dim % ndim for dim in order)
    if name in ("transpose", "swapaxes", "swapdims"):
        pair = [*args[1:], *named.values()]
    elif name in ("t", "T", "mT") and ndim >= 2 and (name == "mT" or ndim == 2):
        pair = [-2, -1]
    else:
        return None
    order = list(range(ndim))
    order[pair[0]], order[pair[1]] = order[pair[1]], order[pair[0]]
    return tuple(order)


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(torch.tensor(order).argsort().tolist())
