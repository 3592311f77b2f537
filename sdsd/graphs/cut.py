"""What can be cut: entries of parameters that go together while a model runs, one operation after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .atoms import CHOOSE_ANOTHER, GIVEN, IS_OUTPUT, READING, REAL, REMOVAL, ROWS, Atoms, Ids, Obstacle
from .counts import Count, Origin
from .operations import MOVES, Step, adding_to, tensors
from .others import Decisions
from .pieces import Piece, Pieces
from .values import FREE, MADE, Axis, Factor, Length, Normed, Read, Value, Written, weight_of
from .walk import TAKES_OUT, Walk

IN_TRAINING = ", in training"
KEEP_SIZE = (
    "Write x.flatten(1), or -1 for that size, or a size of a tensor or of self, in the model's forward, or merge "
    "without removal (remove=False)."
)
KEEP_THE_NUMBER = (
    "Store the number when the model is built (self.scale = …), so that it stays as it is, or merge without removal "
    "(remove=False)."
)
KEEP_IN_BUFFER = (
    "Keep them in a buffer with one for each (register_buffer), so that they go with their neurons, or merge by "
    "how='mean' without removal."
)
GIVE_LESS = (
    "Choose a layer before it, or, if you do not need that output, pass a module around the model that gives on the "
    "others alone."
)
WRITE_ONCE = "Write into it once, outside of the forward, and take the line out, or choose another layer."


Rule = Callable[["CutWalk", Step], None]
RULES: dict[str, Rule] = {}
"""The rule of each kind of operation that can be followed."""
KEEP_STATISTICS = {"clone", "_to_copy", "expand", "alias", "detach"}
"""Of operations that torch does not call pointwise, those that leave a mean over all neurons what it is."""
PRODUCTS = {"matrix product", "grouped product", "convolution"}
PASS_ON = {"same", *MOVES} - {"cat", "stack", "copy"}
"""Kinds of operations that give numbers on as they are."""
ONLY_SEEN = {"squeeze", "detach", "alias"}
"""Operations that give the same numbers, which is no use of them."""

rule = adding_to(RULES)
AxesRule = Callable[["CutWalk", Step, Tensor, list[Axis]], list[Axis]]


def rule_of_axes(*kinds: str, linear: bool = True) -> Callable[[AxesRule], AxesRule]:
    """As `rule`, where results are what the first tensor is: the rule gets that and its axes, and gives theirs."""

    def add(made: AxesRule) -> AxesRule:
        @rule(*kinds)
        def with_axes(walk: CutWalk, step: Step) -> None:
            given: Tensor = step.args[0]
            axes = made(walk, step, given, walk.axes(given))
            for out in tensors(step.out):
                walk.give(out, axes, walk.value(given), linear)

        return made

    return add


class CutWalk(Walk[Value]):
    """What one run says about the entries of parameters."""

    rules = RULES

    def __init__(self, atoms: Atoms, named: dict[int, Value], training: bool = False) -> None:
        super().__init__(named)
        self.atoms = atoms
        self.reads: list[Read] = []
        self.written: list[Written] = []
        self.pieces = Pieces(atoms)
        self.linked: list[tuple[Origin, Ids]] = []
        self.placed: list[tuple[Origin, Ids]] = []  # numbers that say where a piece begins or ends
        self.products: list[tuple[tuple[Origin, ...], Ids, str]] = []  # of numbers, that are sizes of pieces, and where
        self.numbers: list[tuple[Origin, Obstacle]] = []  # numbers that are used for what they are
        self.quotients: list[tuple[Origin | None, Origin]] = []  # of numbers, that were taken for sizes
        self.shares: list[tuple[Origin | None, Origin, Ids]] = []  # the same, that are the length of an axis
        self.lengths: list[Length] = []
        self.norms: dict[str, list[Normed | None]] = {}  # modules that take statistics, and their calls
        self.read_otherwise: set[str] = set()  # those whose outputs go elsewhere than into products with weights
        self.heard: Callable[[Ids, Tensor, int], None] | None = None
        self.training = training
        self.sizes_written_in = True
        self.decisions = Decisions()

    # ---- values ------------------------------------------------------------------------------------------------------

    def given(self, tensor: Tensor) -> Value:
        """A constant that the forward holds."""
        value = Value([None] * tensor.ndim, static=True, linear=True, label="a tensor that is no parameter")
        value.shape = tuple(tensor.shape)
        self.values[tensor] = value
        return value

    def give(self, tensor: Any, axes: Iterable[Axis], like: Value | None = None, linear: bool = True) -> None:
        """Note what a result is; static where `like` is, and linear where both are."""
        if not isinstance(tensor, Tensor) or id(tensor) in self.named:
            return
        made = Value(list(axes))
        if like is not None:
            made.static, made.parameters = like.static, like.parameters
            made.linear = like.linear and linear
            made.label = like.label if like.static and not like.parameters else ""
        assert len(made.axes) == tensor.ndim, (made.axes, tensor.shape)
        made.shape = tuple(tensor.shape)
        self.values[tensor] = made

    def give_alike(self, step: Step, axes: list[Axis], like: Value) -> None:
        """Results of the shape of the first argument have its axes, others none."""
        for out in tensors(step.out):
            same = out.shape == step.args[0].shape
            self.give(out, axes if same else [None] * out.ndim, like, linear=False)

    def together(self, parts: Iterable[Tensor]) -> Value:
        """What a tensor made of several is."""
        values = [self.value(part) for part in parts]
        names = frozenset[str]().union(*(value.parameters for value in values))
        made = Value([], all(v.static for v in values), all(v.linear for v in values), names)
        if made.static and not names:
            made.label = next((v.label for v in values if v.label), "")
        return made

    def followed(self, tensor: Tensor, dim: int) -> Ids | None:
        """The entries of an axis. A free one gets entries of its own, which views of it share."""
        value = self.value(tensor)
        axis = value.axes[dim]
        if axis is FREE:
            axis = value.axes[dim] = self.atoms.new(tensor.shape[dim])
            if value.written_in:
                self.note(axis, f"a tensor is made with the size {len(axis)} written into it", KEEP_SIZE, REMOVAL)
        return axis  # type: ignore[return-value]

    def axes(self, tensor: Tensor) -> list[Axis]:
        return [self.followed(tensor, dim) for dim in range(tensor.ndim)]

    # ---- what happens to entries -------------------------------------------------------------------------------------

    def where(self, name: str) -> str:
        inside = f"{name!r} in module {self.module!r}" if self.module else f"{name!r} in the model's own forward"
        return inside + IN_TRAINING if self.training else inside

    def note(self, ids: Axis, reason: str, advice: str = CHOOSE_ANOTHER, blocks: str = READING, name: str = "") -> None:
        if isinstance(ids, np.ndarray):
            self.atoms.note(ids, Obstacle(self.where(name or self.name), reason, advice, blocks))

    name, kind = "forward", ""

    def mixed(self, ids: Axis, reason: str, blocks: str = READING, advice: str = CHOOSE_ANOTHER) -> None:
        """Single entries cannot be taken out of this axis."""
        if isinstance(ids, np.ndarray) and not self.atoms.inside(ids):
            self.note(ids, reason, advice, blocks)

    def mixed_if_used(self, ids: Axis, reason: str, blocks: str) -> list[tuple[Ids, Obstacle]]:
        """As `mixed`, for the results that hold what is given back: noted when something is done with one of them."""
        if not isinstance(ids, np.ndarray) or self.atoms.inside(ids):
            return []
        return [(ids, Obstacle(self.where(self.name), reason, CHOOSE_ANOTHER, blocks))]

    def use(self, values: Any) -> None:
        """Something is done with these tensors."""
        for tensor in tensors(values):
            value = None if id(tensor) in self.named else self.values.get(tensor)
            while value is not None and value.if_used:
                self.atoms.note(*value.if_used.pop())

    def handed_out(self, values: Any, name: str) -> None:
        """Numbers go where no operation of torch is seen."""
        for tensor in tensors(values):
            for axis in self.axes(tensor):
                self.mixed(axis, f"{name!r} hands them to others than torch")

    def ended(self, outputs: list[Any]) -> None:
        self.use(tuple(self.values.keys()))  # tensors that somebody still holds are used
        self.lose_statistics(outputs)
        for each in outputs:
            if isinstance(each, Tensor):
                for axis in self.axes(each):
                    if isinstance(axis, np.ndarray):
                        where = "model, in training" if self.training else "model"
                        self.atoms.note(axis, Obstacle(where, IS_OUTPUT, GIVE_LESS, READING))
            elif isinstance(each, Count):
                self.used(each, "what the model gives")
        self.values = WeakIdKeyDictionary()

    def statistics(self, ids: Axis, reason: str, advice: str) -> None:
        """A norm takes its statistics over all entries of this axis."""
        if isinstance(ids, np.ndarray) and not self.atoms.inside(ids):
            self.atoms.note(ids, Obstacle(self.where(self.name), reason, advice, REMOVAL, self.module))
            self.norms.setdefault(self.module, [])

    def left(self, name: str, given: tuple[Any, ...], output: Any) -> None:
        """A module has run; of norms the call is noted, None where it did not take and give one tensor of a shape.

        Args:
            given: what it took; by name after what came by its place.
        """
        if name not in self.norms:
            return
        before = given[0] if given else None
        if isinstance(before, Tensor) and isinstance(output, Tensor) and before.shape == output.shape:
            others = [axis for each in tensors(given[1:]) for axis in self.value(each).axes]
            self.norms[name].append(Normed(list(self.value(before).axes), list(self.value(output).axes), others))
            self.value(output).norm = name
        else:
            self.norms[name].append(None)

    def join(self, one: Axis, other: Axis, who: str = "") -> Axis:
        """Both axes of the same entries; what the result has."""
        if one is FREE or other is FREE:
            return other if one is FREE else one
        if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
            self.atoms.unite(one, other)
            return one
        known = one if isinstance(one, np.ndarray) else other
        if isinstance(known, np.ndarray):
            self.atoms.mark(known, GIVEN)
        advice = KEEP_IN_BUFFER if who == MADE else CHOOSE_ANOTHER
        self.mixed(known, f"{self.name!r} joins the neurons with {who or 'what no layer writes'}", advice=advice)
        return known

    def join_indices(self, axes: Sequence[Axis], indices: Any, dim: int) -> None:
        """What looks entries up along `dim`, or writes them there, has one index for every entry of other axes."""
        if isinstance(indices, Tensor) and indices.ndim == len(axes):
            for k, (axis, own) in enumerate(zip(axes, self.value(indices).axes, strict=True)):
                if k != dim and isinstance(axis, np.ndarray) and isinstance(own, np.ndarray) and len(axis) == len(own):
                    self.atoms.unite(axis, own)

    def cut_apart(self, whole: Axis, part: Axis, reason: str) -> None:
        """Some entries are taken by their places; allowed where removal leaves the same share of them."""
        if not isinstance(whole, np.ndarray) or self.atoms.inside(whole):
            return
        if self.sizes_written_in or not isinstance(part, np.ndarray):
            self.note(whole, reason, KEEP_SIZE, REMOVAL)
            return
        self.pieces.parts.append(Piece(whole, part, Obstacle(self.where(self.name), reason, CHOOSE_ANOTHER, REMOVAL)))

    def written_into(self, parameter: Tensor) -> None:
        """The forward changes a parameter, so that cut or merged it would be changed in another way."""
        value = self.value(parameter)
        for axis in value.axes:
            self.note(axis, f"the forward writes into {value.label}", WRITE_ONCE, name="a write in place")

    def every(self, whole: Ids, stride: int, reason: str) -> None:
        """Every `stride`th entry is taken; allowed where those beside each other go together."""
        if not self.atoms.inside(whole):
            obstacle = Obstacle(self.where(self.name), reason, CHOOSE_ANOTHER, REMOVAL)
            self.pieces.blocks.append(Piece(whole, whole.reshape(-1, stride), obstacle))

    # ---- sizes as numbers --------------------------------------------------------------------------------------------

    def counts(self, value: Any) -> TypeGuard[Count]:
        """Whether it is a count of this recording; those of others are kept by models, as good as written into them."""
        return isinstance(value, Count) and value.owner.atoms is self.atoms

    def used(self, count: Count, how: str) -> None:
        """A size goes where it counts as a number."""
        for ids in count.ids:
            reason = f"{how} uses the number of neurons, which would change"
            self.mixed(ids, reason, REMOVAL, KEEP_THE_NUMBER)
        for module, name in count.origins if not count.ids else ():
            reason = (
                f"{how} uses {name!r} of module {module!r} as a number, and it is the number of these neurons as well"
            )
            self.numbers.append(((module, name), Obstacle(self.where(self.name), reason, KEEP_THE_NUMBER, REMOVAL)))

    def compared(self, _size: int = 0, _beyond: int = 0) -> None:
        """A size of the model was compared, which no input changes."""

    def equal(self, count: Count, other: Any) -> None:
        """Two sizes were compared, and the forward goes the way of equal ones, as it has to with fewer neurons."""
        where = self.where("==")
        if not self.counts(other):
            obstacle = Obstacle(where, f"a comparison says that there are {other} of them", KEEP_SIZE, REMOVAL)
            self.numbers += [(origin, obstacle) for origin in count.origins]
            for ids in count.ids:
                if not self.atoms.inside(ids):
                    self.atoms.note(ids, obstacle)
        elif other.exact:
            for one, another in ((count, other), (other, count)):
                self.linked += [(origin, ids) for ids in one.ids for origin in another.origins]
            if count.ids and other.ids:
                reason = "a comparison says that there are as many of them as of other neurons"
                self.pieces.same_size.append(
                    Piece(count.ids[0], other.ids[0], Obstacle(where, reason, KEEP_SIZE, REMOVAL))
                )

    # ---- one operation after the other -------------------------------------------------------------------------------

    def follow(self, step: Step) -> None:
        self.name, self.kind = step.name.strip("_"), step.row.kind
        if step.name not in ONLY_SEEN:
            self.use(step.given)
        if torch.Tag.pointwise not in step.func.tags and step.name not in KEEP_STATISTICS:
            self.lose_statistics(step.given)
        norm = self._given_on(step)
        super().follow(step)
        for each in tensors(step.out) if norm else ():
            self.value(each).norm = norm
        self.chance.step(step)
        if step.name in TAKES_OUT - {"nonzero"}:
            self.decisions.by_values |= not all(self.value(each).static for each in tensors(step.args))
        if step.name in ONLY_SEEN:
            self.value(step.out).if_used = self.value(step.args[0]).if_used

    def _given_on(self, step: Step) -> str:
        """The norm whose output this operation gives on; that of others that it takes is not read by weights alone."""
        first, *others = [*step.args, *step.kwargs.values()] or [None]
        norm = self.norm_of(first)
        scaled = step.row.kind == "product" and not any(True for _ in tensors(others))
        if norm and (step.row.kind in PASS_ON or scaled) and step.out is not first:
            first = None
        else:
            norm = ""
        if step.row.kind not in PRODUCTS:
            self.read_otherwise |= {self.norm_of(each) for each in tensors((first, *others))} - {""}
        return norm

    def norm_of(self, tensor: Any) -> str:
        """`Value.norm` of a tensor; "" of anything else."""
        value = self.values.get(tensor) if isinstance(tensor, Tensor) and id(tensor) not in self.named else None
        return "" if value is None else value.norm

    def lose_statistics(self, values: Any) -> None:
        """A number computed from all neurons goes where it does not come back to them."""
        for tensor in tensors(values):
            value = None if id(tensor) in self.named else self.values.get(tensor)
            if value is not None and value.statistic is not None:
                self.note(value.statistic, "'mean' mixes all neurons", name="mean")

    def unknown(self, step: Step) -> None:
        for tensor in step.given:
            in_place = len(self.value(tensor).axes) != tensor.ndim
            for axis in self.value(tensor).axes if in_place else self.axes(tensor):
                self.mixed(axis, f"there is no rule for {self.name!r}")
        static = all(self.value(each).static for each in step.given)
        names = frozenset[str]().union(*(self.value(each).parameters for each in step.given))
        for tensor in tensors(step.out):
            self.give(tensor, [None] * tensor.ndim, Value([], static and bool(step.given), False, names))
            self.value(tensor).label = f"what {self.name!r} gives, for which there is no rule"

    # ---- products ----------------------------------------------------------------------------------------------------

    def contract(self, one: Factor, other: Factor) -> None:
        """A product is summed over an axis of both tensors."""
        (a, a_dim, a_ids), (b, b_dim, b_ids) = one, other
        a_value, b_value = self.value(a), self.value(b)
        norm = a_value.norm or b_value.norm
        new = {norm} - {""} - self.read_otherwise
        self.read_otherwise |= new  # unless they are read below
        if self.heard is not None:
            for (value, ids), (tensor, dim) in (((b_value, b_ids), (a, a_dim)), ((a_value, a_ids), (b, b_dim))):
                if value.static and isinstance(ids, np.ndarray):
                    self.heard(ids, tensor, dim)
        if not isinstance(a_ids, np.ndarray) or not isinstance(b_ids, np.ndarray):
            known, by = (a_ids, b_value) if isinstance(a_ids, np.ndarray) else (b_ids, a_value)
            computed = f"a weight computed from {min(by.parameters)!r}" if by.static and by.parameters else ""
            self.mixed(known, f"{self.name!r} multiplies them by {by.label or computed or 'what no layer writes'}")
            return
        self.atoms.unite(a_ids, b_ids)
        static = [(value, ids) for value, ids in ((a_value, a_ids), (b_value, b_ids)) if value.static]
        weights = [(value, ids) for value, ids in static if value.parameters] if len(static) == 2 else static
        if len(weights) == 2:
            weights = [(value, ids) for value, ids in weights if value is self.weight_of(a, b)]
        if len(weights) == 1:
            weight, ids = weights[0]
            if not self.atoms.read(a_ids):
                self.reads.append(Read(ids, weight.parameters, weight.linear, self.where(self.name), norm))
                self.read_otherwise -= new
        elif not static:
            self.mixed(a_ids, f"{self.name!r} multiplies them by a tensor that the model computes")
        else:
            self.mixed(a_ids, "they are summed over inside a weight that is computed from others")

    def weight_of(self, one: Tensor, other: Tensor) -> Value | None:
        """Of two factors that are both computed from parameters, that which is a layer's weight; None: neither is."""
        own = self.named.values() if self.kind == "matrix product" else None
        return weight_of(self.value(one), self.value(other), own)

    def writes(self, weight: Tensor, ids: Axis) -> None:
        if (value := self.value(weight)).static and isinstance(ids, np.ndarray):
            self.written.append(Written(ids, value.parameters))
            self.atoms.mark(ids, ROWS)

    def most_real(self, axes: list[Axis]) -> Ids | None:
        """Of several axes that become one, that whose entries are units."""
        known = [axis for axis in axes if isinstance(axis, np.ndarray)]
        outer = [axis for axis in known if not self.atoms.has(axis, 2)] or known
        real = [axis for axis in outer if self.atoms.has(axis, REAL)] or outer
        return real[0] if len(real) == 1 else None
